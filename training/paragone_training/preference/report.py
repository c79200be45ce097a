"""The page of a trained preference model: how the loss fell, how far it agrees with people, and how it was made."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, render_page
from paragone_evaluation.report.words import counted, number, percent
from paragone_training.preference.agreement import Judged
from paragone_training.preference.card import Outcome, Rows, description, training_lines
from paragone_training.preference.ratings import RatingErrors
from paragone_training.preference.recipe import Recipe

__all__ = ["model_page"]

_BINS = 5
_FEWEST = 5


def model_page(name: str, recipe: Recipe, rows: Rows, outcome: Outcome) -> str:
    """Return the page of a run, as HTML.

    Args:
        name: what the model is called.
    """
    spec = outcome.model.spec
    sections = [
        PageSection("How did it learn?", figures=_curves(outcome.history)),
        *([_agreement(outcome.judged)] if outcome.judged is not None else []),
        *([_ratings(outcome.after.errors)] if outcome.after.errors is not None else []),
        PageSection(
            "How it was made",
            " ".join(_facts(recipe, rows, outcome)),
            code="\n".join(_chosen(recipe)),
            small=f"Above, what the recipe sets. Trained with paragone {version('paragone')}.",
        ),
    ]
    return render_page(
        name, lead=_plain(description(spec)), cards=_cards(outcome), notes=_notes(outcome), sections=sections
    )


def _cards(outcome: Outcome) -> list[Card]:
    cards = []
    if outcome.judged is not None:
        found = outcome.judged.summary()
        cards += [
            Card("Agreement", percent(found.accuracy), remark=f"of {counted(found.pairs, 'held-out pair')}"),
            Card("“The longer one”", percent(found.length_accuracy), remark="on the same pairs"),
            Card("NLL", number(found.negative_log_likelihood), remark="nats a pair; a coin has 0.693"),
        ]
    losses = [row["loss"] for row in outcome.history if "loss" in row]
    if losses:
        cards.append(Card("Loss", number(losses[-1]), remark=f"at the end; {number(losses[0])} at first"))
    return cards


def _notes(outcome: Outcome) -> list[str]:
    notes = []
    if outcome.model.spec.demonstration:
        notes.append("A demonstration: it shows how things work, and is no judge to rely on.")
    if outcome.lost is not None:
        notes.append("Training made it worse on the held-out rows: the head that it started from was kept.")
    if outcome.judged is None and outcome.after.errors is None:
        notes.append("No row was held out, so nothing here says how good it is.")
    return notes


def _curves(history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the loss and, where rows were held out, the agreement, by optimiser step."""
    figures = []
    loss = [(float(row["step"]), float(row["loss"])) for row in history if "loss" in row]
    if loss:
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


def _agreement(judged: Judged) -> PageSection:
    found = judged.summary()
    rows = [
        ("Agrees with people", percent(found.accuracy), counted(found.pairs, "decided pair")),
        ("Prefer the longer response (baseline)", percent(found.length_accuracy), "the same pairs"),
        (
            "Agrees where lengths are within 15 %",
            percent(found.matched_accuracy if found.matched_pairs else None),
            counted(found.matched_pairs, "pair"),
        ),
        ("Margin of the preferred response", number(found.margin), "logits"),
    ]
    dots = _reliability(judged)
    figures = []
    if dots:
        ideal = Line("calibrated", [(50.0, 50.0), (100.0, 100.0)], colour="soft", dashed=True)
        lines = [Line("this model", [(x, y) for x, y, _ in dots], areas=_areas(dots)), ideal]
        chart = line_chart(lines, title="Reliability", across="confidence, %", up="right, %", include=(50.0, 100.0))
        figures.append(Figure("Is it as sure as it is right?", chart, lines, "The larger a dot, the more pairs."))
    return PageSection("Does it agree with people?", tables=[PageTable(("", "value", ""), rows, (1,))], figures=figures)


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


def _ratings(errors: RatingErrors) -> PageSection:
    rows = [
        (name, *(number(value if math.isfinite(value) else None) for value in values))
        for name, *values in zip(errors.attributes, errors.error, errors.constant, errors.explained, strict=True)
    ]
    head = ("attribute", "root mean squared error", "always the mean", "R²")
    return PageSection("How far are its ratings from people's?", tables=[PageTable(head, rows, (1, 2, 3))])


def _facts(recipe: Recipe, rows: Rows, outcome: Outcome) -> list[str]:
    return [_plain(line.removeprefix("* ")) for line in training_lines(recipe, rows, outcome)]


def _plain(markdown: str) -> str:
    return markdown.replace("`", "").replace("**", "")


def _chosen(recipe: Recipe) -> Iterator[str]:
    """Yield what the recipe sets itself, a line each, as ``--set`` takes it."""
    for section, values in recipe.model_dump(mode="json", exclude_unset=True).items():
        for key, value in (values or {}).items() if isinstance(values, dict) else ():
            yield f"{section}.{key} = {json.dumps(_without_folders(value), ensure_ascii=False)}"


def _without_folders(value: Any) -> Any:
    # A page goes with its model: where files lay on this machine is nobody's business.
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
