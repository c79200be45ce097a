"""Which iterate is the reference, and INPO's decreasing step."""

import pytest

from paragone_training import games


def test_without_resets_the_reference_is_the_initial_policy():
    assert [games.reference_iterate(iteration) for iteration in range(5)] == [0, 0, 0, 0, 0]


def test_every_one_is_the_previous_iterate_and_every_three_is_reset_at_its_multiples():
    assert [games.reference_iterate(iteration, every=1) for iteration in range(4)] == [0, 1, 2, 3]
    assert [games.reference_iterate(iteration, every=3) for iteration in range(8)] == [0, 0, 0, 3, 3, 3, 6, 6]


def test_the_decreasing_eta_starts_at_tau_and_grows_by_half_tau():
    assert [games.decreasing_eta(iteration, tau=0.2) for iteration in range(4)] == pytest.approx([0.2, 0.3, 0.4, 0.5])


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="iteration must not be negative"):
        games.reference_iterate(-1)
    with pytest.raises(ValueError, match="every must be at least 1 iteration, not 0"):
        games.reference_iterate(3, every=0)
    with pytest.raises(ValueError, match="iteration must not be negative"):
        games.decreasing_eta(-1, tau=0.1)
    with pytest.raises(ValueError, match="tau must be positive and finite"):
        games.decreasing_eta(0, tau=0.0)
