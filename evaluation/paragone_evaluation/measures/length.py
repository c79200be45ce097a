"""Length bias: does the model prefer the longer response because people do, or more than they do?

Lengths are in characters. Pairs that people left tied are in none of these.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.agreement import spearman
from paragone_evaluation.measures.checks import Bools, Floats, Ints, columns, outcomes

__all__ = ["length_logit", "length_matched", "length_models", "longer_preferred", "within_prompt_spearman"]


def length_logit(first_length: ArrayLike, second_length: ArrayLike) -> Floats:
    """Return the score of the length-only baseline: positive where the first response is longer.

    Δ = ln max(length₁, 1) − ln max(length₂, 1)
    """
    first, second = columns(first_length=first_length, second_length=second_length)
    # Ratios and not differences: ten characters more are much for a word and nothing for a page.
    return np.asarray(np.log(np.maximum(first, 1.0)) - np.log(np.maximum(second, 1.0)))


def length_matched(first_length: ArrayLike, second_length: ArrayLike, *, within: float = 0.15) -> Bools:
    """Return which pairs have lengths so close that length says nothing.

    |length₁ − length₂| ≤ within · max(length₁, length₂)
    """
    first, second = columns(first_length=first_length, second_length=second_length)
    return np.asarray(np.abs(first - second) <= within * np.maximum(first, second))


def longer_preferred(preference: ArrayLike, first_length: ArrayLike, second_length: ArrayLike) -> tuple[Floats, Bools]:
    """Return whether the longer response is preferred, and for which pairs the question has an answer.

    Args:
        preference: positive where the first is preferred, negative where the second is, 0 for a tie. [n]

    Returns:
        1 where the longer one is preferred, 0 where the shorter one is, ½ for a tie [n]; and which pairs differ in
        length [n].
    """
    signs, first, second = columns(preference=preference, first_length=first_length, second_length=second_length)
    return credit(signs, 0.5 + 0.5 * np.sign(first - second)), np.asarray(first != second)


def within_prompt_spearman(score: ArrayLike, length: ArrayLike, prompt: ArrayLike, *, at_least: int = 3) -> Floats:
    """Return Spearman's correlation of score and length within each prompt that has enough responses.

    Args:
        score: of each distinct response, comparable within a prompt. [R]
        prompt: number of each response's prompt. [R]
        at_least: prompts with fewer responses are left out.

    Returns:
        One correlation per prompt, those without any (a constant side) left out.
    """
    # Within prompts only: across them, long answers go with hard questions, and scores are not comparable.
    scores, lengths, prompts = columns(score=score, length=length, prompt=prompt)
    order: Ints = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order], prepend=-1.0))  # prompts are numbered from 0
    correlations = [
        spearman(scores[rows], lengths[rows]) for rows in np.split(order, starts[1:]) if len(rows) >= max(at_least, 2)
    ]
    values = np.asarray(correlations, dtype=np.float64)
    return values[np.isfinite(values)]


def length_models(
    logit: ArrayLike, outcome: ArrayLike, first_length: ArrayLike, second_length: ArrayLike
) -> dict[str, float]:
    """Return what the model's score adds to length in explaining the human choice.

        P(first preferred) = sigmoid(β_s logit + β_l Δ log length)

    Returns:
        ``nll_length``, ``nll_score`` and ``nll_both``: mean NLL in nats with Δ log length alone, the logit alone, both.
        ``score_coefficient``, ``length_coefficient``: β_s and β_l; NaN where the choices are separable.
        ``gain``: nll_length − nll_both, what the model knows that length does not, in nats a pair.

    Raises:
        ValueError: if no pair is decided.
    """
    logits, judged = columns(logit=logit, outcome=outcome)
    longer = length_logit(first_length, second_length)
    columns(logit=logits, length=longer)
    decided = outcomes(judged) != 0.5
    if not decided.any():
        raise ValueError("no pair is decided: length bias needs a preferred response")
    # No intercept: which response stands first is chance, so equal scores and lengths must give ½.
    features, chosen = np.column_stack([logits, longer])[decided], judged[decided]
    _, nll_score = _logistic(features[:, :1], chosen)
    _, nll_length = _logistic(features[:, 1:], chosen)
    both, nll_both = _logistic(features, chosen)
    return {
        "nll_length": nll_length,
        "nll_score": nll_score,
        "nll_both": nll_both,
        "score_coefficient": float(both[0]),
        "length_coefficient": float(both[1]),
        "gain": nll_length - nll_both,
    }


def _logistic(features: Floats, chosen: Floats) -> tuple[Floats, float]:
    """Return coefficients and mean NLL of a logistic regression by Newton's method, columns scaled to unit size."""
    # Newton's steps do not depend on the scale, but the conditioning of the curvature does.
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)  # a column of zeros stays one
    table = features / scale
    beta = np.zeros(table.shape[1])

    def loss(coefficients: Floats) -> float:
        logits = table @ coefficients
        return float((np.logaddexp(0.0, logits) - chosen * logits).mean())

    value = loss(beta)
    # Newton's method needs a handful of steps. The bound is for separable choices, whose optimum is at infinity.
    for _ in range(100):
        probabilities = expit(table @ beta)
        gradient = table.T @ (probabilities - chosen) / len(chosen)
        curvature = (table * (probabilities * (1.0 - probabilities))[:, None]).T @ table / len(chosen)
        # Least squares and not a solve: a column of zeros, or two that are the same, make the curvature singular.
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        # Halved until it does not climb: far from the optimum a full step overshoots.
        size = 1.0
        while (after := loss(beta - size * step)) > value and size > 1e-8:
            size /= 2.0
        if after > value:
            break
        beta, gained, value = beta - size * step, value - after, after
        if np.abs(gradient).max() < 1e-13 or (gained <= 0.0 and np.abs(gradient).max() < 1e-10):
            break
    # Where a line separates the choices, coefficients grow without end: their value is only when the loop stopped.
    separable = value < 1e-6 or not np.isfinite(beta).all()
    return (np.full_like(beta, np.nan) if separable else beta / scale), value
