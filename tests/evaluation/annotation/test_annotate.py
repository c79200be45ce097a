"""``paragone annotate`` against a real service: answers, order, failures, interruptions, pairs, refusals."""

import json
import math
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow.parquet
import pytest

from paragone import Client
from paragone.cli import main
from paragone.wire import Preference
from paragone_evaluation.annotation.kinds import KINDS
from paragone_evaluation.annotation.run import AnnotateSettings, annotate_files
from paragone_evaluation.errors import DataError, EvaluationError
from paragone_evaluation.readers import read_pairs
from tests.evaluation.conftest import pair, text, write
from tests.evaluation.runs import Checker

COMMAND = EntryPoint(
    name="annotate", value="paragone_evaluation.annotation.command:annotate", group="paragone.commands"
)
LONG = "much too long " * 60


def typed(*words):
    try:
        return main(["annotate", *map(str, words)], commands=[COMMAND])
    except SystemExit as ended:
        return ended.code


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def group(number, size=3, **fields):
    return {"prompt": f"Prompt {number}?", "responses": [text(number * 5 + at) for at in range(size)], **fields}


def test_rewards_are_those_of_the_service_in_the_order_of_the_rows(tmp_path, url):
    rows = [group(number, size=1 + number % 4, id=f"r{number}") for number in range(80)]
    out = tmp_path / "out.jsonl"
    assert typed(write(tmp_path / "in.jsonl", rows), out, "--url", url, "--model", "bt") == 0
    made = lines(out)
    assert [row["id"] for row in made] == [row["id"] for row in rows]
    assert [row["responses"] for row in made] == [row["responses"] for row in rows]
    with Client(url) as client:
        told = client.rewards([(row["prompt"], one) for row in rows for one in row["responses"]], model="bt").rewards
    assert [one for row in made for one in row["rewards"]] == [one.reward for one in told]
    assert not (tmp_path / "out.jsonl.partial").exists()
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()


def test_json_is_all_that_is_printed(tmp_path, url, capsys):
    rows = write(tmp_path / "in.jsonl", [group(1), group(2)])
    assert typed(rows, tmp_path / "out.jsonl", "--url", url, "--model", "bt", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["counts"] == {"rows": 2, "failed_rows": 0, "failures": 0}
    assert (made["output"], made["model"], made["answers"]) == (str(tmp_path / "out.jsonl"), "bt", "rewards")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "completion": [{"role": "assistant", "content": "Because."}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"prompt": "Why?", "first": "Because.", "second": "No."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "response": "Because.", "ratings": {"helpful": 3}},
        {"instruction": "Why?", "output": "Because."},
        {"prompt": "Why?", "responses": ["Because."]},
    ],
)
def test_every_layout_is_read_judged_or_not(tmp_path, url, row):
    out = tmp_path / "out.jsonl"
    assert typed(write(tmp_path / "in.jsonl", [row]), out, "--url", url, "--model", "bt") == 0
    (made,) = lines(out)
    with Client(url, model="bt") as client:
        (told,) = client.rewards([("Why?", "Because.")]).rewards
    assert made["rewards"][0] == told.reward
    assert made["prompt"] == "Why?"


def test_what_people_said_is_kept_and_read_again(tmp_path, url, pairs_file):
    out, page = tmp_path / "out.parquet", tmp_path / "page.html"
    assert typed(pairs_file, out, "--url", url, "--model", "gp", "--answers", "preferences", "--report", page) == 0
    table = pyarrow.parquet.read_table(out).to_pylist()
    before, after = read_pairs(pairs_file), read_pairs(out)
    signs = [[math.copysign(1, one.strength) if one.strength else 0 for one in pairs] for pairs in (before, after)]
    assert [(one.prompt, one.first, one.second) for one in before] == [(o.prompt, o.first, o.second) for o in after]
    assert signs[0] == signs[1]
    with Client(url, model="gp") as client:
        told = client.preferences([(one.prompt, one.first, one.second) for one in before]).preferences
    assert [row["logit"] for row in table] == [one.logit for one in told]
    # The page says how often the model agrees with them, beside the longer one.
    decided = [(one, row["logit"]) for one, row in zip(before, table, strict=True) if one.strength]
    right = sum((logit > 0) == (one.strength > 0) for one, logit in decided) / len(decided)
    text = page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert f"preferred, gp agrees with people on {100 * right:.1f} % of {len(decided)} decided pairs" in text


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("rewards", {"rewards": [1.0, -2.0, None]}),
        ("preferences", {"logit": 1.5, "probability": 0.8}),
        ("win-rates", {"win_rates": [0.7, 0.2, None]}),
        ("tables", {"matrix": [[0.5, 0.7, None], [0.3, 0.5, None], [None, None, None]]}),
    ],
)
def test_every_kind_says_which_of_two_leads(name, fields):
    kind = KINDS[name]
    assert kind.lead(fields, 0, 1) > 0 > kind.lead(fields, 1, 0)
    assert name == "preferences" or kind.lead(fields, 0, 2) is None
    assert all(value is None or isinstance(value, float) for value in kind.values(fields))


def test_parquet_without_its_package_is_said_before_a_row_is_asked_about(tmp_path, url, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert typed(write(tmp_path / "in.jsonl", [group(0)]), tmp_path / "out.parquet", "--url", url) == 1
    assert "pyarrow" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.parquet*"))


def test_win_rates_and_tables_are_the_tournaments(tmp_path, url):
    file = write(tmp_path / "in.jsonl", [group(number) for number in range(8)])
    for name in ("auto", "tables"):
        assert typed(file, tmp_path / f"{name}.jsonl", "--url", url, "--model", "gp", "--answers", name) == 0
    rates, tables = lines(tmp_path / "auto.jsonl"), lines(tmp_path / "tables.jsonl")
    with Client(url, model="gp") as client:
        told = client.tournaments([(group(n)["prompt"], group(n)["responses"]) for n in range(8)], return_=["matrix"])
    assert [row["win_rates"] for row in rates] == [one.win_rates for one in told.tournaments]
    assert [row["matrix"] for row in tables] == [one.matrix for one in told.tournaments]
    assert "matrix" not in rates[0]
    # A student learns the same probabilities from the file: of every two of three responses.
    taught = read_pairs(tmp_path / "tables.jsonl")
    expected = [6 * one.matrix[a][b] - 3 for one in told.tournaments for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [pair.strength for pair in taught] == pytest.approx(expected)
    # Asked about again, the file is read as rows that nobody judged.
    again = tmp_path / "again.jsonl"
    assert typed(tmp_path / "tables.jsonl", again, "--url", url, "--model", "bt", "--answers", "tables") == 0
    assert "comparisons" not in lines(again)[0]


def test_the_interval_of_a_judge_that_votes_is_kept():
    kind, answer = (
        KINDS["preferences"],
        {"probability": 0.75, "logit": 1.1, "first_reward": None, "second_reward": None},
    )
    assert kind.answer([Preference(**answer, interval=(0.4, 0.9))]).fields["interval"] == [0.4, 0.9]
    assert "interval" not in kind.answer([Preference(**answer)]).fields


def test_what_fails_is_in_a_file_beside_with_its_row_and_reason(tmp_path, url):
    rows = [
        group(0),
        {"prompt": "Why?", "responses": ["fine", LONG]},
        {"prompt": "Why?", "responses": [LONG]},
        {"prompt": 5, "responses": ["fine"]},
        {"prompt": "Why?", "responses": [[{"role": "assistant", "content": None, "tool_calls": ["no object"]}]]},
        group(1),
    ]
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "in.jsonl", rows)
    with file.open("a") as more:
        more.write("{no json\n")
    assert typed(file, out, "--url", url, "--model", "bt", "--report", tmp_path / "page.html") == 0
    assert [row["row"] for row in lines(out)] == [0, 1, 5]
    fine, refused = lines(out)[1]["rewards"]
    assert fine is not None
    assert refused is None
    failed = lines(tmp_path / "out.jsonl.failures.jsonl")
    assert [(row["row"], row["line"], row.get("response"), row["code"]) for row in failed] == [
        (1, 2, 1, "response_too_long"), (2, 3, 0, "response_too_long"), (3, 4, None, "unread"),
        (4, 5, None, "invalid_request"), (6, 7, None, "unread"),
    ]  # fmt: skip
    assert "items[" not in failed[0]["message"]
    checker, page = Checker(), (tmp_path / "page.html").read_text(encoding="utf-8")
    checker.feed(page)
    assert (checker.open, checker.fetched) == ([], [])
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Rows 3 with rewards of bt" in text
    assert "Half of 7 values are below" in text
    assert sum(map(int, re.findall(r"<title>[^<]* to [^<]*: (\d+)</title>", page))) == 7
    assert "2 response_too_long" in text
    assert "out.jsonl.failures.jsonl" in text


def test_a_response_that_cannot_be_scored_does_not_cost_its_group_the_table(tmp_path, url):
    row = group(0)
    file = write(
        tmp_path / "in.jsonl", [{**row, "responses": [*row["responses"], LONG]}, {**row, "responses": [LONG] * 2}]
    )
    out = tmp_path / "out.jsonl"
    assert typed(file, out, "--url", url, "--model", "gp", "--answers", "tables", "--pairs", "all") == 0
    (made,) = lines(out)
    with Client(url, model="gp") as client:
        told = client.tournament(row["prompt"], row["responses"])
    assert made["win_rates"] == [*told.win_rates, None]
    assert made["matrix"][3] == [None] * 4
    failed = lines(tmp_path / "out.jsonl.failures.jsonl")
    assert (failed[0]["row"], failed[0]["response"], failed[0]["code"]) == (0, 3, "response_too_long")
    assert {one["row"] for one in failed[1:]} == {1}
    assert len(lines(tmp_path / "out.pairs.jsonl")) == 3


def test_a_row_of_which_nothing_can_be_asked_says_what_to_ask_for(tmp_path, url):
    file = write(tmp_path / "in.jsonl", [group(0, size=1), group(1, size=2)])
    out = tmp_path / "out.jsonl"
    assert typed(file, out, "--url", url, "--model", "gp") == 0
    (failed,) = lines(tmp_path / "out.jsonl.failures.jsonl")
    assert "--answers rewards" in failed["message"]


KILLED = """
import os, signal, sys
from pathlib import Path
from paragone_evaluation.annotation.run import AnnotateSettings, annotate_files
source, out, url = sys.argv[1:]
def die(done, before, total):
    if done > before + 600:
        os.kill(os.getpid(), signal.SIGKILL)
annotate_files(AnnotateSettings(sources=[source], urls=[url], model="bt", apart=True), Path(out), progress=die)
"""


def annotated(file, out, url, **more):
    return annotate_files(AnnotateSettings(sources=[str(file)], urls=[url], model="bt", **more), out)


@pytest.fixture
def thousand(tmp_path):
    rows = [group(number % 40, size=1 + number % 3, id=f"r{number}") for number in range(1000)]
    rows[500:510] = [{"prompt": "Why?", "responses": [LONG]}] * 10
    rows[700] = {"prompt": ""}
    return write(tmp_path / "in.jsonl", rows)


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, url, thousand):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    annotated(thousand, whole, url)
    killed = subprocess.run([sys.executable, "-c", KILLED, thousand, out, url], check=False)
    assert killed.returncode == -9
    assert not out.exists()
    made = annotated(thousand, out, url, apart=True)
    assert out.read_bytes() == whole.read_bytes()
    ends = [path.with_name(f"{path.name}.failures.jsonl").read_bytes() for path in (whole, out)]
    assert ends[0] == ends[1]
    assert made.counts == {"rows": 989, "failed_rows": 11, "failures": 11}
    assert made.usage["forward_responses"] + made.usage["cached_responses"] < 1500
    assert annotated(thousand, out, url).already


def test_wherever_a_run_was_cut_its_end_is_the_same(tmp_path, url, thousand):
    out = tmp_path / "out.jsonl"

    settings = AnnotateSettings(sources=[str(thousand)], urls=[url], model="bt")

    def stop(*progress):
        if progress[0] > 600:
            raise KeyboardInterrupt

    def begin():
        with pytest.raises(KeyboardInterrupt):
            annotate_files(settings, out, progress=stop)

    annotated(thousand, tmp_path / "whole.jsonl", url)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    failures = (tmp_path / "whole.jsonl.failures.jsonl").read_bytes()
    begin()
    parts = tmp_path / "out.jsonl.partial"
    rows, failed = (parts / name for name in ("rows.jsonl", "failures.jsonl"))
    kept = rows.read_bytes()
    # Failures are on disk before the rows of their chunk, so only rows can be missing: in the middle of a line, between
    # two, before the first, and behind rows that failed.
    last_before_failures = kept.index(b'{"row":510,')
    for cut in (10, last_before_failures, last_before_failures + 1, len(kept)):
        out.unlink(missing_ok=True)
        (tmp_path / "out.jsonl.run.json").unlink()
        begin()
        rows.write_bytes(rows.read_bytes()[:cut])
        annotated(thousand, out, url)
        assert out.read_bytes() == whole, cut
        assert (tmp_path / "out.jsonl.failures.jsonl").read_bytes() == failures
    assert not failed.exists()


def test_what_stops_the_reading_process_is_raised_here(tmp_path, url):
    broken = tmp_path / "in.json"
    broken.write_text('[{"prompt": "Why?", "responses": ["a"]}, {')
    with pytest.raises(DataError, match="not JSON"):
        annotated(broken, tmp_path / "out.jsonl", url, apart=True)


def test_another_question_does_not_go_on_with_the_answers_of_the_first(tmp_path, url, thousand):
    out = tmp_path / "out.jsonl"
    annotated(thousand, out, url)
    with pytest.raises(
        EvaluationError, match='begun with --truncation "prompt", and this command has --truncation "er'
    ):
        annotated(thousand, out, url, truncation="error")
    with pytest.raises(EvaluationError, match='begun with no --split, and this command has --split "test"'):
        annotated(thousand, out, url, split="test")
    thousand.write_text(thousand.read_text() + "\n" + json.dumps(group(0)))
    with pytest.raises(EvaluationError, match="begun with files of the SHA-256 "):
        annotated(thousand, out, url)
    other = tmp_path / "other.jsonl"
    other.touch()
    with pytest.raises(EvaluationError, match="is there already"):
        annotated(thousand, other, url)


def test_a_file_of_which_nothing_is_answered_is_refused_with_its_reasons_and_leaves_nothing(tmp_path, url, capsys):
    file = write(tmp_path / "in.jsonl", [{"prompt": "Why?", "responses": [LONG]}, {"prompt": "Why?", "response": 5}])
    assert typed(file, tmp_path / "out.jsonl", "--url", url, "--model", "bt") == 2
    assert "no row has an answer" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("source", ["", "*.jsonl"])
def test_what_a_run_writes_is_no_input_of_it(tmp_path, url, source):
    write(tmp_path / "in.jsonl", [group(0), {"prompt": ""}])
    words = (tmp_path / source, tmp_path / "out.jsonl", "--url", url, "--model", "bt", "--pairs", "all")
    assert typed(*words) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert typed(*words) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(before) == 5
    with pytest.raises(DataError, match="another name"):
        annotated(tmp_path / "out.jsonl", tmp_path / "out.jsonl", url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", ["out.pairs.jsonl.new", "out.jsonl.partial/fresh"])
def test_a_full_disk_is_told_and_with_more_room_the_run_goes_on(tmp_path, url, name, capsys):
    file = write(tmp_path / "in.jsonl", [group(number) for number in range(3)])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    annotated(file, tmp_path / "whole.jsonl", url)
    # A run was begun, so that its folder is not made anew.
    record = json.loads((tmp_path / "whole.jsonl.run.json").read_text())
    (tmp_path / "out.jsonl.run.json").write_text(
        json.dumps({"settings": {**record["settings"], "pairs": ["all", 0.0, "trl"]}})
    )
    (tmp_path / name).symlink_to("/dev/full")
    words = (file, tmp_path / "out.jsonl", "--url", url, "--model", "bt", "--pairs", "all")
    assert typed(*words) == 2
    said = capsys.readouterr().err
    assert "cannot write" in said
    assert "the same command goes on" in said
    (tmp_path / name).unlink(missing_ok=True)
    assert typed(*words) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_that_got_no_answer_leaves_nothing_and_says_nothing_of_answers(tmp_path, url, capsys):
    broken = tmp_path / "in.json"
    broken.write_text('[{"prompt": "Why?", "responses": ["a"]}, {')
    assert typed(broken, tmp_path / "out.jsonl", "--url", url, "--model", "bt") == 2
    assert typed(broken, tmp_path / "out.jsonl", "--url", url, "--model", "nobody") == 1
    assert "is kept" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "gp", "--answers", "rewards"], "has no rewards"),
        (["--model", "unweighted", "--answers", "tables"], "ask for --answers rewards"),
        (["--model", "bt", "--answers", "votes"], "must be auto or one of rewards"),
        (["--model", "gp", "--answers", "win-rates", "--pairs", "all"], "--answers tables"),
        (["--model", "bt", "--pairs", "most"], "must be best-worst or all"),
        (["--model", "bt", "--margin", "1"], "--pairs best-worst"),
        (["--model", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_row(tmp_path, url, pairs_file, words, reason, capsys):
    assert typed(pairs_file, tmp_path / "out.jsonl", "--url", url, *words) in (1, 2)
    words = capsys.readouterr().err.replace("│", " ").split()
    assert reason in " ".join(words)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_columns_of_ones_own_need_no_judgement_beside_them(tmp_path, url):
    file = write(tmp_path / "in.jsonl", [{"q": "Why?", "a": "Because."}])
    out = tmp_path / "out.jsonl.gz"
    assert typed(file, out, "--url", url, "--model", "bt", "--map", "prompt=q,response=a") == 0
    assert out.stat().st_size > 0


def test_ratings_of_a_model_are_kept_by_name(tmp_path, url):
    out = tmp_path / "out.jsonl"
    assert typed(write(tmp_path / "in.jsonl", [group(0)]), out, "--url", url, "--model", "unweighted") == 0
    (row,) = lines(out)
    assert [set(each) for each in row["attributes"]] == [{"helpful", "verbose"}] * 3
    assert row["rewards"] == [None] * 3


def test_pairs_have_the_margin_that_was_asked_for(tmp_path, url):
    rows = [pair(number) for number in range(24)] + [group(number, size=4) for number in range(24, 30)]
    first, rest = write(tmp_path / "pairs.jsonl", rows[:24]), write(tmp_path / "groups.jsonl", rows[24:])
    out = tmp_path / "out.jsonl"
    words = ["--pairs", "all", "--margin", "0.05", "--pairs-format", "axolotl"]
    assert typed(first, rest, out, "--url", url, "--model", "bt", *words) == 0
    expected = []
    for row in lines(out):
        scored = list(zip(row["rewards"], row["responses"], strict=True))
        logits = [((a - b) / 2.0, one, other) for a, one in scored for b, other in scored]  # its temperature is 2
        expected += [(row["row"], one, other) for logit, one, other in logits if logit >= 0.05]
    made = [
        (row["row"], row["chosen"]["content"], row["rejected"]["content"])
        for row in lines(tmp_path / "out.pairs.jsonl")
    ]
    assert sorted(made) == sorted(expected)
    assert 0 < len(made) < 24 + 6 * 6
