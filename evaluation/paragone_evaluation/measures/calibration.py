"""Whether probabilities mean what they say: NLL, Brier, reliability, ECE and the temperature that mends them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit

from paragone_evaluation.errors import CalibrationError
from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.checks import Floats, Ints, columns, outcomes

__all__ = [
    "Reliability",
    "brier",
    "confidence",
    "confidence_bin",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability",
]


def negative_log_likelihood(logit: ArrayLike, outcome: ArrayLike) -> Floats:
    """Return the negative log-likelihood of each outcome, in nats.

        nll = −y ln p − (1 − y) ln(1 − p) = ln(1 + e^logit) − y logit,  p = sigmoid(logit)

    Returns:
        One value per pair, float64; ln 2 for a model that says ½ always. [n]
    """
    logits, judged = columns(logit=logit, outcome=outcome)
    # In this form nothing overflows and no digit is lost: ln(1 − p) of a sure model would be ln 0.
    return np.asarray(np.logaddexp(0.0, logits) - outcomes(judged) * logits)


def brier(logit: ArrayLike, outcome: ArrayLike) -> Floats:
    """Return the squared error of each probability.

        brier = (p − y)²

    Source: Brier (1950), halved for two classes, as scikit-learn does.

    Returns:
        One value per pair, float64; ¼ for a model that says ½ always. [n]
    """
    logits, judged = columns(logit=logit, outcome=outcome)
    return np.asarray((expit(logits) - outcomes(judged)) ** 2)


def confidence(logit: ArrayLike) -> Floats:
    """Return how sure the model is of its own choice, in [½, 1].

    c = max(p, 1 − p) = sigmoid(|logit|)
    """
    (logits,) = columns(logit=logit)
    return np.asarray(expit(np.abs(logits)))


def confidence_bin(confidences: ArrayLike, *, bins: int = 10) -> Ints:
    """Return the bin of each confidence: equal width over [½, 1], closed on the left, the last one on both sides.

    Returns:
        Bin numbers from 0. [n]

    Raises:
        ValueError: if a confidence is outside [½, 1], or there is not at least one bin.
    """
    (sure,) = columns(confidences=confidences)
    if bins < 1:
        raise ValueError(f"bins is {bins}; there must be at least 1")
    if len(sure) and (sure.min() < 0.5 or sure.max() > 1.0):
        raise ValueError("a confidence is the larger of p and 1 − p and lies in [½, 1]")
    # Searched among the edges themselves: a division by the width would round a confidence on an edge to either side.
    edges = np.linspace(0.5, 1.0, bins + 1)
    return np.asarray(np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, bins - 1), dtype=np.int64)


@dataclass(frozen=True)
class Reliability:
    """A reliability table; NaN in bins without pairs.

    Attributes:
        count: pairs in each bin. [bins]
        confidence: mean confidence. [bins]
        accuracy: share of right choices, ties worth ½. [bins]
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats


def reliability(logit: ArrayLike, outcome: ArrayLike, *, bins: int = 10) -> Reliability:
    """Return how often the model is right, by how sure it is.

    A tie of people is worth ½ whatever the model said.

    Raises:
        ValueError: if bins is below 1.
    """
    earned, sure = credit(logit, outcome), confidence(logit)
    where = confidence_bin(sure, bins=bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no means: 0/0 is NaN, and null in the report
        mean_confidence = np.bincount(where, sure, bins) / count
        mean_accuracy = np.bincount(where, earned, bins) / count
    return Reliability(np.linspace(0.5, 1.0, bins + 1), count.astype(np.int64), mean_confidence, mean_accuracy)


def expected_calibration_error(logit: ArrayLike, outcome: ArrayLike, *, bins: int = 10) -> float:
    """Return the expected calibration error of the model's choices.

        ECE = Σ_b n_b / n · |accuracy_b − mean confidence_b|

    Source: Naeini et al. (2015), Guo et al. (arXiv 1706.04599) eq. 3, over [½, 1] because the confidence of a choice
    between two is never below ½. A tie of people is worth ½ whatever the model said.

    Raises:
        ValueError: if there are no pairs, or bins is below 1.
    """
    table = reliability(logit, outcome, bins=bins)
    total = int(table.count.sum())
    if total == 0:
        raise ValueError("there are no pairs: calibration needs some")
    gaps = np.abs(table.accuracy - table.confidence)
    # Empty bins have NaN and the weight 0.
    return float(np.nansum(table.count * gaps) / total)


def fit_temperature(logit: ArrayLike, outcome: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Return the divisor of the logits under which the outcomes are most likely.

        T = argmin_T mean nll(logit / T, y)

    The mean is convex in k = 1/T; its derivative, mean of logit · (sigmoid(k logit) − y), is solved for 0.
    Source: Guo et al. (arXiv 1706.04599) §4.2, for two classes.

    Args:
        weight: how often each pair counts; once each if None. [n]

    Returns:
        T; the model's temperature times T is the calibrated one.

    Raises:
        CalibrationError: if no T above 0 and below infinity is best: the choices are wrong at least as often as right,
            or never wrong; its ``limit`` says which way T goes.
    """
    logits, judged = columns(logit=logit, outcome=outcome)
    outcomes(judged)
    # Weights are how a resample comes in: its clusters count as often as they were drawn, and no row is copied.
    counts = np.ones_like(logits) if weight is None else columns(weight=weight, logit=logit)[0]
    scale = float(np.abs(logits).max(initial=0.0))
    if scale == 0.0:
        raise CalibrationError("every logit is 0: there is nothing that a temperature could scale")
    # The root is looked for in units of the largest logit, so that models of any scale begin within reach of it.
    unit = logits / scale

    def slope(inverse: float) -> float:
        return float((counts * unit * (expit(inverse * unit) - judged)).sum())

    if slope(0.0) >= 0.0:
        raise CalibrationError(
            "the model prefers the response that people reject at least as much as the one they prefer: the best "
            "temperature would be infinite. Check the direction of the labels, and whether the model knows this domain"
        )
    # The slope for k → ∞: what is wrong, by how sure the model is of it.
    if not (counts * np.abs(unit) * np.where(unit > 0, 1.0 - judged, judged)).any():
        raise CalibrationError(
            "the model is never wrong on these pairs: the best temperature would be 0. Use more pairs", limit=0.0
        )
    # The slope grows with k and ends above 0, so there is one root, and quadrupling comes past it.
    upper = 1.0
    while slope(upper) <= 0.0:
        upper *= 4.0
    return scale / float(brentq(slope, 0.0, upper, xtol=1e-14 * upper, rtol=1e-13, maxiter=500))
