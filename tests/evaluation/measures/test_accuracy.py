"""Accuracy under three tie rules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from paragone_evaluation.measures.accuracy import accuracy, credit

logits = st.lists(st.tuples(st.floats(-30, 30), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30)


def test_the_three_rules_treat_a_tie_of_the_model_as_wrong_as_half_and_as_absent():
    found = accuracy([2.0, 0.0, -1.0, -3.0, 4.0], [1.0, 1.0, 1.0, 0.0, 0.5])
    assert (found.strict, found.half_credit, found.dropped) == (2 / 4, 2.5 / 4, 2 / 3)
    assert (found.decided, found.human_ties, found.model_ties) == (4, 1, 1)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(logits)
def test_the_rules_agree_with_counting_row_by_row(rows):
    right = sum((logit > 0) == (outcome == 1) for logit, outcome in rows if outcome != 0.5 and logit != 0)
    tied = sum(logit == 0 for logit, outcome in rows if outcome != 0.5)
    decided = sum(outcome != 0.5 for _, outcome in rows)
    if not decided:
        with pytest.raises(ValueError, match="none of"):
            accuracy(*zip(*rows, strict=True))
        return
    found = accuracy(*zip(*rows, strict=True))
    assert found.strict == right / decided
    assert found.half_credit == pytest.approx((right + tied / 2) / decided)
    assert math.isnan(found.dropped) if decided == tied else found.dropped == right / (decided - tied)


def test_without_ties_it_is_scikit_learns_accuracy():
    draw = np.random.default_rng(0)
    logit, outcome = draw.normal(size=500), draw.integers(0, 2, 500).astype(float)
    expected = accuracy_score(outcome, (logit > 0).astype(float))
    assert accuracy(logit, outcome).strict == pytest.approx(expected, abs=1e-12)


def test_swapping_both_responses_changes_no_credit():
    draw = np.random.default_rng(1)
    logit, outcome = draw.normal(size=100).round(), draw.choice([0, 0.5, 1], 100)
    assert (credit(logit, outcome) == credit(-logit, 1 - outcome)).all()


def test_an_outcome_that_is_no_outcome_is_refused_with_its_index():
    with pytest.raises(ValueError, match=r"not 0.7 \(index 1\)"):
        accuracy([1.0, 2.0], [1.0, 0.7])


@pytest.mark.parametrize("logit", [[math.nan, 1.0], [1.0, math.inf]])
def test_a_logit_that_is_no_number_is_refused(logit):
    with pytest.raises(ValueError, match="NaN or infinity"):
        accuracy(logit, [1.0, 0.0])


def test_different_lengths_are_refused_and_not_broadcast():
    with pytest.raises(ValueError, match="logit 2, outcome 1"):
        accuracy([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="one dimension"):
        accuracy([[1.0]], [1.0])
