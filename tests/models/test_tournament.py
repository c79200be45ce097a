"""Tournaments: cases by hand, brute force, published equilibria, and properties of any table."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone_models import tournament
from paragone_models.comparator import Comparator, probability

ROCK_PAPER_SCISSORS = [[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]]
DECISIVE = [[0.5, 0.8, 0.6], [0.2, 0.5, 0.7], [0.4, 0.3, 0.5]]
CIRCLE = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
EVEN = np.full((4, 4), 0.5)
NOT_ODDS = [0.0, 1e-9, 0.2, 0.5, 0.5 + 1e-12, 0.75, 1.0]


def table_of(upper: list[float], size: int) -> np.ndarray:
    table = np.full((size, size), 0.5)
    for (i, j), value in zip(itertools.combinations(range(size), 2), upper, strict=True):
        table[i, j], table[j, i] = value, 1 - value
    return table


@st.composite
def tables(draw, smallest: int = 1, largest: int = 7):
    size = draw(st.integers(smallest, largest))
    entry = st.one_of(st.sampled_from(NOT_ODDS), st.floats(0, 1))
    count = size * (size - 1) // 2
    return table_of(draw(st.lists(entry, min_size=count, max_size=count)), size)


def assert_maximal(table: np.ndarray, lottery: np.ndarray, tolerance: float) -> None:
    assert lottery.min() >= 0
    assert lottery.sum() == pytest.approx(1, abs=1e-12)
    assert (lottery @ (table - table.T)).min() >= -tolerance


def test_everything_about_a_decisive_tournament():
    answer = tournament.summarise(DECISIVE)
    np.testing.assert_allclose(answer.win_rates, [(0.5 + 0.8 + 0.6) / 3, (0.2 + 0.5 + 0.7) / 3, (0.4 + 0.3 + 0.5) / 3])
    assert answer.ranking == [0, 1, 2]
    assert answer.condorcet_winner == 0
    assert answer.copeland == [2, 0, -2]
    assert answer.cyclic_triples == 0
    assert answer.nash.tolist() == [1.0, 0.0, 0.0]
    assert answer.matrix.tolist() == DECISIVE


def test_everything_about_a_circle():
    answer = tournament.summarise(CIRCLE)
    assert answer.win_rates.tolist() == [0.5, 0.5, 0.5]
    assert answer.ranking == [0, 1, 2]
    assert answer.condorcet_winner is None
    assert answer.copeland == [0, 0, 0]
    assert answer.cyclic_triples == 1
    np.testing.assert_allclose(answer.nash, [1 / 3, 1 / 3, 1 / 3], atol=1e-12)


def test_the_lottery_of_a_loaded_rock_paper_scissors_is_the_known_equilibrium():
    np.testing.assert_allclose(tournament.nash(ROCK_PAPER_SCISSORS), [1 / 3, 2 / 9, 4 / 9], atol=1e-9)


def test_one_response_wins_against_nobody():
    answer = tournament.summarise([[0.5]])
    assert (answer.win_rates.tolist(), answer.ranking, answer.condorcet_winner) == ([0.5], [0], 0)
    assert (answer.copeland, answer.cyclic_triples, answer.nash.tolist()) == ([0], 0, [1.0])


def test_identical_responses_share_everything_alike():
    answer = tournament.summarise(EVEN)
    assert answer.nash.tolist() == [0.25] * 4
    assert answer.win_rates.tolist() == [0.5] * 4
    assert answer.copeland == [0] * 4
    assert answer.condorcet_winner is None
    assert answer.ranking == [0, 1, 2, 3]


def test_two_identical_winners_share_the_lottery_and_neither_is_a_condorcet_winner():
    table = table_of([0.5, 0.9, 0.9], 3)
    assert tournament.condorcet_winner(table) is None
    np.testing.assert_allclose(tournament.nash(table), [0.5, 0.5, 0.0], atol=1e-12)


def test_a_copy_of_a_response_takes_half_of_its_share():
    copied = [0, 0, 1, 2]
    table = np.array(ROCK_PAPER_SCISSORS)[np.ix_(copied, copied)]
    np.testing.assert_allclose(tournament.nash(table), [1 / 6, 1 / 6, 2 / 9, 4 / 9], atol=1e-9)


def test_of_several_lotteries_the_most_uniform_one_is_taken():
    # The last response ties with everything; any share of it would do, an equal one is the most uniform.
    table = table_of([1.0, 0.0, 0.5, 1.0, 0.5, 0.5], 4)
    np.testing.assert_allclose(tournament.nash(table), [0.25] * 4, atol=1e-9)


def test_a_win_by_a_hair_is_a_win():
    assert tournament.condorcet_winner([[0.5, 0.5 + 1e-12], [0.5 - 1e-12, 0.5]]) == 0
    assert tournament.nash([[0.5, 0.5 + 1e-12], [0.5 - 1e-12, 0.5]]).tolist() == [1.0, 0.0]


def test_references_decide_win_rates_and_ranking_alone():
    answer = tournament.summarise(DECISIVE, against=[[0.1, 0.3], [0.9, 0.5], [0.4, 0.4]])
    np.testing.assert_allclose(answer.win_rates, [(0.1 + 0.3) / 2, (0.9 + 0.5) / 2, 0.4])
    assert answer.ranking == [1, 2, 0]
    assert answer.condorcet_winner == 0


def test_equal_rates_are_ranked_by_index():
    assert tournament.ranking([0.2, 0.7, 0.2, 0.7]) == [1, 3, 0, 2]


@settings(max_examples=150, deadline=None)
@given(tables())
def test_any_lottery_is_maximal(table):
    assert_maximal(table, tournament.nash(table), 1e-7)


@settings(max_examples=60, deadline=None)
@given(tables(2, 6), st.randoms(use_true_random=False))
def test_the_order_of_the_responses_does_not_matter(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table[np.ix_(order, order)]
    before, after = tournament.summarise(table), tournament.summarise(shuffled)
    np.testing.assert_allclose(after.nash, before.nash[order], atol=1e-6)
    np.testing.assert_allclose(after.win_rates, before.win_rates[order])
    assert after.copeland == [before.copeland[index] for index in order]
    assert after.cyclic_triples == before.cyclic_triples
    winner = before.condorcet_winner
    assert after.condorcet_winner == (None if winner is None else order.index(winner))


@settings(max_examples=60, deadline=None)
@given(tables(1, 5), st.data())
def test_copies_share_alike(table, data):
    size = len(table)
    copied = [*range(size), data.draw(st.integers(0, size - 1))]
    answer = tournament.summarise(table[np.ix_(copied, copied)])
    assert answer.nash[copied[-1]] == pytest.approx(answer.nash[-1], abs=1e-9)
    assert answer.win_rates[copied[-1]] == answer.win_rates[-1]
    assert answer.copeland[copied[-1]] == answer.copeland[-1]


@settings(max_examples=60, deadline=None)
@given(tables(1, 8))
def test_counts_agree_with_brute_force(table):
    size = len(table)
    beats = [[table[i, j] > 0.5 for j in range(size)] for i in range(size)]
    circles = sum(
        (beats[i][j] and beats[j][k] and beats[k][i]) or (beats[j][i] and beats[k][j] and beats[i][k])
        for i, j, k in itertools.combinations(range(size), 3)
    )
    assert tournament.cyclic_triples(table) == circles
    assert tournament.copeland(table) == [sum(beats[i]) - sum(beats[j][i] for j in range(size)) for i in range(size)]
    winners = [i for i in range(size) if all(beats[i][j] for j in range(size) if j != i)]
    assert tournament.condorcet_winner(table) == (winners[0] if winners else None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0], ids=["even", "clear", "saturated"])
def test_sixty_four_responses_have_a_maximal_lottery(seed, spread):
    vectors = np.random.default_rng(seed).standard_normal((64, 4)) * spread
    table = Comparator("general-preference", 4, 1.0).matrix(vectors)
    answer = tournament.summarise(table)
    assert_maximal(table, answer.nash, 1e-7)
    assert sorted(answer.ranking) == list(range(64))


@pytest.mark.parametrize(("size", "seed"), [(64, 0), (64, 14), (256, 0)])
def test_a_table_of_low_rank_has_its_lottery_within_few_steps(size, seed):
    # Asked for any lottery without an aim, the simplex method goes in circles here and does not end.
    vectors = np.random.default_rng(seed).standard_normal((size, 2))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    logits = 5 * (np.outer(vectors[:, 0], vectors[:, 1]) - np.outer(vectors[:, 1], vectors[:, 0]))
    table = 1 / (1 + np.exp(-logits))
    assert_maximal(table, tournament.nash(table), 1e-7)


def test_rewards_give_no_circle_and_a_winner_that_the_lottery_plays():
    rewards = np.random.default_rng(1).permutation(20).astype(float)[:, None]
    answer = tournament.summarise(Comparator("bradley-terry", 1, 1.0).matrix(rewards))
    best = int(rewards.argmax())
    assert answer.cyclic_triples == 0
    assert answer.condorcet_winner == best == answer.ranking[0]
    assert answer.nash[best] == 1.0


def test_a_table_that_went_through_json_with_six_digits_is_read():
    table = np.round(probability(np.array([[0.0, 1.2345], [-1.2345, 0.0]])), 6)
    assert tournament.summarise(table).condorcet_winner == 0


@pytest.mark.parametrize("call", [tournament.summarise, tournament.win_rates, tournament.nash, tournament.copeland])
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (np.zeros((0, 0)), "square matrix"),
        ([[0.5, 0.5]], "square matrix"),
        ([0.5], "square matrix"),
        ([[0.5, 0.7], [0.7, 0.5]], "not symmetrised"),
        ([[0.6]], "not symmetrised"),
        ([[0.5, np.nan], [np.nan, 0.5]], "NaN or a value outside"),
        ([[0.5, 1.5], [-0.5, 0.5]], "NaN or a value outside"),
    ],
)
def test_what_is_no_probability_matrix_is_refused(call, table, reason):
    with pytest.raises(ValueError, match=reason):
        call(table)


@pytest.mark.parametrize(
    ("against", "reason"),
    [
        (np.zeros((3, 0)), r"\[3, R\]"),
        (np.zeros((2, 2)), r"\[3, R\]"),
        (np.zeros(3), r"\[3, R\]"),
        (np.full((3, 1), np.nan), "NaN or a value outside"),
        (np.full((3, 1), 1.1), "NaN or a value outside"),
    ],
)
def test_odd_references_are_refused(against, reason):
    with pytest.raises(ValueError, match=reason):
        tournament.summarise(DECISIVE, against=against)
