"""NLL, Brier, ECE and temperature: against scikit-learn, scipy and slow loops."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from paragone_evaluation.errors import CalibrationError
from paragone_evaluation.measures.calibration import (
    brier,
    confidence_bin,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)


@pytest.fixture
def sample():
    draw = np.random.default_rng(3)
    logit = draw.normal(scale=3, size=2000)
    return logit, (draw.random(2000) < expit(0.4 * logit)).astype(float)


def slow_ece(logit, outcome, bins):
    total = 0.0
    for number in range(bins):
        low, high = 0.5 + number * 0.5 / bins, 0.5 + (number + 1) * 0.5 / bins
        rows = []
        for value, y in zip(logit, outcome, strict=True):
            p = 1 / (1 + math.exp(-value))
            sure = max(p, 1 - p)
            if low <= sure < high or (number == bins - 1 and sure == high):
                right = 0.5 if y == 0.5 or value == 0 else float((value > 0) == (y == 1))
                rows.append((right, sure))
        if rows:
            gap = abs(sum(right for right, _ in rows) / len(rows) - sum(sure for _, sure in rows) / len(rows))
            total += len(rows) / len(logit) * gap
    return total


def test_nll_and_brier_are_scikit_learns(sample):
    logit, outcome = sample
    assert negative_log_likelihood(logit, outcome).mean() == pytest.approx(log_loss(outcome, expit(logit)), abs=1e-6)
    assert brier(logit, outcome).mean() == pytest.approx(brier_score_loss(outcome, expit(logit)), abs=1e-6)


def test_a_tie_costs_the_mean_of_both_outcomes():
    both = negative_log_likelihood([1.5, 1.5], [1.0, 0.0]).mean()
    assert negative_log_likelihood([1.5], [0.5])[0] == pytest.approx(both)
    assert brier([0.0], [0.5])[0] == 0.0


def test_nll_stays_finite_at_extreme_logits():
    assert negative_log_likelihood([1e4, -1e4], [0.0, 0.0]).tolist() == [1e4, 0.0]


@pytest.mark.parametrize("bins", [1, 4, 10, 15])
def test_ece_is_that_of_a_slow_loop(sample, bins):
    logit, outcome = sample
    logit, outcome = logit[:400].copy(), outcome[:400].copy()
    logit[:5], outcome[10:20] = 0.0, 0.5
    found = expected_calibration_error(logit, outcome, bins=bins)
    assert found == pytest.approx(slow_ece(logit, outcome, bins), abs=1e-6)


def test_bins_are_equal_and_the_last_one_holds_certainty():
    assert confidence_bin([0.5, 0.5499, 0.56, 0.951, 1.0]).tolist() == [0, 0, 1, 9, 9]
    with pytest.raises(ValueError, match="at least 1"):
        confidence_bin([0.5], bins=0)
    with pytest.raises(ValueError, match="lies in"):
        confidence_bin([0.4])


def test_the_reliability_table_counts_every_pair_once_and_leaves_empty_bins_empty():
    table = reliability([0.1, 5.0, -5.0], [1.0, 1.0, 1.0])
    assert table.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table.accuracy[[0, 9]].tolist() == [1.0, 0.5]
    assert np.isnan(table.accuracy[1:9]).all()


def test_ece_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        expected_calibration_error([], [])


def test_the_temperature_is_the_inverse_slope_of_a_logistic_regression_without_intercept(sample):
    logit, outcome = sample
    fitted = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-12, max_iter=1000).fit(logit[:, None], outcome)
    assert fit_temperature(logit, outcome) == pytest.approx(1 / fitted.coef_[0, 0], abs=1e-5)


def test_no_other_temperature_has_a_lower_nll_ties_included(sample):
    logit, outcome = sample
    outcome = np.where(np.arange(len(outcome)) % 5 == 0, 0.5, outcome)
    found = fit_temperature(logit, outcome)
    best = minimize_scalar(
        lambda t: negative_log_likelihood(logit / t, outcome).mean(),
        bounds=(0.01, 100),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found == pytest.approx(best.x, rel=1e-5)


def test_the_scale_of_the_logits_does_not_matter(sample):
    logit, outcome = sample
    once = fit_temperature(logit, outcome)
    assert fit_temperature(logit * 1e-9, outcome) == pytest.approx(once * 1e-9, rel=1e-9)
    assert fit_temperature(logit * 1e9, outcome) == pytest.approx(once * 1e9, rel=1e-9)


def test_a_weight_is_the_number_of_times_that_a_pair_counts(sample):
    logit, outcome = sample[0][:60], sample[1][:60]
    weight = np.arange(60) % 4
    repeated = fit_temperature(np.repeat(logit, weight), np.repeat(outcome, weight))
    assert fit_temperature(logit, outcome, weight=weight) == pytest.approx(repeated, rel=1e-9)


def test_one_wrong_choice_of_thirty_has_a_temperature():
    # sigmoid(4 / T) = 29/30 where every logit is 4.
    assert fit_temperature([4.0] * 30, [0.0] + [1.0] * 29) == pytest.approx(4 / np.log(29), rel=1e-9)


def test_a_model_that_is_wrong_more_than_right_has_no_temperature():
    with pytest.raises(CalibrationError, match="infinite"):
        fit_temperature([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(CalibrationError, match="never wrong") as never:
        fit_temperature([1.0, -2.0], [1.0, 0.0])
    assert never.value.limit == 0.0
    with pytest.raises(CalibrationError, match="every logit is 0"):
        fit_temperature([0.0, 0.0], [1.0, 0.0])
