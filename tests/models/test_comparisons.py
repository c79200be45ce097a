"""Which pairs are compared, and that no plan asks for more than it says."""

import numpy as np
import pytest

from paragone_models.comparisons import all_pairs, most_comparisons, plan_named


def played(name: str, truth: np.ndarray, *, failing: frozenset[tuple[int, int]] = frozenset()):
    """Return the table of a plan that is answered by ``truth``, what was asked, and the size of each round."""
    size = len(truth)
    table = np.full((size, size), np.nan)
    plan, asked, rounds = plan_named(name, size), set(), []
    while pairs := plan(table, frozenset(asked)):
        assert asked.isdisjoint(pairs)
        assert len(set(pairs)) == len(pairs)
        rounds.append(len(pairs))
        asked.update(pairs)
        for i, j in set(pairs) - failing:
            assert i < j
            table[i, j], table[j, i] = truth[i, j], -truth[i, j]
    return table, asked, rounds


def by_strength(*strengths: float) -> np.ndarray:
    values = np.array(strengths)
    return values[:, None] - values[None, :]


def test_all_and_circular_ask_once() -> None:
    truth = by_strength(0, 1, 2, 3)
    assert played("all", truth)[1:] == (set(all_pairs(4)), [6])
    assert played("circular", truth)[1:] == ({(0, 1), (1, 2), (2, 3), (0, 3)}, [4])
    assert played("circular", by_strength(0, 1))[1:] == ({(0, 1)}, [1])


def test_one_response_is_compared_with_nobody() -> None:
    for name in ("all", "circular", "bracket", "budget:5"):
        assert played(name, by_strength(1))[1] == set()


def test_a_bracket_is_a_knock_out() -> None:
    _, asked, rounds = played("bracket", by_strength(0, 1, 2, 3, 4, 5, 6, 7))
    # 0-1, 2-3, 4-5, 6-7; 1-3, 5-7; 3-7; then those beaten in one round: 0, 2, 4, 6 and 1, 5.
    assert rounds == [4, 2, 1, 3]
    assert {(1, 3), (5, 7), (3, 7), (0, 2), (4, 6), (1, 5)} <= asked


@pytest.mark.parametrize("size", range(2, 40))
def test_a_bracket_takes_no_more_than_it_says(size: int) -> None:
    truth = by_strength(*np.random.default_rng(size).normal(size=size))
    _, asked, _ = played("bracket", truth)
    assert size - 1 <= len(asked) <= 3 * size / 2 - 1


@pytest.mark.parametrize("name", ["all", "circular", "bracket", "budget:20", "budget:999"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 21])
def test_no_plan_asks_about_more_than_is_counted_beforehand(name: str, size: int) -> None:
    _, asked, _ = played(name, by_strength(*np.random.default_rng(size).normal(size=size)))
    assert len(asked) <= most_comparisons(name, size)


def test_a_bracket_goes_on_where_a_comparison_failed() -> None:
    table, asked, _ = played("bracket", by_strength(0, 1, 2, 3), failing=frozenset({(0, 1)}))
    assert np.isnan(table[0, 1])
    assert (0, 3) in asked


def test_a_budget_is_kept_and_spent_where_it_tells_most() -> None:
    _, asked, rounds = played("budget:9", by_strength(0, 0.1, 3, 3.1, 6, 6.1))
    assert len(asked) == 9
    assert max(rounds) <= 3  # a matching of six
    assert {(0, 1), (2, 3), (4, 5)} <= asked  # those whose order is least certain
    assert (0, 4) not in asked or (1, 5) not in asked
    assert played("budget:99", by_strength(0, 1, 2))[1] == set(all_pairs(3))


@pytest.mark.parametrize("name", ["budget:3", "budget:0", "budget:x", "swiss", ""])
def test_what_is_no_plan_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"write all, bracket|cannot connect"):
        plan_named(name, 5)
