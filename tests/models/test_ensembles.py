"""What several models' log-odds are together: by hand, at the limits, and the same in both orders."""

import numpy as np
import pytest

from paragone_models.ensembles import combined, routed

TABLE = np.array([[2.0, -4.0, 1.0], [4.0, 0.0, -1.0]])


def test_mean_spread_and_pessimism_by_hand():
    mean, spread = combined(TABLE, [1, 1])
    np.testing.assert_allclose([mean, spread], [[3, -2, 0], [1, 2, 1]])
    np.testing.assert_allclose(combined(TABLE, [1, 1], pessimism=0.5)[0], [2.5, -1, 0])
    np.testing.assert_allclose(combined(TABLE, [3, 1])[0], [2.5, -3, 0.5])
    np.testing.assert_allclose(combined(TABLE, [1, 1], pessimism=9)[0], [0, 0, 0])


def test_log_mean_exp_by_hand():
    beta, (a, b) = 0.7, (2.0, 4.0)
    expected = -np.log((3 * np.exp(-beta * a) + np.exp(-beta * b)) / 4) / beta
    got, _ = combined(TABLE[:, :1], [3, 1], pessimism=beta, form="log-mean-exp")
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    # A member without weight says nothing, however far off it is.
    alone, _ = combined(np.array([[2.0], [-900.0]]), [1, 0], pessimism=beta, form="log-mean-exp")
    np.testing.assert_allclose(alone, 2.0, rtol=1e-14)


def test_log_mean_exp_is_the_mean_for_a_small_beta_and_the_worst_member_for_a_large_one():
    rng = np.random.default_rng(0)
    table = 3 + rng.random((4, 50))
    mean, spread = combined(table, [1] * 4)
    small, _ = combined(table, [1] * 4, pessimism=1e-3, form="log-mean-exp")
    np.testing.assert_allclose(small, mean - 1e-3 / 2 * spread**2, atol=1e-7)
    large, _ = combined(table, [1] * 4, pessimism=1e5, form="log-mean-exp")
    np.testing.assert_allclose(large, table.min(axis=0), atol=2e-5)
    # Those who disagree about who wins have nothing to say between them.
    apart, _ = combined(TABLE, [1, 1], pessimism=1e5, form="log-mean-exp")
    np.testing.assert_allclose(apart, [2, 0, 0], atol=2e-5)


@pytest.mark.parametrize("form", ["spread", "log-mean-exp"])
def test_the_least_and_the_most_pessimism_are_right_and_beyond_them_is_an_error(form):
    table = np.array([[9.3, 2.0], [8.1, 2.0], [2.2, 2.0]])
    mean, _ = combined(table, [1] * 3)
    least, _ = combined(table, [1] * 3, pessimism=1e-6, form=form)
    np.testing.assert_allclose(least, mean, atol=1e-5)
    assert (least <= mean).all()
    most, _ = combined(table, [1] * 3, pessimism=1e6, form=form)
    np.testing.assert_allclose(most, [0 if form == "spread" else 2.2, 2.0], atol=1e-5)
    for wrong in (1e-15, 1e308, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"give 0, or a number from 1e-06 to 1e\+06"):
            combined(table, [1] * 3, pessimism=wrong, form=form)


@pytest.mark.parametrize("form", ["spread", "log-mean-exp"])
def test_members_that_agree_are_their_mean_and_never_above_it(form):
    table = np.full((3, 1000), np.random.default_rng(2).normal(size=1000))
    mean, _ = combined(table, [1, 2, 0.5])
    for pessimism in (1e-6, 1e-3, 1.0):
        got, _ = combined(table, [1, 2, 0.5], pessimism=pessimism, form=form)
        assert (np.abs(got) <= np.abs(mean)).all()
        np.testing.assert_allclose(got, mean, atol=1e-9)


@pytest.mark.parametrize("form", ["spread", "log-mean-exp"])
def test_swapped_responses_flip_the_sign_and_nothing_else(form):
    table = np.random.default_rng(1).normal(size=(3, 1000)) * 4
    for pessimism in (0.0, 0.3, 5.0):
        there, spread = combined(table, [1, 2, 0.5], pessimism=pessimism, form=form)
        back, same = combined(-table, [1, 2, 0.5], pessimism=pessimism, form=form)
        np.testing.assert_array_equal(there, -back)
        np.testing.assert_array_equal(spread, same)
        assert (np.abs(there) <= np.abs(combined(table, [1, 2, 0.5])[0]) + 1e-12).all()


@pytest.mark.parametrize("form", ["spread", "log-mean-exp"])
def test_what_is_missing_stays_missing_and_extremes_are_finite(form):
    table = np.array([[1e4, np.nan, -1e4], [9e3, 1.0, 1e4]])
    got, _ = combined(table, [1, 1], pessimism=1.0, form=form)
    assert np.isfinite(got[[0, 2]]).all()
    assert np.isnan(got[1])


def test_the_others_are_asked_within_the_margin_alone():
    answers, asked = routed(np.array([[0.5, -3.0, 2.0], [-2.0, 7.0, 7.0]]), [0, 1], 2.0)
    assert asked.tolist() == [True, False, False]
    np.testing.assert_array_equal(answers, [-2, -3, 2])
