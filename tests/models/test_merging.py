"""Merging ratings into a preference: agreement with scikit-learn, and data that decides everything or nothing."""

import numpy as np
import pytest

from paragone_models.merging import fit_merging

NAN = float("nan")


def test_merging_finds_the_weights_that_made_the_choices_as_scikit_learn_does():
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    raw = draw.normal(size=(4000, 2))
    chosen = draw.random(4000) < 1 / (1 + np.exp(-(raw @ [2.0, -0.5])))
    differences = np.where(chosen[:, None], raw, -raw)
    merging = fit_merging(differences)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False).fit(raw, chosen).coef_[0]
    assert np.array(merging.weights) / merging.temperature == pytest.approx(theirs, rel=0.02)
    assert sum(map(abs, merging.weights)) == pytest.approx(1.0)
    assert merging.temperature == pytest.approx(1 / 2.5, rel=0.1)
    assert merging.pairs == 4000


def test_merging_stays_finite_where_one_attribute_decides_everything_and_says_nothing_where_none_does():
    decided = fit_merging(np.array([[1.0, 0.0], [2.0, 0.0]]))
    assert decided.weights == (1.0, 0.0)
    assert 0 < decided.temperature < 1
    assert fit_merging(np.zeros((3, 2))) is None
    assert fit_merging(np.zeros((0, 2))) is None
    with pytest.raises(ValueError, match="finite and"):
        fit_merging(np.array([[NAN]]))
