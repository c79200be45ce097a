"""From tables to pairs: unfinished responses, scores, sampled labels that a restart draws again."""

import numpy as np
import pytest

from paragone_training.policy.methods.registry import METHODS
from paragone_training.policy.rows import LabelledPair, read_rows, write_rows
from paragone_training.policy.targets import _group_table, labelled_pairs

TABLE = np.array([[0.5, 0.8, 0.6], [0.2, 0.5, 0.7], [0.4, 0.3, 0.5]])
NAMES = (0, 1, 1)


def table(unfinished, penalty=2.0, finished=(True, False, True), raw=TABLE, characters=(300, 100, 250), **changes):
    settings = {"rule": "mean-probability", "unfinished": unfinished, "penalty": penalty}
    return _group_table(raw, finished, characters, **settings | changes)


def pairs_of(tables, method, *, names, labels="soft", win_rates="with-self"):
    numbers = {"sppo": {"eta": 1.0}, "gpo": {"beta": 1.0}, "inpo": {"eta": 1.0, "tau": 0.5}}[method]
    return labelled_pairs(
        tables,
        selection="all",
        labels=labels,
        ties="drop",
        include_self=win_rates == "with-self",
        own_targets=METHODS[method](**numbers).own_targets,
        names=names,
    )


def test_unfinished_responses_are_kept_as_they_are():
    np.testing.assert_allclose(table("keep"), TABLE)


def test_comparisons_of_a_dropped_response_are_missing():
    found = table("drop")
    assert np.isnan(found[[0, 1, 1, 2], [1, 0, 2, 1]]).all()
    assert found[0, 2] == pytest.approx(0.6)
    pairs = pairs_of({"p": found}, "inpo", names=NAMES)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(0, 2)]


def test_a_penalised_response_loses_logits_against_finished_ones_and_none_against_its_like():
    found = table("penalise")
    logit = np.log(0.7 / 0.3)
    assert found[1, 2] == pytest.approx(1 / (1 + np.exp(-(logit - 2.0))))
    np.testing.assert_allclose(found + found.T, 1.0)
    assert found[0, 2] == pytest.approx(0.6)
    np.testing.assert_allclose(table("penalise", finished=(False, False, False)), TABLE)


def test_a_longer_response_loses_logits_by_its_length_over_the_other_one():
    found = table("keep", length_penalty=0.4)
    assert found[0, 1] == pytest.approx(1 / (1 + np.exp(-(np.log(0.8 / 0.2) - 0.4 * 2.0))))
    assert found[0, 2] == pytest.approx(1 / (1 + np.exp(-(np.log(0.6 / 0.4) - 0.4 * 0.5))))
    np.testing.assert_allclose(found + found.T, 1.0)
    both = table("penalise", length_penalty=0.4)
    assert both[1, 2] == pytest.approx(1 / (1 + np.exp(-(np.log(0.7 / 0.3) - 2.0 + 0.4 * 1.5))))
    assert np.array_equal(table("keep", length_penalty=0.4, characters=(7, 7, 7)), table("keep"))
    assert np.isnan(table("drop", length_penalty=0.4)[0, 1])


def test_no_length_makes_a_certain_oracle_unsure_and_none_is_too_long_for_a_number():
    certain = np.array([[0.5, 1.0], [0.0, 0.5]])
    lengths = {"finished": (True, True), "characters": (9_000_000, 3), "length_penalty": 5.0}
    assert np.array_equal(table("keep", raw=certain, **lengths), certain)
    found = table("keep", raw=np.full((2, 2), 0.5), **lengths)
    assert found[0, 1] == pytest.approx(0.0, abs=1e-12)
    assert found[1, 0] == pytest.approx(1.0)


def test_sppo_has_win_rates_and_gpo_mean_scores_beside_each_pair():
    (first, *_) = pairs_of({"p": TABLE}, "sppo", names=NAMES)
    assert (first.chosen, first.rejected) == (0, 1)
    assert first.chosen_target == pytest.approx((0.5 + 0.8 + 0.6) / 3)
    alone = pairs_of({"p": TABLE}, "sppo", names=NAMES, win_rates="without-self")
    assert alone[0].chosen_target == pytest.approx(0.7)
    (score, *_) = pairs_of({"p": TABLE}, "gpo", names=NAMES)
    assert score.chosen_target == pytest.approx((np.log(0.8 / 0.2) + np.log(0.6 / 0.4)) / 3)


def test_a_certain_oracle_gives_gpo_a_finite_score():
    certain = np.array([[0.5, 1.0], [0.0, 0.5]])
    (pair,) = pairs_of({"p": certain}, "gpo", names=NAMES)
    assert pair.chosen_target == pytest.approx(np.log((1 - 1e-9) / 1e-9) / 2)


def test_sampled_labels_are_drawn_anew_in_another_iteration_and_alike_in_the_same():
    tables = {str(number): TABLE for number in range(40)}
    first = pairs_of(tables, "inpo", names=NAMES, labels="sampled")
    assert first == pairs_of(tables, "inpo", names=NAMES, labels="sampled")
    assert first != pairs_of(tables, "inpo", names=(0, 2, 1), labels="sampled")
    assert {pair.preference for pair in first} == {1.0}


def test_targets_survive_the_disk(tmp_path):
    rows = pairs_of({"p": TABLE}, "sppo", names=NAMES)
    write_rows(tmp_path / "targets.parquet", rows, LabelledPair)
    assert read_rows(tmp_path / "targets.parquet", LabelledPair) == rows
