"""Length bias."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from paragone_evaluation.measures.length import (
    length_logit,
    length_matched,
    length_models,
    longer_preferred,
    within_prompt_spearman,
)


@pytest.fixture
def sample():
    draw = np.random.default_rng(6)
    one, two = draw.integers(1, 900, 600).astype(float), draw.integers(1, 900, 600).astype(float)
    logit = draw.normal(size=600) + 0.5 * np.log(one / two)
    outcome = (draw.random(600) < 1 / (1 + np.exp(-logit - 0.3 * np.log(one / two)))).astype(float)
    return logit, outcome, one, two


def test_the_logistic_models_are_scikit_learns(sample):
    logit, outcome, one, two = sample
    found = length_models(logit, outcome, one, two)
    table = np.column_stack([logit, np.log(one) - np.log(two)])
    for columns, nll in (([0], found["nll_score"]), ([1], found["nll_length"]), ([0, 1], found["nll_both"])):
        model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-12, max_iter=2000).fit(
            table[:, columns], outcome
        )
        assert nll == pytest.approx(log_loss(outcome, model.predict_proba(table[:, columns])), abs=1e-6)
    assert (found["score_coefficient"], found["length_coefficient"]) == pytest.approx(tuple(model.coef_[0]), abs=1e-4)
    assert found["gain"] == pytest.approx(found["nll_length"] - found["nll_both"])


def test_a_model_of_length_alone_adds_nothing_to_length(sample):
    _, outcome, one, two = sample
    assert length_models(2 * length_logit(one, two), outcome, one, two)["gain"] == pytest.approx(0.0, abs=1e-9)


def test_a_model_that_is_never_wrong_has_no_coefficients():
    found = length_models([5.0, -5.0], [1.0, 0.0], [3.0, 4.0], [4.0, 4.0])
    assert math.isnan(found["score_coefficient"])
    assert found["nll_both"] < 1e-6


def test_the_baseline_prefers_the_longer_response_and_an_empty_one_counts_as_one_character():
    assert np.sign(length_logit([10, 3, 0], [4, 3, 1])).tolist() == [1, 0, 0]


def test_matched_pairs_differ_by_at_most_fifteen_percent_of_the_longer_one():
    assert length_matched([85, 84, 0], [100, 100, 0]).tolist() == [True, False, True]


def test_who_prefers_the_longer_one_is_asked_only_where_lengths_differ():
    longer, differ = longer_preferred([1.0, -1.0, 0.0, 1.0], [5, 5, 5, 5], [3, 3, 3, 5])
    assert longer[:3].tolist() == [1.0, 0.0, 0.5]
    assert differ.tolist() == [True, True, True, False]


def test_score_and_length_are_correlated_within_prompts_only():
    draw = np.random.default_rng(0)
    prompt = np.asarray([0] * 6 + [1] * 5 + [2] * 2 + [3] * 4)
    score, length = draw.normal(size=17), draw.integers(1, 50, 17).astype(float)
    length[prompt == 3] = 7.0
    found = within_prompt_spearman(score, length, prompt)
    expected = [spearmanr(score[prompt == number], length[prompt == number]).statistic for number in (0, 1)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_length_models_need_a_decided_pair():
    with pytest.raises(ValueError, match="no pair is decided"):
        length_models([1.0], [0.5], [1.0], [2.0])
