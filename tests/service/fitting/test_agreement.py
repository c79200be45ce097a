"""Shares with intervals, against numbers that their authors published."""

import numpy as np
import pytest

from paragone_service.fitting.agreement import agreement, difference, share


def answers(both, only_new, only_old, neither):
    new = np.array([True] * (both + only_new) + [False] * (only_old + neither))
    old = np.array([True] * both + [False] * only_new + [True] * only_old + [False] * neither)
    return new, old


@pytest.mark.parametrize(
    ("right", "pairs", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), 857–872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval(right, pairs, low, high):
    found = share(right, pairs)
    assert (found.share, found.low, found.high) == pytest.approx((right / pairs, low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), 2635–2650; and Fagerland et al. (2014) on 21 children.
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_a_difference_has_newcombes_interval(table, low, high):
    found = difference(*answers(*table))
    assert found.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


def test_two_models_that_answer_alike_differ_by_nothing_and_a_few_pairs_prove_little():
    same = difference(*answers(5, 0, 0, 0))
    assert same.value == 0
    assert same.low < -0.4
    assert same.high > 0.4


def test_both_models_are_counted_on_the_same_pairs():
    found = agreement(*answers(3, 4, 1, 2), prompts=6)
    assert (found.pairs, found.prompts, found.only_new, found.only_old) == (10, 6, 4, 1)
    assert (found.new.share, found.old.share) == (0.7, 0.4)
    alone = agreement(np.array([True, False]), None, prompts=2)
    assert (alone.new.share, alone.old, alone.difference, alone.only_old) == (0.5, None, None, None)
