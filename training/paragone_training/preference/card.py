"""What a run learned from and what it gave, and the model card that tells both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone_evaluation.readers import Pair, Rating, RowAccount
from paragone_models.kinds import KINDS
from paragone_models.merging import Merging
from paragone_training.preference.agreement import Examined, Judged, Summary
from paragone_training.preference.backbone import ModelParts
from paragone_training.preference.objective import Objective
from paragone_training.preference.recipe import Recipe

__all__ = ["Outcome", "Rows", "write_card"]


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        pairs: learned from; a kind that only rates is merged by them.
        ratings: learned from, by a kind that rates.
        held_out_pairs: decided ones; may be empty.
        held_out_ratings: may be empty; rating errors are then those on ``ratings``.
        account: the rows of the files that are none of these, and why.
    """

    pairs: Sequence[Pair] = ()
    ratings: Sequence[Rating] = ()
    held_out_pairs: Sequence[Pair] = ()
    held_out_ratings: Sequence[Rating] = ()
    account: RowAccount = field(default_factory=RowAccount)

    def describe(self) -> str:
        """Return how many rows there are, for a dry run."""
        if not self.ratings:
            return f"{len(self.pairs)} pairs to train on, {len(self.held_out_pairs)} held out"
        return (
            f"{len(self.ratings)} ratings and {len(self.pairs)} pairs to train on, {len(self.held_out_ratings)} and "
            f"{len(self.held_out_pairs)} held out"
        )


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        model: trained, adapters merged, averaged weights in place, weights and temperature of attributes fitted.
        before: what it said before the first step, of a kind that starts from a trained model; else nothing.
        merging: fitted weights of a kind that only rates, or None.
    """

    model: ModelParts
    objective: Objective
    after: Examined
    before: Examined
    merging: Merging | None
    history: list[dict[str, Any]]

    @property
    def judged(self) -> Judged | None:
        """What the model says about the held-out pairs, or None without any."""
        return self.after.judged


def write_card(name: str, recipe: Recipe, rows: Rows, outcome: Outcome) -> str:
    """Return the text of README.md."""
    spec = outcome.model.spec
    lines = [f"# {name}", "", _what(outcome), ""]
    if spec.demonstration:
        lines += ["**A demonstration.** It shows the software; do not rely on its judgement.", ""]
    lines += ["## Training", "", *_training(recipe, rows, outcome), ""]
    if spec.attributes:
        lines += ["## How ratings become a preference", "", *_merged(outcome), ""]
        lines += ["## Distance from people's ratings", "", *_errors(rows, outcome), ""]
    lines += ["## Agreement with people", "", *_agreement(rows, outcome), ""]
    if recipe.output.notes:
        lines += [recipe.output.notes.strip(), ""]
    return "\n".join(lines)


def _what(outcome: Outcome) -> str:
    spec = outcome.model.spec
    if spec.attributes:
        head = f"A `{spec.kind}` model that rates {', '.join(spec.attributes)}; temperature {spec.temperature:.4g}, "
    else:
        gate = ", gated by the prompt" if spec.gate != "none" else ""
        head = f"A `{spec.kind}` model of dimension {spec.dimension}{gate}, temperature {spec.temperature:g}, "
    domain = f" What it knows: {spec.domain}." if spec.domain else ""
    return f"{head}{spec.pooling} pooling, conversations of up to {spec.max_length} tokens.{domain}"


def _training(recipe: Recipe, rows: Rows, outcome: Outcome) -> Iterator[str]:
    objective, start, sizes = outcome.objective, outcome.model.start, recipe.backbone
    backbone = sizes.source or (
        f"a decoder of Qwen3's shape from random weights ({sizes.layers} layers, width {sizes.hidden_size})"
    )
    if start:
        backbone = f"{start.source} (`{start.spec.kind}`, identity {start.identity[:12]})"
    # Kinds that rate say what they go on from; the others, what reads the text.
    begin = "It starts from" if objective.attributes else "Backbone:"
    yield f"* {begin} {backbone}{', low-rank adapters merged' if recipe.lora else ''}."
    if rows.ratings:
        yield f"* {len(rows.ratings)} rated responses, from {_names(recipe.data.ratings)}."
    if rows.pairs:
        prompts = len({pair.prompt for pair in rows.pairs})
        use = "" if objective.learns_pairs else ": only to merge the attributes"
        yield f"* {len(rows.pairs)} pairs under {prompts} prompts, from {_names(recipe.data.train)}{use}."
    yield from (f"* {line}." for line in rows.account.describe())
    if recipe.pretraining.epochs:
        yield f"* First of all, language modelling on the same rows, epochs: {recipe.pretraining.epochs}."
    if recipe.teacher:
        teacher, labels = ("logistic", "rows") if objective.learns_pairs else ("ridge", "ratings")
        yield (
            f"* First, {recipe.teacher.steps} steps of distillation from a {teacher} regression on token counts and "
            f"length, fitted on the same {labels}: much of what the model knows came through that teacher."
        )
    yield f"* Loss: {objective.describe()}; epochs: {recipe.training.epochs}."


def _merged(outcome: Outcome) -> list[str]:
    spec, merging = outcome.model.spec, outcome.merging
    if not KINDS[spec.kind].merges_attributes:
        return [
            "A reward of its own, which started as the regression model's merged ratings. The ratings explain it; they "
            "are no part of it any more."
        ]
    # Weights of zero would read as "no attribute matters".
    if merging is None:
        return ["Not at all: no pairs were there to fit weights on. The model rates and does not compare."]
    weights = zip(spec.attributes, merging.weights, strict=True)
    return [
        f"The logit is a weighted sum of the differences of ratings, divided by the temperature "
        f"{merging.temperature:.4g}. Both come from one logistic regression on the predicted ratings of the "
        f"{merging.pairs} decided training pairs; the weights' absolute values sum to 1. The ratings of those "
        "responses were trained on too, so probabilities are too certain: calibrate on other pairs.",
        "",
        "| attribute | weight |",
        "|---|---|",
        *(f"| {name} | {weight:+.3f} |" for name, weight in weights),
    ]


def _errors(rows: Rows, outcome: Outcome) -> list[str]:
    after, before = outcome.after.errors, outcome.before.errors
    if after is None:
        return ["No response was rated."]
    # Errors on ratings that were trained on look better than they are: the card says which these are.
    held_out = "none of them trained on" if rows.held_out_ratings else "the ones that were trained on"
    lines = [
        f"Root mean squared error on {max(after.rated)} rated responses, {held_out}; beside it, that of always saying "
        "their mean. R2 is one minus the ratio of the two, squared:",
        "",
        f"| attribute |{' before |' if before else ''} {'after' if before else 'this model'} | the mean | R2 |",
        f"|---|---|---|---|{'---|' if before else ''}",
    ]
    # A column of its own for what the model was before training: did the ratings stay true beside the pairs?
    for number, name in enumerate(after.attributes):
        first = f" {before.error[number]:.3f} |" if before else ""
        explained = f"{after.error[number]:.3f} | {after.constant[number]:.3f} | {after.explained[number]:.3f} |"
        lines.append(f"| {name} |{first} {explained}")
    if before:
        lines += ["", "Before: the regression model that training started from. After: this model."]
    return lines


def _agreement(rows: Rows, outcome: Outcome) -> list[str]:
    if outcome.after.judged is None:
        return ["No rows were held out."]
    lines = [*_agreement_table(outcome.after.judged.summary(), rows)]
    if outcome.before.judged:
        before = outcome.before.judged.summary()
        lines += [
            "",
            f"The regression model that it started from: {before.accuracy:.3f} on the same pairs, "
            f"{before.matched_accuracy:.3f} on those of matched length, {before.negative_log_likelihood:.3f} nats.",
        ]
    return lines


def _agreement_table(summary: Summary, rows: Rows) -> list[str]:
    # Beside the rule "longer is better": a model that agrees no more often than that has learned length.
    pairs = rows.held_out_pairs
    return [
        f"{summary.pairs} decided pairs under {len({pair.prompt for pair in pairs})} prompts "
        f"({len({pair.question for pair in pairs})} questions), none of them trained on:",
        "",
        "| | agreement |",
        "|---|---|",
        f"| this model | {summary.accuracy:.3f} |",
        f"| prefer the longer response | {summary.length_accuracy:.3f} |",
        f"| this model on the {summary.matched_pairs} length-matched pairs | {summary.matched_accuracy:.3f} |",
        "",
        f"Negative log-likelihood {summary.negative_log_likelihood:.3f} nats (a coin: 0.693); mean margin "
        f"{summary.margin:.2f} logits. The probabilities were not calibrated.",
    ]


def _names(paths: Sequence[str]) -> str:
    return ", ".join(sorted(Path(path).name for path in paths))
