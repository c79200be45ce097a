"""The pages of trained models and fitted heads: how far each agrees with people, how it learned, how it was made."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, render_page
from paragone_evaluation.report.words import counted, estimate_row, interval, number, percent
from paragone_evaluation.results import plain
from paragone_training.preference.agreement import Judged
from paragone_training.preference.card import HeadOutcome, Outcome, Rows, description, head_lines, training_lines
from paragone_training.preference.ratings import RatingErrors
from paragone_training.preference.recipe import Recipe

__all__ = ["NOTHING_HELD_OUT", "head_page", "model_page"]

_BINS = 5
_FEWEST = 5
# Where things lay on one machine says nothing about the model.
_PLACES = (("output", "folder"), ("output", "checkpoints"), ("head", "states"))
_DEMONSTRATION = "A demonstration: it shows how things work, and is no judge to rely on."
NOTHING_HELD_OUT = "No row was held out. With data.holdout = 0.1 the model is measured on prompts that it never saw."
_BY_FOLDS = "The numbers here are cross-validated."


def model_page(name: str, recipe: Recipe, rows: Rows, outcome: Outcome) -> str:
    """Return the page of a run, as HTML.

    Args:
        name: what the model is called.
    """
    spec, whom = outcome.model.spec, outcome.objective.whom
    sections = [
        PageSection("How did it learn?", figures=_curves(outcome.history)),
        *([_agreement(outcome.judged, whom)] if outcome.judged is not None else []),
        *([_ratings("How far are its ratings from people's?", outcome.after.errors)] if outcome.after.errors else []),
        _origin(recipe, training_lines(recipe, rows, outcome)),
    ]
    losses = [row["loss"] for row in outcome.history if "loss" in row]
    cards = _cards(outcome.judged) if outcome.judged is not None else []
    if losses:
        first = f"; {number(losses[0])} at first" if len(losses) > 1 else ""
        cards.append(Card("Loss", number(losses[-1]), remark=f"at the end{first}"))
    return render_page(
        name,
        lead=_lead(name, outcome.judged, whom) or _plain(description(spec)),
        small=_plain(description(spec)) if outcome.judged is not None else "",
        cards=cards,
        notes=_notes(outcome),
        sections=sections,
    )


def head_page(name: str, recipe: Recipe, outcome: HeadOutcome) -> str:
    """Return the page of a head that was fitted to a frozen backbone, as HTML.

    Args:
        name: what the model is called.
    """
    spec, whom, measured = outcome.fitted.spec, outcome.objective.whom, outcome.after.judged
    backbone, fit, *items = head_lines(recipe, outcome)
    backbone = backbone.replace(outcome.backbone.source, _without_folders(outcome.backbone.source))
    errors, apart = outcome.errors, outcome.after.errors
    sections = [
        *_compared(outcome),
        *([_ratings("How far are its ratings from people's? Cross-validated", errors)] if errors else []),
        *([_ratings("The same on the held-out rows", apart)] if apart else []),
        _origin(recipe, [backbone, fit, *items]),
    ]
    judged = measured if measured is not None else outcome.probe
    notes = [_DEMONSTRATION] if spec.demonstration else []
    if measured is None and apart is None:
        notes.append(NOTHING_HELD_OUT if outcome.probe is None else f"{NOTHING_HELD_OUT} {_BY_FOLDS}")
    return render_page(
        name,
        lead=_lead(name, judged, whom) or _plain(description(spec)),
        small=_plain(description(spec)) if judged is not None else "",
        cards=[] if judged is None else _cards(judged, "held-out pair" if judged is measured else "pair"),
        notes=notes,
        sections=sections,
    )


def _compared(outcome: HeadOutcome) -> list[PageSection]:
    """Return agreement where the head was not fitted: by cross-validation, and on the held-out rows."""
    sides = [
        ("This head, cross-validated", outcome.probe),
        ("Its scalar alone, cross-validated", outcome.scalar),
        ("This head, held-out rows", outcome.after.judged),
    ]
    rows, figures = [], []
    for name, judged in sides:
        if judged is None:
            continue
        found, accuracy = judged.summary(), plain(judged.estimates()[0])
        nats = number(found.negative_log_likelihood)
        rows.append([*estimate_row(name, accuracy)[:3], str(found.pairs), percent(found.length_accuracy), nats])
        figures += _sureness(name, judged) if judged is not outcome.scalar else []
    if not rows:
        return []
    whom = outcome.objective.whom
    head = ("", "agreement", "95 % interval", "pairs", "the longer one", "NLL, nats")
    return [
        PageSection(
            f"Does it agree with {whom}?",
            f"Cross-validated: every one of {counted(outcome.questions, 'question')} was answered by a head that was "
            "fitted without it. Intervals resample questions; a coin has 0.693 nats.",
            tables=[PageTable(head, rows, (1, 3, 4, 5))],
            figures=figures,
        )
    ]


def _lead(name: str, judged: Judged | None, whom: str) -> str:
    return "" if judged is None else f"{name} {judged.verdict(whom)}"


def _cards(judged: Judged, noun: str = "held-out pair") -> list[Card]:
    found, accuracy = judged.summary(), plain(judged.estimates()[0])
    ends = interval(accuracy, scale="percent")
    return [
        Card("Agreement", percent(found.accuracy), ends, f"of {counted(found.pairs, noun)}"),
        Card("“The longer one”", percent(found.length_accuracy), remark="on the same pairs"),
        Card("NLL", number(found.negative_log_likelihood), remark="nats a pair; a coin has 0.693"),
    ]


def _origin(recipe: Recipe, lines: Iterable[str]) -> PageSection:
    return PageSection(
        "How it was made",
        " ".join(_plain(line.removeprefix("* ")) for line in lines),
        code="\n".join(_chosen(recipe)),
        small=f"Above, what the recipe sets. Trained with paragone {version('paragone')}.",
    )


def _notes(outcome: Outcome) -> list[str]:
    notes = []
    if outcome.model.spec.demonstration:
        notes.append(_DEMONSTRATION)
    if outcome.lost is not None:
        notes.append("Training made it worse on the held-out rows: the head that it started from was kept.")
    if outcome.judged is None and outcome.after.errors is None:
        notes.append(NOTHING_HELD_OUT)
    return notes


def _curves(history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the loss and, where rows were held out, the agreement, by optimiser step."""
    figures = []
    loss = [(float(row["step"]), float(row["loss"])) for row in history if "loss" in row]
    if len(loss) > 1:
        figures.append(_figure("Loss, nats", [Line("", loss)]))
    known = [row for row in history if "eval_accuracy" in row]
    if known:
        lines = [
            Line("held-out pairs", [(float(row["step"]), 100 * row["eval_accuracy"]) for row in known]),
            Line(
                "“the longer one”",
                [(float(row["step"]), 100 * row["eval_length_accuracy"]) for row in known],
                colour="soft",
                dashed=True,
            ),
        ]
        figures.append(_figure("Agreement with people, %", lines, include=(50.0,)))
    return figures


def _figure(title: str, lines: Sequence[Line], include: Sequence[float] = ()) -> Figure:
    return Figure(title, line_chart(lines, title=title, across="optimiser step", include=include, whole=True), lines)


def _agreement(judged: Judged, whom: str) -> PageSection:
    found, (accuracy, gain) = judged.summary(), map(plain, judged.estimates())
    rows = [
        estimate_row(f"Agrees with {whom}", accuracy, counted(found.pairs, "decided pair")),
        ("Prefer the longer response (baseline)", percent(found.length_accuracy), "", "the same pairs"),
        estimate_row("Gain of the model over it, points", gain, scale="points"),
        (
            "Agrees where lengths are within 15 %",
            percent(found.matched_accuracy if found.matched_pairs else None),
            "",
            counted(found.matched_pairs, "pair"),
        ),
        ("Margin of the preferred response", number(found.margin), "", "logits"),
    ]
    return PageSection(
        f"Does it agree with {whom}?",
        "Intervals resample questions.",
        tables=[PageTable(("", "value", "95 % interval", ""), rows, (1,))],
        figures=_sureness("Is it as sure as it is right?", judged),
    )


def _sureness(title: str, judged: Judged) -> list[Figure]:
    """Return the reliability chart, where there are pairs enough for a dot."""
    dots = _reliability(judged)
    if not dots:
        return []
    ideal = Line("calibrated", [(50.0, 50.0), (100.0, 100.0)], colour="soft", dashed=True)
    lines = [Line("this model", [(x, y) for x, y, _ in dots], areas=_areas(dots)), ideal]
    lowest = min(50.0, *(10 * math.floor(y / 10) for _, y, _ in dots))
    chart = line_chart(
        lines, title=title, across="confidence, %", up="right, %", limits=((50.0, 100.0), (lowest, 100.0))
    )
    return [Figure(title, chart, lines, "The larger a dot, the more pairs.")]


def _reliability(judged: Judged) -> list[tuple[float, float, int]]:
    """Return confidence and share right, both in percent, and the pairs of each bin that has a few."""
    confidence = 1.0 / (1.0 + np.exp(-np.abs(judged.logit)))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    held = [np.flatnonzero(bins == one) for one in range(_BINS)]
    return [
        (100 * float(confidence[places].mean()), 100 * float(judged.right[places].mean()), len(places))
        for places in held
        if len(places) >= _FEWEST
    ]


def _areas(dots: Sequence[tuple[float, float, int]]) -> list[float]:
    most = max(count for *_, count in dots)
    return [count / most for *_, count in dots]


def _ratings(title: str, errors: RatingErrors) -> PageSection:
    rows = [
        (name, *(number(value if math.isfinite(value) else None) for value in values))
        for name, *values in zip(errors.attributes, errors.error, errors.constant, errors.explained, strict=True)
    ]
    head = ("attribute", "root mean squared error", "always the mean", "R²")
    return PageSection(title, tables=[PageTable(head, rows, (1, 2, 3))])


def _plain(markdown: str) -> str:
    return markdown.replace("`", "").replace("**", "")


def _chosen(recipe: Recipe) -> Iterator[str]:
    """Yield what the recipe sets itself, a line each, as ``--set`` takes it."""
    for section, values in recipe.model_dump(mode="json", exclude_unset=True).items():
        for key, value in (values or {}).items() if isinstance(values, dict) else ():
            if (section, key) in _PLACES:
                continue
            yield f"{section}.{key} = {json.dumps(_without_folders(value), ensure_ascii=False)}"


def _without_folders(value: Any) -> Any:
    # A page goes with its model: where files lay on this machine is nobody's business.
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
