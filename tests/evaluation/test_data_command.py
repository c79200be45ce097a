"""``paragone data``: every number of a small file, its output at 100 columns, conversion, and refusals."""

import json
import re
from importlib.metadata import EntryPoint

import pytest

from paragone.cli import main
from paragone_evaluation.readers import is_held_out, read_evaluation_set, read_pairs, read_ratings
from tests.evaluation.conftest import write
from tests.evaluation.readers.test_every_command import COMPARED, RATED, cases, compared, of_evaluation
from tests.evaluation.runs import Checker

COMMAND = EntryPoint(name="data", value="paragone_evaluation.data_command:data", group="paragone.commands")
P = "What is tea?"
ROWS = [
    {"prompt": P, "first": "a hot drink", "second": "tea", "strength": 2, "split": "train"},
    {"prompt": P, "first": "tea", "second": "a hot drink", "strength": -2, "split": "train"},  # again
    {"prompt": P, "first": "tea", "second": "a hot drink", "strength": 1, "split": "val"},  # the other way round
    {"prompt": P, "first": "tea", "second": "no idea", "strength": 0},
    {"prompt": [{"role": "user", "content": P}], "first": "tea", "second": "tea", "strength": 1},
    {"prompt": "And coffee?", "first": "a", "second": "b", "strength": 9},
    {"prompt": "And milk?", "first": "white", "second": "w", "strength": 3, "subset": "milk"},
]


def typed(*words):
    try:
        return main(["data", *map(str, words)], commands=[COMMAND])
    except SystemExit as ended:
        return ended.code


def counted(capsys, *words):
    assert typed(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_every_number_is_that_of_the_file(tmp_path, capsys):
    found = counted(capsys, write(tmp_path / "f.jsonl", ROWS))
    numbers = {name: found[name] for name in ("rows", "read", "prompts", "responses", "pairs", "decided", "ties")}
    assert numbers == {"rows": 7, "read": 5, "prompts": 2, "responses": 5, "pairs": 5, "decided": 4, "ties": 1}
    assert (found["duplicates"], found["contradictions"], found["identical"]) == (1, 1, 1)
    assert found["splits"] == {"train": 2, "validation": 1, "none": 2}
    assert found["strengths"] == {"0": 1, "1": 1, "2": 2, "3": 1}
    assert (found["first_preferred"], found["longer_preferred"], found["subsets"]) == (0.75, 0.75, 1)
    assert found["characters"]["response"] == {"least": 1, "median": 5, "most_of_95_percent": 11, "most": 11}
    assert [(left["rows"], left["lines"]) for left in found["left_out"]] == [(1, [6]), (1, [5])]
    assert found["files"][0]["layout"] == "pairs"
    assert found["first_row"]["labels"] == [{"first": 0, "second": 1, "strength": 2.0}]


def test_a_held_out_share_is_counted_by_question_and_refused_where_it_leaves_too_few(tmp_path, capsys):
    rows = [
        {"prompt": f"Tea {n}?", "first": "a", "second": "b", "strength": 1, "group": f"{n // 2}"} for n in range(80)
    ]
    file = write(tmp_path / "f.jsonl", rows)
    assert counted(capsys, file)["held_out"] is None
    found = counted(capsys, file, "--holdout", 0.3)
    apart = {n // 2 for n in range(80) if is_held_out(f"{n // 2}", 0.3)}
    assert found["held_out"] == {"share": 0.3, "prompts": len(apart), "left": 40 - len(apart)}
    assert found["splits"] == {"test": 2 * len(apart), "none": 80 - 2 * len(apart)}
    assert typed(file, "--holdout", 0.01) == 2
    assert "of 40 prompts and leaves" in capsys.readouterr().err


def test_the_output_fits_a_hundred_columns_and_says_what_the_numbers_say(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.jsonl", ROWS)
    assert typed("f.jsonl") == 0
    shown = capsys.readouterr().out
    assert max(map(len, map(str.rstrip, shown.splitlines()))) <= 100
    for text in (
        "f.jsonl layout pairs", "rows 7 2 left out", "contradictions 1",
        "left out 1 × the two responses that are compared are the same (line 5)", "response 1, preferred to 1 other",
    ):  # fmt: skip
        assert text in " ".join(shown.split())


def test_the_page_says_the_same_and_what_to_look_at(tmp_path, capsys):
    report = tmp_path / "data.html"
    assert typed(write(tmp_path / "<f>.jsonl", ROWS), "--report", str(report)) == 0
    assert f"wrote {report}" in capsys.readouterr().out
    page = report.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert (checker.open, checker.fetched) == ([], [])
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "5 of 7 rows can be used" in text
    assert "1 pair of responses were judged both ways." in text
    assert "1 the two responses that are compared are the same 5" in text
    assert "&lt;f&gt;.jsonl" in text
    assert "response 1, preferred to 1 other" in text
    assert re.search(r"\d of \d rows can be used: \d+ responses to \d prompts?, with \d pairs", text)


def test_ratings_and_prompts_are_described_too(tmp_path, capsys):
    rated = [row for case in cases() for row in RATED["ratings"](case)]
    found = counted(capsys, write(tmp_path / "r.jsonl", rated))
    assert found["ratings"]["helpfulness"] == {"count": 16, "mean": 3.0, "least": 2.0, "most": 4.0}
    found = counted(capsys, write(tmp_path / "p.jsonl", [{"prompt": "p"}, {"prompt": "q"}, {"prompt": "p"}]))
    assert (found["files"][0]["layout"], found["rows"], found["prompts"]) == ("prompts", 3, 2)


def test_tokens_are_those_of_the_model_and_the_first_row_is_its_text(tmp_path, capsys, folders):
    rows = [ROWS[0], {**ROWS[0], "prompt": "word " * 200}, {**ROWS[0], "first": "word " * 400}]
    found = counted(capsys, write(tmp_path / "f.jsonl", rows), "--model", folders["bt"])
    tokens = found["tokens"]
    assert (tokens["limit"], tokens["cut"], tokens["refused"]) == (128, 2, 1)
    assert tokens["conversation"]["most"] <= 128
    assert P in found["first_row"]["seen"]
    assert "a hot drink" in found["first_row"]["seen"]


@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.gz", "o.jsonl.zst", "o.jsonl.xz", "o.parquet"])
@pytest.mark.parametrize("layout", ["pairs", "groups", "whole conversations", "judgebench", "helpsteer2-preferences"])
def test_what_is_converted_reads_as_what_it_was(tmp_path, capsys, layout, name):
    rows, _ = compared(layout)
    path, out = write(tmp_path / "f.jsonl", rows), tmp_path / name
    counted(capsys, path, "--convert", out)
    assert of_evaluation(out) == of_evaluation(path)
    assert [(pair.prompt, pair.split) for pair in read_pairs(out)] == [
        (pair.prompt, pair.split) for pair in read_pairs(path)
    ]
    assert read_evaluation_set(out).layout in ("pairs", "groups")


def test_ratings_are_converted_a_row_for_each_response(tmp_path, capsys):
    rows = [row for case in cases() for row in RATED["ultrafeedback"](case)]
    path, out = write(tmp_path / "f.jsonl", rows), tmp_path / "o.jsonl"
    counted(capsys, path, "--convert", out)
    assert [(row.response, row.ratings) for row in read_ratings(out)] == [
        (row.response, row.ratings) for row in read_ratings(path)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["f.jsonl", "--bad-rows", "refuse"], "1 row of 7 cannot be read"),
        (["g.jsonl"], "No row can be read: mend the file, or name its columns with --map"),
        (["f.jsonl", "--convert", "o.csv"], "cannot write o.csv: its name must end in one of .jsonl"),
        (["f.jsonl", "r.jsonl", "--convert", "o.jsonl"], "do not go into one file: convert their files apart"),
        (["none.jsonl"], "cannot read none.jsonl: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_no_file(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.jsonl", ROWS)
    write(tmp_path / "g.jsonl", [{"x": "p", "a": "b"}])
    write(tmp_path / "r.jsonl", [{"prompt": "p", "response": "a", "ratings": {"x": 1}}])
    assert typed(*words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("o.*"))


def test_a_map_reads_any_columns(tmp_path, capsys):
    path = write(tmp_path / "f.jsonl", [{"question": P, "a": "x", "b": "y", "winner": "b"}])
    columns, out = "prompt=question,first=a,second=b,label=winner", path.with_name("o.jsonl")
    assert counted(capsys, path, "--map", columns, "--convert", out)["pairs"] == 1
    assert [(pair.first, pair.second, pair.strength) for pair in read_pairs(out)] == [("x", "y", -1)]


def test_every_layout_is_described(tmp_path, capsys):
    for name, make in {**COMPARED, **RATED}.items():
        made = [make(case) for case in cases()]
        rows = [row for each in made for row in (each if isinstance(each, list) else [each[0]])]
        found = counted(capsys, write(tmp_path / "f.jsonl", rows))
        assert (found["prompts"], found["left_out"]) == (8, []), name
