"""The loop: sample, ask, targets, frozen log-probabilities, gradient steps, evaluation, next iterate.

    RUN/recipe.json                     what is run; resuming with another recipe is refused
    RUN/oracle.json, judge.json         who answers; another model is refused
    RUN/iteration-01/round-1/           samples.parquet, oracle.parquet, targets.parquet
    RUN/iteration-01/step-1/            logprobs.parquet, start.json, history.json, policy/
    RUN/iteration-01/metrics.json
    RUN/evaluation-00/ …                the initial policy's responses to the held-out prompts, then every iterate's
    RUN/report.html

Every file appears whole or not at all and a stage is done when its file exists, so that resuming is running again.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from paragone_evaluation.readers import Prompt, read_prompts
from paragone_training.errors import RecipeError
from paragone_training.policy.errors import RunError
from paragone_training.policy.evaluate import describe_responses, summarise
from paragone_training.policy.gradient.barrier import Barrier
from paragone_training.policy.gradient.step import freeze_columns, train_step, training_pairs
from paragone_training.policy.methods.methods import Step, steps_of
from paragone_training.policy.model.weights import Policy, context_of, load_policy
from paragone_training.policy.oracle.asking import Asker, Identity
from paragone_training.policy.oracle.own_service import served
from paragone_training.policy.prompts import deal, render
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.records.claim import claim
from paragone_training.policy.records.report import write_report
from paragone_training.policy.records.tracking import Trackers, steps_before
from paragone_training.policy.rounds import Spent, play_round, read_answers, read_responses
from paragone_training.policy.rows.files import locked, read_json, read_table, write_json
from paragone_training.policy.sampling.choosing import Drawing
from paragone_training.policy.targets import diagnostics
from paragone_training.policy.targets.pairs import labelled_pairs, read_targets, tables_of, write_targets

__all__ = ["PolicyRun", "train_policy"]

logger = logging.getLogger(__name__)


def train_policy(recipe: PolicyRecipe, folder: Path, *, resume: bool = False) -> Path:
    """Run the loop and return the folder of the last iterate.

    Args:
        recipe: what is run.
        folder: of the run.
        resume: go on with an earlier run there.

    Raises:
        RecipeError: if the recipe cannot be run here, or the folder holds a run and ``resume`` is not asked for.
        RunError: if the run has to stop; it can be resumed.
    """
    # Told about the device here: without a GPU, processes would otherwise not find each other.
    patience = recipe.training.collective_timeout_s
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=patience))
    with Barrier(limit_s=patience) as barrier, locked(folder) if state.is_main_process else contextlib.nullcontext():
        if state.is_main_process:
            claim(recipe, folder, resume=resume)
        barrier.wait()
        run = PolicyRun(recipe, folder, barrier)
        with run.asking() if state.is_main_process else contextlib.nullcontext():
            for iteration in range(1, recipe.training.iterations + 1):
                run.iterate(iteration)
        return Path(run.iterate_source(recipe.training.iterations + 1))


class PolicyRun:
    """One run and what it has in memory: the policy, the prompts, the oracles.

    Args:
        recipe: what is run.
        folder: where.
        barrier: where the processes of the run wait for each other.

    Raises:
        RecipeError: if the policy cannot be loaded or a prompt does not fit it.
        DataError: if prompts cannot be read.
    """

    def __init__(self, recipe: PolicyRecipe, folder: Path, barrier: Barrier) -> None:
        self.recipe, self.folder, self.barrier = recipe, folder, barrier
        self.state = PartialState()
        self.method = recipe.objective
        source = recipe.policy
        self.policy: Policy = load_policy(
            source.source, revision=source.revision, dtype=source.dtype, attention=source.attention
        )
        longest = context_of(self.policy.model.config, source.max_length) - recipe.sampling.max_new_tokens
        read = read_prompts(recipe.data.prompts, split=recipe.data.split)
        self.prompts = render(read, self.policy.tokenizer, longest=longest)
        self.held_out: list[Prompt] = []
        if recipe.evaluation.prompts:
            held_out = read_prompts(recipe.evaluation.prompts, split=recipe.evaluation.split)
            held_out = held_out[: recipe.evaluation.limit or None]
            both = {prompt.text for prompt in self.prompts} & {prompt.text for prompt in held_out}
            if both:
                raise RecipeError(f"{len(both)} prompts of [evaluation] are trained on: keep them apart with split")
            self.held_out = render(held_out, self.policy.tokenizer, longest=longest)
        self._drawing = Drawing(recipe, folder, self.policy, self.prompts, barrier, longest=longest)
        self._askers: dict[str, Asker] = {}
        self._trackers = Trackers((), folder, {})  # those of the recipe are the main process's alone

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Hold connections to the oracles, the service of this run's own if there is one, and the trackers.

        Raises:
            RecipeError: if a tracker is not known or not installed.
            RunError: if the service does not come up.
        """
        oracle, judge = self.recipe.oracle, self.recipe.evaluation
        hosted = {"oracle": oracle.serve, "judge": judge.judge_serve}
        sources = [f"{name}={source}" for name, source in hosted.items() if source is not None]
        with ExitStack() as stack:
            told = Trackers(self.recipe.output.trackers, self.folder, dataclasses.asdict(self.recipe))
            self._trackers = stack.enter_context(contextlib.closing(told))
            for path in sorted(self.folder.glob("iteration-*/metrics.json")):
                metrics = read_json(path)
                self._trackers.iteration(metrics["iteration"], metrics)
            own = stack.enter_context(served(sources, self.folder / "service.log")) if sources else None
            urls = {"oracle": oracle.url or own, "judge": judge.judge_url or (own if judge.judge_serve else None)}
            models = {"oracle": oracle.model, "judge": judge.judge_model}
            if judge.judge_model and urls["judge"] is None:
                urls["judge"] = urls["oracle"]
            for name, url in urls.items():
                if url is not None:
                    model = name if hosted[name] else models[name]
                    self._askers[name] = stack.enter_context(self._asker(name, url, model))
            stack.enter_context(self._drawing.opened())
            yield
            self._askers = {}

    def _asker(self, name: str, url: str, model: str | None) -> Asker:
        oracle, path = self.recipe.oracle, self.folder / f"{name}.json"
        key = Path(oracle.api_key_file).read_text(encoding="utf-8").strip() if oracle.api_key_file else None
        known = Identity(**read_json(path)) if path.exists() else None
        return Asker(
            url,
            model=model,
            api_key=key,
            concurrency=oracle.concurrency,
            patience_s=oracle.patience_s,
            timeout_s=oracle.timeout_s,
            identity=known,
            learn=lambda found: write_json(path, dataclasses.asdict(found)),
        )

    def iterate_source(self, iteration: int) -> str:
        """Return where the weights of pi_t are.

        Args:
            iteration: t, from 1; the initial policy is the first.
        """
        if iteration == 1:
            return self.recipe.policy.source
        last = len(steps_of(self.recipe.method, iteration - 1))
        return str(self._iteration(iteration - 1) / f"step-{last}" / "policy")

    def reference_source(self, iteration: int) -> str:
        """Return where the weights of the reference mu are.

        Args:
            iteration: t, from 1.
        """
        reference = self.recipe.reference
        if reference.policy == "initial":
            return self.iterate_source(1)
        if reference.policy == "previous":
            return self.iterate_source(iteration)
        return self.iterate_source((iteration - 1) // reference.every * reference.every + 1)

    def iterate(self, iteration: int) -> None:
        """Run one iteration, or what is left of it.

        Args:
            iteration: t, from 1.

        Raises:
            RunError: if the run has to stop.
        """
        folder, began = self._iteration(iteration), time.monotonic()
        if not (folder / "metrics.json").exists():
            metrics: dict[str, Any] = {"iteration": iteration}
            for number, step in enumerate(steps_of(self.recipe.method, iteration), start=1):
                metrics |= self._step(iteration, number, step)
            if self.held_out:
                with self._drawing.phase():
                    if self.state.is_main_process:
                        metrics["evaluation"] = self._evaluate(iteration)
            metrics["seconds"] = time.monotonic() - began
            if self.state.is_main_process:
                write_json(folder / "metrics.json", metrics)
                self._trackers.iteration(iteration, metrics)
                write_report(self.folder)
            self.barrier.wait()

    def _step(self, iteration: int, number: int, step: Step) -> dict[str, Any]:
        folder = self._iteration(iteration) / f"step-{number}"
        previous = str(self._iteration(iteration) / f"step-{number - 1}" / "policy")
        current = self.iterate_source(iteration)
        base = {"current": current, "previous-step": previous, "memory": self._memory(iteration)}[step.base]
        sampler = current if step.sampler == "current" else previous
        round_folder = self._iteration(iteration) / f"round-{step.round}"
        metrics: dict[str, Any] = {}
        with self._drawing.phase():
            if self.state.is_main_process:
                metrics |= self._round(round_folder, iteration, step.round, sampler)
        if self.state.is_main_process and not (folder / "logprobs.parquet").exists():
            freeze_columns(
                folder / "logprobs.parquet",
                self.policy,
                read_responses(round_folder / "samples.parquet"),
                read_targets(round_folder / "targets.parquet"),
                base=base,
                reference=self.reference_source(iteration),
                training=self.recipe.training,
            )
        self.barrier.wait()
        if not (folder / "policy").exists():
            began, before = time.monotonic(), steps_before(self.folder, folder)
            self.policy.become(base)
            rows = read_responses(round_folder / "samples.parquet")
            labelled = read_targets(round_folder / "targets.parquet")
            if sampler == base and self.state.is_main_process:
                metrics["sampler_noise_per_token"] = self._check_sampler(folder, rows)
            train_step(
                self.policy,
                training_pairs(folder / "logprobs.parquet", rows, labelled),
                folder,
                method=self.method,
                training=self.recipe.training,
                lora=self.recipe.lora,
                raw=self.recipe.loss.gradient == "raw",
                dtype=self.recipe.output.dtype,
                seed=self.recipe.training.seed + 1000 * iteration + number,
                wait=self.barrier.wait,
                tell=lambda step, values: self._trackers.step(before + step, values),
            )
            metrics[f"step_{number}_training_s"] = time.monotonic() - began
        return metrics

    def _memory(self, iteration: int) -> str:
        """Return where omwu's b_{t-1} is: the policy itself before the second iteration."""
        if iteration <= 2:
            return self.iterate_source(1)
        return str(self._iteration(iteration - 1) / "step-1" / "policy")

    def _round(self, folder: Path, iteration: int, number: int, source: str) -> dict[str, Any]:
        recipe, sampling = self.recipe, self.recipe.sampling
        seed = recipe.training.seed
        prompts = deal(self.prompts, iteration=iteration, count=recipe.data.per_iteration, seed=seed)
        spent = play_round(
            folder,
            prompts,
            lambda: self._drawing.sampler(source),
            {"oracle": self._askers["oracle"]},
            responses=sampling.responses,
            batch=sampling.batch,
            names=(seed, iteration, number),
            decode=self._decode,
        )
        responses, answers = read_responses(folder / "samples.parquet"), read_answers(folder / "oracle.parquet")
        tables = tables_of(responses, answers, sampling, recipe.oracle.rule)
        if not (folder / "targets.parquet").exists():
            rows = labelled_pairs(tables, recipe.method, recipe.targets, names=(seed, iteration, number))
            write_targets(folder / "targets.parquet", rows)
        found = self._described(number, spent, responses, list(tables.values()), folder)
        missing = len(prompts) - len(tables)
        if missing:
            logger.warning("%d of %d prompts have no complete group and are left out", missing, len(prompts))
        found[_of_round("missing_groups", number)] = missing
        if self._drawing.noise is not None:
            found[_of_round("reload_noise_per_token", number)] = self._drawing.noise
        return found

    def _described(
        self, number: int, spent: Spent, responses: Sequence[Any], tables: list[Any], folder: Path
    ) -> dict[str, Any]:
        cycles = diagnostics.measure_cycles(tables)
        names = {"gpo": "sppo", "ipo": "inpo", "dpo": "sppo"}
        knobs = self.recipe.loss
        step = {"gpo": 1.0 / self.method.number if self.method.number else 1.0}.get(
            self.recipe.method, knobs.eta or knobs.step or knobs.tau or 1.0
        )
        warning = None
        if self.recipe.method != "dpo":
            chosen: Any = names.get(self.recipe.method, self.recipe.method)
            warning = diagnostics.convergence_warning(cycles.rotation, method=chosen, tau=self.method.tau, eta=step)
        if warning:
            logger.warning("%s", warning)
        missing = sum(int(np.isnan(table).any()) for table in tables)
        if missing:
            logger.warning("%d of %d tables lack comparisons, which are left out", missing, len(tables))
        found: dict[str, Any] = {
            "loading_s": spent.loading_s,
            "sampling_s": spent.sampling_s,
            "waiting_for_oracle_s": spent.waiting_s,
            "cyclic_share": _finite(cycles.cyclic_share),
            "rotation": _finite(cycles.rotation),
            "triples": cycles.triples,
            "incomplete_tables": missing,
            "convergence_warning": warning,
            "pairs": len(read_targets(folder / "targets.parquet")),
            **{f"sample_{name}": value for name, value in describe_responses(responses).items()},
        }
        return {_of_round(name, number): value for name, value in found.items()}

    def _check_sampler(self, folder: Path, rows: Sequence[Any]) -> float | None:
        """Refuse a sampler that is not the policy: its log-probabilities of eight responses must be the trainer's."""
        columns = read_table(folder / "logprobs.parquet")
        frozen = dict(
            zip(zip(columns["prompt_id"], columns["number"], strict=True), columns["base_logprob"], strict=True)
        )
        known = [row for row in rows if row.sampler_logprob is not None and (row.prompt_id, row.number) in frozen][:8]
        if not known:
            return None
        off = [
            abs(row.sampler_logprob - frozen[row.prompt_id, row.number]) / max(len(row.token_ids), 1) for row in known
        ]
        largest = max(off)
        limit = self.recipe.sampling.tolerance
        if largest > limit:
            raise RunError(
                f"the sampler's log-probabilities differ from the trainer's by {largest:.3g} nats a token, and "
                f"sampling.tolerance is {limit:g}: it has other weights, or another dtype"
            )
        return float(largest)

    def _evaluate(self, iteration: int) -> dict[str, Any]:
        recipe, sampling = self.recipe, self.recipe.sampling
        count, seed = recipe.evaluation.responses, recipe.training.seed
        initial, folder = self.folder / "evaluation-00", self.folder / f"evaluation-{iteration:02d}"
        for target, source, askers in (
            (initial, self.iterate_source(1), {}),
            (folder, self.iterate_source(iteration + 1), self._askers),
        ):
            against: dict[str, list[str]] = {}
            prompts = self.held_out
            if askers:
                for row in read_responses(initial / "samples.parquet"):
                    against.setdefault(row.prompt_id, []).append(row.text)
                prompts = [prompt for prompt in self.held_out if prompt.id in against]
            play_round(
                target,
                prompts,
                lambda source=source: self._drawing.sampler(source),  # type: ignore[misc]
                askers,
                responses=count,
                batch=sampling.batch,
                names=(seed, "evaluation"),
                decode=self._decode,
                against=against,
            )
        self._drawing.end()
        found = summarise(
            folder,
            initial,
            self.policy,
            names=list(self._askers),
            initial_source=self.iterate_source(1),
            responses=count,
            rule=recipe.oracle.rule,
            training=recipe.training,
        )
        logger.info("iteration %d: win rate against the initial policy %s", iteration, found.get("oracle"))
        return found

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration:02d}"


def _of_round(name: str, number: int) -> str:
    return name if number == 1 else f"round_{number}_{name}"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
