"""The loop: sample, ask, targets, frozen log-probabilities, gradient steps, evaluation, next iterate.

    RUN/recipe.json                     what is run; resuming with another recipe is refused
    RUN/oracle.json, judge.json         which model answers; another one is refused (oracle-skew-W.json: with weight W)
    RUN/iteration-01/round-1/           samples.parquet, oracle.parquet, targets.parquet
    RUN/iteration-01/step-1/            logprobs.parquet, start.json, history.json, policy/
    RUN/iteration-01/metrics.json
    RUN/evaluation-00/ …                the initial policy's responses to the held-out prompts, then every iterate's
    RUN/report.html

Every file appears whole or not at all and a stage is done when its file exists, so that resuming is running again. An
iteration has one or two sampling rounds and one or two training steps, as the method says.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from paragone_evaluation.readers import Prompt, file_order
from paragone_training.errors import RunError
from paragone_training.games import measure_cycles
from paragone_training.policy.checks import check_recipe
from paragone_training.policy.evaluate import (
    INITIAL,
    compared_by_likelihood,
    compared_with_initial,
    describe_responses,
    win_rate_in_words,
    write_report,
)
from paragone_training.policy.exports import Trackers, push_policy, steps_before, write_adapter
from paragone_training.policy.functions import FunctionOracle
from paragone_training.policy.gradient import train_step
from paragone_training.policy.methods.method import Step
from paragone_training.policy.model.logprobs import (
    check_sampler,
    freeze_columns,
    join_columns,
    rows_of_pairs,
    with_logprobs,
)
from paragone_training.policy.model.weights import Policy, context_of, load_policy
from paragone_training.policy.oracle import Oracle, OracleClient, own_service
from paragone_training.policy.processes import Processes
from paragone_training.policy.recipe import OracleSection, PolicyRecipe
from paragone_training.policy.rows import (
    Identity,
    LabelledPair,
    Response,
    claim,
    deal,
    locked,
    read_json_file,
    read_rows,
    remove_folder,
    write_json,
    write_rows,
)
from paragone_training.policy.run_prompts import read_run_prompts
from paragone_training.policy.sampling.rounds import Plan, Round, Samplers
from paragone_training.policy.sampling.stopping import Stops
from paragone_training.policy.stored_pairs import stored_round
from paragone_training.policy.targets import Float64s, labelled_pairs, tables_of

__all__ = ["train_policy"]

logger = logging.getLogger(__name__)


def train_policy(recipe: PolicyRecipe, folder: Path, *, resume: bool = False) -> Path:
    """Run the loop and return the folder of the last iterate.

    Raises:
        RecipeError: if the recipe cannot be run here, or the folder holds a run and ``resume`` is not asked for.
        RunError: if the run has to stop; it can be resumed.
    """
    patience = recipe.training.collective_timeout_s
    # The first to make the state decides about the device: without a GPU, processes would else not find each other.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=patience))
    main = state.is_main_process
    with Processes(limit_s=patience) as processes, locked(folder) if main else contextlib.nullcontext():
        if main:
            check_recipe(recipe, folder)
            claim(recipe.model_dump(), folder, resume=resume)
        processes.wait()
        run = _PolicyRun(recipe, folder, processes)
        with run.connected() if main else contextlib.nullcontext():
            for iteration in range(1, recipe.training.iterations + 1):
                run.iterate(iteration)
        last = Path(run.iterate_source(recipe.training.iterations + 1))
        if recipe.output.push is not None and main:
            push_policy(last, recipe.output.push, folder / "pushed.json")
        return last


class _PolicyRun:
    """One run and what it has in memory: the policy, the prompts, the oracles."""

    def __init__(self, recipe: PolicyRecipe, folder: Path, processes: Processes) -> None:
        self.recipe, self.folder, self.main = recipe, folder, processes.main
        self._processes = processes
        self.method = recipe.objective
        source = recipe.policy
        self.policy: Policy = load_policy(
            source.source, revision=source.revision, bf16=source.dtype == "bfloat16", attention=source.attention
        )
        self._text_of = Stops(self.policy.tokenizer, recipe.sampling.stop).text
        self._context = context_of(self.policy.model.config, source.max_length)
        self._read = read_run_prompts(recipe).rendered(recipe, self.policy.tokenizer, self._context)
        for note in self._read.notes:
            logger.info("%s", note)
        # Every process has one: all sample, or all give the device to colocated servers.
        longest = self._context - recipe.sampling.max_new_tokens
        self._samplers = Samplers(recipe, folder, self.policy, self._read.prompts, processes, longest=longest)
        self._oracles: dict[str, Oracle] = {}
        self._weighed: dict[float, OracleClient] = {}  # by their weight of a hybrid model's cyclic part
        self._trackers: Trackers | None = None  # the main process has them, if the recipe does

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Hold connections to the oracles, the service of this run's own if there is one, and the trackers."""
        oracle, judge = self.recipe.oracle, self.recipe.evaluation
        if oracle is None:  # stored pairs, and nothing to evaluate
            with self._tracked():
                yield
            return
        # One service hosts both models: its cache and its device are shared.
        hosted = {"oracle": oracle.serve, "judge": judge.judge_serve}
        sources = [f"{name}={source}" for name, source in hosted.items() if source is not None]
        with ExitStack() as stack:
            stack.enter_context(self._tracked())
            own = stack.enter_context(own_service(sources, self.folder / "service.log")) if sources else None
            if oracle.function is not None:
                self._oracles["oracle"] = stack.enter_context(self._function(oracle, oracle.function))
            mine = oracle.url or (own if oracle.serve else None)
            urls = {"oracle": mine, "judge": judge.judge_url or (own if judge.judge_serve else None)}
            models = {"oracle": oracle.model, "judge": judge.judge_model}
            if judge.judge_model and urls["judge"] is None:
                urls["judge"] = urls["oracle"]  # a second model of the same service
            for name, url in urls.items():
                if url is None:
                    continue
                model = name if hosted[name] else models[name]
                self._oracles[name] = stack.enter_context(self._oracle(oracle, name, url, model))
                for weight in dict.fromkeys(oracle.skew_weights) if name == "oracle" else ():
                    weighed = self._oracle(oracle, f"oracle-skew-{weight}", url, model, skew_weight=weight)
                    self._weighed[weight] = stack.enter_context(weighed)
            # The servers last, since the stored responses that they are checked with are sampled by the policy here.
            stack.enter_context(self._samplers.opened())
            yield
            self._oracles, self._weighed = {}, {}

    @contextlib.contextmanager
    def _tracked(self) -> Iterator[None]:
        """Hold the trackers, if the recipe names any; one that a resumed run adds is shown the iterations so far."""
        if not (names := self.recipe.output.trackers):
            yield
            return
        with contextlib.closing(Trackers(names, self.folder, self.recipe.model_dump())) as self._trackers:
            for path in sorted(self.folder.glob("iteration-*/metrics.json"), key=file_order):
                metrics = read_json_file(path)
                self._trackers.iteration(metrics["iteration"], metrics)
            yield

    def _function(self, oracle: OracleSection, name: str) -> FunctionOracle:
        path = self.folder / "oracle.json"
        return FunctionOracle(
            name,
            concurrency=oracle.concurrency,
            patience_s=oracle.patience_s,
            identity=Identity(**read_json_file(path)) if path.exists() else None,
            on_identity=lambda identity: write_json(path, dataclasses.asdict(identity)),
        )

    @contextlib.contextmanager
    def _oracle(
        self, oracle: OracleSection, name: str, url: str, model: str | None, *, skew_weight: float | None = None
    ) -> Iterator[OracleClient]:
        path = self.folder / f"{name}.json"
        client = OracleClient(
            url,
            model=model,
            api_key=Path(oracle.api_key_file).read_text(encoding="utf-8").strip() if oracle.api_key_file else None,
            concurrency=oracle.concurrency,
            patience_s=oracle.patience_s,
            timeout_s=oracle.timeout_s,
            skew_weight=skew_weight,
            identity=Identity(**read_json_file(path)) if path.exists() else None,
            on_identity=lambda identity: write_json(path, dataclasses.asdict(identity)),
        )
        with client:
            client.meet(oracle.wait_s)
            yield client

    def _oracle_of(self, iteration: int) -> Oracle:
        """Return whom the responses of an iteration are judged by: with a schedule, the game changes."""
        weight = self.recipe.oracle.skew_weight(iteration) if self.recipe.oracle else None
        return self._oracles["oracle"] if weight is None else self._weighed[weight]

    def iterate_source(self, iteration: int) -> str:
        """Return where the weights of pi_t are; t from 1, the initial policy is the first."""
        if iteration == 1:
            return self.recipe.policy.source
        return str(self._step_folder(iteration - 1, len(self.method.steps(iteration - 1))) / "policy")

    def reference_source(self, iteration: int) -> str:
        """Return where the weights of the reference mu are in iteration t, from 1."""
        reference = self.recipe.reference
        if reference.policy == "initial":
            return self.iterate_source(1)
        if reference.policy == "previous":
            return self.iterate_source(iteration)
        # Resets fall on iterations 1, 1 + n, 1 + 2n: the reference is the iterate that such an iteration began with.
        return self.iterate_source((iteration - 1) // reference.every * reference.every + 1)

    def iterate(self, iteration: int) -> None:
        """Run iteration t, from 1, or what is left of it."""
        # Written last: an iteration that has it is done.
        path, began = self._iteration(iteration) / "metrics.json", time.monotonic()
        if path.exists():
            self._forget(iteration)  # a run may have been killed between its last file and this
            return
        metrics: dict[str, Any] = {"iteration": iteration}
        for number, step in enumerate(self.method.steps(iteration), start=1):
            metrics |= self._step(iteration, number, step)
        if self._read.held_out:
            metrics["evaluation"] = self._evaluate(iteration)
        metrics["seconds"] = time.monotonic() - began
        if self.main:
            write_json(path, metrics)
            if self._trackers is not None:
                self._trackers.iteration(iteration, metrics)
            # Only after metrics.json, which is what the page is made of.
            write_report(self.folder)
            self._forget(iteration)
        self._processes.wait()

    def _forget(self, iteration: int) -> None:
        """Remove weights and checkpoints that the recipe does not keep, now that iteration t is done."""
        keep = self.recipe.output.keep
        if not keep or not self.main:
            return
        # What later iterations read: where they start, their reference, and what the method remembers.
        needed = {self.iterate_source(iteration + 1), self.reference_source(iteration + 1), self._memory(iteration + 1)}
        for done in range(1, iteration + 1):
            for step in sorted(self._iteration(done).glob("step-*")):
                remove_folder(step / "checkpoints")
                if done <= iteration - keep and str(step / "policy") not in needed:
                    remove_folder(step / "policy")

    def _step(self, iteration: int, number: int, step: Step) -> dict[str, Any]:
        """Sample the round of a training step unless an earlier one did, take the step, and return what to report."""
        folder = self._step_folder(iteration, number)
        previous, current = str(self._step_folder(iteration, number - 1) / "policy"), self.iterate_source(iteration)
        base = {"current": current, "previous-step": previous, "memory": self._memory(iteration)}[step.base]
        # What is sampled from and what is trained may differ: a method may look ahead, and step from where it began.
        source = current if step.sampler == "current" else previous
        # Two steps may share a round: the second finds it on disk and asks nobody.
        round_folder = self._iteration(iteration) / f"round-{step.round}"
        metrics: dict[str, Any] = {}
        responses: list[Response] = []  # stays empty in the others
        with self._samplers.phase():
            if (played := self._round(round_folder, iteration, step.round, source)) is not None:
                responses = played.responses
                metrics |= self._compared(round_folder, iteration, step.round, played)
        # The outcome of an earlier attempt; the round above was read for what is reported of it.
        if (folder / "policy").exists():
            self._processes.wait()
            return metrics
        self._processes.wait()
        # The main process has them from its round; the others read what it wrote before the barrier.
        responses = responses or read_rows(round_folder / "samples.parquet", Response)
        pairs = read_rows(round_folder / "targets.parquet", LabelledPair)
        frozen = folder / "logprobs.parquet"
        sources = {"base_logprob": base, "reference_logprob": self.reference_source(iteration)}
        self._freeze(frozen, rows_of_pairs(responses, pairs), sources)
        began = time.monotonic()
        # In memory the policy may still be the reference, or the iterate that was sampled from.
        self.policy.become(base)
        if source == base and self.main:
            # The base is the policy that was sampled from: the two must agree on what they call likely.
            tolerance = self.recipe.sampling.tolerance
            metrics["sampler_noise_per_token"] = check_sampler(frozen, responses, tolerance=tolerance)
        train_step(
            self.policy,
            with_logprobs(frozen, responses, pairs),
            folder,
            method=self.method,
            training=self.recipe.training,
            lora=self.recipe.lora,
            learnt=self._adapter_writer(folder, base),
            raw=self.recipe.loss.gradient == "raw",
            sft=self.recipe.loss.sft,
            dtype=self.recipe.output.dtype,
            # No two steps of a run draw the same order; no method has a thousand steps an iteration.
            seed=self.recipe.training.seed + 1000 * iteration + number,
            wait=self._processes.wait,
            show=self._shown_steps(folder),
        )
        metrics[f"step_{number}_training_s"] = time.monotonic() - began
        if self.main:
            metrics |= {
                f"step_{number}_{name}": value for name, value in read_json_file(folder / "update.json").items()
            }
        return metrics

    def _freeze(self, path: Path, rows: list[Response], sources: dict[str, str]) -> None:
        """Write what policies call likely, each process for its share of the responses, unless it is there."""
        parts, (place, count) = path.with_name("logprobs.parts"), self._processes.place
        # Alike in all processes: the file appears behind the barrier that they all come to.
        if not path.exists():
            # One model is in memory: base and reference are asked in turn, once, and live on as numbers.
            mine = path if count == 1 else parts / f"{place}.parquet"
            freeze_columns(mine, self.policy, rows, sources, training=self.recipe.training, share=(place, count))
            self._processes.wait()
            if self.main and count > 1:
                join_columns(path, [parts / f"{number}.parquet" for number in range(count)], list(sources))
        if self.main:
            remove_folder(parts)
        self._processes.wait()

    def _adapter_writer(self, folder: Path, base: str) -> Callable[[Any], None]:
        """Return what writes the adapter of a training step, if the recipe wants one."""
        if not (self.recipe.output.adapters and self.main):
            return lambda _adapted: None
        # The initial policy is nobody's outcome; any other base lies beside the adapter that leads to it.
        beneath = None if base == self.iterate_source(1) else Path(base).with_name("adapter")
        return lambda adapted: write_adapter(folder / "adapter", adapted, self.policy.origin, beneath=beneath)

    def _shown_steps(self, folder: Path) -> Callable[[int, dict[str, float]], None]:
        """Return what shows the numbers of a gradient step to the trackers, counted over the whole run."""
        trackers = self._trackers
        if trackers is None:
            return lambda _step, _values: None
        before = steps_before(self.folder, folder)
        return lambda step, values: trackers.step(before + step, values)

    def _memory(self, iteration: int) -> str:
        """Return what a method remembers beside the policy: where the first step of the last iteration arrived."""
        # The first iteration of such a method has one step: what it remembers then is the policy that it began with.
        return self.iterate_source(1) if iteration <= 2 else str(self._step_folder(iteration - 1, 1) / "policy")

    def _dealt(self, iteration: int) -> list[Prompt]:
        # A function of the seed and the iteration, so that a resumed run is dealt the same prompts.
        per_iteration, seed = self.recipe.data.per_iteration, self.recipe.training.seed
        return deal(self._read.prompts, iteration=iteration, per_iteration=per_iteration, seed=seed)

    def _round(self, folder: Path, iteration: int, number: int, source: str) -> Round | None:
        """Return a round, sampled or from disk; None in the processes that have sampled their share of it."""
        recipe, prompts = self.recipe, self._dealt(iteration)
        if self._read.stored:
            tokenizer, ends = self.policy.tokenizer, self.policy.end_ids
            stored = self._read.stored
            return stored_round(folder, stored, prompts, tokenizer, ends, longest=self._context) if self.main else None
        plan = Plan(
            folder,
            prompts,
            responses=recipe.sampling.responses,
            batch=recipe.sampling.batch,
            names=(recipe.training.seed, iteration, number),
            text_of=self._text_of,
        )
        oracles = {"oracle": self._oracle_of(iteration)} if self.main else {}
        return self._samplers.play(plan, source, oracles)

    def _compared(self, folder: Path, iteration: int, number: int, played: Round) -> dict[str, Any]:
        """Write the targets of a round, and return what to report of it."""
        recipe, sampling, prompts = self.recipe, self.recipe.sampling, self._dealt(iteration)
        tables = tables_of(
            played.responses,
            played.answers,
            rule=recipe.rule,
            unfinished=sampling.unfinished,
            penalty=sampling.penalty,
            length_penalty=recipe.targets.length_penalty,
        )
        pairs = self._targets(folder / "targets.parquet", tables, (recipe.training.seed, iteration, number))
        described = self._described(played, list(tables.values()), len(pairs))
        # Groups that servers did not complete in time have no table.
        missing = len(prompts) - sum(_compared(answer.raw) for answer in played.answers)
        if missing:
            logger.warning("%d of %d prompts have no group that was compared and are left out", missing, len(prompts))
        _check_missing(missing, len(prompts), recipe.data.max_missing_groups, folder)
        described["missing_groups"] = missing
        if self._samplers.noise is not None:
            described["reload_noise_per_token"] = self._samplers.noise
        # Most methods have one round, whose numbers need no prefix.
        prefix = "" if number == 1 else f"round_{number}_"
        return {f"{prefix}{name}": value for name, value in described.items()}

    def _targets(self, path: Path, tables: dict[str, Float64s], names: tuple[object, ...]) -> list[LabelledPair]:
        if path.exists():
            return read_rows(path, LabelledPair)
        # Methods that fit a number of each response look at no label; a soft one draws nothing at random.
        targets = self.recipe.targets
        pairs = labelled_pairs(
            tables,
            selection=targets.pairs,
            labels=targets.labels if self.method.needs.pairs else "soft",
            ties=self.recipe.ties,
            include_self=targets.win_rates == "with-self",
            own_targets=self.method.own_targets,
            names=names,
        )
        write_rows(path, pairs, LabelledPair)
        return pairs

    def _described(self, played: Round, tables: list[Float64s], pairs: int) -> dict[str, Any]:
        cycles = measure_cycles(tables)
        warning = self.method.convergence_warning(cycles.rotation, cyclic=cycles.cyclic_share > 0)
        if warning:
            logger.warning("%s", warning)
        incomplete = sum(int(np.isnan(table).any()) for table in tables)
        if incomplete:
            logger.warning("%d of %d tables lack comparisons, which are left out", incomplete, len(tables))
        return {
            "loading_s": played.loading_s,
            "sampling_s": played.sampling_s,
            "waiting_for_oracle_s": played.waiting_s,
            "cyclic_share": _finite(cycles.cyclic_share),
            "rotation": _finite(cycles.rotation),
            "triples": cycles.triples,
            "incomplete_tables": incomplete,
            "convergence_warning": warning,
            "pairs": pairs,
            **{f"sample_{name}": value for name, value in describe_responses(played.responses).items()},
        }

    def _evaluate(self, iteration: int) -> dict[str, Any]:
        """Evaluate the iterate in all processes, and return what to report of it; nothing in all but the main one."""
        recipe, initial = self.recipe, self.iterate_source(1)
        folder = self.folder / f"evaluation-{iteration:02d}"
        with self._samplers.phase():
            theirs = self._held_out_round(self.folder / "evaluation-00", initial, {}, {})
            # Sampled once, in the first evaluation: all iterates meet the same answers of the initial policy.
            against: dict[str, list[str]] = {}
            for row in theirs:
                against.setdefault(row.prompt_id, []).append(row.text)
            mine = self._held_out_round(folder, self.iterate_source(iteration + 1), self._oracles, against)
        # Outside the phase: the KL needs the devices that colocated servers sampled on, and the rows are on disk.
        self._processes.wait()
        known = compared_by_likelihood(mine or read_rows(folder / "samples.parquet", Response))
        if known:
            self._freeze(folder / "logprobs.parquet", known, {INITIAL: initial})
        if not self.main:
            return {}
        summary = compared_with_initial(
            folder, (mine, theirs), names=list(self._oracles), responses=recipe.evaluation.responses, rule=recipe.rule
        )
        logger.info("iteration %d: %s", iteration, win_rate_in_words(summary))
        return summary

    def _held_out_round(
        self, folder: Path, source: str, oracles: dict[str, Oracle], against: dict[str, list[str]]
    ) -> list[Response]:
        """Return a policy's responses to the held-out prompts; without oracles, or compared with others' responses.

        Empty in the processes that have sampled their share of them.
        """
        # A prompt that the initial policy gave no whole group to has nothing to be compared with. Only servers lose
        # groups: where processes share the sampling, all have the same prompts.
        plan = Plan(
            folder,
            [prompt for prompt in self._read.held_out if not oracles or prompt.id in against],
            responses=self.recipe.evaluation.responses,
            batch=self.recipe.sampling.batch,
            # The same numbers for every iterate: differences between them are not of the dice.
            names=(self.recipe.training.seed, "evaluation"),
            text_of=self._text_of,
        )
        played = self._samplers.play(plan, source, oracles, against=against)
        return played.responses if played is not None else []

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration:02d}"

    def _step_folder(self, iteration: int, number: int) -> Path:
        return self._iteration(iteration) / f"step-{number}"


def _compared(raw: Float64s) -> bool:
    """Return whether the oracle compared any two responses of a group."""
    return bool(np.isfinite(raw[~np.eye(len(raw), dtype=np.bool_)]).any())


def _check_missing(missing: int, prompts: int, limit: float, folder: Path) -> None:
    """Refuse to train on what is left of a round that lost more groups than the recipe allows."""
    if missing > limit * prompts:
        raise RunError(
            f"{missing} of {prompts} prompts have no group that was compared: data.max_missing_groups is {limit:g}; "
            f"the log and {folder} say why: mend it, remove {folder} and resume, or raise the limit"
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
