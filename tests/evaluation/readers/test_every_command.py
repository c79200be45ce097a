"""Every layout in every container through every command: all of them see the same rows."""

import csv
import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from typer.testing import CliRunner

from paragone.cli import main
from paragone_evaluation.readers import LAYOUTS, read_evaluation_set, read_pairs, read_prompts, read_ratings
from paragone_training.command import train
from tests.evaluation.readers import shapes
from tests.evaluation.readers.shapes import (
    COMPARED,
    LIKED,
    PROMPTS,
    PUBLISHED,
    RATED,
    SPLITS,
    SUMMARY_AXES,
    cases,
    rated,
)


def lines(rows, ending="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + ending for row in rows).encode()


def write_csv(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()})


CONTAINERS = {
    "f.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "bom.jsonl": lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + lines(rows)),
    "crlf.jsonl": lambda path, rows: path.write_bytes(b"\r\n" + lines(rows, "\r\n")),
    "f.ndjson": lambda path, rows: path.write_bytes(lines(rows)),
    "lines.json": lambda path, rows: path.write_bytes(lines(rows)),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "array.jsonl": lambda path, rows: path.write_text(json.dumps(rows)),
    "f.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows[:3])) + gzip.compress(lines(rows[3:]))),
    "f.jsonl.zst": lambda path, rows: path.write_bytes(zstandard.compress(lines(rows))),
    "f.csv": write_csv,
    "f.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


def compared(layout, preferred=None):
    """Return the rows of a layout, and each pair's id, prompt, preferred and other response, strength and split."""
    rows, expected = [], []
    for case in cases(preferred):
        row, labels = COMPARED[layout](case)
        rows.append(row)
        expected += [(f"row{case.number}", case.prompt, *label, SPLITS[case.number]) for label in labels]
    return rows, expected


def of_training(path):
    return [
        (
            found.id,
            found.prompt_messages,
            *sides(found.first, found.second, found.strength),
            round(abs(found.strength), 9),
            found.split,
        )
        for found in read_pairs(path)
    ]


def sides(first, second, outcome):
    return (first, second) if outcome > 0 else (second, first)


def of_evaluation(path, **options):
    data = read_evaluation_set(path, **options)
    return [
        (
            data.cases[data.case[at]].id,
            data.prompts[data.cases[data.case[at]].prompt][0],
            *sides(data.responses[data.first[at]], data.responses[data.second[at]], data.outcome[at] - 0.5),
            round(abs(data.strength[at]), 9) if data.strength[at] == data.strength[at] else None,
        )
        for at in range(len(data.outcome))
    ]  # fmt: skip


def same_id(found, expected):
    """Say whether an id is the row's own, with the subset before it or the comparison after it where it needs them."""
    return re.fullmatch(rf"([\w-]+/)?{expected}(/\d+-\d+)?", found) is not None


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", COMPARED)
def test_all_commands_see_the_same_pairs(tmp_path, layout, container):
    rows, expected = compared(layout)
    path = tmp_path / container
    CONTAINERS[container](path, rows)
    trained = of_training(path)
    assert [row[1:4] + row[5:] for row in trained] == [row[1:4] + row[5:] for row in expected]
    assert [row[4] for row in trained] == [1 if row[4] is None else row[4] for row in expected]
    assert all(same_id(found[0], row[0]) for found, row in zip(trained, expected, strict=True))
    for options in ({}, {"split": "test"}, {"split": "val"}, {"exclude_split": "test"}):  # the last is calibrate's
        evaluated = of_evaluation(path, **options)
        wanted = [row for row in expected if of_options(row[5], **options)]
        assert [row[1:] for row in evaluated] == [row[1:5] for row in wanted]
        assert all(same_id(found[0], row[0]) for found, row in zip(evaluated, wanted, strict=True))
    prompts = read_prompts([path], split="train")
    assert [prompt.content for prompt in prompts] == PROMPTS[:5]
    if layout != "judgebench":
        assert [prompt.id for prompt in prompts] == [f"row{number}" for number in range(5)]


SHAPES = [(layout, shape) for layout, shapes in PUBLISHED.items() for shape in shapes]


def published(shape, preferred=None):
    """Return the rows of a shape, and each pair's prompt, preferred and other response and strength."""
    rows, expected = [], []
    for case in cases(preferred):
        row, labels = shape(case)
        rows += row if isinstance(row, list) else [row]
        prompt = f"POST: {case.prompt}\n\nTL;DR:" if shape is shapes.summaries else case.prompt
        if shape is shapes.hh:
            prompt = [*shapes.talk("Hello.", "Hi."), shapes.said("user", case.prompt)]
        expected += [(prompt, *label) for label in labels]
    return rows, expected


@pytest.mark.parametrize("container", ["f.jsonl", "f.csv", "f.parquet"])
@pytest.mark.parametrize(("layout", "shape"), SHAPES, ids=[shape.__name__ for _, shape in SHAPES])
def test_all_commands_see_the_same_pairs_of_published_files(tmp_path, layout, shape, container):
    rows, expected = published(shape)
    path = tmp_path / container
    CONTAINERS[container](path, rows)
    assert read_evaluation_set(path).layout == layout
    assert [row[1:] for row in of_evaluation(path)] == [(as_read(row[0]), *row[1:]) for row in expected]
    trained = [row[1:5] for row in of_training(path)]
    assert trained == [(*row[:3], 1 if row[3] is None else row[3]) for row in expected]
    assert [prompt.content for prompt in read_prompts([path], split="train")] == [row[0] for row in expected]


def as_read(prompt):
    return prompt if isinstance(prompt, str) else tuple(prompt)


@pytest.mark.parametrize("container", ["f.jsonl", "f.csv", "f.parquet"])
@pytest.mark.parametrize("shape", LIKED["kto"])
def test_what_was_liked_is_a_pair_with_what_was_not(tmp_path, shape, container):
    path = tmp_path / container
    CONTAINERS[container](path, [row for case in cases() for row in shape(case)])
    assert [row[1:5] for row in of_training(path)] == [(case.prompt, case.better, case.worse, 1) for case in cases()]
    data = read_evaluation_set(path)
    assert (data.layout, data.rated, list(data.outcome)) == ("kto", "label", [1.0] * 8)
    assert [prompt.content for prompt in read_prompts([path], split="train")] == PROMPTS


def of_options(found, split=None, exclude_split=None):
    return found == {"val": "validation"}.get(split, split) if split else found != exclude_split


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", RATED)
def test_all_commands_see_the_same_ratings(tmp_path, layout, container):
    rows = [row for case in cases() for row in RATED[layout](case)]
    path = tmp_path / container
    CONTAINERS[container](path, rows)
    expected = [(case.prompt, text, values) for case in cases() for text, values in rated(case)]
    read = read_ratings(path)
    assert [(row.prompt, row.response, row.ratings) for row in read] == expected
    assert [row.split for row in read] == [split for split in SPLITS for _ in range(2)]
    data = read_evaluation_set(path)
    assert data.layout == layout
    assert [
        (
            data.prompts[case.prompt][0],
            data.responses[node],
            {name: case.attributes[name][at] for name in data.attributes},
        )
        for case in data.cases
        for at, node in enumerate(case.nodes)
    ] == expected
    assert len(read_evaluation_set(path, exclude_split="test").cases) == 6
    assert [prompt.content for prompt in read_prompts([path], split="train")] == PROMPTS[:5]


@pytest.mark.parametrize("container", ["f.jsonl", "f.csv", "f.parquet"])
def test_summaries_are_rated_on_axes_of_which_overall_stands_for_the_whole(tmp_path, container):
    path = tmp_path / container
    CONTAINERS[container](path, [row for case in cases() for row in SUMMARY_AXES["summary-axes"](case)])
    posts = [f"POST: {prompt}\n\nTL;DR:" for prompt in PROMPTS]
    assert [(row.prompt, row.ratings) for row in read_ratings(path)[:3]] == [
        (posts[0], {"overall": 6.0, "accuracy": 2.0}), (posts[0], {"overall": 3.0}),
        (posts[1], {"overall": 6.0, "accuracy": 2.0}),
    ]  # fmt: skip
    assert [row[1:5] for row in of_training(path)] == [
        (post, case.better, case.worse, 3) for post, case in zip(posts, cases(), strict=True)
    ]
    data = read_evaluation_set(path)
    assert (data.layout, data.rated, list(data.outcome)) == ("summary-axes", "overall", [1.0] * 8)
    assert [prompt.content for prompt in read_prompts([path], split="train")] == posts


def test_every_layout_is_in_the_table():
    assert {*COMPARED, *RATED, *PUBLISHED, *LIKED, *SUMMARY_AXES} >= set(LAYOUTS)


RECIPE = """
[model]
kind = "{kind}"
{more}
max_length = 128
[backbone]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32
[tokenizer]
vocabulary_size = 320
[data]
{files}
[training]
epochs = 1
learning_rate = 1e-2
batch_responses = 6
"""
POLICY = """
method = "inpo"
[policy]
source = "policy"
[data]
prompts = ["{name}"]
split = "train"
[oracle]
url = "http://127.0.0.1:1"
[loss]
eta = 0.5
tau = 0.1
"""


@pytest.fixture(scope="module")
def preferred(models):
    """Which response is preferred: as the tiny model says, but for the three topics where it is least sure."""
    logits = [models["bt"].score(case.prompt, [case.better, case.worse]).rewards for case in cases()]
    gaps = [float(pair[0] - pair[1]) for pair in logits]
    least = sorted(range(6), key=lambda at: abs(gaps[at]))[:3]  # a temperature needs a model that is wrong at times
    return [(gap > 0) != (at in least) for at, gap in enumerate(gaps)]


def typed(*words, code=0):
    try:
        ended = main([*map(str, words)])
    except SystemExit as end:
        ended = end.code
    assert ended == code, words


FULL = [(layout, "f.jsonl") for layout in [*COMPARED, *RATED]] + [("pairs", "f.csv"), ("pairs", "f.parquet")]


@pytest.mark.parametrize(("layout", "container"), FULL)
def test_every_command_runs_on_every_layout(tmp_path, layout, container, folders, preferred, capsys):
    if layout in RATED:
        made = cases(preferred)
        rows, labels, per_case = [row for case in made for row in RATED[layout](case)], 8, 1
    else:
        rows, expected = compared(layout, preferred)
        labels, per_case = len(expected), len(expected) // 8
    path = tmp_path / container
    CONTAINERS[container](path, rows)
    quick = ("--resamples", "20", "--cluster", "prompt")

    out = tmp_path / "evaluation"
    typed("eval", path, "--model", folders["bt"], "--output", out, *quick)
    assert json.loads((out / "results.json").read_text())["data"]["judgements"] == labels
    if per_case == 1:  # other responses of the larger groups were not ranked by the model: there is no temperature
        typed("calibrate", path, "--model", folders["bt"], "--output", tmp_path / "calibrated", *quick, code=2)
        assert "has 6 pairs that people judged" in capsys.readouterr().err  # read, and too few for a temperature

    files, kind, more = f'train = ["{container}"]', "bradley-terry", ""
    if layout in RATED:
        files, kind, more = f'ratings = ["{container}"]', "regression", 'attributes = ["helpfulness", "verbosity"]'
    recipe = tmp_path / "model.toml"
    recipe.write_text(RECIPE.format(kind=kind, more=more, files=files))
    planned = CliRunner().invoke(train, ["model", str(recipe), "--dry-run"])
    assert planned.exit_code == 0, planned.output
    counts = "10 ratings and 0 pairs" if layout in RATED else f"{5 * per_case} pairs"
    assert f"{counts} to train on" in planned.output
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(name=container))
    planned = CliRunner().invoke(train, ["policy", str(policy), "--dry-run", "--offline"])
    assert planned.exit_code == 0, planned.output
    assert "5 prompts" in planned.output


@pytest.mark.parametrize("shape", [shape for _, shape in SHAPES] + [*LIKED["kto"]])
def test_every_command_runs_on_published_files(tmp_path, shape, folders):
    rows = [row for case in cases() for row in shape(case)] if shape in LIKED["kto"] else published(shape)[0]
    CONTAINERS["f.jsonl"](tmp_path / "f.jsonl", rows)
    typed("eval", tmp_path / "f.jsonl", "--model", folders["bt"], "--output", tmp_path / "out", "--resamples", "20")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["judgements"] == 8
    recipe = tmp_path / "model.toml"
    recipe.write_text(RECIPE.format(kind="bradley-terry", more="", files='train = ["f.jsonl"]'))
    planned = CliRunner().invoke(train, ["model", str(recipe), "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "8 pairs to train on" in planned.output
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(name="f.jsonl"))
    planned = CliRunner().invoke(train, ["policy", str(policy), "--dry-run", "--offline"])
    assert planned.exit_code == 0, planned.output
    assert "8 prompts" in planned.output
