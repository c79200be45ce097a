"""What an ensemble costs that asks its other members only where the first is unsure, and what they bring.

Every member was asked about every pair, once; what each margin would have cost and answered is arithmetic on that.
m = members, n = judged pairs that all of them answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.bootstrap import Estimate
from paragone_evaluation.measures.calibration import negative_log_likelihood
from paragone_evaluation.measures.checks import Floats
from paragone_evaluation.pair_results import Clustering, JudgedPairs, judged_pairs
from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Figure, PageSection, PageTable
from paragone_evaluation.report.words import counted, interval_cell, number, percent
from paragone_models.ensembles import routed

__all__ = ["Member", "routing_page", "routing_section"]

_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Of the pairs that go on to the other members, for which a margin is looked for."""


@dataclass(frozen=True)
class Member:
    """The answers of one member to all pairs.

    Attributes:
        calls_per_pair: of a judge on another server, as counted while it was asked; 0 of every other model, None where
            the server knew the verdicts or they were kept from an earlier run.
    """

    answers: Answers
    calls_per_pair: float | None


def routing_section(
    data: EvaluationSet, ensemble: Mapping[str, Any], members: Sequence[Member], clusters: Clustering
) -> dict[str, Any]:
    """Return accuracy against cost at several margins, on the pairs that all members answered.

    Args:
        ensemble: as ``/v1/models`` describes it.
        members: in the ensemble's order.

    Raises:
        EvaluationError: if there is no decided pair that all members answered.
    """
    answered = np.logical_and.reduce([member.answers.answered for member in members])
    if not answered.any():
        names = ", ".join(member.answers.card.name for member in members)
        raise EvaluationError(f"no pair of {data.path} was answered by all members: {names}")
    judged = judged_pairs(data, members[0].answers, clusters, only=answered)
    logits = np.stack([member.answers.logit[answered] for member in members])
    # The margin is about the first member's own word: its quantiles are the margins at which so many pairs go on.
    sure = np.sort(np.abs(logits[0]))
    own = ensemble["margin"]
    # By how many pairs go on: two margins between the same pairs are one, and the ensemble's own is the one to show.
    margins = {int((sure < margin).sum()): margin for margin in (_margin(sure, share) for share in _SHARES)}
    if own is not None:
        margins[int((sure < own).sum())] = own
    calls = [member.calls_per_pair for member in members]
    points = []
    for escalated, margin in sorted(margins.items()):
        how = {"pessimism": ensemble["pessimism"], "form": ensemble["pessimism_form"]}
        answers, asked = routed(logits, ensemble["weights"], margin, **how)
        assert escalated == asked.sum()
        points.append(
            {
                "margin": margin,
                "own": margin == own,
                "escalated": escalated,
                "share": escalated / len(asked),
                "judge_calls": _calls(calls, len(asked), escalated),
                **_quality(answers, judged, clusters),
            }
        )
    return {
        **{name: ensemble[name] for name in ("members", "weights", "margin", "pessimism", "pessimism_form")},
        "pairs": int(answered.sum()),
        "judge_calls_per_pair": calls,
        "alone": [
            {"name": name, **_quality(column, judged, clusters)}
            for name, column in zip(ensemble["members"], logits, strict=True)
        ],
        "points": points,
    }


def _margin(sure: Floats, share: float) -> float:
    """Return a margin below which so large a share of the sorted log-odds lies; those that are equal go together."""
    count = round(share * len(sure))
    return float(np.nextafter(sure[count - 1], np.inf)) if count else float(np.nextafter(0.0, np.inf))


def _calls(per_pair: Sequence[float | None], pairs: int, escalated: int) -> float | None:
    """Return the calls to judges: the first member is asked about every pair, the others about those that go on."""
    counts = [pairs, *[escalated] * (len(per_pair) - 1)]
    needed = [(calls, count) for calls, count in zip(per_pair, counts, strict=True) if count]
    return sum(calls * count for calls, count in needed if calls) if all(c is not None for c, _ in needed) else None


def _quality(logit: Floats, judged: JudgedPairs, clusters: Clustering) -> dict[str, Estimate]:
    """Return accuracy, a tie of the model counted as wrong, and NLL."""
    right = (credit(logit, judged.outcome) == 1.0)[judged.decided].astype(np.float64)
    return {
        "accuracy": clusters.resampler.share(right, judged.cluster[judged.decided]),
        "nll": clusters.resampler.mean(negative_log_likelihood(logit, judged.outcome), judged.cluster),
    }


def routing_page(routing: Mapping[str, Any] | None) -> PageSection | None:
    """Return the section of the report, as plain values; None where no ensemble was routed."""
    if not routing:
        return None
    first, *others = routing["members"]
    points = routing["points"]
    rows = []
    for point in points:
        calls = "not counted" if point["judge_calls"] is None else f"{point['judge_calls']:,.0f}"
        accuracy, loss = point["accuracy"], point["nll"]
        shown = [number(point["margin"]), str(point["escalated"]), percent(point["share"]), calls]
        shown += [percent(accuracy["value"]), interval_cell(accuracy, scale="percent"), number(loss["value"])]
        rows.append([*shown, "as it is set" if point["own"] else ""])
    head = ("margin, nats", "pairs that go on", "share", "judge calls", "accuracy", "95 % interval", "NLL", "")
    alone = [
        [one["name"], percent(one["accuracy"]["value"]), interval_cell(one["accuracy"], scale="percent")]
        for one in routing["alone"]
    ]
    uncounted = any(point["judge_calls"] is None for point in points)
    missing = " Calls are not counted where verdicts were known already." if uncounted else ""
    return PageSection(
        f"What does asking {' and '.join(others)} bring?",
        f"{first} is asked about every pair, the others where its log-odds lie within the margin. Each member was "
        f"asked about the same {counted(routing['pairs'], 'pair')} once, and each row is arithmetic on its answers.",
        figures=[_figure(routing)],
        tables=[
            PageTable(head, rows, (0, 1, 2, 3, 4, 6)),
            PageTable(("a member alone", "accuracy", "95 % interval"), alone, (1,)),
        ],
        small=f"Calls to judges are as counted in this run, tries included; what their server had cached costs none."
        f"{missing}",
    )


def _figure(routing: Mapping[str, Any]) -> Figure:
    points = routing["points"]
    curve = [(100 * point["share"], 100 * point["accuracy"]["value"]) for point in points]
    bounds = [(point["accuracy"]["low"], point["accuracy"]["high"]) for point in points]
    line = Line(
        "routed",
        curve,
        intervals=[None if low is None else (100 * low, 100 * high) for low, high in bounds],
        remarks=[
            f"margin {number(point['margin'])}: {percent(point['share'])} go on, "
            f"{percent(point['accuracy']['value'])} right"
            for point in points
        ],
    )
    level = 100 * routing["alone"][0]["accuracy"]["value"]
    alone = Line(f"{routing['members'][0]} alone", [(0, level), (100, level)], "soft", dashed=True)
    chart = line_chart(
        [line, alone],
        title="Accuracy by the share of pairs that go on to the other members",
        across="pairs that go on, %",
        up="right, %",
    )
    return Figure("Accuracy against cost", chart, [line, alone], "Bars are 95 % intervals.")
