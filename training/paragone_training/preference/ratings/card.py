"""The card of a model that rates: what it learned from, how its ratings merge, and how far from people it is."""

from collections.abc import Sequence
from pathlib import Path

from paragone_training.preference.agreement import summarise
from paragone_training.preference.card import Report, agreement_lines
from paragone_training.preference.ratings.fitting import RatedOutcome, RatedRows
from paragone_training.preference.ratings.objective import RatedObjective
from paragone_training.preference.recipe import Recipe

__all__ = ["write_rated_card"]


def write_rated_card(name: str, recipe: Recipe, rows: RatedRows, outcome: RatedOutcome) -> str:
    """Return the text of README.md.

    Args:
        name: of the model.
        recipe: it was trained by.
        rows: it learned from, and was held to.
        outcome: of the training.
    """
    spec = outcome.student.spec
    domain = f" What it knows: {spec.domain}." if spec.domain else ""
    parts = [
        f"# {name}",
        "",
        f"A `{spec.kind}` model that rates {', '.join(spec.attributes)}; temperature {spec.temperature:.4g}, "
        f"{spec.pooling} pooling, conversations of up to {spec.max_length} tokens.{domain}",
        "",
    ]
    if spec.demonstration:
        parts += ["**A demonstration.** It shows the software; do not rely on its judgement.", ""]
    parts += ["## Training", "", *_training(recipe, rows, outcome), ""]
    parts += ["## How ratings become a preference", "", *_merged(outcome), ""]
    parts += ["## Distance from people's ratings", "", *_errors(rows, outcome), ""]
    parts += ["## Agreement with people", "", *_agreement(name, recipe, rows, outcome), ""]
    if recipe.output.notes:
        parts += [recipe.output.notes.strip(), ""]
    return "\n".join(parts)


def _training(recipe: Recipe, rows: RatedRows, outcome: RatedOutcome) -> list[str]:
    spec, loss, start = outcome.student.spec, recipe.loss, outcome.start
    objective = RatedObjective(
        spec.kind,
        spec.temperature,
        loss.name,
        loss.margin,
        loss.certainty,
        attributes=spec.attributes,
        share=loss.ratings,
    )
    if start:
        backbone = f"{start.source} (`{start.spec.kind}`, identity {start.identity[:12]})"
    else:
        backbone = recipe.backbone.source or "a decoder of Qwen3's shape from random weights"
    lines = [
        f"* It starts from {backbone}{', low-rank adapters merged' if recipe.lora else ''}.",
        f"* {len(rows.ratings)} rated responses, from {_names(recipe.data.ratings)}.",
    ]
    if rows.pairs:
        use = "learned from" if spec.kind == "helpsteer" else "only to merge the attributes"
        lines.append(f"* {len(rows.pairs)} pairs, from {_names(recipe.data.train)}: {use}.")
    if recipe.teacher:
        lines.append(
            f"* First, {recipe.teacher.steps} steps of distillation from a ridge regression on token counts and "
            "length, fitted on the same ratings: much of what the model knows came through that teacher."
        )
    return [*lines, f"* Loss: {objective.describe()}; epochs: {recipe.training.epochs}."]


def _merged(outcome: RatedOutcome) -> list[str]:
    spec = outcome.student.spec
    if spec.kind == "helpsteer":
        return [
            "A reward of its own, which started as the regression model's merged ratings. The ratings explain it; they "
            "are no part of it any more."
        ]
    if outcome.merging is None:
        return ["Not at all: no pairs were there to fit weights on. The model rates and does not compare."]
    rows = [
        f"| {name} | {weight:+.3f} |" for name, weight in zip(spec.attributes, outcome.merging.weights, strict=True)
    ]
    return [
        f"The logit is a weighted sum of the differences of ratings, divided by the temperature "
        f"{outcome.merging.temperature:.4g}. Both come from one logistic regression on the predicted ratings of the "
        f"{outcome.merging.pairs} decided training pairs; the weights' absolute values sum to 1. The ratings of those "
        "responses were trained on too, so probabilities are too certain: calibrate on other pairs.",
        "",
        "| attribute | weight |",
        "|---|---|",
        *rows,
    ]


def _errors(rows: RatedRows, outcome: RatedOutcome) -> list[str]:
    after, before = outcome.errors, outcome.errors_before
    held_out = "none of them trained on" if rows.held_out_ratings else "the ones that were trained on"
    lines = [
        f"Root mean squared error on {max(after.rated)} rated responses, {held_out}; beside it, that of always saying "
        "their mean. R2 is one minus the ratio of the two, squared:",
        "",
        f"| attribute |{' before |' if before else ''} {'after' if before else 'this model'} | the mean | R2 |",
        f"|---|---|---|---|{'---|' if before else ''}",
    ]
    for number, name in enumerate(after.attributes):
        first = f" {before.error[number]:.3f} |" if before else ""
        explained = f"{after.error[number]:.3f} | {after.constant[number]:.3f} | {after.explained[number]:.3f} |"
        lines.append(f"| {name} |{first} {explained}")
    if before:
        lines += ["", "Before: the regression model that training started from. After: this model."]
    return lines


def _agreement(name: str, recipe: Recipe, rows: RatedRows, outcome: RatedOutcome) -> list[str]:
    summary = summarise(outcome.judged) if outcome.judged else None
    lines = agreement_lines(Report(name, recipe, rows.pairs, rows.held_out_pairs, summary))
    if outcome.judged_before:
        before = summarise(outcome.judged_before)
        lines += [
            "",
            f"The regression model that it started from: {before.accuracy:.3f} on the same pairs, "
            f"{before.matched_accuracy:.3f} on those of matched length, {before.negative_log_likelihood:.3f} nats.",
        ]
    return lines


def _names(paths: Sequence[str]) -> str:
    return ", ".join(sorted(Path(path).name for path in paths))
