"""An iterate against the initial policy on prompts that are not trained on: win rates with intervals, length, KL.

EVALUATION/samples.parquet     the iterate's responses
EVALUATION/oracle.parquet      tables of its responses (first) and the initial policy's, by the training oracle
EVALUATION/judge.parquet       the same by the second judge, if there is one
EVALUATION/summary.json        the numbers
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone_training.policy.model.logprobs import frozen_logprobs, response_logprobs
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows.folder import write_json
from paragone_training.policy.rows.rows import Answer, Response, read_answers
from paragone_training.policy.targets import Rule, symmetrised

__all__ = ["compared_with_initial", "describe_responses", "length_controlled", "win_rate"]

Float64s = NDArray[np.float64]

_RESAMPLES = 2000
_SEED = 0


def win_rate(
    answers: Sequence[Answer], lengths: Mapping[str, tuple[float, float]], *, responses: int, rule: Rule
) -> dict[str, Any]:
    """Return the mean probability that the iterate's response is preferred to the initial policy's.

    Args:
        answers: tables of ``responses`` of the iterate, then as many of the initial policy.
        lengths: mean characters of the iterate's and of the initial policy's responses, by prompt.
        responses: of each policy to a prompt.
        rule: how the two orders are combined.

    Returns:
        Estimates and 95 % intervals, resampled by prompt; None where nothing was answered.
    """
    means, longer = [], []
    for answer in answers:
        # Rows of the iterate against columns of the initial policy: comparisons inside either policy say nothing about
        # the two.
        table = symmetrised(answer.raw, rule=rule)[:responses, responses:]
        if np.isfinite(table).any():
            means.append(float(np.nanmean(table)))
            mine, theirs = lengths[answer.prompt_id]
            longer.append(mine - theirs)
    if not means:
        return {"prompts": 0, "win_rate": None, "interval": None, "controlled": None, "controlled_interval": None}
    values, difference = np.asarray(means), np.asarray(longer)
    # Prompts are resampled and not comparisons: those of one prompt share its responses.
    draws = np.random.default_rng(_SEED).integers(len(values), size=(_RESAMPLES, len(values)))
    # Each is a fit of its own: two hundred are enough for an interval.
    controlled = [length_controlled(values[draw], difference[draw]) for draw in draws[:200]]
    return {
        "prompts": len(values),
        "win_rate": float(values.mean()),
        "interval": _interval(values[draws].mean(axis=1)),
        "controlled": length_controlled(values, difference),
        "controlled_interval": _interval(np.asarray(controlled)),
    }


def length_controlled(preference: Float64s, longer: Float64s) -> float:
    """Return the win rate that a logistic fit gives for responses of equal length.

        logit P = a + b tanh(longer / sd(longer)),   the answer is sigmoid(a)

    Source: the idea of length-controlled AlpacaEval (Dubois et al., arXiv 2404.04475), with one term for length.

    Args:
        preference: mean probability that the iterate wins, a prompt each. [N]
        longer: by how many characters the iterate's responses are longer. [N]
    """
    spread = float(longer.std())
    # Bounded, so that one very long response does not decide the fit.
    term = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    design = np.stack([np.ones_like(term), term], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        share = 1.0 / (1.0 + np.exp(-design @ weights))
        # A little ridge: all lengths equal, or all won, has no finite solution.
        gradient = design.T @ (preference - share) - 1e-3 * weights
        curvature = (design * (share * (1.0 - share))[:, None]).T @ design + 1e-3 * np.eye(2)
        move = np.linalg.solve(curvature, gradient)
        weights = weights + move
        if float(np.abs(move).max()) < 1e-10:
            break
    return float(1.0 / (1.0 + math.exp(-weights[0])))


def describe_responses(rows: Sequence[Response]) -> dict[str, float]:
    """Return length and end of a policy's responses, of which there is at least one."""
    return {
        "responses": len(rows),
        "tokens": float(np.mean([len(row.token_ids) for row in rows])),
        "characters": float(np.mean([len(row.text) for row in rows])),
        "finished": float(np.mean([row.finished for row in rows])),
    }


def compared_with_initial(
    folder: Path,
    responses_of_both: tuple[Sequence[Response], Sequence[Response]],
    policy: Policy,
    *,
    names: Sequence[str],
    initial_source: str,
    responses: int,
    rule: Rule,
    training: PolicyTrainingSection,
) -> dict[str, Any]:
    """Write and return the numbers of an evaluation.

    Args:
        folder: of the iterate's evaluation.
        responses_of_both: the iterate's and the initial policy's.
        policy: takes the initial policy's weights, for the KL.
        names: of the oracles that were asked.
        initial_source: of the initial policy's weights.
        responses: of each policy to a prompt.
        rule: how the two orders are combined.
        training: of the recipe.

    Raises:
        RunError: if a file cannot be read or written.
    """
    mine, theirs = responses_of_both
    initial_lengths = _mean_lengths(theirs)
    lengths = {prompt_id: (length, initial_lengths[prompt_id]) for prompt_id, length in _mean_lengths(mine).items()}
    summary: dict[str, Any] = {"iterate": describe_responses(mine), "initial": describe_responses(theirs)}
    for name in names:
        answers = read_answers(folder / f"{name}.parquet")
        summary[name] = win_rate(answers, lengths, responses=responses, rule=rule)
    # Some servers give no log-probabilities at temperature 1; the estimate then has fewer samples, or none.
    known = [row for row in mine if row.sampler_logprob is not None]
    if known:
        # E_pi[log pi - log mu] by the iterate's own samples: unbiased, with the error of a mean.
        policy.become(initial_source)
        frozen = frozen_logprobs(
            response_logprobs(policy.model, training),
            [(row.prompt_ids, row.token_ids) for row in known],
            pad_id=policy.tokenizer.pad_token_id,
            batch=2 * training.pairs_per_pass,
            bf16=training.bf16,
        )
        own = np.asarray([row.sampler_logprob for row in known], dtype=np.float64)
        ratio = own - np.asarray(frozen)
        tokens = np.asarray([len(row.token_ids) for row in known])
        summary["kl_to_initial"] = float(ratio.mean())
        summary["kl_error"] = float(ratio.std() / math.sqrt(len(ratio)))
        summary["entropy"] = float(-own.mean())
        summary["entropy_per_token"] = float(-own.sum() / tokens.sum())
    write_json(folder / "summary.json", summary)
    return summary


def _mean_lengths(rows: Sequence[Response]) -> dict[str, float]:
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row.prompt_id, []).append(len(row.text))
    return {prompt_id: float(np.mean(values)) for prompt_id, values in lengths.items()}


def _interval(values: Float64s) -> list[float]:
    return [float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))]
