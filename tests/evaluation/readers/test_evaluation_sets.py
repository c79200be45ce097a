"""Evaluation sets of files: every layout, and every way in which a file can be wrong."""

import gzip
import json
import math
from dataclasses import replace

import pytest

from paragone_evaluation.evaluation import evaluate_models
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.readers import ReadOptions, read_evaluation_set
from paragone_evaluation.readers.rows import text_length
from paragone_evaluation.results import MeasureSettings
from paragone_training.errors import DataError
from tests.evaluation.conftest import pair, text, write
from tests.evaluation.readers.test_layouts import HELPSTEER, RATED, ULTRA

LEAVE_OUT = ReadOptions(bad_rows="leave-out")
RATING = {"id": "r", "group": "q_s", "prompt": "P?", "response": "a", "ratings": {"helpful": 3, "verbose": 1}}
GROUP = {
    "id": "g",
    "prompt": "P?",
    "responses": ["a", "bb", "ccc"],
    "comparisons": [
        {"first": 0, "second": 1, "label": "first"},
        {"first": 1, "second": 2, "label": "tie"},
        {"first": 2, "second": 0, "label": "second"},
    ],
}
REWARDBENCH = {"id": 30, "prompt": "P?", "chosen": "good", "rejected": "bad", "subset": "alpacaeval-easy"}
REWARDBENCH2 = {"id": "0", "prompt": "P?", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"}
TIES = {"id": "tied:3", "prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["dog"], "subset": "Ties"}
RM_BENCH = {"id": "1", "prompt": "P?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
JUDGEBENCH = {
    "pair_id": "x",
    "question": "P?",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
    "source": "mmlu-pro-law",
}
ROWS = {
    "pairs": pair(0),
    "ratings": RATING,
    "groups": GROUP,
    "rewardbench": REWARDBENCH,
    "rewardbench2": REWARDBENCH2,
    "rm-bench": RM_BENCH,
    "judgebench": JUDGEBENCH,
    "helpsteer2-preferences": HELPSTEER,
    "ultrafeedback": ULTRA,
}


def rows_for(layout):
    if layout == "ratings":
        return [RATING, {**RATING, "id": "s", "response": "bb", "ratings": {"helpful": 1, "verbose": 2}}]
    if layout == "helpsteer2":
        return [RATED, RATED | {"response": "bb", "helpfulness": 1}]
    return [ROWS[layout]]


def completion(response, **ratings):
    return {"response": response, "annotations": {name: {"Rating": value} for name, value in ratings.items()}}


def read(tmp_path, rows, **options):
    return read_evaluation_set(write(tmp_path / "file.jsonl", rows), **options)


def refused(tmp_path, rows, match, **options):
    with pytest.raises(DataError, match=match):
        read(tmp_path, rows, **options)


@pytest.mark.parametrize("layout", [*ROWS, "helpsteer2"])
def test_every_layout_is_known_by_its_first_row(tmp_path, layout):
    assert read(tmp_path, rows_for(layout)).layout == layout
    assert read(tmp_path, rows_for(layout), options=ReadOptions(layout=layout)).layout == layout


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.json", "f.json.gz", "f.parquet"])
def test_gzip_arrays_and_parquet_hold_the_same_rows(tmp_path, name):
    path, rows = tmp_path / name, [REWARDBENCH2, {**REWARDBENCH2, "id": "1"}]
    if name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = json.dumps(rows) if ".json" in name and "jsonl" not in name else "\n".join(map(json.dumps, rows))
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith("gz") else lines.encode())
    made = read_evaluation_set(path)
    assert made.layout == "rewardbench2"
    assert [case.id for case in made.cases] == ["0", "1"]


def test_pairs_keep_strength_outcome_group_and_question(tmp_path):
    made = read(tmp_path, [pair(0), pair(1), pair(5)])
    assert made.outcome.tolist() == [1.0, 0.0, 0.5]
    assert made.strength.tolist() == [3.0, -2.0, 0.0]
    assert [case.subset for case in made.cases] == ["question0_stance0"] * 2 + ["question0_stance1"]
    assert made.clusters("question")[1] == 1
    assert made.clusters("prompt")[1] == 2


def test_chosen_and_rejected_are_pairs_of_unknown_strength(tmp_path):
    made = read(tmp_path, [{"id": 1, "prompt": "P?", "chosen": "good", "rejected": "bad"}])
    assert made.layout == "pairs"
    assert made.outcome.tolist() == [1.0]
    assert math.isnan(made.strength[0])


def test_the_same_response_to_the_same_prompt_is_one_node(tmp_path):
    made = read(tmp_path, [pair(0), pair(1, second=pair(0)["first"])])
    assert len(made.responses) == 3


def test_ratings_become_a_group_per_prompt_with_all_its_pairs(tmp_path):
    rows = [
        {**RATING, "id": name, "response": name, "ratings": {"h": value}}
        for name, value in zip("abc", (1, 3, 1), strict=True)
    ]
    made = read(tmp_path, [*rows, {**rows[0], "id": "d", "ratings": {"h": 2}}])
    assert len(made.cases) == 1
    # The response that is rated twice has its mean rating, 1.5.
    assert made.cases[0].human == (1.5, 3.0, 1.0)
    assert made.outcome.tolist() == [0.0, 1.0, 1.0]
    assert made.rated == "h"


def test_another_attribute_can_be_what_people_think(tmp_path):
    made = read(tmp_path, rows_for("ratings"), options=ReadOptions(attribute="verbose"))
    assert made.outcome.tolist() == [0.0]
    refused(
        tmp_path,
        rows_for("ratings"),
        "no rating of 'style'; the row rates helpful, verbose",
        options=ReadOptions(attribute="style"),
    )


def test_a_group_scores_a_response_by_its_share_of_wins(tmp_path):
    made = read(tmp_path, [GROUP])
    assert made.cases[0].human == (1.0, 0.25, 0.25)
    assert made.outcome.tolist() == [1.0, 0.5, 0.0]


def test_benchmarks_compare_every_right_response_with_every_wrong_one(tmp_path):
    assert len(read(tmp_path, [REWARDBENCH2]).outcome) == 3
    assert len(read(tmp_path, [TIES]).outcome) == 2
    made = read(tmp_path, [RM_BENCH])
    assert len(made.outcome) == 9
    assert made.cases[0].right == 3


def test_ids_of_rewardbench_may_repeat_in_another_subset(tmp_path):
    assert len(read(tmp_path, [REWARDBENCH, {**REWARDBENCH, "subset": "hep-go"}]).cases) == 2
    refused(tmp_path, [REWARDBENCH, REWARDBENCH], "line 2: id '30' is on line 1 already")


def test_the_label_of_judgebench_says_which_one_is_right(tmp_path):
    made = read(tmp_path, [JUDGEBENCH, {**JUDGEBENCH, "pair_id": "y", "label": "A>B"}])
    assert made.outcome.tolist() == [0.0, 1.0]
    assert made.cases[0].subset == "mmlu"


def test_conversations_and_tools_are_read(tmp_path):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    made = read(tmp_path, [pair(0, prompt=prompt, first={"role": "assistant", "content": "abc"}, tools=tools)])
    assert made.prompts[0][0] == tuple(prompt)
    assert made.prompts[0][1] == tuple(tools)
    assert made.node_length[0] == 3
    parts = [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {}}]
    assert text_length([{"role": "assistant", "content": parts}, {"role": "tool", "content": None}]) == 2


def test_a_split_is_read_and_the_rest_is_counted(tmp_path):
    rows = [pair(0, split="train"), pair(1, split="test")]
    made = read(tmp_path, rows, split="test")
    assert [case.id for case in made.cases] == ["p1"]
    assert [(row.reason, row.count) for row in made.left_out] == [("split is not test", 1)]
    assert [case.id for case in read(tmp_path, rows, exclude_split="test").cases] == ["p0"]
    refused(tmp_path, rows, "no row has split 'dev'; the splits are: test, train", split="dev")
    refused(tmp_path, rows[1:], "all 1 rows have split 'test'", exclude_split="test")
    refused(tmp_path, [pair(0)], "line 1: field 'split' is missing", split="test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "prompt": "P?", "first": "a", "strength": 1}, "field 'second' is missing"),
        (pair(1, id=True), "field 'id' must be text or a whole number, not True"),
        (pair(1, strength=4), "field 'strength' is 4; it must lie in -3 … 3"),
        (pair(1, strength="2"), "field 'strength' must be a number"),
        (pair(1, strength=True), "field 'strength' must be a number from -3 to 3, not True"),
        (pair(1, prompt="  "), "field 'prompt' is empty"),
        (pair(1, prompt=3), "field 'prompt' must be text or a list of messages"),
        (pair(1, first=None), "field 'first' must be text, a message or a list of messages, not null"),
        (pair(1, first=[{"role": "nobody"}]), "field 'first' must be text"),
        (pair(1, chosen="a", rejected="b"), "mixes two schemas"),
        (
            {"id": "x", "prompt": "P?", "chosen": "a", "rejected": "b"},
            "the row has chosen and rejected, and the file began with first and second",
        ),
        (pair(1, group=7), "field 'group' must be text"),
        (pair(1, tools={}), "field 'tools' must be a list of objects"),
        (RATING, "the row has the fields of ratings, and the file began with pairs"),
        (pair(0), "id 'p0' is on line 1 already"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_what_is_wrong(tmp_path, row, message):
    refused(tmp_path, [pair(0), row], rf"1 row of 2 cannot be read:\n  line 2: .*{message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GROUP, "responses": ["a"]}, "at least 2 responses, not a list of 1"),
        ({**GROUP, "comparisons": []}, "at least one comparison"),
        ({**GROUP, "comparisons": [{"first": 0, "second": 3, "label": "tie"}]}, r"comparisons\[0\].second is 3"),
        ({**GROUP, "comparisons": [{"first": 1, "second": 1, "label": "tie"}]}, "compares response 1 with itself"),
        ({**GROUP, "comparisons": [{"first": 0, "second": 1, "label": "yes"}]}, "it must be first, second or tie"),
        ({**GROUP, "comparisons": [GROUP["comparisons"][0]] * 2}, "two comparisons are of the same two responses"),
        ({**RATING, "ratings": {"helpful": "3"}}, "field 'ratings.helpful' must be a number"),
        ({**RATING, "ratings": {}}, "field 'ratings' must be an object"),
        ({**REWARDBENCH2, "chosen": ["a", "b"]}, "only Ties have several right responses; Focus has 2"),
        ({**REWARDBENCH2, "num_correct": 2}, "field 'num_correct' is 2, and there are 1"),
        ({**TIES, "id": "seven"}, "it must be ref:NUMBER or tied:NUMBER"),
        ({**RM_BENCH, "rejected": ["a"] * 4}, "3 chosen and 4 rejected"),
        ({**JUDGEBENCH, "label": "A=B"}, "it must be 'A>B' or 'B>A'"),
    ],
)
def test_a_bad_row_of_the_other_layouts_is_named_too(tmp_path, row, message):
    refused(tmp_path, [row], f"line 1: .*{message}")


def test_lines_that_are_no_json_objects_are_named(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_bytes(json.dumps(pair(0)).encode() + b"\n\n{oops\n[1]\n\xff\n")
    with pytest.raises(DataError, match=r"3 rows of 4") as caught:
        read_evaluation_set(path)
    for line in (
        "line 3: the line is not JSON: Expecting property name enclosed in double quotes at column 2",
        "line 4: a row must be a JSON object, not list",
        "line 5: the line is not UTF-8",
    ):
        assert line in str(caught.value)


def test_a_lone_surrogate_is_named(tmp_path):
    refused(tmp_path, [pair(0), pair(1, first="\ud800")], "line 2: field 'first' holds a lone surrogate")


def test_only_the_first_bad_rows_are_shown_and_the_same_complaint_once(tmp_path):
    refused(tmp_path, [pair(number, strength=9 + number) for number in range(9)], "line 5: .*\n  … and 4 more")
    refused(tmp_path, [pair(number, strength=9) for number in range(9)], "lines 1, 2, 3, 4, 5 and 4 more: field")


def test_bad_rows_can_be_left_out_and_are_counted_with_their_lines(tmp_path):
    rows = [pair(0), pair(1, strength=9), pair(2), pair(3, strength=9), {"id": "x"}]
    made = read(tmp_path, rows, options=LEAVE_OUT)
    assert [case.id for case in made.cases] == ["p0", "p2"]
    assert [(row.count, row.lines) for row in made.left_out] == [(2, (2, 4)), (1, (5,))]
    refused(tmp_path, [pair(0, strength=9)], "cannot be read", options=LEAVE_OUT)


def test_a_file_of_ties_only_is_refused_with_its_lines(tmp_path):
    refused(tmp_path, [pair(5), pair(12)], r"all 2 judgements are ties \(lines 1 to 2\)")


def test_one_class_only_is_noted_with_its_lines(tmp_path):
    made = read(tmp_path, [pair(0, strength=1), pair(1, strength=2)])
    assert "One class only: all 2 decided judgements (lines 1 to 2) prefer the first response" in made.notes[0]
    assert read(tmp_path, [pair(0), pair(1)]).notes == ()
    # Chosen first is what these layouts look like.
    assert read(tmp_path, [REWARDBENCH]).notes == ()


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl: No such file"):
        read_evaluation_set(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"must end in one of \.jsonl"):
        read_evaluation_set(tmp_path / "file.txt")
    with pytest.raises(DataError, match="layout is 'pear'"):
        read_evaluation_set(tmp_path / "file.jsonl", options=ReadOptions(layout="pear"))
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "broken.json").write_bytes(b"[{}")
    for name in ("broken.jsonl.gz", "broken.parquet", "broken.json"):
        with pytest.raises(DataError, match=f"cannot read .*{name}"):
            read_evaluation_set(tmp_path / name)
    refused(tmp_path, [], "there are no rows in it")
    refused(tmp_path, [{"a": 1}], "the fields a fit no layout: name your columns with --map")


def test_ratings_of_helpsteer_are_a_group_per_prompt_without_ids(tmp_path):
    rows = [RATED, RATED | {"response": "b", "helpfulness": 2, "verbosity": 4}]
    made = read(tmp_path, rows)
    assert (made.layout, made.rated) == ("helpsteer2", "helpfulness")
    assert made.cases[0].human == (4.0, 2.0)
    assert made.cases[0].attributes["verbosity"] == (0.0, 4.0)
    assert made.outcome.tolist() == [1.0]
    assert read(tmp_path, rows, options=ReadOptions(attribute="verbosity")).outcome.tolist() == [0.0]


def test_what_nobody_rated_is_left_out_and_counted_with_its_lines(tmp_path):
    rows = [RATED, RATED | {"response": "b", "helpfulness": 1}, RATED | {"response": "c", "helpfulness": -100}]
    made = read(tmp_path, rows)
    assert len(made.responses) == 2
    reason = "there is no rating of 'helpfulness'; the row rates correctness, coherence, complexity, verbosity"
    assert [(row.reason, row.count, row.lines) for row in made.left_out] == [(reason, 1, (3,))]


def test_every_completion_of_ultrafeedback_is_a_response_of_one_prompt(tmp_path):
    first = {"instruction": "p", "completions": [completion("a", h="N/A", t="2"), completion("b", h=5, t=1)]}
    rows = [first, {"instruction": "q", "completions": [completion(name, h=name, t="1") for name in ["5", "3", "1"]]}]
    made = read(tmp_path, rows)
    # The first name of the first completion, though that one is not rated.
    assert (made.layout, made.rated) == ("ultrafeedback", "h")
    assert [case.human for case in made.cases] == [(5.0,), (5.0, 3.0, 1.0)]
    assert made.outcome.tolist() == [1.0, 1.0, 1.0]
    assert [(row.count, row.lines) for row in made.left_out] == [(1, (1,))]
    assert read(tmp_path, rows, options=ReadOptions(attribute="t")).outcome.tolist() == [1.0, 0.5, 0.5, 0.5]


def test_a_row_of_ultrafeedback_without_completions_is_left_out_and_counted(tmp_path):
    rows = [{"instruction": "p", "completions": [completion("a", h="2"), completion("b", h="1")]}]
    rows.append({"instruction": "q", "completions": []})
    made = read(tmp_path, rows)
    assert len(made.prompts) == 1
    assert [(row.reason, row.lines) for row in made.left_out] == [("it has no completions", (2,))]


def test_a_file_that_nobody_rated_by_the_attribute_says_so(tmp_path):
    message = "2 rows were read; 2 left out: there is no rating of 'helpfulness'; the row rates correctness"
    with pytest.raises(DataError, match=message):
        read(tmp_path, [RATED | {"helpfulness": -100}, RATED | {"response": "b", "helpfulness": -100}])


def test_a_negative_strength_of_helpsteer_prefers_response_1_and_invalid_pairs_are_counted(tmp_path):
    rows = [HELPSTEER, HELPSTEER | {"preference_strength": 1}, HELPSTEER | {"preference_strength": -100}]
    made = read(tmp_path, rows)
    assert made.layout == "helpsteer2-preferences"
    assert (made.outcome.tolist(), made.strength.tolist()) == ([1.0, 0.0], [2.0, -1.0])
    (row,) = made.left_out
    assert (row.reason, row.lines) == ("annotators found neither response valid (preference_strength -100)", (3,))
    assert "One class only: all 2" in read(tmp_path, [HELPSTEER, HELPSTEER]).notes[0]
    assert len(read(tmp_path, rows, split="train").outcome) == 2


@pytest.mark.parametrize(
    ("good", "change", "message"),
    [
        (RATED, {"helpfulness": 5}, "helpfulness is 5; it must be a number from 0 to 4, or -100"),
        (RATED, {"verbosity": "4"}, "verbosity is '4'; it must be a number"),
        (RATED, {"response": 4}, "field 'response' must be text"),
        (ULTRA, {"completions": [completion("a", honesty="9")]}, "Rating is '9'; it must be a number from 1 to 5"),
        (ULTRA, {"completions": [{"response": "a"}]}, "must be an object with a response and annotations"),
        (ULTRA, {"completions": [completion("a", honesty=1), completion(7, honesty=2)]}, "field 'response' must be"),
        (HELPSTEER, {"preference_strength": 4}, "preference_strength is 4; it must lie between -3"),
        (HELPSTEER, {"response_2": None}, "field 'response_2' must be text, a message or a list of messages, not null"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_leaves_nothing_behind(tmp_path, good, change, message):
    rows = [good, {**good, **change, "prompt": "other", "instruction": "other"}]
    options = ReadOptions(attribute="honesty" if good is ULTRA else None)
    with pytest.raises(DataError, match=rf"\n  line 2: .*{message}"):
        read(tmp_path, rows, options=options)
    made = read(tmp_path, rows, options=replace(options, bad_rows="leave-out"))
    assert len(made.prompts) == 1
    assert [row.lines for row in made.left_out] == [(2,)]


def test_predicted_ratings_are_compared_with_ultrafeedbacks_of_the_same_name(tmp_path, models):
    rows = [
        {
            "instruction": f"P{number}?",
            "completions": [
                completion(text(4 * number + k), helpful=str(1 + (number + k) % 5), style="1") for k in range(4)
            ],
        }
        for number in range(12)
    ]
    written = evaluate_models(
        read(tmp_path, rows), LocalScorer(models["ratings"]), tmp_path / "out", MeasureSettings(resamples=20)
    )
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["measures"]["attributes"]
    assert (row["name"], row["responses"]) == ("helpful", 48)
    predicted = [
        models["ratings"].comparator.attribute_values(representation)[0]
        for number in range(12)
        for representation in models["ratings"]
        .score(f"P{number}?", [text(4 * number + k) for k in range(4)])
        .representations
    ]
    given = [1 + (number + k) % 5 for number in range(12) for k in range(4)]
    error = math.sqrt(sum((p - t) ** 2 for p, t in zip(predicted, given, strict=True)) / 48)
    assert row["root_mean_squared_error"]["value"] == pytest.approx(error, abs=1e-5)
    assert written.results["measures"]["groups"]["groups"] == 12


def test_many_responses_to_one_prompt_are_each_one_node(tmp_path):
    texts = [f"answer {number}" for number in range(12)]
    compared = [(first, second) for first in range(12) for second in range(first)]
    rows = [{"prompt": "P?", "first": texts[a], "second": texts[b], "strength": (a + b) % 3 - 1} for a, b in compared]
    rows.append({"prompt": "Q?", "first": texts[3], "second": texts[4], "strength": 2})
    read = read_evaluation_set(write(tmp_path / "pairs.jsonl", rows))

    assert sorted(read.responses[:12]) == sorted(texts)
    assert len(read.responses) == 14
    assert read.node_prompt.tolist() == [0] * 12 + [1, 1]
    seen = [(read.responses[one], read.responses[other]) for one, other in zip(read.first, read.second, strict=True)]
    assert seen == [(row["first"], row["second"]) for row in rows]
    assert [case.nodes for case in read.cases] == list(zip(read.first, read.second, strict=True))
    assert read.strength.tolist() == [row["strength"] for row in rows]
    assert read.case.tolist() == list(range(67))
    assert read.outcome.tolist() == [{-1: 0.0, 0: 0.5, 1: 1.0, 2: 1.0}[row["strength"]] for row in rows]
