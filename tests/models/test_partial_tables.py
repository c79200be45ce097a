"""What a table of comparisons with gaps says: by a strength for each response, and by a plane beside it."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from paragone_models.comparisons import all_pairs
from paragone_models.partial_tables import fill


def by_strength(*strengths: float) -> np.ndarray:
    values = np.array(strengths)
    return values[:, None] - values[None, :]


def on_a_circle(size: int, generator: np.random.Generator, *, scale: float = 3.0) -> np.ndarray:
    """Return log-odds of responses on a circle, each of whom beats those less than half a turn ahead."""
    angles = generator.random(size) * 2 * np.pi
    return scale * (np.outer(np.cos(angles), np.sin(angles)) - np.outer(np.sin(angles), np.cos(angles)))


def with_gaps(truth: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    chosen = np.triu(generator.random(truth.shape) < share, 1)
    return np.where(chosen | chosen.T, truth, np.nan)


def test_a_table_without_gaps_stays_as_it_is() -> None:
    cycle = np.array([[0, 2, -1], [-2, 0, 3], [1, -3, 0.0]])
    filled = fill(cycle)
    expected = 1 / (1 + np.exp(-cycle))
    np.testing.assert_allclose(filled.matrix, expected, atol=1e-15)
    assert not filled.inferred.any()
    np.testing.assert_array_equal(filled.intervals[:, 0], filled.win_rates)
    np.testing.assert_array_equal(filled.intervals[:, 1], filled.win_rates)


def test_gaps_are_inferred_by_a_fit_that_a_general_optimiser_finds_too() -> None:
    truth = by_strength(-1.0, 0.3, 0.9, 2.0)
    table = np.where(np.eye(4, k=1) + np.eye(4, k=-1) > 0, truth, np.nan)
    filled = fill(table)

    def negative(values: np.ndarray) -> float:
        total = float(values @ values) / (2 * 3.0**2)
        for i in range(3):
            chance, difference = 1 / (1 + np.exp(-truth[i, i + 1])), values[i] - values[i + 1]
            total += chance * np.logaddexp(0, -difference) + (1 - chance) * np.logaddexp(0, difference)
        return total

    best = minimize(negative, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(filled.strengths, best - best.mean(), atol=1e-5)
    assert filled.inferred.sum() == 6
    assert filled.matrix[0, 2] == pytest.approx(1 / (1 + np.exp(best[2] - best[0])), abs=1e-5)
    assert (filled.matrix + filled.matrix.T == 1).all()
    assert ((filled.intervals[:, 0] < filled.win_rates) & (filled.win_rates < filled.intervals[:, 1])).all()


def test_intervals_hold_what_is_true_as_often_as_they_say() -> None:
    # Answers that are single votes: the fit takes each for one observation.
    generator, held, total = np.random.default_rng(1), 0, 0
    for _ in range(150):
        truth = by_strength(*generator.normal(scale=2.0, size=6))
        chances = 1 / (1 + np.exp(-truth))
        table = np.full((6, 6), np.nan)
        for i, j in all_pairs(6):
            if generator.random() < 0.6:
                table[i, j] = 30.0 if generator.random() < chances[i, j] else -30.0
                table[j, i] = -table[i, j]
        filled = fill(table)
        # Of what is inferred alone; what was answered is taken as it is.
        for i in range(6):
            row = filled.inferred[i]
            if row.any():
                known = np.where(row, chances[i], filled.matrix[i]).mean()
                held += filled.intervals[i, 0] <= known <= filled.intervals[i, 1]
                total += 1
    assert total > 500
    assert 0.9 < held / total <= 1


@pytest.mark.parametrize(
    "table", [[[0.0, 1.0], [1.0, 0.0]], [[0, np.nan], [1, 0]], [[0, np.inf], [-np.inf, 0]], [[0.0, 1.0]], []]
)
def test_what_is_no_table_is_refused(table: list) -> None:
    with pytest.raises(ValueError, match=r"square table|must be -logits"):
        fill(table)


def test_a_cyclic_truth_is_recovered_by_a_plane_and_not_by_strengths():
    generator = np.random.default_rng(0)
    wrong = {"bradley-terry": [], "general-preference": []}
    errors = {"bradley-terry": [], "general-preference": []}
    for _ in range(8):
        truth = on_a_circle(12, generator)
        table = with_gaps(truth, 0.7, generator)
        for fit, rates in wrong.items():
            filled = fill(table, fit=fit)
            clear = filled.inferred & (np.abs(truth) > 1)
            rates.append(((filled.matrix > 0.5) != (truth > 0))[clear].mean())
            errors[fit].append(np.abs(filled.matrix - expit(truth))[filled.inferred].mean())
    assert np.mean(wrong["bradley-terry"]) > 0.3
    assert np.mean(wrong["general-preference"]) < 0.06
    assert np.mean(errors["general-preference"]) < 0.5 * np.mean(errors["bradley-terry"])


def test_where_nothing_runs_in_a_circle_both_fits_are_one():
    generator = np.random.default_rng(1)
    for size in (1, 2, 5, 9):
        table = with_gaps(by_strength(*generator.normal(size=size)), 0.6, generator)
        plain, general = fill(table), fill(table, fit="general-preference")
        np.testing.assert_array_equal(plain.matrix, general.matrix)
        np.testing.assert_array_equal(plain.intervals, general.intervals)
        assert not general.cyclic.any()


def test_the_plane_is_a_maximum_that_a_general_optimiser_finds_too_and_its_covariance_is_laplaces():
    generator = np.random.default_rng(2)
    size, truth = 5, on_a_circle(5, np.random.default_rng(5), scale=4.0)
    table = with_gaps(truth, 0.9, generator)
    filled = fill(table, fit="general-preference")
    assert filled.cyclic.any()

    def negative(values: np.ndarray) -> float:
        strengths, x, y = values.reshape(3, size)
        total = strengths @ strengths / (2 * 9) + (x @ x + y @ y) / (2 * 3)
        for i, j in all_pairs(size):
            if np.isfinite(table[i, j]):
                chance = expit(table[i, j])
                logit = strengths[i] - strengths[j] + x[i] * y[j] - y[i] * x[j]
                total += chance * np.logaddexp(0, -logit) + (1 - chance) * np.logaddexp(0, logit)
        return total

    starts = [generator.normal(size=3 * size) for _ in range(6)]
    best = min((minimize(negative, start, tol=1e-13) for start in starts), key=lambda result: result.fun).x
    strengths, x, y = best.reshape(3, size)
    np.testing.assert_allclose(filled.strengths, strengths - strengths.mean(), atol=1e-4)
    np.testing.assert_allclose(filled.cyclic, np.outer(x, y) - np.outer(y, x), atol=1e-4)
    # By differences of the same function; a turn of the plane changes nothing and has no curvature.
    eye, step = np.eye(3 * size), 1e-3
    hessian = np.array(
        [
            [
                sum(s * t * negative(best + step * (s * a + t * b)) for s in (1, -1) for t in (1, -1)) / (4 * step**2)
                for a in eye
            ]
            for b in eye
        ]
    )
    covariance = np.linalg.pinv(hessian, rcond=1e-4, hermitian=True)
    np.testing.assert_allclose(filled.covariance, covariance[:size, :size], atol=2e-3)
    assert (filled.matrix + filled.matrix.T == 1).all()


def test_intervals_of_the_plane_hold_what_is_true_as_often_as_they_say():
    # Answers that are single votes: the fit takes each for one observation.
    generator, held, total = np.random.default_rng(3), 0, 0
    for _ in range(40):
        size = 8
        truth = by_strength(*generator.normal(scale=1.5, size=size)) + on_a_circle(size, generator, scale=2.0)
        truth = (truth - truth.T) / 2
        votes = np.where(generator.random((size, size)) < expit(truth), 30.0, -30.0)
        upper = np.triu(votes, 1)
        table = with_gaps(upper - upper.T, 0.7, generator)
        filled = fill(table, fit="general-preference")
        for i in range(size):
            row = filled.inferred[i]
            if row.any():
                known = np.where(row, expit(truth[i]), filled.matrix[i]).mean()
                held += filled.intervals[i, 0] <= known <= filled.intervals[i, 1]
                total += 1
    assert total > 200
    assert 0.9 < held / total <= 1


def test_swapping_and_renumbering_changes_nothing():
    generator = np.random.default_rng(4)
    table = with_gaps(on_a_circle(9, generator), 0.7, generator)
    order = generator.permutation(9)
    whole, other = fill(table, fit="general-preference"), fill(table[np.ix_(order, order)], fit="general-preference")
    np.testing.assert_allclose(other.matrix, whole.matrix[np.ix_(order, order)], atol=1e-5)
    swapped = fill(-table, fit="general-preference")
    np.testing.assert_allclose(swapped.matrix, whole.matrix.T, atol=1e-5)
