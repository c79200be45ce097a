"""The results of one evaluation as plain values: everything that ``results.json`` holds and a report shows."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json
from scipy.stats import rankdata

from paragone_evaluation.asking import Answers, only_ratings
from paragone_evaluation.benchmark_results import benchmark_section
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.checks import Floats
from paragone_evaluation.measures.ranking import best_of_n, best_of_n_kl, group_score, kendall_zeta
from paragone_evaluation.pair_results import Clustering, clustering, comparison_section, judged_pairs, pair_sections
from paragone_evaluation.routing import Member, routing_section
from paragone_evaluation.scorers import ModelCard

__all__ = ["MeasureSettings", "check_comparable", "plain", "results_of"]

_CALIBRATION_PAIRS = 500
_SECTIONS = ("accuracy", "probabilities", "strength", "length", "position", "transitivity", "groups", "benchmark")


@dataclass(frozen=True)
class MeasureSettings:
    """How measures are computed.

    Attributes:
        cluster: what is resampled together: ``question`` or ``prompt``.
        bins: of the reliability table, equal width over [½, 1].
        seed: of resampling and of the folds.

    Raises:
        EvaluationError: if a value is out of its range.
    """

    cluster: str = "question"
    bins: int = 10
    seed: int = 0
    resamples: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= 1000:
            raise EvaluationError(f"bins is {self.bins}; it must be from 1 to 1000")
        if not 10 <= self.resamples <= 100_000:
            raise EvaluationError(f"resamples is {self.resamples}; it must be from 10 to 100000")
        if self.seed < 0:
            raise EvaluationError(f"seed is {self.seed}; it must not be negative")


def check_comparable(data: EvaluationSet, card: ModelCard, against: ModelCard | None) -> bool:
    """Return whether only ratings can be measured; refuse what cannot be evaluated at all.

    Raises:
        EvaluationError: if nothing can be measured, or one of two models has no preferences to compare.
    """
    alone = [model for model in (card, against) if model is not None and only_ratings(data, model)]
    if alone and against is not None:
        reason = f"{alone[0].name} has no weights to compare responses with"
        if alone[0].compares:
            reason = f"no two responses of a prompt in {data.path} differ in {data.rated!r}"
        raise EvaluationError(f"{reason}, so there is nothing to compare models by: leave out --against")
    return bool(alone)


def results_of(
    data: EvaluationSet,
    answers: Answers,
    settings: MeasureSettings,
    *,
    against: Answers | None = None,
    members: Sequence[Member] = (),
) -> dict[str, Any]:
    """Return every measure that the file allows.

    Args:
        against: answers of another model, for a paired comparison.
        members: answers of an ensemble's members, for accuracy against cost.

    Returns:
        ``data``, ``model``, ``settings``, ``left_out``, ``notes``, ``measures``, ``comparison`` and ``routing``; a
        number with an interval is an ``Estimate``. ``plain`` turns it into JSON values.

    Raises:
        EvaluationError: if a setting is impossible, people decided no pair that was answered, or a model without
            preferences is to be compared with another.
    """
    card = answers.card
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    ratings_alone = check_comparable(data, card, None if against is None else against.card)
    # Every section is there, if only as null: readers of results.json find the same names in each file.
    measures: dict[str, Any] = {**dict.fromkeys(_SECTIONS), "subsets": []}
    measures["attributes"] = _attribute_rows(data, answers, clusters)
    # Rows of the file first, then what the model refused: the order in which they were lost.
    left_out = [dataclasses.asdict(row) for row in data.left_out]
    if ratings_alone:
        if not measures["attributes"]:
            raise EvaluationError(f"no rating of {data.path} is of a response that {card.name} answered for")
        why = (
            f"{card.name} has no weights to merge its ratings into a preference, so only its ratings are measured."
            if not card.compares
            else f"No two responses of a prompt differ in {data.rated!r}, so only ratings are measured."
        )
        judged_count, notes = 0, [*_demonstration_note(card), why]
        left_out += _refused(answers)
    else:
        judged = judged_pairs(data, answers, clusters)
        measures |= pair_sections(judged, data, answers, clusters, bins=settings.bins, seed=settings.seed)
        measures["groups"] = _group_section(data, answers, clusters)
        measures["benchmark"] = benchmark_section(data, answers, judged, clusters)
        judged_count, notes = len(judged.logit), _notes(data, card, len(judged.logit))
        left_out += _unanswered(data, answers, against)
    return {
        "data": _about(data, judged_count),
        "model": dataclasses.asdict(card),
        "settings": {**dataclasses.asdict(settings), "cluster": clusters.by, "clusters": clusters.count},
        "left_out": left_out,
        "notes": [*notes, *data.notes, *clusters.notes],
        "measures": measures,
        "comparison": None if against is None else comparison_section(data, answers, against, clusters),
        "routing": routing_section(data, card.ensemble, members, clusters) if members and card.ensemble else None,
    }


def _about(data: EvaluationSet, answered: int) -> dict[str, Any]:
    return {
        **{name: getattr(data, name) for name in ("path", "sha256", "layout", "split", "holdout")},
        "cases": len(data.cases),
        "prompts": len(data.prompts),
        "responses": len(data.responses),
        "judgements": len(data.outcome),
        "answered": answered,
    }


def _group_section(data: EvaluationSet, answers: Answers, clusters: Clustering) -> dict[str, Any] | None:
    """Return the agreement on groups that people scored, best-of-n and consistence; None without such groups."""
    groups: list[tuple[Floats, Floats]] = []
    rows: list[dict[str, float]] = []
    prompts: list[int] = []
    refused = 0
    for number, case in enumerate(data.cases):
        if case.human is None or len(case.nodes) < 3:
            continue
        scores, human = answers.case_scores(number, case.nodes), np.asarray(case.human)
        # A group without one of its responses is another group: its best of n would be of other responses.
        if np.isfinite(scores).all():
            groups.append((scores, human))
            rows.append({**vars(group_score(scores, human)), "zeta": kendall_zeta(answers.matrices[number])})
            prompts.append(case.prompt)
        else:
            refused += 1
    if not groups:
        return None
    cluster = clusters.prompt_cluster[prompts]
    section: dict[str, Any] = {"groups": len(groups), "groups_refused": refused}
    for name in rows[0]:
        values = np.asarray([row[name] for row in rows])
        # NaN where the measure has no value for a group: a τ of equal scores, a ζ with a tied pair.
        known = np.isfinite(values)
        section[name] = clusters.resampler.mean(values[known], cluster[known]) if known.any() else None
        section[f"{name}_groups"] = int(known.sum())
    section["best_of_n"] = _best_of_n(groups)
    return section


def _best_of_n(groups: list[tuple[Floats, Floats]]) -> dict[str, list[float]]:
    """Return the mean human score of best-of-n by the model, by people and at random."""
    # People's own curve is the most that a model could reach here: the best response of n, and not a score of 1.
    # Up to the smallest group: each point is a mean over all groups.
    most = min(len(scores) for scores, _ in groups)
    sizes = np.arange(1, most + 1)
    return {
        "n": sizes.tolist(),
        "kl": best_of_n_kl(sizes).tolist(),
        "model": np.mean([best_of_n(scores, human)[:most] for scores, human in groups], axis=0).tolist(),
        "people": np.mean([best_of_n(human, human)[:most] for _, human in groups], axis=0).tolist(),
        "random": [float(np.mean([human.mean() for _, human in groups]))] * most,
    }


def _attribute_rows(data: EvaluationSet, answers: Answers, clusters: Clustering) -> list[dict[str, Any]]:
    """Return how predicted attributes agree with ratings of the same name, over all rated responses."""
    rows = []
    for name, predictions in sorted(answers.attributes.items()):
        # Over all responses of all prompts, since a rating has a scale of its own; scores of pairs have none.
        pairs = [
            (predictions[node], rating, clusters.prompt_cluster[case.prompt])
            for case in data.cases
            for node, rating in zip(case.nodes, case.attributes.get(name, ()), strict=False)
            if np.isfinite(predictions[node]) and np.isfinite(rating)
        ]
        if pairs:
            predicted, rated, where = np.asarray(pairs, dtype=np.float64).T
            cluster, resampler = where.astype(np.int64), clusters.resampler
            error, explained = resampler.rating_errors(predicted, rated, cluster)
            rows.append(
                {
                    "name": name,
                    "responses": len(pairs),
                    "root_mean_squared_error": error,
                    "spread": float(rated.std()),
                    "determination": explained,
                    "pearson": resampler.pearson(predicted, rated, cluster),
                    "spearman": resampler.pearson(rankdata(predicted), rankdata(rated), cluster),
                }
            )
    return rows


def _unanswered(data: EvaluationSet, answers: Answers, against: Answers | None) -> list[dict[str, Any]]:
    """Return what is in no measure of preferences, or not in all of them, and why."""
    # Every pair of the file is in the measures or here, so that the counts of a report can be added up.
    rows = []
    for side in filter(None, (answers, against)):
        rows += _refused(side)
        lost = int((~side.answered).sum())
        if lost:
            rows.append(_reason(f"judged pairs without an answer by {side.card.name}", lost))
    ties = int((data.outcome == 0.5).sum())
    if ties:
        rows.append(_reason("pairs that people left tied: not in accuracy; ½ in NLL, Brier and ECE", ties))
    return rows


def _refused(answers: Answers) -> list[dict[str, Any]]:
    # Refusals are counted in what was asked: a response of a scalar kind, a comparison of any other.
    unit = "responses" if answers.card.scalar else "comparisons"
    return [
        _reason(f"{answers.card.name} refused {unit}: {code}", count) for code, count in sorted(answers.refused.items())
    ]


def _reason(reason: str, count: int) -> dict[str, Any]:
    return {"reason": reason, "count": count, "lines": ()}


def _demonstration_note(card: ModelCard) -> list[str]:
    if not card.demonstration:
        return []
    domain = f": it was trained on {card.domain}" if card.domain else ""
    return [f"{card.name} is a demonstration{domain}. It shows how things work, not a judgement to rely on."]


def _notes(data: EvaluationSet, card: ModelCard, pairs: int) -> list[str]:
    notes = _demonstration_note(card)
    if not card.calibrated:
        notes.append(
            f"The temperature of {card.name} was not fitted, so its probabilities are not calibrated: paragone "
            "calibrate fits it, on rows that the model was neither trained on nor measured on."
        )
    if pairs < _CALIBRATION_PAIRS:
        notes.append(
            f"Calibration errors from {pairs} pairs are mostly noise: below {_CALIBRATION_PAIRS} they are biased up."
        )
    if data.rated is not None:
        notes.append(f"People's scores are the ratings of {data.rated!r}.")
    return notes


def plain(value: Any) -> Any:
    """Return a value that JSON can carry: arrays as lists, numbers that are none as null."""
    # JSON has no NaN, and 0 would be a lie. pydantic knows everything but numpy's own types.
    return json.loads(to_json(value, inf_nan_mode="null", fallback=lambda array: array.tolist()))
