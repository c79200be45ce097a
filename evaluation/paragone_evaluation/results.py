"""All measures of one evaluation as plain values: what ``results.json`` holds, and what the table and the page show."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from paragone_evaluation.asking import Answers, only_ratings
from paragone_evaluation.benchmark_results import benchmark_section
from paragone_evaluation.dataset import Case, EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.bootstrap import pearson_estimate, rating_estimates
from paragone_evaluation.measures.checks import Floats
from paragone_evaluation.measures.paired import compare_models
from paragone_evaluation.measures.ranking import best_of_n, best_of_n_kl, group_score, kendall_zeta
from paragone_evaluation.pair_results import (
    Clustering,
    accuracy_section,
    clustering,
    judged_pairs,
    length_section,
    position_section,
    probability_section,
    strength_section,
    subset_rows,
    transitivity_section,
)
from paragone_evaluation.scorers import ModelCard

__all__ = ["MeasureSettings", "check_comparable", "plain", "results_of"]

_CALIBRATION_PAIRS = 500
_PREFERENCE_SECTIONS = (
    "accuracy",
    "probabilities",
    "strength",
    "length",
    "position",
    "transitivity",
    "groups",
    "benchmark",
)


@dataclass(frozen=True)
class MeasureSettings:
    """How measures are computed.

    Attributes:
        cluster: what is resampled together: ``question`` or ``prompt``.
        bins: of the reliability table, equal width over [½, 1].
        seed: of resampling and of the folds.
        resamples: of the bootstrap.

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
    """Return whether only ratings can be measured, and refuse what cannot be evaluated at all.

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
    data: EvaluationSet, answers: Answers, settings: MeasureSettings, *, against: Answers | None = None
) -> dict[str, Any]:
    """Return every measure that the file allows.

    Args:
        against: answers of another model, for a paired comparison.

    Returns:
        ``data``, ``model``, ``settings``, ``left_out``, ``notes``, ``measures`` and ``comparison``; a number with an
        interval is an ``Estimate``. ``plain`` turns it into JSON values.

    Raises:
        EvaluationError: if a setting is impossible, people decided no pair that was answered, or a model without
            preferences is to be compared with another.
    """
    card = answers.card
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    ratings_alone = check_comparable(data, card, None if against is None else against.card)
    # Every section is there, if only as null: readers of results.json find the same names in each file.
    measures: dict[str, Any] = {**dict.fromkeys(_PREFERENCE_SECTIONS), "subsets": []}
    measures["attributes"] = _attribute_rows(data, answers, clusters)
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
        judged, resampler = judged_pairs(data, answers, clusters), clusters.resampler
        measures |= {
            "accuracy": accuracy_section(judged, resampler),
            "probabilities": probability_section(judged, resampler, bins=settings.bins, seed=settings.seed),
            "strength": strength_section(judged, resampler),
            "length": length_section(judged, data, answers, resampler),
            "position": position_section(judged, resampler),
            # Judgements made from ratings, or from what is right, are free of cycles by construction.
            "transitivity": transitivity_section(judged) if data.compared else None,
            "groups": _group_section(data, answers, clusters),
            "benchmark": benchmark_section(data, answers, judged, clusters),
            "subsets": subset_rows(judged, data, clusters),
        }
        judged_count, notes = len(judged.logit), _notes(data, card, len(judged.logit))
        left_out += _unanswered(data, answers, against)
    return {
        "data": _about(data, judged_count),
        "model": dataclasses.asdict(card),
        "settings": {**dataclasses.asdict(settings), "cluster": clusters.by, "clusters": clusters.count},
        "left_out": left_out,
        "notes": [*notes, *data.notes, *clusters.notes],
        "measures": measures,
        "comparison": None if against is None else _comparison(data, answers, against, clusters),
    }


def _about(data: EvaluationSet, answered: int) -> dict[str, Any]:
    return {
        "path": data.path,
        "sha256": data.sha256,
        "layout": data.layout,
        "split": data.split,
        "cases": len(data.cases),
        "prompts": len(data.prompts),
        "responses": len(data.responses),
        "judgements": len(data.outcome),
        "answered": answered,
    }


def _comparison(data: EvaluationSet, answers: Answers, against: Answers, clusters: Clustering) -> dict[str, Any]:
    """Return the paired comparison of two models, on the pairs that both answered."""
    both, resampler = answers.answered & against.answered, clusters.resampler
    first, second = (judged_pairs(data, side, clusters, only=both) for side in (answers, against))
    difference = compare_models(first.logit, second.logit, first.outcome, first.cluster, resampler)
    return {
        "model": dataclasses.asdict(against.card),
        "pairs": int(both.sum()),
        "accuracy": accuracy_section(first, resampler)["strict"],
        "accuracy_against": accuracy_section(second, resampler)["strict"],
        "accuracy_difference": difference.accuracy,
        "nll_difference": difference.nll,
        "brier_difference": difference.brier,
        "better_share": difference.better_share,
        "agreement": difference.agreement,
        "only_first_right": difference.only_first_right,
        "only_second_right": difference.only_second_right,
    }


def _group_section(data: EvaluationSet, answers: Answers, clusters: Clustering) -> dict[str, Any] | None:
    """Return the agreement on groups that people scored, best-of-n and consistence; None without such groups."""
    groups: list[tuple[Case, Floats, Floats, float]] = []
    refused = 0
    for number, case in enumerate(data.cases):
        if case.human is None or len(case.nodes) < 3:
            continue
        scores = answers.case_scores(number, case.nodes)
        # A group without one of its responses is another group: its best of n would be of other responses.
        if np.isfinite(scores).all():
            groups.append((case, scores, np.asarray(case.human), kendall_zeta(answers.matrices[number])))
        else:
            refused += 1
    if not groups:
        return None
    cluster = clusters.prompt_cluster[[case.prompt for case, *_ in groups]]
    each = [group_score(scores, human) for _, scores, human, _ in groups]
    columns = {
        name: np.asarray([getattr(score, name) for score in each])
        for name in ("tau", "top_one", "chance", "regret", "random_regret")
    }
    columns["zeta"] = np.asarray([zeta for *_, zeta in groups])
    section: dict[str, Any] = {"groups": len(groups), "groups_refused": refused}
    for name, values in columns.items():
        known = np.isfinite(values)
        section[name] = clusters.resampler.mean(values[known], cluster[known]) if known.any() else None
        section[f"{name}_groups"] = int(known.sum())
    section["best_of_n"] = _best_of_n([(scores, human) for _, scores, human, _ in groups])
    return section


def _best_of_n(groups: list[tuple[Floats, Floats]]) -> dict[str, list[float]]:
    """Return the mean human score of best-of-n by the model, by people and at random, up to the smallest group."""
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
        pairs = [
            (predictions[node], rating, clusters.prompt_cluster[case.prompt])
            for case in data.cases
            for node, rating in zip(case.nodes, case.attributes.get(name, ()), strict=False)
            if np.isfinite(predictions[node]) and np.isfinite(rating)
        ]
        if pairs:
            predicted, rated, where = np.asarray(pairs, dtype=np.float64).T
            cluster, resampler = where.astype(np.int64), clusters.resampler
            error, explained = rating_estimates(predicted, rated, cluster, resampler)
            rows.append(
                {
                    "name": name,
                    "responses": len(pairs),
                    "root_mean_squared_error": error,
                    "spread": float(rated.std()),
                    "determination": explained,
                    "pearson": pearson_estimate(predicted, rated, cluster, resampler),
                    "spearman": pearson_estimate(rankdata(predicted), rankdata(rated), cluster, resampler),
                }
            )
    return rows


def _unanswered(data: EvaluationSet, answers: Answers, against: Answers | None) -> list[dict[str, Any]]:
    """Return what is in no measure of preferences, or not in all of them, and why."""
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
            f"The temperature of {card.name} was not fitted: its probabilities are not meant to be calibrated."
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
