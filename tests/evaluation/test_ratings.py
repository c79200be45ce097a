"""Models that rate: what is measured of their ratings, and what is not."""

import html
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, r2_score

from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.local_model import LocalScorer
from tests.evaluation.conftest import text
from tests.evaluation.readers.test_evaluation_sets import RATING
from tests.evaluation.runs import page_of, ratings, run


def test_rated_attributes_are_compared_with_predictions_of_the_same_name(tmp_path, models):
    rows = [
        {
            **RATING,
            "id": number,
            "prompt": f"P{number // 5}?",
            "group": f"q{number // 5}_s",
            "response": text(number),
            "ratings": {"helpful": number % 4, "style": 1},
        }
        for number in range(40)
    ]
    written = run(tmp_path, rows, LocalScorer(models["ratings"]))
    (row,) = written.results["measures"]["attributes"]
    assert (row["name"], row["responses"]) == ("helpful", 40)
    assert written.results["measures"]["transitivity"] is None
    assert "Does it rate as people rate?" in page_of(written)


def test_a_model_that_only_rates_is_measured_by_its_ratings(tmp_path, models):
    rows = ratings(60)
    written = run(tmp_path, rows, LocalScorer(models["unweighted"]))
    results = written.results
    assert [name for name, section in results["measures"].items() if section] == ["attributes"]
    assert any("only its ratings are measured" in note for note in results["notes"])
    assert not any("calibrat" in note or "People's scores" in note for note in results["notes"])
    predicted = np.concatenate(
        [
            models["unweighted"]
            .score(rows[start]["prompt"], [row["response"] for row in rows[start : start + 3]])
            .attributes["verbose"]
            for start in range(0, 60, 3)
        ]
    )
    rated = np.asarray([row["ratings"]["verbose"] for row in rows], dtype=float)
    found = results["measures"]["attributes"][1]
    assert (found["name"], found["responses"]) == ("verbose", 60)
    for name, expected in {
        "root_mean_squared_error": math.sqrt(mean_squared_error(rated, predicted)),
        "determination": r2_score(rated, predicted),
        "pearson": pearsonr(predicted, rated).statistic,
        "spearman": spearmanr(predicted, rated).statistic,
    }.items():
        assert found[name]["value"] == pytest.approx(expected, abs=1e-4), name
        assert found[name]["low"] < found[name]["high"]
    page = page_of(written)
    assert "Does it rate as people rate?" in page
    assert "judged pairs" not in page


def test_responses_without_siblings_are_enough_for_ratings(tmp_path, models):
    rows = [{**row, "prompt": f"P{number}?"} for number, row in enumerate(ratings(20))]
    for name, why in (
        ("unweighted", "has no weights"),
        ("ratings", "No two responses of a prompt differ in 'helpful'"),
    ):
        (tmp_path / name).mkdir()
        results = run(tmp_path / name, rows, LocalScorer(models[name])).results
        assert results["measures"]["attributes"][0]["responses"] == 20
        assert any(why in note for note in results["notes"])


def test_a_model_that_only_rates_cannot_be_compared_with_another(tmp_path, models):
    for number, (one, other) in enumerate([("unweighted", "bt"), ("bt", "unweighted")]):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(EvaluationError, match=r"unweighted has no weights .*leave out --against"):
            run(tmp_path / str(number), ratings(12), LocalScorer(models[one]), against=LocalScorer(models[other]))
        assert not (tmp_path / str(number) / "out").exists()


def test_the_page_names_the_attribute_that_people_are_judged_by(tmp_path, models):
    written = run(tmp_path, ratings(24), LocalScorer(models["ratings"]))
    assert "People's scores are the ratings of 'helpful'." in html.unescape(page_of(written))
    assert written.results["measures"]["accuracy"]
