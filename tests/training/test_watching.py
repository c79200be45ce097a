"""``paragone watch``: how far a run is, by the files that it writes. The run of a policy is watched in ``policy/``."""

import json
import shutil
import threading
import time
from importlib.metadata import EntryPoint

import pytest

from paragone import Client, cli
from paragone_evaluation.annotation.files import RunFiles
from paragone_training import watch_command
from paragone_training.errors import RunError
from paragone_training.progress_file import PROGRESS_FILE
from paragone_training.run_sender import run_name
from paragone_training.run_series import series_of, thinned
from paragone_training.watching import progress_of
from tests.evaluation.conftest import served
from tests.training.arguments import small_run, write

COMMAND = EntryPoint("watch", "paragone_training.watch_command:watch", "paragone.commands")
ANNOTATED = {"answers": "rewards", "model": "judge", "layout": "auto", "map": {}}


def watch(*words):
    try:
        return cli.main(["watch", *map(str, words)], commands=[COMMAND])
    except SystemExit as end:
        return end.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps."""
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(trained, tmp_path):
    """The same run before it saved its model."""
    folder = tmp_path / "judge"
    shutil.copytree(trained, folder)
    (folder / "paragone.json").unlink()
    return folder


def test_a_model_that_is_saved_is_done(trained):
    progress = progress_of(trained)
    assert (progress.kind, progress.state, progress.unit) == ("model", "done", "steps")
    assert progress.done == progress.total > 1
    assert progress.numbers["loss"] > 0
    steps, losses = zip(*progress.series["loss"], strict=True)
    assert (steps[0], steps[-1]) == (1, progress.total)
    assert losses[-1] == progress.numbers["loss"]
    assert list(progress.series)[-1] == "learning rate"
    assert not any(name.startswith("train_") for name in (*progress.numbers, *progress.series))
    said = (trained / "checkpoints" / PROGRESS_FILE).read_text()
    assert "samples_per_second" not in said  # transformers counts batches


def test_a_series_has_what_was_done_last_and_no_point_without_a_number():
    rows = [(1, {"loss": 9.0}), (2, {"loss": 8.0}), (3, {"loss": 7.0}), (2, {"loss": 5.0}), (3, {"loss": float("nan")})]
    assert series_of(rows) == {"loss": [(1, 9.0), (2, 5.0)]}
    points = [(float(step), step / 2) for step in range(1001)]
    few = thinned(points)
    assert (len(few), few[0], few[-1]) == (300, points[0], points[-1])
    assert [x for x, _ in few] == sorted({x for x, _ in few})


def test_a_model_in_training_says_its_step_its_rate_and_what_is_left(run):
    file = run / "checkpoints" / PROGRESS_FILE
    rows = [{"time": 100.0 + 2 * step, "step": step, "steps": 40, "loss": 1 / step} for step in (1, 2, 3, 4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"time": 1')  # the last is being written
    progress = progress_of(run)
    assert (progress.state, progress.stage) == ("running", "step 4 of 40")
    assert (progress.rate, progress.left_s) == (0.5, 72.0)
    assert progress.numbers == {"loss": 0.25}
    assert progress.lines[-1].endswith("step 4 of 40: loss 0.25")


def test_the_rate_of_a_resumed_run_is_that_of_its_last_attempt(run):
    rows = [(0, 10), (10, 20), (5_000, 11), (5_010, 13)]
    lines = [json.dumps({"time": moment, "step": step, "steps": 40}) for moment, step in rows]
    (run / "checkpoints" / PROGRESS_FILE).write_text("\n".join(lines) + "\n")
    assert progress_of(run).rate == 0.2


def test_a_run_that_writes_nothing_for_long_is_silent(run):
    assert progress_of(run, now=time.time() + 3600).state == "silent"
    (run / "checkpoints" / PROGRESS_FILE).unlink()
    assert progress_of(run).stage == "before the first step"


def test_annotating_counts_rows_and_failures_until_it_is_done(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "p", "responses": ["a", "b"]}] * 10)
    output = tmp_path / "out.jsonl"
    with RunFiles(output, {**ANNOTATED, "sources": [str(source)]}, {}) as files:
        files.add([b'{"row": 0}\n', b'{"row": 1}\n'], [{"row": 2, "message": "too long"}], 1)
        progress = progress_of(output)
        assert (progress.kind, progress.state, progress.stage) == ("annotate", "running", "rewards of judge")
        assert (progress.done, progress.total) == (2, 10)
        assert progress.numbers == {"rows": 2, "failures": 1}
        assert progress_of(output.with_name("out.jsonl.partial")) == progress
        files.finish()
    assert (progress_of(output).state, progress_of(output).done) == ("done", 3)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(RunError, match="holds no run"):
        progress_of(tmp_path)
    for words in (("--once",), ("--wait-s", "0")):
        assert watch(tmp_path, *words) == 1
        assert "holds no run" in capsys.readouterr().err


def test_watching_may_begin_before_the_run(tmp_path, trained, capsys):
    run = tmp_path / "later"
    beginning = threading.Timer(0.4, lambda: shutil.copytree(trained, run))
    beginning.start()
    assert watch(run, "--every-s", "0.1") == 0
    beginning.join()
    printed = capsys.readouterr()
    assert printed.err.count("waiting for") == 1
    assert "saved in" in printed.out


def test_json_is_one_object_and_once_is_for_people(trained, capsys):
    assert watch(trained, "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert watch(trained, "--once") == 0
    shown = capsys.readouterr().out
    assert any(set(line.strip()) == {"━"} for line in shown.splitlines())  # a line of its own
    assert "done" in shown
    assert "loss" in shown


def test_watching_ends_with_the_run(run, trained, capsys):
    ending = threading.Timer(0.3, lambda: shutil.copy(trained / "paragone.json", run / "paragone.json"))
    ending.start()
    assert watch(run, "--every-s", "0.1") == 0
    ending.join()
    assert "saved in" in capsys.readouterr().out


@pytest.fixture(scope="module")
def service():
    """The address of a real service, and a client of it."""
    with served({}) as url, Client(url, retry_s=0) as client:
        yield url, client


def test_a_share_of_one_does_not_look_like_a_count(tmp_path, capsys):
    lines = [{"stage": "saved", "ends": True, "numbers": {"agreement": 1.0}}]
    (tmp_path / PROGRESS_FILE).write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
    (tmp_path / "paragone.json").write_text("{}")
    assert watch(tmp_path, "--once") == 0
    assert "agreement  1.000" in capsys.readouterr().out


def test_a_service_is_told_of_a_run_until_it_ends(run, trained, service):
    url, client = service
    ending = threading.Timer(0.5, lambda: shutil.copy(trained / "paragone.json", run / "paragone.json"))
    ending.start()
    assert watch(run, "--every-s", "0.1", "--url", url, "--name", "mine") == 0
    ending.join()
    shown = client.run("mine")
    assert (shown.kind, shown.state, shown.done) == ("model", "done", progress_of(trained).total)
    assert shown.series == {name: [list(point) for point in points] for name, points in progress_of(run).series.items()}
    assert shown.lines[-1].startswith(time.strftime("%H:"))


def test_once_tells_too_and_says_what_went_wrong(trained, service, capsys):
    url, client = service
    assert watch(trained, "--once", "--url", url) == 0
    assert client.run("judge").state == "done"
    assert watch(trained, "--once", "--url", url, "--name", "a/b") == 2
    assert "name" in capsys.readouterr().err
    assert watch(trained, "--json", "--url", "http://127.0.0.1:9") == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_watching_goes_on_without_the_service_and_says_so(run, trained, capsys):
    ending = threading.Timer(0.5, lambda: shutil.copy(trained / "paragone.json", run / "paragone.json"))
    ending.start()
    assert watch(run, "--every-s", "0.1", "--url", "http://127.0.0.1:9") == 0
    ending.join()
    shown = capsys.readouterr().out
    assert "saved in" in shown
    assert shown.count("the page is not told, and this goes on") == 1


def test_a_url_or_a_name_that_cannot_be_used_is_refused_at_once(trained, capsys):
    for words in (("--url", "notaurl"), ("--url", "http://127.0.0.1:9", "--name", "a b")):
        for more in ((), ("--once",)):
            assert watch(trained, *words, *more) == 2
            assert words[-1] in capsys.readouterr().err


def test_numbers_that_are_none_are_null_in_json(run, capsys):
    row = {"time": 1.0, "step": 2, "steps": 10, "loss": float("nan"), "grad_norm": float("inf")}
    (run / "checkpoints" / PROGRESS_FILE).write_text(json.dumps(row) + "\n5\nnull\n")
    assert watch(run, "--json") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["numbers"] == {"loss": None, "gradient norm": None}


def test_a_run_whose_folder_is_gone_is_no_longer_shown_as_running(run, service, monkeypatch, capsys):
    monkeypatch.setattr(watch_command, "_GONE_S", 0.3)
    url, client = service
    going = threading.Timer(0.5, lambda: shutil.rmtree(run))
    going.start()
    assert watch(run, "--every-s", "0.1", "--url", url, "--name", "gone") == 1
    going.join()
    assert "holds no run" in capsys.readouterr().err
    assert client.run("gone").state == "running"  # the last that was known


def test_a_run_is_named_after_its_folder(tmp_path):
    assert run_name(tmp_path / "out.jsonl.partial") == "out.jsonl"
    assert run_name(tmp_path / "größer als 3") == "gr-er-als-3"
    assert run_name(tmp_path / "..." / "...") == "run"
