"""All measures of one run as plain values: what ``results.json`` holds, and what the table and the page show."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paragone_evaluation.asking import Answers, only_ratings
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.groups import attribute_rows, group_section
from paragone_evaluation.judged import Clustering, clustering, judged_pairs
from paragone_evaluation.measures.paired import compare_models
from paragone_evaluation.published import benchmark_section
from paragone_evaluation.scorers import ModelCard
from paragone_evaluation.sections import (
    accuracy_section,
    length_section,
    position_section,
    probability_section,
    strength_section,
    subset_rows,
    transitivity_section,
)

__all__ = ["Settings", "only_rated", "plain", "summarise"]

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
class Settings:
    """How measures are computed.

    Attributes:
        cluster: what is resampled together: ``question`` or ``prompt``.
        bins: of the reliability table, equal width over [½, 1].
        seed: of resampling and of the folds.
        resamples: of the bootstrap.
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


def summarise(
    data: EvaluationSet, answers: Answers, settings: Settings, *, against: Answers | None = None
) -> dict[str, Any]:
    """Return every measure that the file allows.

    Args:
        data: what was evaluated on.
        answers: of the model.
        settings: how measures are computed.
        against: answers of another model, for a paired comparison.

    Returns:
        ``data``, ``model``, ``settings``, ``left_out``, ``notes`` and ``measures``; a number with an interval is an
        ``Estimate``. ``plain`` turns it into JSON values.

    Raises:
        EvaluationError: if a setting is impossible, people decided no pair that was answered, or a model without
            preferences is to be compared with another.
    """
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    if only_rated(data, answers.card, None if against is None else against.card):
        return _ratings_summary(data, answers, settings, clusters)
    judged, draw = judged_pairs(data, answers, clusters), clusters.resampler
    measures: dict[str, Any] = {
        "accuracy": accuracy_section(judged, draw),
        "probabilities": probability_section(judged, draw, bins=settings.bins, seed=settings.seed),
        "strength": strength_section(judged, draw),
        "length": length_section(judged, data, answers, draw),
        "position": position_section(judged, draw),
        # Judgements made from ratings, or from what is right, are free of cycles by construction.
        "transitivity": transitivity_section(judged) if data.compared else None,
        "groups": group_section(data, answers, clusters),
        "attributes": attribute_rows(data, answers, clusters),
        "benchmark": benchmark_section(data, answers, judged, clusters),
        "subsets": subset_rows(judged, data, clusters),
    }
    return {
        "data": _about(data, judged_rows=len(judged.logit)),
        "model": _card(answers.card),
        "settings": {**dataclasses.asdict(settings), "cluster": clusters.by, "clusters": clusters.count},
        "left_out": _left_out(data, answers, against),
        "notes": [*_notes(answers.card, len(judged.logit)), *_rated_note(data), *data.notes, *clusters.notes],
        "measures": measures,
        "comparison": None if against is None else _comparison(data, answers, against, clusters),
    }


def _comparison(data: EvaluationSet, answers: Answers, against: Answers, clusters: Clustering) -> dict[str, Any]:
    """Return the paired comparison of two models, on the pairs that both answered."""
    draw = clusters.resampler
    both = answers.answered & against.answered
    mine, theirs = (judged_pairs(data, one, clusters, only=both) for one in (answers, against))
    found = compare_models(mine.logit, theirs.logit, mine.outcome, mine.cluster, draw)
    return {
        "model": _card(against.card),
        "pairs": int(both.sum()),
        "accuracy": accuracy_section(mine, draw)["strict"],
        "accuracy_against": accuracy_section(theirs, draw)["strict"],
        "accuracy_difference": found.accuracy,
        "nll_difference": found.nll,
        "brier_difference": found.brier,
        "better_share": found.better_share,
        "agreement": found.agreement,
        "only_first_right": found.only_first_right,
        "only_second_right": found.only_second_right,
    }


def only_rated(data: EvaluationSet, card: ModelCard, against: ModelCard | None) -> bool:
    """Return whether only ratings can be measured, having refused what cannot be evaluated at all.

    Args:
        data: what is evaluated on.
        card: of the model.
        against: of the model that it is to be compared with.

    Raises:
        EvaluationError: if nothing can be measured, or one of two models has no preferences to compare.
    """
    alone = [one for one in (card, against) if one is not None and only_ratings(data, one)]
    if alone and against is not None:
        blamed = f"{alone[0].name} has no weights to compare responses with"
        if alone[0].compares:
            blamed = f"no two responses of a prompt in {data.path} differ in {data.rated!r}"
        raise EvaluationError(f"{blamed}, so there is nothing to compare models by: leave out --against")
    return bool(alone)


def _ratings_summary(data: EvaluationSet, answers: Answers, settings: Settings, clusters: Clustering) -> dict[str, Any]:
    """Return the measures of predicted ratings alone; all others are null."""
    card = answers.card
    rows = attribute_rows(data, answers, clusters)
    if not rows:
        raise EvaluationError(f"no rating of {data.path} is of a response that {card.name} answered for")
    why = (
        f"{card.name} has no weights to merge its ratings into a preference, so only its ratings are measured."
        if not card.compares
        else f"No two responses of a prompt differ in {data.rated!r}, so only ratings are measured."
    )
    return {
        "data": _about(data, judged_rows=0),
        "model": _card(card),
        "settings": {**dataclasses.asdict(settings), "cluster": clusters.by, "clusters": clusters.count},
        "left_out": [*(dataclasses.asdict(row) for row in data.left_out), *_refused(answers)],
        "notes": [*_demonstration_note(card), why, *data.notes, *clusters.notes],
        "measures": {**dict.fromkeys(_PREFERENCE_SECTIONS), "subsets": [], "attributes": rows},
        "comparison": None,
    }


def _about(data: EvaluationSet, *, judged_rows: int) -> dict[str, Any]:
    return {
        "path": data.path,
        "sha256": data.sha256,
        "layout": data.layout,
        "split": data.split,
        "cases": len(data.cases),
        "prompts": len(data.prompts),
        "responses": len(data.responses),
        "judgements": len(data.outcome),
        "answered": judged_rows,
    }


def _card(card: ModelCard) -> dict[str, Any]:
    return {**dataclasses.asdict(card), "numerics": dict(card.numerics)}


def _left_out(data: EvaluationSet, answers: Answers, against: Answers | None) -> list[dict[str, Any]]:
    rows = [dataclasses.asdict(row) for row in data.left_out]
    for one in filter(None, (answers, against)):
        rows += _refused(one)
        lost = int((~one.answered).sum())
        if lost:
            rows.append({"reason": f"judged pairs without an answer by {one.card.name}", "count": lost, "lines": ()})
    ties = int((data.outcome == 0.5).sum())
    if ties:
        rows.append(
            {
                "reason": "pairs that people left tied: not in accuracy; ½ in NLL, Brier and ECE",
                "count": ties,
                "lines": (),
            }
        )
    return rows


def _refused(answers: Answers) -> list[dict[str, Any]]:
    unit = "responses" if answers.card.scalar else "comparisons"
    return [
        {"reason": f"{answers.card.name} refused {unit}: {code}", "count": count, "lines": ()}
        for code, count in sorted(answers.refused.items())
    ]


def _rated_note(data: EvaluationSet) -> list[str]:
    return [] if data.rated is None else [f"People's scores are the ratings of {data.rated!r}."]


def _demonstration_note(card: ModelCard) -> list[str]:
    if not card.demonstration:
        return []
    domain = f": it was trained on {card.domain}" if card.domain else ""
    return [f"{card.name} is a demonstration{domain}. It shows how things work, not a judgement to rely on."]


def _notes(card: ModelCard, pairs: int) -> list[str]:
    notes = _demonstration_note(card)
    if not card.calibrated:
        notes.append(
            f"The temperature of {card.name} was not fitted: its probabilities are not meant to be calibrated."
        )
    if pairs < _CALIBRATION_PAIRS:
        notes.append(
            f"Calibration errors from {pairs} pairs are mostly noise: below {_CALIBRATION_PAIRS} they are biased up."
        )
    return notes


def plain(value: Any) -> Any:
    """Return a value that JSON can carry: arrays as lists, numbers that are none as null.

    Args:
        value: any value of ``summarise``.
    """
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
