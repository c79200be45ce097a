"""Agreement with strengths and ratings: against scipy, scikit-learn, and resampling of the rows themselves."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, r2_score, roc_auc_score

from paragone_evaluation.measures.agreement import (
    auc,
    by_strength,
    determination,
    pearson,
    root_mean_squared_error,
    spearman,
)
from paragone_evaluation.measures.bootstrap import Resampler


@pytest.fixture
def sample():
    draw = np.random.default_rng(4)
    strength = draw.integers(-3, 4, 400).astype(float)
    return (strength + draw.normal(scale=2, size=400)).round(1), strength


def test_correlations_are_scipys(sample):
    assert pearson(*sample) == pytest.approx(pearsonr(*sample).statistic, abs=1e-6)
    assert spearman(*sample) == pytest.approx(spearmanr(*sample).statistic, abs=1e-6)


def test_auc_of_strong_against_slight_is_scikit_learns(sample):
    logit, strength = sample
    decided = strength != 0
    expected = roc_auc_score(np.abs(strength[decided]) >= 2, np.abs(logit[decided]))
    strong, slight = np.abs(strength) >= 2, np.abs(strength) == 1
    assert auc(np.abs(logit[strong]), np.abs(logit[slight])) == pytest.approx(expected, abs=1e-6)


def test_what_is_constant_or_missing_has_no_correlation_and_no_auc():
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0], [2.0]))
    assert math.isnan(auc([], [1.0]))


def test_levels_have_the_accuracy_and_the_mean_logit_of_the_preferred_response():
    levels = by_strength([1.0, -2.0, 3.0, 0.5], [1.0, 1.0, -3.0, 0.0])
    assert [level["strength"] for level in levels] == [0.0, 1.0, 3.0]
    assert [level["count"] for level in levels] == [1, 2, 1]
    assert [level["mean_logit"] for level in levels] == [0.5, -0.5, -3.0]
    assert math.isnan(levels[0]["accuracy"])
    assert [level["accuracy"] for level in levels[1:]] == [0.5, 0.0]


@pytest.fixture
def rated_sample():
    draw = np.random.default_rng(3)
    rated = draw.integers(0, 5, 300).astype(float)
    return 0.6 * rated + 0.9 + draw.normal(scale=0.8, size=300), rated, draw.integers(0, 20, 300)


def test_errors_are_scikit_learns(rated_sample):
    predicted, rated, _ = rated_sample
    assert root_mean_squared_error(predicted, rated) == pytest.approx(
        math.sqrt(mean_squared_error(rated, predicted)), abs=1e-6
    )
    assert determination(predicted, rated) == pytest.approx(r2_score(rated, predicted), abs=1e-6)


def test_the_constant_explains_nothing_and_worse_than_it_is_negative():
    assert determination([2.0, 2.0], [1.0, 3.0]) == 0.0
    assert determination([3.0, 1.0], [1.0, 3.0]) == 1 - (4 + 4) / (1 + 1)


def test_intervals_are_those_of_whole_resamples(rated_sample):
    predicted, rated, cluster = rated_sample
    draw = Resampler(20, resamples=200, seed=1)
    error, explained = draw.rating_errors(predicted, rated, cluster)
    slow = []
    for counts in draw.counts:
        rows = np.repeat(np.arange(300), counts[cluster].astype(int))
        slow.append(
            (math.sqrt(mean_squared_error(rated[rows], predicted[rows])), r2_score(rated[rows], predicted[rows]))
        )
    low, high = np.percentile(np.asarray(slow), (2.5, 97.5), axis=0)
    assert (error.low, error.high) == pytest.approx((low[0], high[0]), abs=1e-6)
    assert (explained.low, explained.high) == pytest.approx((low[1], high[1]), abs=1e-6)
    assert (error.value, explained.value) == (
        root_mean_squared_error(predicted, rated),
        determination(predicted, rated),
    )


def test_ratings_that_are_all_the_same_have_an_error_and_no_determination():
    error, explained = Resampler(2, resamples=20).rating_errors([1.0, 2.0], [2.0, 2.0], [0, 1])
    assert error.value == pytest.approx(math.sqrt(0.5))
    assert math.isnan(explained.value)
    assert math.isnan(explained.low)


def test_nan_and_other_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths differ"):
        determination([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        root_mean_squared_error([float("nan")], [1.0])
