"""Agreement of ratings: against scikit-learn, and intervals against resampling the rows themselves."""

import math

import numpy as np
import pytest
from sklearn.metrics import mean_squared_error, r2_score

from paragone_evaluation.measures.bootstrap import Resampler
from paragone_evaluation.measures.ratings import determination, rating_estimates, root_mean_squared_error


@pytest.fixture
def sample():
    draw = np.random.default_rng(3)
    rated = draw.integers(0, 5, 300).astype(float)
    return 0.6 * rated + 0.9 + draw.normal(scale=0.8, size=300), rated, draw.integers(0, 20, 300)


def test_errors_are_scikit_learns(sample):
    predicted, rated, _ = sample
    assert root_mean_squared_error(predicted, rated) == pytest.approx(
        math.sqrt(mean_squared_error(rated, predicted)), abs=1e-6
    )
    assert determination(predicted, rated) == pytest.approx(r2_score(rated, predicted), abs=1e-6)


def test_the_constant_explains_nothing_and_worse_than_it_is_negative():
    assert determination([2.0, 2.0], [1.0, 3.0]) == 0.0
    assert determination([3.0, 1.0], [1.0, 3.0]) == 1 - (4 + 4) / (1 + 1)


def test_intervals_are_those_of_whole_resamples(sample):
    predicted, rated, cluster = sample
    draw = Resampler(20, resamples=200, seed=1)
    error, explained = rating_estimates(predicted, rated, cluster, draw)
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
    error, explained = rating_estimates([1.0, 2.0], [2.0, 2.0], [0, 1], Resampler(2, resamples=20))
    assert error.value == pytest.approx(math.sqrt(0.5))
    assert math.isnan(explained.value)
    assert math.isnan(explained.low)


def test_nan_and_other_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths differ"):
        determination([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        root_mean_squared_error([float("nan")], [1.0])
