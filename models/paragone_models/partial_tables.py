"""What a table of comparisons with gaps says: a fit to what was answered infers the rest. No torch.

K is the number of responses. A table of comparisons is ``logits[i, j]``, the log-odds that i is preferred to j,
float64, antisymmetric, NaN where nobody asked or nobody answered.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from paragone_models.comparator import probability
from paragone_models.kinds import KINDS

__all__ = ["FilledTable", "Fit", "fill"]

Float64s = NDArray[np.float64]
Fit = Literal["bradley-terry", "general-preference"]

_PRIOR_SD = 3.0
"""Of strengths, in nats: two responses of whom nothing is known have log-odds within ±8 in 95 of 100 cases."""
_PLACE_VARIANCE = _PRIOR_SD
"""Of coordinates in the plane: x_i y_j − y_i x_j then has the prior deviation √2·3 of a difference of strengths."""
_STEPS = 100
_CONVERGED = 1e-10
_NORMAL_95 = 1.959963984540054
_FLAT = 1e-9
"""Share of the largest curvature below which a direction is the turn of the plane, which changes nothing."""


@dataclass(frozen=True)
class FilledTable:
    """A table without gaps, and how sure it is.

    Attributes:
        matrix: probability that row is preferred to column; what was answered as it was, the rest inferred. [K, K]
        inferred: which entries are. [K, K]
        strengths: of the fit, mean 0. [K, nats]
        covariance: of the strengths. [K, K]
        win_rates: mean over each row of ``matrix``, itself counted as ½. [K]
        intervals: of the win rates, 95 %, within [0, 1]: low and high; both the win rate itself where nothing in the
            row was inferred. [K, 2]
        cyclic: what the fit adds to the differences of strengths; zeros by Bradley-Terry. [K, K, nats]
    """

    matrix: Float64s
    inferred: NDArray[np.bool_]
    strengths: Float64s
    covariance: Float64s
    win_rates: Float64s
    intervals: Float64s
    cyclic: Float64s


@dataclass(frozen=True)
class _Fitted:
    """Parameters at the posterior's maximum, and their covariance.

    Attributes:
        places: coordinates x and y of each response in the plane; zeros by Bradley-Terry. [K, 2]
        covariance: of strength, x and y of each response with those of each other. [K, p, K, p], p = 1 or 3
    """

    strengths: Float64s
    places: Float64s
    covariance: Float64s

    @property
    def cyclic(self) -> Float64s:
        x, y = self.places.T
        return np.asarray(np.outer(x, y) - np.outer(y, x))


def fill(logits: ArrayLike, *, fit: Fit = "bradley-terry") -> FilledTable:
    """Return the table whose gaps a model fills that was fitted to the rest.

        bradley-terry        z_ij = θ_i − θ_j
        general-preference   z_ij = θ_i − θ_j + x_i y_j − y_i x_j
        max  Σ_{i<j answered} P_ij log σ(z_ij) + P_ji log σ(−z_ij)  −  |θ|² / (2·3²)  −  (|x|² + |y|²) / (2·3)

    The second adds one 2-block of a general preference model (arXiv 2410.02197) to the strengths, which is what a
    hybrid model of three numbers a response can say (arXiv 2605.17342): preferences that run in circles. Where nothing
    in the answers calls for a circle, x = y = 0 is best, and it is the first. Its maximum is one that ascent finds from
    the plane in which the first one's residuals turn most.

    Each answer counts as one observation. The covariance is Laplace's: the inverse of the negative Hessian at the
    maximum, apart from turns of the plane, which change nothing. A win rate's interval is by the delta method, from
    the inferred entries of its row alone.

    Args:
        logits: a table of comparisons. [K, K]

    Raises:
        ValueError: if ``logits`` is no antisymmetric [K, K] with K ≥ 1, apart from NaN, which stands on both sides.
    """
    table = np.asarray(logits, dtype=np.float64)
    known = _checked(table)
    size = len(table)
    observed = np.where(known, probability(np.where(known, table, 0.0)), 0.0)
    strengths, covariance = _bradley_terry(observed, known)
    fitted = _Fitted(strengths, np.zeros((size, 2)), covariance[:, None, :, None])
    if KINDS[fit].has_vector:
        fitted = _general_preference(observed, known, fitted)
    inferred = ~known & ~np.eye(size, dtype=np.bool_)
    differences = fitted.strengths[:, None] - fitted.strengths[None, :] + fitted.cyclic
    # One side from the other, so that P + Pᵀ is exactly 1.
    matrix = np.where(known, observed, probability(differences))
    np.fill_diagonal(matrix, 0.5)
    rates = matrix.mean(axis=1)
    slopes = np.where(inferred, matrix * (1.0 - matrix), 0.0) / size
    spread = _NORMAL_95 * _deviations(slopes, fitted)
    intervals = np.clip(np.stack([rates - spread, rates + spread], axis=1), 0.0, 1.0)
    strengths = fitted.strengths - fitted.strengths.mean()
    return FilledTable(matrix, inferred, strengths, fitted.covariance[:, 0, :, 0], rates, intervals, fitted.cyclic)


def _directions(places: Float64s, parameters: int) -> Float64s:
    """Return the slopes of z_ij in i's parameters, for each j: (1, y_j, −x_j), or 1 alone; [K, p].

    In j's parameters they are those of i, negated.
    """
    return np.stack([np.ones(len(places)), places[:, 1], -places[:, 0]], axis=1)[:, :parameters]


def _deviations(slopes: Float64s, fitted: _Fitted) -> Float64s:
    """Return the standard deviation of Σ_j slopes_ij z_ij, for each row i; [K]."""
    size, parameters = fitted.covariance.shape[:2]
    of = _directions(fitted.places, parameters)
    gradient = -slopes[:, :, None] * of[:, None, :]
    gradient[np.arange(size), np.arange(size)] += slopes @ of
    flat = gradient.reshape(size, -1)
    covariance = fitted.covariance.reshape(flat.shape[1], -1)
    return np.asarray(np.sqrt(np.maximum((flat @ covariance * flat).sum(axis=1), 0.0)))


def _general_preference(observed: Float64s, known: NDArray[np.bool_], start: _Fitted) -> _Fitted:
    """Return the fit with a plane, or ``start``, a Bradley-Terry fit, where no plane is better."""
    size = len(observed)

    def loss(values: Float64s) -> tuple[float, Float64s]:
        strengths, x, y = values.reshape(3, size)
        logits = strengths[:, None] - strengths + np.outer(x, y) - np.outer(y, x)
        residuals = np.where(known, probability(logits) - observed, 0.0)
        # Both halves of the table have each pair.
        surprise = np.where(known, np.logaddexp(0.0, logits) - observed * logits, 0.0).sum() / 2
        prior = strengths @ strengths / (2 * _PRIOR_SD**2) + (x @ x + y @ y) / (2 * _PLACE_VARIANCE)
        slopes = [residuals.sum(axis=1) + strengths / _PRIOR_SD**2]
        slopes += [residuals @ y + x / _PLACE_VARIANCE, y / _PLACE_VARIANCE - residuals @ x]
        return float(surprise + prior), np.concatenate(slopes)

    strengths = start.strengths
    gaps = np.where(known, observed - probability(strengths[:, None] - strengths), 0.0)
    # The plane on which a skew-symmetric matrix turns most: imaginary and real part of a Hermitian one's eigenvector.
    turn = np.linalg.eigh(1j * gaps)[1][:, -1] * np.sqrt(2.0)
    options = {"maxiter": 20 * _STEPS, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(
        loss, np.concatenate([strengths, turn.imag, turn.real]), jac=True, method="L-BFGS-B", options=options
    )
    if found.fun > loss(np.concatenate([strengths, np.zeros(2 * size)]))[0] - _CONVERGED:
        return start
    strengths, x, y = found.x.reshape(3, size)
    places = np.stack([x, y], axis=1)
    return _Fitted(strengths, places, _covariance(observed, known, strengths, places))


def _covariance(observed: Float64s, known: NDArray[np.bool_], strengths: Float64s, places: Float64s) -> Float64s:
    """Return Laplace's covariance of strengths and places; [K, 3, K, 3]."""
    size = len(strengths)
    x, y = places.T
    expected = probability(strengths[:, None] - strengths + np.outer(x, y) - np.outer(y, x))
    weights = np.where(known, expected * (1.0 - expected), 0.0)
    residuals = np.where(known, expected - observed, 0.0)
    of = _directions(places, 3)
    hessian = -np.einsum("ij,ja,ib->iajb", weights, of, of)
    every = np.arange(size)
    hessian[every, :, every] += np.einsum("ij,ja,jb->iab", weights, of, of)
    hessian[every, :, every] += np.diag([1 / _PRIOR_SD**2, 1 / _PLACE_VARIANCE, 1 / _PLACE_VARIANCE])
    # z is bilinear in the places, so its own curvature counts too, by what is left to explain.
    hessian[:, 1, :, 2] += residuals
    hessian[:, 2, :, 1] -= residuals
    values, vectors = np.linalg.eigh(hessian.reshape(3 * size, 3 * size))
    steep = values > _FLAT * values[-1]
    inverse = np.where(steep, 1.0 / np.where(steep, values, 1.0), 0.0)
    return np.asarray((vectors * inverse @ vectors.T).reshape(size, 3, size, 3))


def _checked(table: Float64s) -> NDArray[np.bool_]:
    """Return which entries off the diagonal are answered; [K, K]."""
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) == 0:
        raise ValueError(f"comparisons are a square table of at least one response, not of shape {table.shape}")
    known = np.isfinite(table) & ~np.eye(len(table), dtype=np.bool_)
    if np.isinf(table).any() or not np.array_equal(known, known.T) or (table[known] != -table.T[known]).any():
        raise ValueError("logits[i, j] must be -logits[j, i], and both NaN where there is no answer")
    return known


def _bradley_terry(observed: Float64s, known: NDArray[np.bool_]) -> tuple[Float64s, Float64s]:
    """Return the strengths at the posterior's maximum, [K], and their covariance, [K, K]."""
    size = len(observed)
    prior = np.eye(size) / _PRIOR_SD**2
    strengths = np.zeros(size)
    for _ in range(_STEPS):
        expected = np.where(known, probability(strengths[:, None] - strengths[None, :]), 0.0)
        gradient = (observed - expected).sum(axis=1) - strengths / _PRIOR_SD**2
        # Strictly concave with the prior, and the damped step never leaves the region where Newton's converges.
        step = np.linalg.solve(_information(expected, known) + prior, gradient)
        strengths = strengths + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < _CONVERGED:
            break
    expected = np.where(known, probability(strengths[:, None] - strengths[None, :]), 0.0)
    covariance = np.asarray(np.linalg.inv(_information(expected, known) + prior), dtype=np.float64)
    return strengths - strengths.mean(), covariance


def _information(expected: Float64s, known: NDArray[np.bool_]) -> Float64s:
    weights = np.where(known, expected * (1.0 - expected), 0.0)
    return np.asarray(np.diag(weights.sum(axis=1)) - weights)
