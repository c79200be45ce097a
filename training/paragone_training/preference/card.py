"""The model card: what a model is, what it was trained on, and how well it agrees with people on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paragone_evaluation.readers import Pair
from paragone_training.preference.agreement import Summary
from paragone_training.preference.objective import Objective
from paragone_training.preference.recipe import Recipe

__all__ = ["Report", "agreement_lines", "write_card"]


@dataclass(frozen=True)
class Report:
    """What a card tells.

    Attributes:
        name: of the model.
        recipe: the model was trained by.
        train: rows trained on.
        evaluate: rows held out.
        summary: agreement on those, or None without any.
    """

    name: str
    recipe: Recipe
    train: Sequence[Pair]
    evaluate: Sequence[Pair]
    summary: Summary | None


def write_card(report: Report) -> str:
    """Return the text of README.md.

    Args:
        report: what to tell.
    """
    spec = report.recipe.spec
    parts = [f"# {report.name}", "", _what(report), ""]
    if spec.demonstration:
        parts += ["**A demonstration.** It shows the software; do not rely on its judgement.", ""]
    parts += ["## Training", "", *_training(report), "", "## Agreement with people", "", *agreement_lines(report), ""]
    if report.recipe.output.notes:
        parts += [report.recipe.output.notes.strip(), ""]
    return "\n".join(parts)


def _what(report: Report) -> str:
    spec = report.recipe.spec
    gate = ", gated by the prompt" if spec.gate != "none" else ""
    head = f"A `{spec.kind}` model of dimension {spec.dimension}{gate}, temperature {spec.temperature:g}, "
    domain = f" What it knows: {spec.domain}." if spec.domain else ""
    return f"{head}{spec.pooling} pooling, conversations of up to {spec.max_length} tokens.{domain}"


def _training(report: Report) -> list[str]:
    recipe = report.recipe
    loss = recipe.loss
    objective = Objective(recipe.spec.kind, recipe.spec.temperature, loss.name, loss.margin, loss.certainty)
    backbone = recipe.backbone.source or (
        f"a decoder of Qwen3's shape from random weights ({recipe.backbone.layers} layers, "
        f"width {recipe.backbone.hidden_size})"
    )
    lines = [
        f"* Backbone: {backbone}{', low-rank adapters merged' if recipe.lora else ''}.",
        f"* {len(report.train)} pairs under {len({pair.prompt for pair in report.train})} prompts, from "
        f"{', '.join(sorted(Path(name).name for name in recipe.data.train))}.",
        f"* Loss: {objective.describe()}; epochs: {recipe.training.epochs}.",
    ]
    if recipe.pretraining.epochs:
        lines.append(f"* First of all, language modelling on the same rows, epochs: {recipe.pretraining.epochs}.")
    if recipe.teacher:
        lines.append(
            f"* First, {recipe.teacher.steps} steps of distillation from a logistic regression on token counts and "
            "length, fitted on the same rows: much of what the model knows came through that teacher."
        )
    return lines


def agreement_lines(report: Report) -> list[str]:
    """Return the card's lines on how the model agrees with people.

    Args:
        report: what to tell.
    """
    summary = report.summary
    if summary is None:
        return ["No rows were held out."]
    questions = len({pair.question for pair in report.evaluate})
    return [
        f"{summary.pairs} decided pairs under {len({pair.prompt for pair in report.evaluate})} prompts "
        f"({questions} questions), none of them trained on:",
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
