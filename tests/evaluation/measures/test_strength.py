"""Agreement with strength: against scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from paragone_evaluation.measures.strength import auc, by_strength, pearson, spearman, strength_auc


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
    assert strength_auc(logit, strength) == pytest.approx(expected, abs=1e-6)


def test_what_is_constant_or_missing_has_no_correlation_and_no_auc():
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0], [2.0]))
    assert math.isnan(auc([], [1.0]))


def test_levels_have_the_accuracy_and_the_mean_logit_of_the_preferred_response():
    levels = by_strength([1.0, -2.0, 3.0, 0.5], [1.0, 1.0, -3.0, 0.0])
    assert [level.strength for level in levels] == [0.0, 1.0, 3.0]
    assert [level.count for level in levels] == [1, 2, 1]
    assert [level.mean_logit for level in levels] == [0.5, -0.5, -3.0]
    assert math.isnan(levels[0].accuracy)
    assert [level.accuracy for level in levels[1:]] == [0.5, 0.0]
