"""Aggregation of steps, by hand, at the edges, and by what it means."""

import numpy as np
import pytest

from paragone_models.steps import AGGREGATIONS, aggregated, rewards_of_steps

NAN = float("nan")


def logit(probability):
    return np.log(probability) - np.log1p(-probability)


def test_each_aggregation_is_that_of_the_probabilities():
    probabilities = np.array([[0.9, 0.5, 0.8], [0.3, 0.6, NAN], [0.2, NAN, NAN]])
    steps = logit(probabilities)
    np.testing.assert_allclose(aggregated(steps, "min"), logit(np.array([0.5, 0.3, 0.2])))
    np.testing.assert_allclose(aggregated(steps, "prod"), logit(np.array([0.36, 0.18, 0.2])), atol=1e-12)
    np.testing.assert_allclose(aggregated(steps, "last"), logit(np.array([0.8, 0.6, 0.2])))


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_one_step_is_its_own_aggregation_however_sure(how):
    sure = [[value] for value in (-1e4, -50.0, -1.0, 0.0, 3.0, 40.0, 800.0, 1e4)]
    np.testing.assert_allclose(aggregated(sure, how), np.array(sure)[:, 0], rtol=1e-6, atol=1e-9)


def test_a_product_of_sure_steps_loses_nothing():
    # 1 - prod p_i is about the sum of exp(-z_i), of which a float64 product keeps nothing.
    np.testing.assert_allclose(aggregated([[60.0, 60.0, 70.0]], "prod"), -np.log(2 * np.exp(-60.0) + np.exp(-70.0)))


def test_a_row_without_steps_has_no_number():
    assert np.isnan(aggregated([[NAN, NAN]], "prod")).all()
    assert np.isnan(rewards_of_steps([[1.0, 2.0]], None)).all()
    assert rewards_of_steps([[1.0, 2.0], [3.0, NAN]], "last").tolist() == [[2.0], [3.0]]
