"""Whole evaluations: answers and report, resuming, and what is said about doubtful numbers."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.evaluation import default_folder, evaluate_models
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.measures.accuracy import accuracy
from paragone_evaluation.readers import ReadOptions, read_evaluation_set
from paragone_evaluation.results import MeasureSettings, plain
from paragone_evaluation.results_report import page_of_results
from tests.evaluation.conftest import pair, write
from tests.evaluation.runs import QUICK, page_of, run
from tests.evaluation.test_asking import Stops


@pytest.mark.parametrize("name", ["bt", "gp", "ratings"])
def test_an_evaluation_leaves_answers_results_and_a_self_contained_report(tmp_path, models, name):
    rows = [pair(number) for number in range(96)]
    written = run(tmp_path, rows, LocalScorer(models[name]), command="paragone eval file.jsonl --model tiny")
    assert [path.name for path in written.files] == ["report.html", "results.json"]
    results = json.loads(written.files[1].read_text())
    assert results == written.results
    assert results["model"]["fingerprint"] == models[name].fingerprint
    assert results["data"]["answered"] == 96
    page = page_of(written)
    for told in (
        "paragone eval file.jsonl --model tiny",
        models[name].identity,
        models[name].fingerprint,
        "10 equal-width",
    ):
        assert told in page


def test_the_accuracy_of_the_report_is_that_of_the_answers(tmp_path, models):
    rows = [pair(number) for number in range(48)]
    written = run(tmp_path, rows, LocalScorer(models["bt"]))
    logit, outcome = [], []
    for row in rows:
        rewards = models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards
        logit.append(rewards[0] - rewards[1])
        outcome.append(1.0 if row["strength"] > 0 else 0.0 if row["strength"] < 0 else 0.5)
    expected = accuracy(logit, outcome)
    found = written.results["measures"]["accuracy"]
    assert found["strict"]["value"] == pytest.approx(expected.strict)
    assert (found["decided"], found["human_ties"]) == (expected.decided, expected.human_ties)
    assert found["strict"]["low"] <= expected.strict <= found["strict"]["high"]


def test_an_interrupted_evaluation_says_what_is_kept_and_goes_on_from_there(tmp_path, models):
    data = read_evaluation_set(write(tmp_path / "f.jsonl", [pair(number) for number in range(24)]))
    shown = io.StringIO()
    scorer = Stops(LocalScorer(models["bt"]), after=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_models(data, scorer, tmp_path / "out", QUICK, console=Console(file=shown, width=60))
    assert f"12 answers are kept in {tmp_path / 'out' / 'answers.jsonl'}: the same command" in shown.getvalue()
    again = Stops(LocalScorer(models["bt"]), after=9)
    assert evaluate_models(data, again, tmp_path / "out", QUICK).results["data"]["answered"] == 24


def test_what_was_left_out_is_told_on_the_page(tmp_path, models):
    rows = [pair(0), pair(1, strength=7), pair(2, first="word " * 400), *(pair(number) for number in range(3, 30))]
    data = read_evaluation_set(write(tmp_path / "f.jsonl", rows), options=ReadOptions(bad_rows="leave-out"))
    written = evaluate_models(data, LocalScorer(models["gp"]), tmp_path / "out", QUICK)
    reasons = {row["reason"]: row["count"] for row in written.results["left_out"]}
    assert reasons["field 'strength' is 7; it must lie in -3 … 3"] == 1
    assert reasons["gp refused comparisons: response_too_long"] == 1
    assert reasons["judged pairs without an answer by gp"] == 1
    assert any("ties" in reason or "tied" in reason for reason in reasons)
    assert "response_too_long" in page_of(written)


def test_texts_of_a_file_cannot_write_into_the_page(tmp_path, models):
    rows = [pair(number, group=f"<script>alert({number % 2})</script>_x") for number in range(12)]
    page = page_of(run(tmp_path, rows, LocalScorer(models["bt"])))
    assert "&lt;script&gt;" in page


def test_one_question_falls_back_to_prompts_and_one_prompt_has_no_interval(tmp_path, models):
    rows = [pair(number, group="same") for number in range(20)]
    written = run(tmp_path, rows, LocalScorer(models["bt"]))
    assert written.results["settings"]["cluster"] == "prompt"
    assert any("one question" in note for note in written.results["notes"])
    (tmp_path / "one").mkdir()
    written = run(tmp_path / "one", [pair(number) for number in range(4)], LocalScorer(models["bt"]))
    assert written.results["measures"]["accuracy"]["strict"]["low"] is None
    assert any("no intervals" in note for note in written.results["notes"])
    assert "4 judged pairs, 8 responses to 1 prompt. From 1 question there are no intervals." in page_of(written)


def test_demonstrations_and_uncalibrated_models_say_so(tmp_path, models):
    notes = run(tmp_path, [pair(number) for number in range(8)], LocalScorer(models["bt"])).results["notes"]
    assert any("temperature of bt was not fitted" in note for note in notes)
    assert any("mostly noise" in note for note in notes)


def test_impossible_settings_are_refused_by_value():
    for options, message in (
        ({"bins": 0}, "bins is 0"),
        ({"resamples": 1}, "resamples is 1"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(EvaluationError, match=message):
            MeasureSettings(**options)


def test_the_same_seed_gives_the_same_results(tmp_path, models):
    rows = [pair(number) for number in range(48)]
    one = run(tmp_path, rows, LocalScorer(models["bt"])).results
    two = run(tmp_path, rows, LocalScorer(models["bt"])).results
    assert one["measures"] == two["measures"]
    assert (
        run(tmp_path, rows, LocalScorer(models["bt"]), settings=MeasureSettings(resamples=50, seed=1)).results[
            "measures"
        ]
        != one["measures"]
    )


def test_numbers_that_are_none_become_null_in_json_and_a_page_can_be_made_of_the_file_again(tmp_path, models):
    assert plain({"a": np.float64("nan"), "b": (np.int64(1), math.inf), "c": np.asarray([1.0])}) == {
        "a": None,
        "b": [1, None],
        "c": [1.0],
    }
    written = run(tmp_path, [pair(number) for number in range(24)], LocalScorer(models["bt"]))
    assert page_of_results(json.loads(written.files[1].read_text())) == written.files[0].read_text(encoding="utf-8")


def test_the_default_folder_names_file_split_and_model(tmp_path):
    data = read_evaluation_set(write(tmp_path / "my pairs.jsonl", [pair(0, split="test")]), split="test")
    assert default_folder(data, "owner/model").as_posix() == "evaluations/my-pairs-test-owner-model"
