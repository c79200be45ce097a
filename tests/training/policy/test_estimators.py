"""Targets from a table: by hand, in expectation, with missing comparisons and ties."""

import math
from itertools import product

import numpy as np
import pytest

from paragone_training.policy import targets as estimators
from tests.training.games.matrices import ROCK_PAPER_SCISSORS, START

NAN = math.nan
TABLE = np.array([[0.5, 0.9, 0.6, 0.2], [0.1, 0.5, 0.7, 0.5], [0.4, 0.3, 0.5, 0.8], [0.8, 0.5, 0.2, 0.5]])
HOLED = np.array([[0.5, NAN, 0.6, 0.2], [NAN, 0.5, NAN, NAN], [0.4, NAN, 0.5, 0.8], [0.8, NAN, 0.2, 0.5]])
"""No comparison with the second response exists."""


def test_win_rates_with_self_are_the_row_means_and_without_self_the_means_over_the_others():
    np.testing.assert_allclose(estimators.mean_win_rates(TABLE), TABLE.mean(axis=1))
    np.testing.assert_allclose(
        estimators.mean_win_rates(TABLE, include_self=False),
        [(0.9 + 0.6 + 0.2) / 3, (0.1 + 0.7 + 0.5) / 3, (0.4 + 0.3 + 0.8) / 3, (0.8 + 0.5 + 0.2) / 3],
    )


def test_with_self_five_hard_preferences_lie_between_a_tenth_and_nine_tenths():
    order = np.triu(np.ones((5, 5)), 1) + 0.5 * np.eye(5)

    np.testing.assert_allclose(estimators.mean_win_rates(order)[[0, -1]], [0.9, 0.1])
    np.testing.assert_allclose(estimators.mean_win_rates(order[:2, :2]), [0.75, 0.25])
    np.testing.assert_allclose(estimators.mean_win_rates(order, include_self=False)[[0, -1]], [1.0, 0.0])


def test_a_missing_comparison_is_left_out_of_the_mean_and_what_has_none_has_no_win_rate():
    np.testing.assert_allclose(estimators.mean_win_rates(HOLED), [1.3 / 3, NAN, 1.7 / 3, 1.5 / 3])
    np.testing.assert_allclose(estimators.mean_win_rates(HOLED, include_self=False), [0.8 / 2, NAN, 1.2 / 2, 1.0 / 2])


def test_what_stands_on_the_diagonal_does_not_matter():
    changed = TABLE.copy()
    np.fill_diagonal(changed, NAN)

    np.testing.assert_allclose(estimators.mean_win_rates(changed), estimators.mean_win_rates(TABLE))


def test_a_single_response_has_no_win_rate_rather_than_one_half():
    assert np.isnan(estimators.mean_win_rates([[0.5]])).all()
    assert np.isnan(estimators.mean_win_rates([[0.5]], include_self=False)).all()


def test_the_win_rate_over_others_is_unbiased_and_the_one_with_self_is_drawn_to_one_half():
    """Expectation over every draw of three responses of the three-response game, the first one given."""
    true = ROCK_PAPER_SCISSORS @ START
    for given in range(3):
        without, with_self = 0.0, 0.0
        for others in product(range(3), repeat=2):
            weight = START[list(others)].prod()
            drawn = [given, *others]
            table = ROCK_PAPER_SCISSORS[np.ix_(drawn, drawn)]
            without += weight * estimators.mean_win_rates(table, include_self=False)[0]
            with_self += weight * estimators.mean_win_rates(table)[0]
        assert without == pytest.approx(true[given])
        assert with_self == pytest.approx(true[given] * 2 / 3 + 0.5 / 3)


def test_mean_scores_average_the_logits_with_the_response_itself_at_zero():
    scores = np.array([[0.0, 2.0, -1.0], [-2.0, 0.0, NAN], [1.0, NAN, 0.0]])

    np.testing.assert_allclose(estimators.mean_scores(scores), [1.0 / 3, -2.0 / 2, 1.0 / 2])
    np.testing.assert_allclose(estimators.mean_scores(scores, include_self=False), [1.0 / 2, -2.0, 1.0])


def test_disjoint_pairs_use_every_response_once_and_all_pairs_every_comparison():
    disjoint = estimators.pairs(TABLE, selection="disjoint", labels="soft")
    assert {(int(a), int(b)) for a, b in zip(disjoint.chosen, disjoint.rejected, strict=True)} == {(0, 1), (2, 3)}
    np.testing.assert_allclose(disjoint.preference, [0.9, 0.8])

    assert len(estimators.pairs(TABLE, selection="all", labels="soft", ties="keep")) == 6
    odd = estimators.pairs(TABLE[:3, :3], selection="disjoint", labels="soft")
    assert len(odd) == 1


def test_soft_pairs_are_oriented_and_carry_the_probability_of_the_chosen():
    pairs = estimators.pairs(TABLE, selection="all", labels="soft", ties="drop")

    assert (pairs.preference > 0.5).all()
    np.testing.assert_allclose(pairs.preference, TABLE[pairs.chosen, pairs.rejected])


def test_hard_pairs_are_the_majority():
    pairs = estimators.pairs(TABLE, selection="all", labels="hard", ties="drop")

    assert (TABLE[pairs.chosen, pairs.rejected] > 0.5).all()
    assert (pairs.preference == 1.0).all()


def test_sampled_labels_are_drawn_with_the_probability_of_the_oracle():
    generator = np.random.default_rng(0)
    table = np.array([[0.5, 0.3], [0.7, 0.5]])
    wins = 0
    for _ in range(4000):
        pair = estimators.pairs(table, selection="all", labels="sampled", generator=generator)
        assert pair.preference[0] == 1.0
        wins += int(pair.chosen[0] == 0)

    assert wins / 4000 == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


def test_the_same_generator_gives_the_same_labels():
    first, second = (
        estimators.pairs(TABLE, selection="all", labels="sampled", generator=np.random.default_rng(5)) for _ in "12"
    )

    assert np.array_equal(first.chosen, second.chosen)


def test_a_certain_preference_is_never_sampled_the_other_way():
    generator = np.random.default_rng(1)
    for _ in range(100):
        pair = estimators.pairs([[0.5, 1.0], [0.0, 0.5]], selection="all", labels="sampled", generator=generator)
        assert pair.chosen[0] == 0


def test_best_versus_worst_is_the_highest_against_the_lowest_win_rate():
    pair = estimators.pairs(TABLE, selection="best-versus-worst", labels="soft")

    # Win rates .55, .45, .5, .5: the first against the second.
    assert (int(pair.chosen[0]), int(pair.rejected[0])) == (0, 1)
    np.testing.assert_allclose(pair.preference, [0.9])


def test_a_hard_best_versus_worst_pair_is_kept_only_where_the_best_beats_the_worst():
    upset = np.array([[0.5, 1.0, 1.0, 0.4], [0.0, 0.5, 0.5, 0.55], [0.0, 0.5, 0.5, 0.55], [0.6, 0.45, 0.45, 0.5]])
    upset[3, 1:3], upset[1:3, 3] = 0.0, 1.0

    assert np.argmax(upset.mean(axis=1)) == 0
    assert np.argmin(upset.mean(axis=1)) == 3
    assert len(estimators.pairs(upset, selection="best-versus-worst", labels="hard")) == 0
    soft = estimators.pairs(upset, selection="best-versus-worst", labels="soft")
    assert (int(soft.chosen[0]), int(soft.rejected[0])) == (3, 0)  # the pair, as the oracle sees it
    np.testing.assert_allclose(soft.preference, [0.6])


def test_five_tied_responses_have_no_best_and_no_worst():
    for labels in ("hard", "soft"):
        assert len(estimators.pairs(np.full((5, 5), 0.5), selection="best-versus-worst", labels=labels)) == 0
    rounding = np.full((3, 3), 0.5)
    rounding[0, 1] += 1e-16
    assert len(estimators.pairs(rounding, selection="best-versus-worst", labels="soft", ties="keep")) == 0


@pytest.mark.parametrize("labels", ["hard", "soft", "sampled"])
def test_a_tie_is_dropped_or_kept_with_the_target_one_half_whatever_the_labels(labels):
    tied = np.array([[0.5, 0.5], [0.5, 0.5]])
    generator = np.random.default_rng(0)

    assert len(estimators.pairs(tied, selection="all", labels=labels, ties="drop", generator=generator)) == 0
    kept = estimators.pairs(tied, selection="all", labels=labels, generator=generator)
    np.testing.assert_array_equal(kept.preference, [0.5])
    assert {int(kept.chosen[0]), int(kept.rejected[0])} == {0, 1}


@pytest.mark.parametrize("labels", ["hard", "soft", "sampled"])
@pytest.mark.parametrize("selection", ["disjoint", "all", "best-versus-worst"])
def test_a_missing_comparison_makes_no_pair(labels, selection):
    generator = np.random.default_rng(0)
    pairs = estimators.pairs(HOLED, selection=selection, labels=labels, ties="keep", generator=generator)

    assert 1 not in {*pairs.chosen.tolist(), *pairs.rejected.tolist()}
    assert np.isfinite(pairs.preference).all()
    nothing = np.full((4, 4), NAN)
    assert len(estimators.pairs(nothing, selection=selection, labels=labels, generator=generator)) == 0


def test_the_best_and_worst_without_a_comparison_between_them_make_no_pair():
    table = np.array([[0.5, 0.9, NAN], [0.1, 0.5, 0.8], [NAN, 0.2, 0.5]])

    assert len(estimators.pairs(table, selection="best-versus-worst", labels="soft")) == 0


def test_leaving_self_out_can_change_the_best_where_comparisons_are_missing():
    table = np.array([[0.5, 0.8, NAN, NAN], [0.2, 0.5, 0.1, 0.1], [NAN, 0.9, 0.5, 0.64], [NAN, 0.9, 0.36, 0.5]])

    with_self = estimators.pairs(table, selection="best-versus-worst", labels="soft")
    without = estimators.pairs(table, selection="best-versus-worst", labels="soft", include_self=False)
    assert (int(with_self.chosen[0]), int(without.chosen[0])) == (2, 0)


def test_the_mean_of_both_orders_as_probabilities_and_as_logits():
    raw = np.array([[0.5, 0.9], [0.3, 0.5]])
    probability = estimators.symmetrised(raw, rule="mean-probability")
    logit = estimators.symmetrised(raw, rule="mean-logit")

    assert probability[0, 1] == pytest.approx((0.9 + 0.7) / 2)
    assert math.log(logit[0, 1] / logit[1, 0]) == pytest.approx((math.log(9.0) - math.log(3 / 7)) / 2)
    for table in (probability, logit):
        np.testing.assert_allclose(table + table.T, 1.0)


def test_a_table_that_is_symmetrical_already_stays_as_it_is():
    for rule in ("mean-probability", "mean-logit"):
        np.testing.assert_allclose(estimators.symmetrised(TABLE, rule=rule), TABLE, atol=1e-15)


def test_one_missing_order_makes_the_comparison_missing_since_the_other_keeps_its_position_bias():
    raw = np.array([[0.5, 0.9, 0.2], [NAN, 0.5, 0.6], [0.7, 0.4, 0.5]])
    for rule in ("mean-probability", "mean-logit"):
        missing = np.isnan(estimators.symmetrised(raw, rule=rule))
        assert missing.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_two_certain_answers_that_contradict_each_other_are_a_tie_and_certain_ones_that_agree_are_certain():
    contradiction = np.array([[0.5, 1.0], [1.0, 0.5]])
    agreement = np.array([[0.5, 1.0], [0.0, 0.5]])

    for rule in ("mean-probability", "mean-logit"):
        np.testing.assert_array_equal(estimators.symmetrised(contradiction, rule=rule), np.full((2, 2), 0.5))
        np.testing.assert_array_equal(estimators.symmetrised(agreement, rule=rule), agreement)


def test_what_is_no_table_is_refused():
    for call in (estimators.mean_win_rates, lambda table: estimators.pairs(table, selection="all", labels="soft")):
        with pytest.raises(ValueError, match="a table must be square"):
            call(np.full((2, 3), 0.5))
        with pytest.raises(ValueError, match=r"must be a probability in \[0, 1\]"):
            call([[0.5, 1.5], [-0.5, 0.5]])
        with pytest.raises(ValueError, match="missing in one order only"):
            call([[0.5, NAN], [0.3, 0.5]])
        with pytest.raises(ValueError, match="must be 1: symmetrise the raw answers first"):
            call([[0.5, 0.9], [0.9, 0.5]])
    with pytest.raises(ValueError, match="a table must be square"):
        estimators.symmetrised([0.5], rule="mean-logit")
    with pytest.raises(ValueError, match=r"must be a probability in \[0, 1\]"):
        estimators.symmetrised([[0.5, 2.0], [0.3, 0.5]], rule="mean-logit")


def test_scores_that_are_not_antisymmetric_are_refused():
    with pytest.raises(ValueError, match="must be 0: these scores are not antisymmetric"):
        estimators.mean_scores([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="missing in one order only"):
        estimators.mean_scores([[0.0, NAN], [1.0, 0.0]])
    with pytest.raises(ValueError, match="a score is infinite"):
        estimators.mean_scores([[0.0, math.inf], [-math.inf, 0.0]])
    with pytest.raises(ValueError, match="a table must be square"):
        estimators.mean_scores([0.0, 1.0])


def test_unknown_choices_and_unrepeatable_labels_are_refused():
    with pytest.raises(ValueError, match="selection must be one of disjoint, all, best-versus-worst, not 'some'"):
        estimators.pairs(TABLE, selection="some", labels="soft")
    with pytest.raises(ValueError, match="labels must be one of hard, sampled, soft, not 'firm'"):
        estimators.pairs(TABLE, selection="all", labels="firm")
    with pytest.raises(ValueError, match="ties must be one of drop, keep, not 'win'"):
        estimators.pairs(TABLE, selection="all", labels="soft", ties="win")
    with pytest.raises(ValueError, match="rule must be one of mean-probability, mean-logit, not 'sum'"):
        estimators.symmetrised(TABLE, rule="sum")
    with pytest.raises(ValueError, match="sampled labels need a generator"):
        estimators.pairs(TABLE, selection="all", labels="sampled")
    with pytest.raises(ValueError, match="at least two responses"):
        estimators.pairs([[0.5]], selection="all", labels="soft")
