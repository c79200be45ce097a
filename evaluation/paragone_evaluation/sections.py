"""The sections of a result that are about judged pairs: each a function from columns to plain values."""

import dataclasses
from typing import Any

import numpy as np
from scipy.stats import rankdata

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import CalibrationError
from paragone_evaluation.judged import Clustering, Judged
from paragone_evaluation.measures.accuracy import accuracy, credit
from paragone_evaluation.measures.agreement import by_strength
from paragone_evaluation.measures.bootstrap import (
    Estimate,
    Resampler,
    auc_estimate,
    calibration_error_estimate,
    pearson_estimate,
)
from paragone_evaluation.measures.calibration import (
    brier,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from paragone_evaluation.measures.checks import Floats, Ints
from paragone_evaluation.measures.length import (
    length_logit,
    length_matched,
    length_models,
    longer_preferred,
    within_prompt_spearman,
)
from paragone_evaluation.measures.paired import position_bias
from paragone_evaluation.measures.ranking import triads

__all__ = [
    "accuracy_section",
    "cross_fitted",
    "length_section",
    "position_section",
    "probability_section",
    "strength_section",
    "subset_rows",
    "transitivity_section",
]

_FOLDS = 5
_LENGTH_BINS = 8


def accuracy_section(judged: Judged, resampler: Resampler) -> dict[str, Any]:
    """Return the accuracies with intervals, and how many pairs were decided and tied."""
    counts = accuracy(judged.logit, judged.outcome)
    earned, cluster = credit(judged.logit, judged.outcome)[judged.decided], judged.cluster[judged.decided]
    right, untied = (earned == 1.0).astype(np.float64), (earned != 0.5).astype(np.float64)
    return {
        "strict": resampler.mean(right, cluster),
        "half_credit": resampler.mean(earned, cluster),
        "dropped": resampler.ratio(right, untied, cluster),
        "decided": counts.decided,
        "human_ties": counts.human_ties,
        "model_ties": counts.model_ties,
    }


def cross_fitted(logit: Floats, outcome: Floats, cluster: Ints, *, seed: int) -> tuple[Floats, list[float]]:
    """Return the logits divided by temperatures that were fitted on other clusters, and these temperatures.

    Args:
        logit: log-odds that the first is preferred. [n]
        outcome: 1, ½ or 0. [n]
        cluster: number of each pair's cluster; up to five folds of clusters, and with one cluster folds of rows. [n]
        seed: of the assignment to folds.

    Raises:
        CalibrationError: if there is no best temperature.
    """
    names, where = np.unique(cluster, return_inverse=True)
    if len(names) < 2:
        where = np.arange(len(logit))
    units = int(where.max()) + 1
    folds = min(_FOLDS, units)
    if folds < 2:
        raise CalibrationError("one pair is not enough to fit a temperature on others")
    fold = (np.random.default_rng(seed).permutation(units) % folds)[where]
    scaled, temperatures = np.empty_like(logit), []
    for number in range(folds):
        here = fold == number
        temperatures.append(fit_temperature(logit[~here], outcome[~here]))
        scaled[here] = logit[here] / temperatures[-1]
    return scaled, temperatures


def probability_section(judged: Judged, resampler: Resampler, *, bins: int, seed: int) -> dict[str, Any]:
    """Return NLL, Brier, ECE and reliability, before and after a temperature that was fitted on other clusters."""

    def scored(logit: Floats) -> dict[str, Any]:
        table = reliability(logit, judged.outcome, bins=bins)
        return {
            "nll": resampler.mean(negative_log_likelihood(logit, judged.outcome), judged.cluster),
            "brier": resampler.mean(brier(logit, judged.outcome), judged.cluster),
            "ece": calibration_error_estimate(logit, judged.outcome, judged.cluster, resampler, bins=bins),
            "reliability": dataclasses.asdict(table),
        }

    section: dict[str, Any] = {
        "bins": bins,
        "before": scored(judged.logit),
        "after": None,
        "uninformed_nll": np.log(2),
        "uninformed_brier": 0.25 * judged.decided.mean(),
    }
    try:
        factor = fit_temperature(judged.logit, judged.outcome)
        scaled, temperatures = cross_fitted(judged.logit, judged.outcome, judged.cluster, seed=seed)
    except CalibrationError as error:
        section["no_temperature"] = str(error)
        return section
    section["temperature_factor"] = factor
    section["fold_factors"] = temperatures
    section["after"] = scored(scaled)
    return section


def strength_section(judged: Judged, resampler: Resampler) -> dict[str, Any] | None:
    """Return the agreement with the strength of preferences, or None where none is known."""
    known = np.isfinite(judged.strength)
    if not known.any():
        return None
    logit, strength, cluster = judged.logit[known], judged.strength[known], judged.cluster[known]
    sided = strength != 0
    return {
        "pearson": pearson_estimate(logit, strength, cluster, resampler),
        "spearman": pearson_estimate(rankdata(logit), rankdata(strength), cluster, resampler),
        "auc_strong": auc_estimate(np.abs(logit[sided]), np.abs(strength[sided]) >= 2, cluster[sided], resampler),
        "levels": [dataclasses.asdict(level) for level in by_strength(logit, strength)],
        "pairs": int(known.sum()),
    }


def length_section(judged: Judged, data: EvaluationSet, answers: Answers, resampler: Resampler) -> dict[str, Any]:
    """Return the length-bias measures, with the length-only baseline and the gain over it."""
    rows = judged.decided
    logit, outcome, cluster = judged.logit[rows], judged.outcome[rows], judged.cluster[rows]
    one, two = judged.first_length[rows], judged.second_length[rows]
    longer = length_logit(one, two)
    earned, baseline = credit(logit, outcome), credit(longer, outcome)
    model, differ = longer_preferred(logit, one, two)
    human, _ = longer_preferred(outcome - 0.5, one, two)
    gold_longer, gold_shorter = differ & (human == 1.0), differ & (human == 0.0)
    matched = length_matched(one, two)
    split = {
        "when_longer_is_right": resampler.mean(earned[gold_longer], cluster[gold_longer]),
        "when_shorter_is_right": resampler.mean(earned[gold_shorter], cluster[gold_shorter]),
    }
    halves = [side.value for side in split.values()]
    scores = np.isfinite(answers.node_score)
    correlations = within_prompt_spearman(
        answers.node_score[scores], data.node_length[scores], data.node_prompt[scores].astype(np.float64)
    )
    return {
        "baseline": resampler.mean(baseline, cluster),
        "gain": resampler.mean(earned - baseline, cluster),
        "matched": resampler.mean(earned[matched], cluster[matched]) if matched.any() else None,
        "matched_pairs": int(matched.sum()),
        "model_prefers_longer": resampler.mean(model[differ], cluster[differ]),
        "human_prefers_longer": resampler.mean(human[differ], cluster[differ]),
        "bias": resampler.mean((model - human)[differ], cluster[differ]),
        **split,
        "balanced": float(np.mean(halves)),
        "score_length_spearman": float(correlations.mean()) if len(correlations) else None,
        "score_length_prompts": len(correlations),
        "models": dataclasses.asdict(length_models(logit, outcome, one, two)),
        "curve": _length_curve(longer, model, human, differ),
    }


def _length_curve(longer: Floats, model: Floats, human: Floats, differ: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    """Return how often the longer response wins, by how many times longer it is: for people and for the model."""
    ratio = np.exp(np.abs(longer[differ]))
    if not len(ratio):
        return []
    edges = np.unique(np.quantile(ratio, np.linspace(0, 1, _LENGTH_BINS + 1)))
    if len(edges) < 2:
        edges = np.asarray([edges[0], edges[0] * (1 + 1e-9)])
    where = np.clip(np.searchsorted(edges, ratio, side="right") - 1, 0, len(edges) - 2)
    points = []
    for number in range(len(edges) - 1):
        here = where == number
        if here.any():
            points.append(
                {
                    "low": float(edges[number]),
                    "high": float(edges[number + 1]),
                    "ratio": float(np.median(ratio[here])),
                    "model": float(model[differ][here].mean()),
                    "human": float(human[differ][here].mean()),
                    "count": int(here.sum()),
                }
            )
    return points


def position_section(judged: Judged, resampler: Resampler) -> dict[str, Any] | None:
    """Return the position bias with intervals, or None for kinds that have none by construction."""
    if judged.swapped is None:
        return None
    found = position_bias(judged.logit, judged.swapped, judged.cluster, resampler)
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}


def transitivity_section(judged: Judged) -> dict[str, Any] | None:
    """Return how many of the judged triads run in a circle, for people and for the model; None without any."""
    rows = judged.decided
    where = judged.first[rows], judged.second[rows], judged.prompt[rows]
    human = triads(judged.outcome[rows] - 0.5, *where)
    if not human.closed:
        return None
    model = triads(judged.logit[rows], *where)
    return {
        side: {"closed": found.closed, "cyclic": found.cyclic, "rate": found.rate}
        for side, found in (("human", human), ("model", model))
    }


def subset_rows(judged: Judged, data: EvaluationSet, clusters: Clustering) -> list[dict[str, Any]]:
    """Return accuracy, NLL and the length baseline of every subset; none where there are no subsets.

    As for the whole file, accuracy is over the pairs that people decided, and the NLL counts their ties as ½.
    """
    names = np.asarray([data.cases[case].subset or "" for case in judged.case])
    rows = []
    for name in np.unique(names) if names.any() else []:
        here = names == name
        decided = here & judged.decided
        if not decided.any():
            continue
        logit, outcome, cluster = judged.logit[decided], judged.outcome[decided], judged.cluster[decided]
        shorter = length_logit(judged.first_length[decided], judged.second_length[decided])
        losses = negative_log_likelihood(judged.logit[here], judged.outcome[here])
        rows.append(
            {
                "name": str(name) or "(no subset)",
                "pairs": int(decided.sum()),
                "ties": int((here & ~judged.decided).sum()),
                "accuracy": _mean_within((credit(logit, outcome) == 1.0).astype(np.float64), cluster, clusters),
                "nll": _mean_within(losses, judged.cluster[here], clusters),
                "length_baseline": float(credit(shorter, outcome).mean()),
            }
        )
    return rows


def _mean_within(values: Floats, cluster: Ints, clusters: Clustering) -> Estimate:
    """Return the mean of some rows with its interval, and without one where they are of one cluster."""
    found = clusters.resampler.mean(values, cluster)
    # Every resample that has the cluster at all gives the same mean: an interval of width 0, and false.
    alone = len(np.unique(cluster)) < 2
    return dataclasses.replace(found, low=float("nan"), high=float("nan")) if alone else found
