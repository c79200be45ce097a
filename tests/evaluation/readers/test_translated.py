"""HelpSteer2's and UltraFeedback's own columns as evaluation sets."""

import json
import math

import pytest

from paragone_evaluation.evaluation import evaluate_models
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.readers import read_evaluation_set, read_ratings
from paragone_evaluation.results import MeasureSettings
from paragone_training.errors import DataError
from tests.evaluation.conftest import text, write
from tests.evaluation.readers.test_layouts import HELPSTEER, RATED, ULTRA


def completion(response, **ratings):
    return {"response": response, "annotations": {name: {"Rating": value} for name, value in ratings.items()}}


def read(tmp_path, rows, **options):
    return read_evaluation_set(write(tmp_path / "f.jsonl", rows), **options)


def test_ratings_of_helpsteer_are_a_group_per_prompt_without_ids(tmp_path):
    rows = [RATED, RATED | {"response": "b", "helpfulness": 2, "verbosity": 4}]
    made = read(tmp_path, rows)
    assert (made.layout, made.rated) == ("helpsteer2", "helpfulness")
    assert made.cases[0].human == (4.0, 2.0)
    assert made.cases[0].attributes["verbosity"] == (0.0, 4.0)
    assert made.outcome.tolist() == [1.0]
    assert read(tmp_path, rows, attribute="verbosity").outcome.tolist() == [0.0]


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
    assert read(tmp_path, rows, attribute="t").outcome.tolist() == [1.0, 0.5, 0.5, 0.5]


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


def test_evaluation_and_training_read_the_same_ratings(tmp_path):
    path = write(tmp_path / "f.jsonl", [ULTRA, ULTRA | {"instruction": "q"}])
    made = read_evaluation_set(path, attribute="honesty")
    evaluated = [
        (made.prompts[case.prompt][0], made.responses[node], case.attributes["honesty"][place])
        for case in made.cases
        for place, node in enumerate(case.nodes)
    ]
    assert evaluated == [(row.prompt, row.response, row.ratings["honesty"]) for row in read_ratings(path)]


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
    with pytest.raises(DataError, match=rf"\n  line 2: .*{message}"):
        read(tmp_path, rows, attribute="honesty" if good is ULTRA else None)
    made = read(tmp_path, rows, attribute="honesty" if good is ULTRA else None, leave_out_bad_rows=True)
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
