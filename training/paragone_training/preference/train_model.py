"""One training run, from a recipe's files to a folder that ``paragone serve`` loads; all kinds take the same way.

Rows → the parts of the model → for backbones from random weights language modelling, words and length, a linear teacher
→ pairs and ratings → for a kind that only rates, the weights of its attributes → card and folder. What comes before the
first label leaves one file; the trainer writes checkpoints. ``resume`` goes on from the last checkpoint and repeats
nothing before it.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from paragone_evaluation.readers import (
    HELD_OUT,
    Pair,
    Rating,
    RowAccount,
    check_holdout,
    read_pairs,
    read_ratings,
    split_name,
)
from paragone_evaluation.results import plain
from paragone_models.files.saving import save_model
from paragone_models.kinds import KINDS
from paragone_models.merging import Merging, fit_merging
from paragone_models.network import PreferenceNetwork
from paragone_models.text.reader import Reading, TextReader
from paragone_training.adapters import recompute_activations, with_adapters
from paragone_training.data import (
    PairBatches,
    PromptGroup,
    TokenNoise,
    group_pairs,
    read_groups,
    splits_of,
    training_pairs,
    training_ratings,
)
from paragone_training.dropout import dropout_off
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.agreement import Examined, HeldOut, represented
from paragone_training.preference.backbone import ModelParts, build_model
from paragone_training.preference.card import Outcome, Rows, strengths_in_words, write_card
from paragone_training.preference.fitting_rows import read_fitting_rows
from paragone_training.preference.head_fit import put_head, start_from_fit
from paragone_training.preference.objective import Objective
from paragone_training.preference.preflight import RunDescription, check_learnable, optimiser_steps
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.report import NOTHING_HELD_OUT, model_page
from paragone_training.run_series import numbers_in_words
from paragone_training.scratch.decoder import residual_dropout
from paragone_training.scratch.lessons import lessons, token_lengths
from paragone_training.scratch.lexical import fit_lexicon, learn_lexicon
from paragone_training.scratch.pretraining import pretrain, reason_documents
from paragone_training.scratch.teachers import distil, distil_ratings, fit_rating_teacher, fit_teacher, imprint
from paragone_training.trainer import Checkpoints, StepTrainer, last_checkpoint, training_arguments, warmup_steps

__all__ = ["check_run", "fit", "load_rows", "prepare", "train_model"]

logger = logging.getLogger(__name__)

_Row = TypeVar("_Row", Pair, Rating)

# File of the weights before the first label, in the folder of checkpoints.
_PREPARED = "prepared.safetensors"
# Beside the weights in a checkpoint's folder.
_AVERAGE = "average.safetensors"


def train_model(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train a model and return the folder it was saved to.

    Args:
        folder: where the model goes; checkpoints and the log go to ``folder/checkpoints`` unless the recipe says where.

    Raises:
        RecipeError: if the recipe cannot be run, or there is an earlier run's model or checkpoint and no ``resume``.
        DataError: if the data cannot be used.
    """
    work = Path(recipe.output.checkpoints) if recipe.output.checkpoints else folder / "checkpoints"
    # The main process alone refuses and writes: another one may look when the folder is filled already.
    main = PartialState().is_main_process
    if main and not resume and work.exists() and any(work.iterdir()):
        raise RecipeError(f"{work} holds an earlier run: go on with --resume, or choose another --output")
    rows = load_rows(recipe)
    outcome = fit(recipe, rows, work, resume=resume)
    if not main:
        return folder
    tokenizer = outcome.model.tokenizer
    if recipe.output.tokenizer:
        # Several models may share one tokenizer's folder; none of its files goes into the model's own then.
        tokenizer.save_pretrained(recipe.output.tokenizer)
        tokenizer = None
    card, dtype = write_card(folder.name, recipe, rows, outcome), getattr(torch, recipe.output.dtype)
    save_model(folder, outcome.model.network, outcome.model.spec, tokenizer, card=card, dtype=dtype)
    (folder / "report.html").write_text(model_page(folder.name, recipe, rows, outcome), encoding="utf-8")
    logger.info("saved %s, with report.html; to host it: paragone serve --model %s=%s", folder, folder.name, folder)
    if outcome.judged is not None:
        logger.info("on the held-out rows %s %s", folder.name, outcome.judged.verdict(outcome.objective.whom))
    return folder


def load_rows(recipe: Recipe) -> Rows:
    """Return the rows that a recipe names.

    Raises:
        DataError: if a file cannot be read, ``test`` rows would be trained on, rows would be trained on and held out,
            a split that is named is empty, a held-out share leaves too few prompts, nobody rated an attribute, or
            there is nothing to learn.
        RecipeError: if the run would be over before its warm-up is.
    """
    data, attributes, account = recipe.data, recipe.model.attributes, RowAccount()
    chosen: Any = {"split": data.train_split, "allow_test_rows": data.allow_test_rows}
    reading: Any = {"options": data.reading, "account": account}
    read, rated = read_pairs(*data.train, **reading), read_ratings(*data.ratings, **reading)
    # People's ties are held out from nothing: they decide nothing. A teacher's say how sure a student may be.
    distils = recipe.loss.distils
    if data.holdout:
        _check_share(data.holdout, [row for row in read if row.strength or distils], rated)
    pairs = training_pairs(read, **chosen) if read else []
    candidates = read_pairs(*data.evaluate, **reading) if data.evaluate else read
    held_out = [pair for pair in _held_out(candidates, data, "evaluate", pairs) if pair.strength or distils]
    ratings = training_ratings(rated, attributes, **chosen) if rated else []
    rated = read_ratings(*data.evaluate_ratings, **reading) if data.evaluate_ratings else rated
    held_out_ratings = [
        row
        for row in _held_out(rated, data, "evaluate_ratings", ratings)
        if not row.ratings.keys().isdisjoint(attributes)
    ]
    if "evaluate_split" in data.model_fields_set and not (held_out or held_out_ratings):
        splits = splits_of([*candidates, *rated])
        raise DataError(
            f"no row to hold out is marked {data.evaluate_split!r}; the splits are: {splits}: set data.evaluate_split "
            "to one of them, or leave it out and name a file as data.evaluate"
        )
    held_out = _not_learned_from(held_out, pairs, account)
    # The limit cuts what is learned from: runs with different limits are held to the same rows.
    rows = Rows(pairs[: data.limit] if data.limit else pairs, ratings, held_out, held_out_ratings, account)
    check_learnable(recipe, _training_groups(recipe, rows))
    logger.info("%s; %d of the pairs are ties", rows.describe(), sum(not pair.strength for pair in rows.pairs))
    if not (held_out or held_out_ratings):
        logger.warning(NOTHING_HELD_OUT)
    return rows


def _check_share(share: float, pairs: Sequence[Pair], ratings: Sequence[Rating]) -> None:
    """Refuse a held-out share that leaves too few prompts on one side; the rows are those of both sides."""
    apart, learned = set[str](), set[str]()
    rows: tuple[Pair | Rating, ...] = (*pairs, *ratings)
    for row in rows:
        (apart if row.split == HELD_OUT else learned).add(row.question)
    check_holdout(share, held_out=len(apart), left=len(learned))


def _held_out(rows: Sequence[_Row], data: Any, key: str, trained: Sequence[_Row]) -> list[_Row]:
    """Return the rows of the split that is held out, and those without a split of files that are named for it.

    Args:
        data: the recipe's section.
        key: names the files; where there are none, the rows are those of the training files.
    """
    split, files = split_name(data.evaluate_split), getattr(data, key)
    held_out = [row for row in rows if row.split == split or (files and row.split is None)]
    if files and not held_out:
        raise DataError(
            f"no row of data.{key} is marked {data.evaluate_split!r}; the splits are: {splits_of(rows)}: set "
            "data.evaluate_split"
        )
    places = {row.where for row in trained}
    if both := [row.where for row in held_out if row.where in places]:
        raise DataError(
            f"{both[0]} and {len(both) - 1} more rows are trained on and held out: mark them with a split, or take "
            f"their file out of data.{key}"
        )
    return held_out


def _not_learned_from(held_out: Sequence[Pair], trained: Sequence[Pair], account: RowAccount) -> list[Pair]:
    """Return the held-out pairs whose very comparison is not among the trained ones; the others are accounted for."""
    asked = {_comparison(pair) for pair in held_out}
    known = {one for pair in trained if (one := _comparison(pair)) in asked}
    for pair in held_out:
        if _comparison(pair) in known:
            account.leave_out(pair.file, pair.line, "held out, and another row of the same two responses is trained on")
    return [pair for pair in held_out if _comparison(pair) not in known]


def _comparison(pair: Pair) -> tuple[str, frozenset[str]]:
    return pair.prompt, frozenset((pair.first, pair.second))


def check_run(recipe: Recipe) -> list[str]:
    """Read, tokenise and check everything that a run would, and return what it would be, in words.

    Raises:
        RecipeError: as ``fit`` does.
        DataError: as ``load_rows`` and ``fit`` do.
    """
    rows = load_rows(recipe)
    groups = _training_groups(recipe, rows)
    model = build_model(recipe, [text for group in groups for text in (group.pair.prompt, *group.responses)])
    read_fitting_rows(recipe, rows, groups, _held_out_groups(recipe, rows), model.reader)
    return [rows.describe(), *rows.account.describe()]


def _held_out_groups(recipe: Recipe, rows: Rows) -> list[PromptGroup]:
    # Without held-out ratings the errors are those on the training ratings, and the card says so.
    rated, model = rows.held_out_ratings or rows.ratings, recipe.model
    ways = {"ties": recipe.loss.distils, "apart": KINDS[model.kind].reads_pairs}
    return group_pairs(rows.held_out_pairs, rated, model.attributes, **ways)


def _training_groups(recipe: Recipe, rows: Rows) -> list[PromptGroup]:
    # A kind that only rates learns nothing from pairs: they would add responses that nobody rated to its batches.
    kind = KINDS[recipe.model.kind]
    pairs, ways = rows.pairs if kind.learns_pairs else (), {"ties": recipe.loss.keeps_ties, "apart": kind.reads_pairs}
    return group_pairs(pairs, rows.ratings, recipe.model.attributes, **ways)


def fit(recipe: Recipe, rows: Rows, work: Path, *, resume: bool = False) -> Outcome:
    """Train a network and return it with what it says about the held-out rows; the recipe's files are not read.

    Raises:
        RecipeError: if start, backbone, tokenizer and recipe do not fit each other, the run is too short for its
            warm-up, or ``work`` holds another run than the one to be resumed.
        DataError: if a response does not fit the model, or there is nothing to learn.
        DivergedError: if loss, gradients or weights are NaN or infinite; checkpoints before that stay.
    """
    kind, attributes, groups = KINDS[recipe.model.kind], recipe.model.attributes, _training_groups(recipe, rows)
    _say_what_labels_mean(recipe, rows, groups)
    check_learnable(recipe, groups)
    model = build_model(recipe, [text for group in groups for text in (group.pair.prompt, *group.responses)])
    described = RunDescription.of(recipe, rows.pairs, rows.ratings)
    if resume:
        described.check_same(work)
    reader, objective = model.reader, _objective(recipe, model)
    (groups, readings), (held_out_groups, held_out_readings), rows = read_fitting_rows(
        recipe, rows, groups, _held_out_groups(recipe, rows), reader
    )
    held_out = HeldOut(held_out_groups, held_out_readings, attributes, model.pad_id)
    work.mkdir(parents=True, exist_ok=True)
    described.write(work)
    probe = start_from_fit(recipe, rows, model, work / "states")
    if probe:
        objective = _objective(recipe, model)
    # Before adapters and teachers change anything: what the model that training starts from says.
    if model.head_origin:
        logger.info("head %s", model.head_origin)
    kept = model.start is not None and (model.head_origin or "").startswith("kept")
    before = held_out.examined(model.network, objective) if kept or probe else Examined()
    checkpoint = last_checkpoint(work) if resume else None
    if resume:
        logger.info("going on from %s", checkpoint or "the beginning: there is no whole checkpoint")
    if not checkpoint and (recipe.pretraining.epochs or recipe.lexical or recipe.teacher):
        _prepare_once(recipe, model, objective, groups, readings, rows.pairs, path=work / _PREPARED, resume=resume)
    if recipe.lora:
        # In the backbone alone: the head is new, and is trained in full.
        model.network.backbone = with_adapters(model.network.backbone, recipe.lora, task="FEATURE_EXTRACTION")
    batches = PairBatches(
        groups,
        readings,
        budget=recipe.training.batch_responses,
        pad_id=model.pad_id,
        seed=recipe.training.seed,
        noise=_token_noise(model.tokenizer, recipe.training.token_noise),
    )
    steps = optimiser_steps(recipe, groups)
    history = _train(recipe, model, objective, batches, held_out, work, steps=steps, checkpoint=checkpoint)
    trained: Any = model.network.backbone
    if recipe.lora:
        # Adapters are folded into the weights: a server loads a plain model.
        model.network = PreferenceNetwork(trained.merge_and_unload(), model.network.head)
    model.network.eval()
    merging = _merge(model, group_pairs(rows.pairs), reader) if kind.merges_attributes else None
    if merging:
        # The temperature divides the merged reward, so both are fitted together and replace what the spec said.
        model.spec = replace(model.spec, weights=merging.weights, temperature=merging.temperature)
        model.network.head.spec = model.spec
    objective = _objective(recipe, model)
    after = held_out.examined(model.network, objective)
    if after.fidelity:
        logger.info("%s", after.fidelity.describe())
    outcome = Outcome(model, objective, after, before, merging, history, probe)
    # How ratings were merged is told by a fit, and by this run; not by a head of ratings that was fitted before.
    told = probe is not None or merging is None
    return _keep_start(recipe, outcome) if model.fitted and told and after.loses_to(before) else outcome


def _keep_start(recipe: Recipe, outcome: Outcome) -> Outcome:
    """Return the fitted head on the backbone as it was: what training made of them is worse on the held-out rows."""
    logger.warning(
        "training made the model worse than the head that it started from (after it, %s; before it, %s): the head on "
        "its backbone is saved, and not what was trained",
        *(numbers_in_words(examined.metrics("eval")) for examined in (outcome.after, outcome.before)),
    )
    model, probe, before = build_model(recipe, ()), outcome.probe, outcome.before
    if probe:
        put_head(probe, model)
    merging = probe.fitted.merging if probe else None
    objective = _objective(recipe, model)
    return Outcome(model, objective, before, before, merging, outcome.history, probe, lost=outcome.after)


def _prepare_once(
    recipe: Recipe,
    model: ModelParts,
    objective: Objective,
    groups: Sequence[PromptGroup],
    readings: Sequence[Sequence[Reading]],
    pairs: Sequence[Pair],
    *,
    path: Path,
    resume: bool,
) -> None:
    """Prepare a network, or take what an interrupted run prepared."""
    if resume and path.is_file():
        model.network.load_state_dict(load_file(path))
        return
    reader = TextReader(model.tokenizer, model.spec)
    reasons = reason_documents(pairs, reader) if recipe.pretraining.reasons else []
    prepare(recipe, model, objective, groups, readings, reasons)
    # Several processes prepare the same network from the same seed; one file is enough.
    if PartialState().is_main_process:
        save_file(model.network.state_dict(), path)


def prepare(
    recipe: Recipe,
    model: ModelParts,
    objective: Objective,
    groups: Sequence[PromptGroup],
    readings: Sequence[Sequence[Reading]],
    reasons: Sequence[Sequence[int]],
) -> None:
    """Give a network from random weights its start: language modelling, words and length, then a linear teacher.

    Args:
        model: its network is changed in place.
        objective: turns representations into logits; a teacher of pairs alone needs it.
        groups: prompts with responses; a teacher alone looks at their labels and ratings.

    Raises:
        DataError: if a prompt leaves no room for a response.
    """
    network, spec = model.network, model.spec
    backbone: Any = network.backbone
    chance: Any = {"pad_id": model.pad_id, "seed": recipe.training.seed}
    if recipe.pretraining.epochs:
        texts = [reading.token_ids for group in readings for reading in group]
        pretrain(backbone, [*texts, *reasons], recipe.pretraining, **chance)
    if not (recipe.lexical or recipe.teacher):
        return
    # Labels come last: first words and length, which every text shows, then what a linear model makes of them.
    taught = lessons(groups, readings, TextReader(model.tokenizer, spec))
    lengths = token_lengths(model.tokenizer)
    if recipe.lexical:
        lexicon = fit_lexicon(taught, lengths, coordinates=recipe.lexical.coordinates)
        learn_lexicon(network, spec, lexicon, taught, recipe.lexical, **chance)
    if not recipe.teacher:
        return
    section, embedding = recipe.teacher, backbone.get_input_embeddings()
    if objective.learns_pairs:
        teacher = fit_teacher(groups, taught, lengths, penalty=section.penalty)
        if section.imprint:
            imprint(embedding, teacher, section.imprint)
        distil(network, spec, teacher, taught, objective.logits, section, **chance)
    else:
        ratings = torch.tensor([row for group in groups for row in group.ratings], dtype=torch.float32)
        responses = [response for lesson in taught for response in lesson.responses]
        rating_teacher = fit_rating_teacher(responses, ratings, lengths, penalty=section.penalty)
        if section.imprint:
            imprint(embedding, rating_teacher, section.imprint)
        distil_ratings(network, spec, rating_teacher, taught, section, **chance)


def _train(
    recipe: Recipe,
    model: ModelParts,
    objective: Objective,
    batches: PairBatches,
    held_out: HeldOut,
    work: Path,
    *,
    steps: int,
    checkpoint: Path | None,
) -> list[dict[str, Any]]:
    """Run the trainer and return its log; the averaged weights, if any, end up in the network."""
    training, network = recipe.training, model.network
    backbone: Any = network.backbone
    if training.gradient_checkpointing:
        recompute_activations(backbone)
    average = _WeightAverage(network, training.average_decay) if training.average_decay else None
    if average and checkpoint:
        average.load(checkpoint)

    def evaluation() -> dict[str, float]:
        # What is evaluated is what will be saved: the average, not the weights of the last step.
        with average.applied() if average else nullcontext():
            return held_out.examined(network, objective).metrics("eval")

    logger.info("loss in force: %s, averaged over the optimiser step", objective.describe())
    arguments = training_arguments(
        work,
        training,
        num_train_epochs=training.epochs,
        warmup_steps=warmup_steps(training.warmup_steps, steps=steps),
        gradient_accumulation_steps=training.accumulation,
        eval_strategy="epoch" if held_out else "no",
        save_strategy="epoch",
        save_total_limit=training.checkpoints,
    )
    # A resumed run has skipped the stages before: seeded here, both draw alike from now on.
    set_seed(training.seed)
    trainer = StepTrainer(
        network,
        arguments,
        batches,
        objective,
        evaluation=evaluation if held_out else None,
        beside=average.save if average else None,
        apart=_head_apart(recipe, model),
        callbacks=[Checkpoints(training.save_steps), *([average] if average else [])],
    )
    # The hooks of the dropout are gone when the model is saved.
    head_share = training.head_dropout
    asked: Any = nullcontext({}) if recipe.backbone.config_dropout else dropout_off(backbone)
    with (
        asked as off,
        residual_dropout(backbone, network.head.value_head, share=training.dropout, head_share=head_share),
    ):
        if off:
            words = ", ".join(f"{name} {share:g}" for name, share in sorted(off.items()))
            logger.info("dropout of the backbone's config is off (%s); backbone.config_dropout keeps it", words)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            history = list(trainer.state.log_history)
            if trainer.is_world_process_zero():
                # JSON has no NaN, and a run that diverges has its history too.
                (work / "history.json").write_text(json.dumps(plain(history), indent=1), encoding="utf-8")
    if average:
        average.put()
    return history


def _head_apart(recipe: Recipe, model: ModelParts) -> tuple[list[nn.Parameter], float] | None:
    """Return the head's parameters and their learning rate, if it is not the backbone's."""
    rate = recipe.head.learning_rate
    if rate is None and model.fitted:
        # It stands where it belongs, and is to follow the backbone, not to run ahead of it.
        rate = recipe.training.learning_rate / 10
    return None if rate is None else (list(model.network.head.parameters()), rate)


def _merge(model: ModelParts, groups: Sequence[PromptGroup], reader: TextReader) -> Merging | None:
    """Return how the attributes merge into a preference, fitted on the training pairs' decided choices."""
    readings = read_groups(groups, reader)
    values = [represented(model.network, seen, pad_id=model.pad_id).double().numpy() for seen in readings]
    # Signs alone: how strongly a response was preferred is no part of this regression.
    differences = [
        np.sign(label.strength) * (ratings[label.first] - ratings[label.second])
        for group, ratings in zip(groups, values, strict=True)
        for label in group.labels
    ]
    merging = fit_merging(np.array(differences)) if differences else None
    if merging:
        weighted = zip(model.spec.attributes, merging.weights, strict=True)
        words = ", ".join(f"{weight:+.3f} {name}" for name, weight in weighted)
        logger.info("merged by %d pairs: %s, temperature %.3f", merging.pairs, words, merging.temperature)
    return merging


def _objective(recipe: Recipe, model: ModelParts) -> Objective:
    spec, loss = model.spec, recipe.loss
    return Objective(
        spec.kind,
        spec.temperature,
        loss.name,
        margin=loss.margin,
        certainty=loss.certainty,
        weights=spec.weights,
        attributes=spec.attributes,
        ratings=loss.ratings,
        label_smoothing=loss.label_smoothing,
        centre=loss.centre,
        symmetrise=spec.symmetrise,
    )


def _say_what_labels_mean(recipe: Recipe, rows: Rows, groups: Sequence[PromptGroup]) -> None:
    """Log what the strengths of the pairs are to the loss, where that is easily taken for something else."""
    strengths = {abs(label.strength) for group in groups for label in group.labels}
    if words := strengths_in_words(recipe.loss.name, strengths, rows.account):
        # Strengths of 1 alone are mostly no strengths at all.
        logger.log(logging.WARNING if recipe.loss.name in ("soft", "score") else logging.INFO, "%s", words)


def _token_noise(tokenizer: Any, share: float) -> TokenNoise | None:
    """Return what replaces tokens in training, or None for a share of 0."""
    if not share:
        return None
    # Special tokens mark turns and ends. Drawn in the middle of a text they would change what it is.
    special = frozenset(tokenizer.all_special_ids)
    vocabulary = [index for index in range(len(tokenizer)) if index not in special]
    return TokenNoise(share, vocabulary, special)


class _WeightAverage(TrainerCallback):
    """Keep an exponential moving average of a network's trained weights over the steps, also in every checkpoint.

        average <- decay_t * average + (1 - decay_t) * weights,   decay_t = min(decay, t / (t + 10))

    so that the first steps, far from the end, do not linger.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start from the weights, unless a checkpoint brought an average."""
        if not self._average:
            self._average = {name: weight.detach().float().clone() for name, weight in self._weights()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the average towards the weights."""
        # Short at first: the weights of the first steps are far from where they end.
        step = state.global_step
        keep = min(self._decay, step / (step + 10))
        for name, weight in self._weights():
            self._average[name].lerp_(weight.detach().float(), 1 - keep)

    def save(self, folder: Path) -> None:
        """Write the average beside a checkpoint's weights."""
        save_file({name: tensor.contiguous() for name, tensor in self._average.items()}, folder / _AVERAGE)

    def load(self, checkpoint: Path) -> None:
        """Take up the average of a checkpoint."""
        device = {name: weight.device for name, weight in self._weights()}
        # A file loads on the CPU; the weights may live elsewhere.
        self._average = {name: tensor.to(device[name]) for name, tensor in load_file(checkpoint / _AVERAGE).items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place until the context ends."""
        live = {name: weight.detach().clone() for name, weight in self._weights()}
        try:
            self.put()
            yield
        finally:
            # Training goes on from the live weights, whatever went wrong meanwhile.
            self._put(live)

    def put(self) -> None:
        """Put the average in the weights' place for good."""
        self._put(self._average)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights():
                if name in values:
                    weight.copy_(values[name])

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self._network.named_parameters() if weight.requires_grad]
