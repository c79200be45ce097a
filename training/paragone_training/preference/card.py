"""What a run learned from and what it gave, and the model card that tells both."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone_evaluation.readers import HUB, PROBABILITY, Pair, Rating, RowAccount
from paragone_evaluation.report.words import counted
from paragone_models.fitting import FittedHead
from paragone_models.kinds import KINDS
from paragone_models.merging import Merging
from paragone_models.spec import BackboneReference, ModelSpec
from paragone_training.preference.agreement import Examined, Judged, Summary
from paragone_training.preference.backbone import ModelParts
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings import RatingErrors
from paragone_training.preference.recipe import Recipe

__all__ = [
    "HeadOutcome",
    "Outcome",
    "Rows",
    "description",
    "head_lines",
    "strengths_in_words",
    "training_lines",
    "write_card",
    "write_head_card",
]


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

    def apart(self) -> str:
        """Return how far the held-out pairs are from what was learned from, for log and card."""
        learned = {pair.question for pair in self.pairs} | {row.question for row in self.ratings}
        known = sum(pair.question in learned for pair in self.held_out_pairs)
        if not known:
            return "None of the held-out rows was learned from, and their questions are others."
        return (
            f"None of the held-out pairs was learned from, but {known} of {len(self.held_out_pairs)} are under "
            "questions that were: on new questions expect less."
        )


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        model: trained, adapters merged, averaged weights in place, weights and temperature of attributes fitted.
        before: what it said before the first step, of a kind that starts from a trained model; else nothing.
        merging: fitted weights of a kind that only rates, or None.
        probe: the fit of the head that training started from, or None.
        lost: what training gave, where it was worse than that head, which ``model`` then has.
    """

    model: ModelParts
    objective: Objective
    after: Examined
    before: Examined
    merging: Merging | None
    history: list[dict[str, Any]]
    probe: "HeadOutcome | None" = None
    lost: Examined | None = None

    @property
    def judged(self) -> Judged | None:
        """What the model says about the held-out pairs, or None without any."""
        return self.after.judged


@dataclass(frozen=True)
class HeadOutcome:
    """What a fit to frozen states gives.

    Attributes:
        questions: how many the rows have; each was held out once.
        probe: cross-validated, on the training pairs; None where nothing compares.
        scalar: the same of the reward alone, beside a vector.
        errors: cross-validated, on the training ratings; None for a kind that does not rate.
        after: the final head on the held-out rows.
        rows: those that fit the model.
    """

    fitted: FittedHead
    backbone: BackboneReference
    objective: Objective
    questions: int
    probe: Judged | None
    scalar: Judged | None
    errors: RatingErrors | None
    after: Examined
    rows: Rows

    def numbers(self) -> dict[str, float]:
        """Return how often the head agrees with people, by where it was asked."""
        asked = {"agreement (cross-validated)": self.probe, "agreement (held-out rows)": self.after.judged}
        return {name: judged.summary().accuracy for name, judged in asked.items() if judged is not None}

    def lines(self) -> Iterator[str]:
        """Yield what was found, for the log."""
        for name, judged in (("this head", self.probe), ("its scalar alone", self.scalar)):
            if judged is not None:
                found = judged.summary()
                yield (
                    f"{name}, cross-validated over {self.questions} questions: agreement {found.accuracy:.4f} (the "
                    f"longer one {found.length_accuracy:.4f}), {found.negative_log_likelihood:.4f} nats"
                )
        if self.after.judged is not None:
            yield f"on the held-out rows it {self.after.judged.verdict(self.objective.whom)} {self.rows.apart()}"
        if self.after.fidelity is not None:
            yield self.after.fidelity.describe()


def write_head_card(name: str, recipe: Recipe, outcome: HeadOutcome) -> str:
    """Return the text of README.md of a head that was fitted to a frozen backbone."""
    spec = outcome.fitted.spec
    backbone, fit, *items = head_lines(recipe, outcome)
    lines = [f"# {name}", "", description(spec), "", *_caution(spec), backbone, "", "## Training", "", fit, "", *items]
    if spec.attributes:
        lines += [
            "",
            "## How ratings become a preference",
            "",
            *_merged(spec, outcome.fitted.merging, fitted_apart=True),
        ]
        lines += ["", "## Distance from people's ratings", "", *_head_errors(outcome)]
    lines += ["", *_agreement_heading(recipe), *_head_agreement(outcome), *_taught(outcome.after)]
    if recipe.output.notes:
        lines += ["", recipe.output.notes.strip()]
    return "\n".join([*lines, ""])


def head_lines(recipe: Recipe, outcome: HeadOutcome) -> Iterator[str]:
    """Yield which backbone a head is for and how it was fitted, and then, as items of a list in Markdown, to what."""
    reference = outcome.backbone
    revision = f", revision {reference.revision}" if reference.revision else ""
    yield f"A head alone, for the backbone {reference.source}{revision}, identity `{reference.identity[:12]}`."
    penalties = ", ".join(f"{part} {value:.3g}" for part, value in outcome.fitted.penalties.items())
    chosen = "chosen by cross-validation" if recipe.head.penalty is None else "given by the recipe"
    yield (
        "The backbone is as it was: its hidden states were computed once, and the head was fitted to them. Penalties, "
        f"{chosen}: {penalties}."
    )
    yield from _data(recipe, outcome.rows, outcome)


def _data(recipe: Recipe, rows: Rows, outcome: HeadOutcome) -> Iterator[str]:
    if rows.ratings:
        yield f"* {len(rows.ratings)} rated responses, from {_names(recipe.data.ratings)}."
    if rows.pairs:
        prompts = len({pair.prompt for pair in rows.pairs})
        yield f"* {len(rows.pairs)} pairs under {prompts} prompts, from {_names(recipe.data.train)}."
    yield from _files(recipe, rows)
    yield f"* Loss: {outcome.objective.describe()}."


def _files(recipe: Recipe, rows: Rows) -> Iterator[str]:
    """Yield where the rows come from, what their strengths are, and what is left out."""
    account, strengths = rows.account, {abs(pair.strength) for pair in rows.pairs}
    meant = strengths_in_words(recipe.loss.name, strengths, account)
    lines = [*account.describe_hub(), *account.describe_strengths(), *([meant] if meant else []), *account.describe()]
    yield from (f"* {line}." for line in lines)
    if held_out := _held_out(recipe, rows):
        yield f"* {held_out}"


def _held_out(recipe: Recipe, rows: Rows) -> str:
    """Return which rows nobody learned from, and how they are read again; an empty text without any."""
    chosen: list[Pair | Rating] = [*rows.held_out_pairs, *rows.held_out_ratings]
    if not chosen:
        return ""
    parts = ((rows.held_out_pairs, "pair"), (rows.held_out_ratings, "rating"))
    counts = " and ".join(counted(len(some), noun) for some, noun in parts if some)
    what = f"Held out: {counts} under {counted(len({row.prompt for row in chosen}), 'prompt')}"
    if share := recipe.data.holdout:
        return (
            f"{what}, chosen by a hash of the prompt or of its group (`data.holdout = {share:g}`): `paragone eval FILE "
            f"--holdout {share:g}` reads the same rows."
        )
    files = {**dict.fromkeys(recipe.data.evaluate), **dict.fromkeys(recipe.data.evaluate_ratings)}
    return f"{what}, from {_names(list(files))}." if files else f"{what}, of split `{recipe.data.evaluate_split}`."


def strengths_in_words(loss: str, strengths: Collection[float], account: RowAccount) -> str:
    """Return what strengths are to a loss, where that is easily taken for something else; else an empty text."""
    if account.strengths[PROBABILITY] and loss == "regular":
        return (
            "the labels are a model's probabilities, of which loss.name = 'regular' learns only which one is larger: "
            "'distil' learns them"
        )
    shown = sorted(set(strengths) - {0.0})
    if loss in ("soft", "score") and shown == [1.0]:
        return (
            f"every strength is 1, so loss.name = {loss!r} learns the probability 2/3 from each pair; where strength 1 "
            "means no more than who won, take 'regular', with loss.label_smoothing for wrong labels"
        )
    if loss in ("margin", "scaled") and shown:
        more = ", …" if len(shown) > 8 else ""
        return f"strengths that the {loss} loss takes: {', '.join(f'{strength:g}' for strength in shown[:8])}{more}"
    return ""


def _head_errors(outcome: HeadOutcome) -> Iterator[str]:
    errors, after = outcome.errors, outcome.after.errors
    assert errors is not None
    yield "Root mean squared errors; cross-validated ones are of heads that were fitted without the question:"
    yield ""
    yield "| attribute | cross-validated | always the mean | held-out rows |"
    yield "|---|---|---|---|"
    for number, name in enumerate(errors.attributes):
        apart = "" if after is None else f"{after.error[number]:.3f}"
        yield f"| {name} | {errors.error[number]:.3f} | {errors.constant[number]:.3f} | {apart} |"


def _head_agreement(outcome: HeadOutcome) -> Iterator[str]:
    compared = [
        (f"this head, cross-validated over {outcome.questions} questions", outcome.probe),
        ("its scalar alone, the same", outcome.scalar),
        ("this head, on the held-out rows", outcome.after.judged),
    ]
    if not any(judged for _, judged in compared):
        yield "No decided pairs."
        return
    yield "| | pairs | agreement | the longer response | lengths matched | nats |"
    yield "|---|---|---|---|---|---|"
    for words, judged in compared:
        if judged is not None:
            found = judged.summary()
            yield (
                f"| {words} | {found.pairs} | {found.accuracy:.3f} | {found.length_accuracy:.3f} | "
                f"{_matched(found)} | {found.negative_log_likelihood:.3f} |"
            )
    if outcome.after.judged is not None:
        yield ""
        yield f"On the held-out rows it {outcome.after.judged.verdict(outcome.objective.whom)} {outcome.rows.apart()}"


def write_card(name: str, recipe: Recipe, rows: Rows, outcome: Outcome) -> str:
    """Return the text of README.md."""
    spec = outcome.model.spec
    lines = [f"# {name}", "", description(spec), "", *_caution(spec)]
    lines += ["## Training", "", *training_lines(recipe, rows, outcome), ""]
    if spec.attributes:
        lines += ["## How ratings become a preference", "", *_merged(spec, outcome.merging), ""]
        lines += ["## Distance from people's ratings", "", *_errors(rows, outcome), ""]
    lines += [*_agreement_heading(recipe), *_agreement(rows, outcome), *_bias(outcome), *_taught(outcome.after), ""]
    if recipe.output.notes:
        lines += [recipe.output.notes.strip(), ""]
    return "\n".join(lines)


def _agreement_heading(recipe: Recipe) -> list[str]:
    return [f"## Agreement with {'the teacher' if recipe.loss.distils else 'people'}", ""]


def _taught(after: Examined) -> list[str]:
    """Return the section on what a student keeps of its teacher, behind what comes before it; nothing without one."""
    return [] if after.fidelity is None else ["", "## What is kept of the teacher", "", *after.fidelity.table()]


def _bias(outcome: Outcome) -> list[str]:
    """Return the section on what the order of a pair does, behind what comes before it; nothing for other models."""
    after, before = outcome.after.orders, outcome.before.orders
    if after is None:
        return []
    rows = [("both orders name the same winner", "agree"), ("probability of the response shown first", "first_shown")]
    return [
        "",
        "## Position bias",
        "",
        "Each held-out pair was read in both orders. Without a bias both name the same winner, and the response that "
        "is shown first has ½ on average:",
        "",
        "| | before training | this model |",
        "|---|---|---|",
        *(
            f"| {words} | {'' if before is None else f'{getattr(before, name):.3f}'} | {getattr(after, name):.3f} |"
            for words, name in rows
        ),
    ]


def _caution(spec: ModelSpec) -> list[str]:
    caution = "**A demonstration.** It shows the software; do not rely on its judgement."
    return [caution, ""] if spec.demonstration else []


def description(spec: ModelSpec) -> str:
    """Return in a sentence or two what a model is, in Markdown."""
    domain = f" What it knows: {spec.domain}." if spec.domain else ""
    if spec.symmetrise is not None:
        return (
            f"A `{spec.kind}` model that reads both responses in one prompt and answers A or B; both orders are read "
            f"(`{spec.symmetrise}`), pairs of up to {spec.max_length} tokens.{domain}"
        )
    if spec.attributes:
        head = f"A `{spec.kind}` model that rates {', '.join(spec.attributes)}; temperature {spec.temperature:.4g}, "
    else:
        gate = ", gated by the prompt" if spec.gate != "none" else ""
        head = f"A `{spec.kind}` model of dimension {spec.dimension}{gate}, temperature {spec.temperature:g}, "
    return f"{head}{spec.pooling} pooling, conversations of up to {spec.max_length} tokens.{domain}"


def training_lines(recipe: Recipe, rows: Rows, outcome: Outcome) -> Iterator[str]:
    """Yield what a model was trained from and how, as items of a list in Markdown."""
    objective, start, sizes = outcome.objective, outcome.model.start, recipe.backbone
    backbone = sizes.source or (
        f"a decoder of Qwen3's shape from random weights ({sizes.layers} layers, width {sizes.hidden_size})"
    )
    if start:
        backbone = f"{start.source} (`{start.spec.kind}`, identity {start.identity[:12]})"
    # Kinds that rate say what they go on from; the others, what reads the text.
    begin = "It starts from" if objective.attributes else "Backbone:"
    yield f"* {begin} {backbone}{', low-rank adapters merged' if recipe.lora else ''}."
    if outcome.model.head_origin:
        yield f"* Head: {outcome.model.head_origin}."
    if rows.ratings:
        yield f"* {len(rows.ratings)} rated responses, from {_names(recipe.data.ratings)}."
    if rows.pairs:
        prompts = len({pair.prompt for pair in rows.pairs})
        use = "" if objective.learns_pairs else ": only to merge the attributes"
        yield f"* {len(rows.pairs)} pairs under {prompts} prompts, from {_names(recipe.data.train)}{use}."
    yield from _files(recipe, rows)
    if recipe.pretraining.epochs:
        yield f"* First of all, language modelling on the same rows, epochs: {recipe.pretraining.epochs}."
    if recipe.teacher:
        teacher, labels = ("logistic", "rows") if objective.learns_pairs else ("ridge", "ratings")
        yield (
            f"* First, {recipe.teacher.steps} steps of distillation from a {teacher} regression on token counts and "
            f"length, fitted on the same {labels}: much of what the model knows came through that teacher."
        )
    yield f"* Loss: {objective.describe()}; epochs: {recipe.training.epochs}."


def _merged(spec: ModelSpec, merging: Merging | None, *, fitted_apart: bool = False) -> list[str]:
    if not KINDS[spec.kind].merges_attributes:
        begun = "was held near the" if fitted_apart else "started as the regression model's"
        return [
            f"A reward of its own, which {begun} merged ratings. The ratings explain it; they "
            "are no part of it any more."
        ]
    # Weights of zero would read as "no attribute matters".
    if merging is None:
        return ["Not at all: no pairs were there to fit weights on. The model rates and does not compare."]
    weights = zip(spec.attributes, merging.weights, strict=True)
    # Ratings of responses that were trained on are closer to people's than any others will be.
    caution = (
        "They are cross-validated ratings."
        if fitted_apart
        else "The ratings of those responses were trained on too, so probabilities are too certain: calibrate on other "
        "pairs."
    )
    return [
        f"The logit is a weighted sum of the differences of ratings, divided by the temperature "
        f"{merging.temperature:.4g}. Both come from one logistic regression on the predicted ratings of the "
        f"{merging.pairs} decided training pairs; the weights' absolute values sum to 1. {caution}",
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
        lines += ["", "Before: the model that training started from. After: this model."]
    return lines


def _agreement(rows: Rows, outcome: Outcome) -> list[str]:
    if outcome.after.judged is None:
        return ["No rows were held out."]
    others = {}
    if outcome.model.fitted and outcome.before.judged:
        others["the fitted head that training started from"] = outcome.before.judged.summary()
    if outcome.lost and outcome.lost.judged:
        others["what training made of it, which lost and was not kept"] = outcome.lost.judged.summary()
    lines = [*_agreement_table(outcome.after.judged.summary(), rows, others)]
    lines += ["", f"It {outcome.after.judged.verdict(outcome.objective.whom)}"]
    if outcome.before.judged and not outcome.model.fitted:
        before = outcome.before.judged.summary()
        lines += [
            "",
            f"The model that it started from: {before.accuracy:.3f} on the same pairs, "
            f"{_matched(before)} on those of matched length, {before.negative_log_likelihood:.3f} nats.",
        ]
    return lines


def _matched(summary: Summary) -> str:
    return f"{summary.matched_accuracy:.3f}" if summary.matched_pairs else "–"


def _agreement_table(summary: Summary, rows: Rows, others: Mapping[str, Summary]) -> list[str]:
    # Beside the rule "longer is better": a model that agrees no more often than that has learned length.
    pairs = rows.held_out_pairs
    return [
        f"{summary.pairs} decided pairs under {len({pair.prompt for pair in pairs})} prompts "
        f"({len({pair.question for pair in pairs})} questions). {rows.apart()}",
        "",
        "| | agreement |",
        "|---|---|",
        f"| this model | {summary.accuracy:.3f} |",
        *(f"| {name} | {other.accuracy:.3f} |" for name, other in others.items()),
        f"| prefer the longer response | {summary.length_accuracy:.3f} |",
        f"| this model on the {summary.matched_pairs} length-matched pairs | {_matched(summary)} |",
        "",
        f"Negative log-likelihood {summary.negative_log_likelihood:.3f} nats (a coin: 0.693); mean margin "
        f"{summary.margin:.2f} logits. The probabilities were not calibrated.",
    ]


def _names(paths: Sequence[str]) -> str:
    return ", ".join(sorted(path if path.startswith(HUB) else Path(path).name for path in paths))
