"""Every layout in every container through every command: all of them see the same rows."""

import csv
import gzip
import json
import re
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from typer.testing import CliRunner

from paragone.cli import main
from paragone_evaluation.readers import LAYOUTS, read_evaluation_set, read_pairs, read_prompts, read_ratings
from paragone_training.command import train

TOPICS = ("keep bread fresh", "mend a flat tyre", "boil an egg", "fold a shirt", "water a fern", "sharpen a pencil",
          "wash a window", "pack a suitcase")  # fmt: skip
PROMPTS = [f"How do I {topic}?" for topic in TOPICS]
SPLITS = ["train"] * 5 + ["validation", "test", "test"]
STRENGTHS = [3, 1, 2, 1, 3, 2, 1, 2]


@dataclass
class Case:
    """What one row of a file says: its number, and which of the responses was preferred to which."""

    number: int
    better: str
    worse: str

    @property
    def prompt(self):
        return PROMPTS[self.number]

    @property
    def strength(self):
        return STRENGTHS[self.number]

    @property
    def swapped(self):
        return self.number % 2 == 1

    @property
    def third(self):
        return f"Ask somebody who can {TOPICS[self.number]}."

    @property
    def common(self):
        return {"id": f"row{self.number}", "split": SPLITS[self.number]}

    def sided(self, one, two):
        """Return the responses under two names, the preferred one second in every other row."""
        return dict(
            zip((one, two), (self.worse, self.better) if self.swapped else (self.better, self.worse), strict=True)
        )


def said(role, content):
    return {"role": role, "content": content}


def pairs(case):
    sign = -1 if case.swapped else 1
    row = {**case.common, "prompt": case.prompt, **case.sided("first", "second"), "strength": sign * case.strength}
    return row, [(case.better, case.worse, case.strength)]


def texts(case):
    row = {**case.common, "prompt": case.prompt, "chosen": case.better, "rejected": case.worse}
    return row, [(case.better, case.worse, None)]


def graded_texts(case):
    row, _ = texts(case)
    return {**row, "strength": case.strength}, [(case.better, case.worse, case.strength)]


def messages_as_prompt(case):
    row, expected = texts(case)
    return {**row, "prompt": [said("user", case.prompt)]}, expected


def conversations(case):
    row, expected = texts(case)
    sides = {side: [said("user", case.prompt), said("assistant", row[side])] for side in ("chosen", "rejected")}
    return {**row, **sides}, expected


def answers(case):
    row, expected = texts(case)
    return {**row, **{side: [said("assistant", row[side])] for side in ("chosen", "rejected")}}, expected


def groups(case):
    comparisons = [{"first": 0, "second": 1, "label": "first"}, {"first": 2, "second": 0, "label": "second"}]
    row = {**case.common, "prompt": case.prompt, "responses": [case.better, case.worse, case.third]}
    return {**row, "comparisons": comparisons}, [(case.better, case.worse, None), (case.better, case.third, None)]


def helpsteer_preferences(case):
    sign = 1 if case.swapped else -1  # negative: response_1
    row = {**case.common, "prompt": case.prompt, **case.sided("response_1", "response_2")}
    return {**row, "preference_strength": sign * case.strength}, [(case.better, case.worse, case.strength)]


def judgebench(case):
    row = {"pair_id": f"row{case.number}", "split": SPLITS[case.number], "question": case.prompt, "source": "mmlu-pro"}
    label = "B>A" if case.swapped else "A>B"
    return {**row, **case.sided("response_A", "response_B"), "label": label}, [(case.better, case.worse, None)]


def rewardbench(case):
    row, expected = texts(case)
    return {**row, "subset": "refusals-offensive"}, expected


def rewardbench2(case):
    row, _ = texts(case)
    row |= {"chosen": [case.better], "rejected": [case.worse, case.third], "subset": "Focus"}
    return row, [(case.better, case.worse, None), (case.better, case.third, None)]


def rm_bench(case):
    row, _ = texts(case)
    right, wrong = ([f"{text}{dots}" for dots in ("", ".", "..")] for text in (case.better, case.worse))
    return {**row, "chosen": right, "rejected": wrong, "domain": "chat"}, [(a, b, None) for a in right for b in wrong]


def rated(case):
    return [(case.better, {"helpfulness": 4.0, "verbosity": 1.0}), (case.worse, {"helpfulness": 2.0, "verbosity": 3.0})]


def ratings(case):
    rows = [{**case.common, "id": f"{case.number}{side}", "prompt": case.prompt} for side in "ab"]
    return [row | {"response": text, "ratings": values} for row, (text, values) in zip(rows, rated(case), strict=True)]


def helpsteer(case):
    return [
        {"prompt": case.prompt, "split": SPLITS[case.number], "response": text, **values}
        for text, values in rated(case)
    ]


def ultrafeedback(case):
    completions = [
        {"response": text, "annotations": {name: {"Rating": str(value)} for name, value in values.items()}}
        for text, values in rated(case)
    ]
    return [{"instruction": case.prompt, "split": SPLITS[case.number], "completions": completions}]


COMPARED = {
    "pairs": pairs,
    "chosen and rejected": texts,
    "chosen and rejected, with strengths": graded_texts,
    "prompt of one message": messages_as_prompt,
    "whole conversations": conversations,
    "answers as messages": answers,
    "groups": groups,
    "helpsteer2-preferences": helpsteer_preferences,
    "judgebench": judgebench,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
}
RATED = {"ratings": ratings, "helpsteer2": helpsteer, "ultrafeedback": ultrafeedback}


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
LISTS_OF_TEXTS = ("rewardbench2", "rm-bench")  # no cell of a CSV file says whether it is one or a text


def cases(preferred=None):
    """Return a case per topic; which response is preferred is by rule, or as given."""
    made = []
    for number, topic in enumerate(TOPICS):
        good = f"To {topic}, take your time, and write down what worked in step {number}."
        bad = f"No idea,{' “really”' * number} sorry."
        made.append(Case(number, bad, good) if preferred and not preferred[number] else Case(number, good, bad))
    return made


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
            abs(found.strength),
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
            abs(data.strength[at]) if data.strength[at] == data.strength[at] else None,
        )
        for at in range(len(data.outcome))
    ]  # fmt: skip


def same_id(found, expected):
    """Say whether an id is the row's own, with the subset before it or the comparison after it where it needs them."""
    return re.fullmatch(rf"([\w-]+/)?{expected}(/\d+-\d+)?", found) is not None


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", COMPARED)
def test_all_commands_see_the_same_pairs(tmp_path, layout, container):
    if layout in LISTS_OF_TEXTS and container == "f.csv":
        pytest.skip("a list of texts in a CSV cell cannot be told from a text")
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


def test_every_layout_is_in_the_table():
    assert {*COMPARED, *RATED} >= set(LAYOUTS)


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


def typed(*words):
    try:
        code = main([*map(str, words)])
    except SystemExit as ended:
        code = ended.code
    assert code == 0, words


FULL = [(layout, "f.jsonl") for layout in [*COMPARED, *RATED]] + [("pairs", name) for name in CONTAINERS][1:]


@pytest.mark.parametrize(("layout", "container"), FULL)
def test_every_command_runs_on_every_layout(tmp_path, layout, container, folders, preferred):
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
        calibrated = tmp_path / "calibrated"
        typed("calibrate", path, "--model", folders["bt"], "--output", calibrated, *quick)
        assert json.loads((calibrated / "calibration.json").read_text())["pairs"] == 6

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
