"""``paragone eval`` and ``paragone calibrate``, as typed."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from paragone.cli import main
from paragone.installing import pip_install
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.measures.calibration import negative_log_likelihood
from paragone_evaluation.report.words import interval, number, percent, points
from paragone_evaluation.scorers import ResponseQuestion
from paragone_models import load_model
from paragone_models.files.sources import builtin_folder
from tests.evaluation.conftest import pair, served, text, write
from tests.models import tiny


@pytest.fixture
def typed(monkeypatch, capsys):
    """Type a command and get its exit code, output and complaints."""

    def run(*words):
        line = ["paragone", *map(str, words)]
        monkeypatch.setattr("sys.argv", line)
        try:
            code = main(line[1:])
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def rewards_of(model, rows):
    """Return the two rewards of every row, in one go."""
    items = [ResponseQuestion(row["prompt"], None, row[side]) for row in rows for side in ("first", "second")]
    values = [rating.reward for rating in LocalScorer(model).rate(items)]
    return np.asarray(values).reshape(-1, 2)


@pytest.fixture(scope="session")
def learnable(tmp_path_factory, models):
    """A file whose labels follow the tiny Bradley-Terry model, with noise, in train and test; and the right scale."""
    draw = np.random.default_rng(0)
    rows = [pair(place) for place in range(160)]
    gaps = np.subtract(*rewards_of(models["bt"], rows).T)
    temperature = float(gaps.std() / 2)
    for place, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
        row["strength"] = 1 if draw.random() < 1 / (1 + math.exp(-gap / temperature)) else -1
        row["split"] = "test" if place % 4 == 0 else "train"
    return write(tmp_path_factory.mktemp("data") / "learnable.jsonl", rows)


def test_eval_prints_a_table_and_writes_its_files(tmp_path, pairs_file, folders, typed):
    code, out, _ = typed("eval", pairs_file, "--model", folders["bt"], "--output", tmp_path / "out", "--resamples", 50)
    assert code == 0
    for told in ("accuracy", "length-only baseline", "ECE (10 bins)", "question0_stance0", "left out", "report.html"):
        assert told in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"].startswith("paragone eval ")
    assert str(pairs_file) in results["command"]
    code, out, _ = typed(
        "eval", pairs_file, "--model", folders["bt"], "--output", tmp_path / "out", "--resamples", 50, "--json"
    )
    again = json.loads(out)
    assert (code, again["data"], again["model"]) == (0, results["data"], results["model"])
    assert str(tmp_path / "out" / "report.html") in again["files"]


def test_eval_asks_a_service_and_keeps_the_key_to_itself(tmp_path, pairs_file, url, typed):
    words = [
        "--url",
        url,
        "--model",
        "bt",
        "--api-key",
        "secret",
        "--against",
        f"{url}#gp",
        "--output",
        tmp_path / "out",
    ]
    code, out, _ = typed("eval", pairs_file, *words, "--resamples", 50)
    assert code == 0
    assert "bt minus gp, on the same 48 pairs" in out
    assert "From 6 questions no interval can tell a difference from noise" in out
    assert "secret" not in (tmp_path / "out" / "report.html").read_text()
    assert "secret" not in (tmp_path / "out" / "results.json").read_text()


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from paragone.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*words):
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_service_is_evaluated_and_calibrated_where_torch_is_not_installed(tmp_path, pairs_file, learnable, url):
    words = ["--url", url, "--model", "bt", "--resamples", 50]
    evaluated = without_torch("eval", pairs_file, *words, "--against", f"{url}#gp", "--output", tmp_path / "out")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "bt minus gp, on the same 48 pairs" in evaluated.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    calibrated = without_torch("calibrate", learnable, *words)
    assert calibrated.returncode == 0, calibrated.stderr
    assert "in the service's table of bt" in calibrated.stdout


def test_a_model_to_be_loaded_says_what_to_install_where_torch_is_not(tmp_path, pairs_file, folders):
    for command in ("eval", "calibrate"):
        ended = without_torch(command, pairs_file, "--model", folders["bt"], "--output", tmp_path / "out")
        assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
        assert f"needs torch: {pip_install('models')}, or ask a service with --url" in ended.stderr


def test_a_service_that_is_not_there_is_a_message_and_not_two_minutes_of_trying(tmp_path, pairs_file, typed):
    code, _, err = typed("eval", pairs_file, "--url", "http://127.0.0.1:9", "--output", tmp_path / "out")
    assert code == 1
    assert "Is a server running at this address?" in err


def test_eval_of_a_local_model_against_a_service(tmp_path, pairs_file, folders, url, typed):
    words = ["--model", folders["bt"], "--against", f"{url}#bt", "--output", tmp_path / "out", "--resamples", 50]
    code, _, _ = typed("eval", pairs_file, *words)
    assert code == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["comparison"]
    assert found["accuracy_difference"]["value"] == 0.0
    assert found["nll_difference"]["value"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --url of a service, or --model"),
        (["--url", "ftp://x"], "is not an http"),
        (["--model", "builtin:none"], "there is no built-in model"),
        (["--url", "http://x", "--bos", "once"], "--bos and --head are of a model loaded here"),
        (["--url", "http://x", "--head", "lm-head-row-0"], "--bos and --head are of a model loaded here"),
        (["--model", "x", "--bos", "twice"], "'twice' is not one of 'once', 'as-published'"),
        (["--model", "x", "--bad-rows", "maybe"], "refuse or leave-out"),
        (["--model", "x", "--bins", "0"], "bins is 0"),
        (["--model", "x", "--layout", "pear"], "layout is 'pear'"),
        (["--model", "x", "--split", "dev"], "split"),
    ],
)
def test_eval_refuses_what_cannot_be_in_words(pairs_file, typed, words, message):
    code, _, err = typed("eval", pairs_file, *words)
    assert code in (1, 2)
    assert message in " ".join(err.replace("│", " ").split())


def test_eval_reads_a_published_model_with_one_or_two_begin_tokens(tmp_path, pairs_file, folders, typed):
    folder = tiny.save_published(tmp_path / "gpm", text=True)
    found = {}
    for bos in ("once", "as-published"):
        words = ["--model", folder, "--bos", bos, "--against", folders["gp"], "--output", tmp_path / bos]
        code, _, err = typed("eval", pairs_file, *words, "--resamples", 10)
        assert code == 0, err
        found[bos] = json.loads((tmp_path / bos / "results.json").read_text())
        expected = load_model(folder, device="cpu", bos=bos)
        assert found[bos]["model"]["identity"] == expected.identity
        assert found[bos]["comparison"]["model"]["identity"] == load_model(folders["gp"], device="cpu").identity
    one, two = ((tmp_path / bos / "answers.jsonl").read_text().splitlines()[1:] for bos in found)
    assert len(one) == len(two)
    assert one != two


def test_eval_takes_a_reward_from_the_output_embedding_where_it_is_told_to(tmp_path, pairs_file, typed):
    tiny.save_output_row(tmp_path / "llm", text=True)
    words = ["--model", tmp_path / "llm", "--output", tmp_path / "out", "--resamples", 10]
    code, _, err = typed("eval", pairs_file, *words)
    assert (code, "load it with head='lm-head-row-0'" in " ".join(err.split())) == (2, True)
    code, _, err = typed("eval", pairs_file, *words, "--head", "lm-head-row-0")
    assert code == 0, err
    expected = load_model(tmp_path / "llm", device="cpu", head="lm-head-row-0")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["model"]["identity"] == expected.identity


def test_calibrate_stores_the_begin_token_rule_that_the_temperature_was_fitted_under(
    tmp_path, learnable, folders, typed
):
    words = ["--model", folders["bt"], "--output", tmp_path / "c", "--bos", "as-published", "--resamples", 10]
    code, _, err = typed("calibrate", learnable, *words)
    assert code == 0, err
    assert load_model(tmp_path / "c", device="cpu").spec.bos == "as-published"
    assert load_model(folders["bt"], device="cpu").spec.bos == "once"


def test_eval_takes_a_name_and_settings_with_a_model_as_serve_does(tmp_path, pairs_file, folders, typed):
    template = tmp_path / "bare.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
    plain, other = folders["bt"], f"judge={folders['bt']},chat_template={template},max_length=200,dtype=float32"
    words = ["--against", other, "--output", tmp_path / "out", "--resamples", 10]
    code, out, err = typed("eval", pairs_file, "--model", plain, *words)
    assert code == 0, err
    assert "judge" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # The same weights read another text.
    assert results["comparison"]["nll_difference"]["value"] != 0


@pytest.mark.parametrize("command", ["eval", "calibrate"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("temprature=2", "did you mean 'temperature'?"),
        ("max_length=long", "max_length is 'long'; it must be a number"),
        ("trust_remote_code=perhaps", "trust_remote_code is 'perhaps'; it must be true or false"),
        ("kind=oracle", "kind is 'oracle'"),
        ("dtype=float32,dtype=bfloat16", "dtype is given twice"),
    ],
)
def test_a_setting_of_a_model_that_cannot_be_used_is_named(pairs_file, folders, typed, command, settings, message):
    code, _, err = typed(command, pairs_file, "--model", f"{folders['bt']},{settings}")
    assert code != 0
    assert message in " ".join(err.split())


def test_calibrate_stores_how_texts_were_read_and_no_template_that_it_cannot_keep(tmp_path, learnable, folders, typed):
    source = f"{folders['bt']},special_tokens=parse,reasoning=strip,max_length=200"
    assert typed("calibrate", learnable, "--model", source, "--output", tmp_path / "out", "--resamples", 10)[0] == 0
    spec = json.loads((tmp_path / "out" / "paragone.json").read_text())
    assert (spec["special_tokens"], spec["reasoning"], spec["max_length"]) == ("parse", "strip", 200)
    code, _, err = typed("calibrate", learnable, "--model", f"{folders['bt']},chat_template=default")
    assert code != 0
    assert "chat_template would not be stored" in " ".join(err.split())


def test_calibrate_stores_the_temperature_in_a_copy_and_leaves_the_source_alone(tmp_path, learnable, folders, typed):
    target = tmp_path / "calibrated"
    code, out, _ = typed("calibrate", learnable, "--model", folders["bt"], "--output", target, "--resamples", 50)
    assert code == 0
    assert "stored in" in out
    model = load_model(target, device="cpu")
    assert model.spec.calibrated
    assert model.spec.temperature != 2.0
    record = json.loads((target / "calibration.json").read_text())
    assert record["temperature"]["value"] == model.spec.temperature
    assert record["pairs"] == 120
    assert record["after"]["nll"]["value"] <= record["before"]["nll"]["value"] + 0.05
    before = load_model(folders["bt"], device="cpu")
    assert not before.spec.calibrated
    assert before.identity == model.identity
    assert before.fingerprint != model.fingerprint


def test_calibrate_refuses_pairs_that_are_too_few_to_tell_and_stores_nothing(tmp_path, learnable, folders, typed):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(learnable.read_text().splitlines(keepends=True)[:16]))
    code, _, err = typed("calibrate", few, "--model", folders["bt"], "--output", tmp_path / "out")
    assert code == 2
    assert "that people judged and the model answered: a temperature fitted on fewer than 20 is chance" in err
    assert not (tmp_path / "out").exists()


def test_an_interval_without_an_upper_end_says_so():
    assert interval({"value": 1.0, "low": 0.5, "high": None}) == "0.500 – unbounded"
    assert interval({"value": 1.0, "low": None, "high": None}) == ""


def test_calibrate_of_a_head_whose_backbone_was_moved_says_how_to_serve_it(tmp_path, learnable, typed):
    head = shutil.copytree(builtin_folder("everyday-head"), tmp_path / "head")
    spec = json.loads((head / "paragone.json").read_text())
    spec["backbone"]["source"] = str(tmp_path / "gone")
    (head / "paragone.json").write_text(json.dumps(spec))
    place, target = "backbone=builtin:mini-bradley-terry", tmp_path / "calibrated"
    code, out, _ = typed("calibrate", learnable, "--model", f"{head},{place}", "--output", target, "--resamples", 10)
    assert code == 0
    assert out.split()[-1] == f"calibrated={target},{place}"
    assert load_model(target, device="cpu", backbone="builtin:mini-bradley-terry").spec.calibrated


def test_calibrate_finds_the_temperature_that_fits_best(tmp_path, learnable, folders, typed):
    target = tmp_path / "calibrated"
    typed("calibrate", learnable, "--model", folders["bt"], "--output", target, "--resamples", 50)
    model = load_model(target, device="cpu")
    rows = [row for row in map(json.loads, learnable.read_text().splitlines()) if row["split"] == "train"]
    gap = np.subtract(*rewards_of(model, rows).T)
    outcome = np.asarray([float(row["strength"] > 0) for row in rows])
    nll = [negative_log_likelihood(gap / (model.spec.temperature * k), outcome).mean() for k in (0.98, 1.0, 1.02)]
    assert nll[1] == min(nll)


def test_calibrate_changes_an_own_folder_in_place(tmp_path, learnable, folders, typed):
    folder = tmp_path / "model"
    shutil.copytree(folders["bt"], folder)
    code, _, _ = typed("calibrate", learnable, "--model", folder, "--resamples", 50)
    assert code == 0
    assert load_model(folder, device="cpu").spec.calibrated
    code, _, _ = typed("calibrate", learnable, "--model", folder, "--output", folder, "--resamples", 50)
    assert code == 0


def test_a_calibrated_model_says_so_when_it_is_served(tmp_path, learnable, folders, typed):
    from paragone import Client

    target = tmp_path / "calibrated"
    typed("calibrate", learnable, "--model", folders["bt"], "--output", target, "--resamples", 50)
    with served({"calibrated": load_model(target, device="cpu")}) as url, Client(url) as client:
        answer = client.preferences([("P?", "kids", "teams")])
        assert answer.calibrated
        assert client.model("calibrated").temperature == load_model(target, device="cpu").spec.temperature


def test_the_temperature_of_a_service_is_that_of_the_model_that_it_hosts(tmp_path, learnable, folders, url, typed):
    typed("calibrate", learnable, "--model", folders["bt"], "--output", tmp_path / "c", "--resamples", 50)
    expected = json.loads((tmp_path / "c" / "calibration.json").read_text())["temperature"]["value"]
    code, out, err = typed("calibrate", learnable, "--url", url, "--model", "bt", "--resamples", 50)
    assert code == 0, err
    shown = float(out.split("temperature = ")[1].split()[0])
    assert shown == pytest.approx(expected, rel=1e-4)
    code, _, err = typed("calibrate", learnable, "--url", url, "--output", tmp_path / "d")
    assert (code, "what a service hosts is not ours to copy" in " ".join(err.replace("│", " ").split())) == (2, True)


def test_calibrate_never_uses_test_rows_unless_forced(tmp_path, learnable, folders, typed):
    words = ["--model", folders["bt"], "--output", tmp_path / "c", "--resamples", 50, "--split", "test"]
    code, _, err = typed("calibrate", learnable, *words)
    assert (code, "spoils the test" in err) == (2, True)
    code, _, err = typed("calibrate", learnable, *words, "--force")
    assert code == 0, err
    assert json.loads((tmp_path / "c" / "calibration.json").read_text())["pairs"] == 40


def test_calibrate_refuses_folders_that_it_must_not_write(tmp_path, learnable, folders, typed):
    code, _, err = typed("calibrate", learnable, "--model", "builtin:mini-bradley-terry")
    assert (code, "give --output FOLDER" in err) == (2, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    code, _, err = typed(
        "calibrate", learnable, "--model", folders["bt"], "--output", tmp_path / "full", "--resamples", 50
    )
    assert (code, "is not empty" in err) == (2, True)


def test_calibrate_of_a_built_in_model_writes_a_folder_of_its_own(tmp_path, typed):
    rows = [pair(number) for number in range(40)]
    for row in rows:
        row["strength"] = 1 if len(row["first"]) > len(row["second"]) else -1
    rows[0]["strength"], rows[1]["strength"] = -rows[0]["strength"], -rows[1]["strength"]
    file, target = write(tmp_path / "f.jsonl", rows), tmp_path / "own"
    words = ["--model", "builtin:mini-general-preference", "--output", target, "--resamples", 50]
    code, _, err = typed("calibrate", file, *words)
    assert code == 0, err
    ours, built_in = load_model(target, device="cpu"), load_model("builtin:mini-general-preference", device="cpu")
    assert ours.spec.calibrated
    one, two = (model.score("Water?", ["a", "b"]).representations.numpy() for model in (ours, built_in))
    assert one == pytest.approx(two)


def test_a_model_without_a_best_temperature_is_not_changed(tmp_path, folders, models, typed):
    rows = [pair(number) for number in range(24)]
    for row, (one, two) in zip(rows, rewards_of(models["bt"], rows), strict=True):
        row["strength"] = 2 if one < two else -2
    file = write(tmp_path / "f.jsonl", rows)
    code, _, err = typed("calibrate", file, "--model", folders["bt"], "--output", tmp_path / "c", "--resamples", 50)
    assert (code, "infinite" in err, (tmp_path / "c").exists()) == (2, True, False)


def test_numbers_are_told_to_people_as_people_write_them():
    assert (percent(None), percent(0.5), points(-0.012), number(-0.0001)) == ("–", "50.0 %", "−1.2", "0.000")
    ends = {"value": 0.5, "low": -0.1, "high": 0.25}
    assert interval(ends, scale="points") == "−10.0 … +25.0"
    assert interval({"value": 0.5, "low": 0.1, "high": 0.25}, scale="percent") == "10.0 – 25.0"
    assert interval(None) == interval({"value": 1.0, "low": None, "high": None}) == ""


def test_a_model_that_only_rates_is_evaluated_on_ratings_and_not_calibrated(tmp_path, folders, typed):
    rows = [
        {"id": f"r{n}", "prompt": f"P{n // 3}?", "response": text(n), "ratings": {"helpful": n % 4}} for n in range(24)
    ]
    file = write(tmp_path / "ratings.jsonl", rows)
    words = ["--model", folders["unweighted"], "--output", tmp_path / "out", "--resamples", 50]
    code, out, _ = typed("eval", file, *words)
    assert code == 0
    for told in ("RMSE", "R²", "Spearman", "helpful", "only its ratings are measured"):
        assert told in out
    assert "accuracy" not in out
    code, _, error = typed("calibrate", file, "--model", folders["unweighted"])
    assert code != 0
    assert "put weights into its paragone.json" in error
