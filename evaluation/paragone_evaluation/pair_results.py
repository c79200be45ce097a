"""Sections of the results that are made of judged pairs: the pairs that people judged and the model answered.

All intervals share one set of resamples, so that differences between measures and between models are not noise.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import CalibrationError, EvaluationError
from paragone_evaluation.measures.accuracy import accuracy, credit
from paragone_evaluation.measures.agreement import by_strength
from paragone_evaluation.measures.bootstrap import FEW_CLUSTERS, Estimate, Resampler
from paragone_evaluation.measures.calibration import brier, fit_temperature, negative_log_likelihood, reliability
from paragone_evaluation.measures.checks import Bools, Floats, Ints
from paragone_evaluation.measures.length import (
    length_logit,
    length_matched,
    length_models,
    longer_preferred,
    within_prompt_spearman,
)
from paragone_evaluation.measures.paired import compare_models, position_bias
from paragone_evaluation.measures.ranking import triads

__all__ = [
    "Clustering",
    "JudgedPairs",
    "clustering",
    "comparison_section",
    "judged_pairs",
    "pair_sections",
    "probability_section",
]

_FOLDS = 5
_LENGTH_BINS = 8


@dataclass(frozen=True)
class Clustering:
    """The clusters that are resampled.

    Attributes:
        by: ``question`` or ``prompt``, as it was really done.
        prompt_cluster: number of each prompt's cluster. [P]
        notes: what the reader of an interval should know.
    """

    by: str
    prompt_cluster: Ints
    count: int
    resampler: Resampler
    notes: tuple[str, ...]


def clustering(data: EvaluationSet, by: str, *, resamples: int, seed: int) -> Clustering:
    """Return the clusters of an evaluation set by ``question`` or ``prompt``; prompts where all is about one question.

    Raises:
        EvaluationError: if ``by`` is neither.
    """
    if by not in ("question", "prompt"):
        raise EvaluationError(f"cluster is {by!r}; it must be question or prompt")
    notes = []
    where, count = data.clusters(by)
    # One cluster has no interval. Prompts of one question are not independent, but better than nothing, and it is said.
    if by == "question" and count == 1 and len(data.prompts) > 1:
        by = "prompt"
        where, count = data.clusters(by)
        notes.append(f"All rows are about one question, so intervals resample its {count} prompts instead.")
    unit = by if count == 1 else f"{by}s"
    if count == 1:
        notes.append("There is one prompt only, so there are no intervals: nothing says how other prompts would do.")
    elif count < FEW_CLUSTERS:
        notes.append(
            f"Intervals resample {count} {unit}. From so few they are rough and mostly too narrow: a hint, no more."
        )
    return Clustering(by, where, count, Resampler(count, resamples=resamples, seed=seed), tuple(notes))


@dataclass(frozen=True)
class JudgedPairs:
    """The judged pairs that were answered, as columns of one length; letters and names as in ``measures``.

    Attributes:
        swapped: log-odds of the second, asked in the other order; None for kinds without an order.
        strength: NaN where unknown.
        first, second: nodes.
    """

    logit: Floats
    swapped: Floats | None
    outcome: Floats
    strength: Floats
    first: Ints
    second: Ints
    first_length: Floats
    second_length: Floats
    prompt: Ints
    case: Ints
    cluster: Ints

    @property
    def decided(self) -> Bools:
        """Which pairs people decided."""
        return np.asarray(self.outcome != 0.5)


def judged_pairs(
    data: EvaluationSet, answers: Answers, clusters: Clustering, *, only: Bools | None = None
) -> JudgedPairs:
    """Return the judged pairs that a model answered.

    Args:
        only: judgements to take, where not all that were answered. [J]

    Raises:
        EvaluationError: if people decided none of them.
    """
    # Refused pairs are taken out here and nowhere else: every section is about the same rows.
    rows = np.flatnonzero(answers.answered if only is None else only)
    prompt = data.node_prompt[data.first[rows]]  # both responses of a pair are to one prompt
    outcome = data.outcome[rows]
    if not (outcome != 0.5).any():
        raise EvaluationError(f"none of the {len(rows)} pairs of {data.path} that were answered is decided")
    return JudgedPairs(
        logit=answers.logit[rows],
        swapped=None if answers.swapped is None else answers.swapped[rows],
        outcome=outcome,
        strength=data.strength[rows],
        first=data.first[rows],
        second=data.second[rows],
        first_length=data.node_length[data.first[rows]],
        second_length=data.node_length[data.second[rows]],
        prompt=prompt,
        case=data.case[rows],
        cluster=clusters.prompt_cluster[prompt],
    )


def pair_sections(
    judged: JudgedPairs, data: EvaluationSet, answers: Answers, clusters: Clustering, *, bins: int, seed: int
) -> dict[str, Any]:
    """Return the sections of ``results.json`` that are made of judged pairs, by name; None where one says nothing."""
    resampler = clusters.resampler
    return {
        "accuracy": _accuracy(judged, resampler),
        "probabilities": probability_section(judged, resampler, bins=bins, seed=seed),
        "strength": _strength(judged, resampler),
        "length": _length(judged, data, answers, resampler),
        # Kinds that read responses one by one have no order, and no bias by construction.
        "position": None
        if judged.swapped is None
        else position_bias(judged.logit, judged.swapped, judged.cluster, resampler),
        # Judgements made from ratings, or from what is right, are free of cycles by construction.
        "transitivity": _transitivity(judged) if data.compared else None,
        "subsets": _subsets(judged, data, clusters),
    }


def comparison_section(data: EvaluationSet, answers: Answers, against: Answers, clusters: Clustering) -> dict[str, Any]:
    """Return the paired comparison of two models, on the pairs that both answered."""
    # Each on its own pairs would compare two files: what one refuses is often what is hard.
    both, resampler = answers.answered & against.answered, clusters.resampler
    first, second = (judged_pairs(data, side, clusters, only=both) for side in (answers, against))
    return {
        "model": dataclasses.asdict(against.card),
        "pairs": int(both.sum()),
        "accuracy": _accuracy(first, resampler)["strict"],
        "accuracy_against": _accuracy(second, resampler)["strict"],
        **compare_models(first.logit, second.logit, first.outcome, first.cluster, resampler),
    }


def _accuracy(judged: JudgedPairs, resampler: Resampler) -> dict[str, Any]:
    """Return the accuracies with intervals, and how many pairs were decided and tied."""
    counts = accuracy(judged.logit, judged.outcome)
    earned, cluster = credit(judged.logit, judged.outcome)[judged.decided], judged.cluster[judged.decided]
    right, untied = (earned == 1.0).astype(np.float64), earned != 0.5
    return {
        "strict": resampler.share(right, cluster),
        "half_credit": resampler.share(earned, cluster),
        "dropped": resampler.share(right[untied], cluster[untied]),
        "decided": counts.decided,
        "human_ties": counts.human_ties,
        "model_ties": counts.model_ties,
    }


def _cross_fitted(logit: Floats, outcome: Floats, cluster: Ints, *, seed: int) -> tuple[Floats, list[float]]:
    """Return the logits divided by temperatures that were fitted on other clusters, and these temperatures.

    There are up to five folds of clusters, or with one cluster folds of rows.

    Raises:
        CalibrationError: if there is no best temperature without one of the folds.
    """
    names, where = np.unique(cluster, return_inverse=True)
    if len(names) < 2:  # then rows are all that there is to fold
        where = np.arange(len(logit))
    # A temperature that has seen a question is too good on its other pairs, so whole clusters go into a fold.
    units = int(where.max()) + 1
    folds = min(_FOLDS, units)
    if folds < 2:
        raise CalibrationError("one pair is not enough to fit a temperature on others")
    fold = (np.random.default_rng(seed).permutation(units) % folds)[where]
    scaled, temperatures = np.empty_like(logit), []
    for number in range(folds):
        here = fold == number
        try:
            temperatures.append(fit_temperature(logit[~here], outcome[~here]))
        except CalibrationError as error:
            raise CalibrationError(f"without fold {number + 1} of {folds}, {error}", limit=error.limit) from error
        scaled[here] = logit[here] / temperatures[-1]
    return scaled, temperatures


def probability_section(judged: JudgedPairs, resampler: Resampler, *, bins: int, seed: int) -> dict[str, Any]:
    """Return NLL, Brier, ECE and reliability, before and after a temperature that was fitted on other clusters."""

    def scored(logit: Floats) -> dict[str, Any]:
        table = reliability(logit, judged.outcome, bins=bins)
        return {
            "nll": resampler.mean(negative_log_likelihood(logit, judged.outcome), judged.cluster),
            "brier": resampler.mean(brier(logit, judged.outcome), judged.cluster),
            "ece": resampler.calibration_error(logit, judged.outcome, judged.cluster, bins=bins),
            "reliability": dataclasses.asdict(table),
        }

    section: dict[str, Any] = {
        "bins": bins,
        "before": scored(judged.logit),
        "after": None,
        # What a model that always says ½ has: numbers above these are worse than knowing nothing.
        "uninformed_nll": np.log(2),
        "uninformed_brier": 0.25 * judged.decided.mean(),  # a tie is met exactly by ½
    }
    # The factor that is shown is fitted on all pairs. What it is worth is measured by the cross-fitted ones alone, and
    # where one of those is missing, by nothing: the factor itself is none the worse.
    try:
        section["temperature_factor"] = fit_temperature(judged.logit, judged.outcome)
    except CalibrationError as error:
        section["no_temperature"] = str(error)
        return section
    try:
        scaled, temperatures = _cross_fitted(judged.logit, judged.outcome, judged.cluster, seed=seed)
    except CalibrationError as error:
        section["no_cross_fit"] = str(error)
        return section
    section["fold_factors"] = temperatures
    section["after"] = scored(scaled)
    return section


def _strength(judged: JudgedPairs, resampler: Resampler) -> dict[str, Any] | None:
    """Return the agreement with the strength of preferences, or None where none is known."""
    known = np.isfinite(judged.strength)
    if not known.any():
        return None
    logit, strength, cluster = judged.logit[known], judged.strength[known], judged.cluster[known]
    sided = strength != 0  # a tie is neither a strong nor a slight preference
    return {
        "pearson": resampler.pearson(logit, strength, cluster),
        "spearman": resampler.pearson(rankdata(logit), rankdata(strength), cluster),
        # Without its sign: strong preferences should be answered with surer logits, whichever side they favour.
        "auc_strong": resampler.auc(np.abs(logit[sided]), np.abs(strength[sided]) >= 2, cluster[sided]),
        "levels": by_strength(logit, strength),
        "pairs": int(known.sum()),
    }


def _length(judged: JudgedPairs, data: EvaluationSet, answers: Answers, resampler: Resampler) -> dict[str, Any]:
    """Return the length-bias measures, with the length-only baseline and the gain over it."""
    rows = judged.decided
    logit, outcome, cluster = judged.logit[rows], judged.outcome[rows], judged.cluster[rows]
    lengths = judged.first_length[rows], judged.second_length[rows]
    longer = length_logit(*lengths)
    earned, baseline = credit(logit, outcome), credit(longer, outcome)
    # Model and people on the same pairs: people do prefer longer answers, and only what is beyond that is a bias.
    model, differ = longer_preferred(logit, *lengths)
    human, _ = longer_preferred(outcome - 0.5, *lengths)
    gold_longer, gold_shorter = differ & (human == 1.0), differ & (human == 0.0)
    # What is left of the accuracy where length cannot have decided.
    matched = length_matched(*lengths)
    split = {
        "when_longer_is_right": resampler.share(earned[gold_longer], cluster[gold_longer]),
        "when_shorter_is_right": resampler.share(earned[gold_shorter], cluster[gold_shorter]),
    }
    # The two halves count alike: a model that always takes the longer one gets ½ here, however many pairs it wins.
    halves = [side.value for side in split.values()]
    scores = np.isfinite(answers.node_score)
    # All scored responses, those of ties and of undecided groups too: whoever won, length is length.
    correlations = within_prompt_spearman(
        answers.node_score[scores], data.node_length[scores], data.node_prompt[scores].astype(np.float64)
    )
    return {
        "baseline": resampler.share(baseline, cluster),
        "gain": resampler.mean(earned - baseline, cluster),
        "matched": resampler.share(earned[matched], cluster[matched]) if matched.any() else None,
        "matched_pairs": int(matched.sum()),
        "model_prefers_longer": resampler.share(model[differ], cluster[differ]),
        "human_prefers_longer": resampler.share(human[differ], cluster[differ]),
        "bias": resampler.mean((model - human)[differ], cluster[differ]),
        **split,
        "balanced": float(np.mean(halves)),
        "score_length_spearman": float(correlations.mean()) if len(correlations) else None,
        "score_length_prompts": len(correlations),
        "models": length_models(logit, outcome, *lengths),
        "curve": _length_curve(longer, model, human, differ),
    }


def _length_curve(longer: Floats, model: Floats, human: Floats, differ: Bools) -> list[dict[str, float]]:
    """Return how often the longer response wins, by how many times longer it is: for people and for the model."""
    # Pairs of one length have no longer response, and would be a spike at a ratio of 1.
    ratio = np.exp(np.abs(longer[differ]))
    if not len(ratio):
        return []
    # Bins of as many pairs each: ratios crowd just above 1 and have a long tail.
    edges = np.unique(np.quantile(ratio, np.linspace(0, 1, _LENGTH_BINS + 1)))
    if len(edges) < 2:  # all ratios are the same
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


def _transitivity(judged: JudgedPairs) -> dict[str, Any] | None:
    """Return how many of the judged triads run in a circle, for people and for the model; None without any."""
    rows = judged.decided
    where = judged.first[rows], judged.second[rows], judged.prompt[rows]
    human = triads(judged.outcome[rows] - 0.5, *where)
    if not human.closed:
        return None
    model = triads(judged.logit[rows], *where)
    return {
        side: {"closed": counts.closed, "cyclic": counts.cyclic, "rate": counts.rate}
        for side, counts in (("human", human), ("model", model))
    }


def _subsets(judged: JudgedPairs, data: EvaluationSet, clusters: Clustering) -> list[dict[str, Any]]:
    """Return accuracy, NLL and the length baseline of every subset; none where there are no subsets.

    As for the whole file, accuracy is over the pairs that people decided, and the NLL counts their ties as ½.
    """
    names = np.asarray([data.cases[case].subset or "" for case in judged.case])
    rows = []
    for name in np.unique(names) if names.any() else []:
        here = names == name
        decided = here & judged.decided
        if not decided.any():  # ties alone have no accuracy
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
    mean = clusters.resampler.mean(values, cluster)
    # Every resample that has the cluster at all gives the same mean: an interval of width 0, and false.
    alone = len(np.unique(cluster)) < 2
    return dataclasses.replace(mean, low=float("nan"), high=float("nan")) if alone else mean
