"""All measures of one run as plain values: what ``results.json`` holds, and what the table and the page show."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paragone_training.evaluation.asking import Answers
from paragone_training.evaluation.dataset import EvaluationSet
from paragone_training.evaluation.errors import EvaluationError
from paragone_training.evaluation.groups import attribute_rows, group_section
from paragone_training.evaluation.judged import clustering, judged_pairs
from paragone_training.evaluation.measures.paired import compare_models
from paragone_training.evaluation.published import benchmark_section
from paragone_training.evaluation.scorers import ModelCard
from paragone_training.evaluation.sections import (
    accuracy_section,
    length_section,
    position_section,
    probability_section,
    strength_section,
    subset_rows,
    transitivity_section,
)

__all__ = ["Settings", "plain", "summarise"]

_CALIBRATION_PAIRS = 500


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
        EvaluationError: if a setting is impossible, or people decided no pair that was answered.
    """
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    judged, draw = judged_pairs(data, answers, clusters), clusters.resampler
    measures: dict[str, Any] = {
        "accuracy": accuracy_section(judged, draw),
        "probabilities": probability_section(judged, draw, bins=settings.bins, seed=settings.seed),
        "strength": strength_section(judged, draw),
        "length": length_section(judged, data, answers, draw),
        "position": position_section(judged),
        # Judgements made from ratings are free of cycles by construction.
        "transitivity": None if data.rated else transitivity_section(judged),
        "groups": group_section(data, answers, clusters),
        "attributes": attribute_rows(data, answers),
        "benchmark": benchmark_section(data, answers, judged, clusters),
        "subsets": subset_rows(judged, data, clusters),
    }
    comparison = None
    if against is not None:
        both = answers.answered & against.answered
        mine, theirs = (judged_pairs(data, one, clusters, only=both) for one in (answers, against))
        found = compare_models(mine.logit, theirs.logit, mine.outcome, mine.cluster, draw)
        comparison = {
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
    return {
        "data": _about(data, judged_rows=len(judged.logit)),
        "model": _card(answers.card),
        "settings": {**dataclasses.asdict(settings), "cluster": clusters.by, "clusters": clusters.count},
        "left_out": _left_out(data, answers, against),
        "notes": [*_notes(answers.card, len(judged.logit)), *data.notes, *clusters.notes],
        "measures": measures,
        "comparison": comparison,
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
        unit = "responses" if one.card.scalar else "comparisons"
        rows += [
            {"reason": f"{one.card.name} refused {unit}: {code}", "count": count, "lines": ()}
            for code, count in sorted(one.refused.items())
        ]
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


def _notes(card: ModelCard, pairs: int) -> list[str]:
    notes = []
    if card.demonstration:
        domain = f": it was trained on {card.domain}" if card.domain else ""
        notes.append(f"{card.name} is a demonstration{domain}. It shows how things work, not a judgement to rely on.")
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
