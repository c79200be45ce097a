"""``POST /v1/heads``: from pairs that somebody judged to a head that answers beside the model whose backbone it reads.

Texts → hidden states (``features.py``) → a fit in a thread, as ``paragone train head`` fits → a folder that
``paragone serve`` loads → hosted, in the memory of the model that is there already → both asked about pairs kept back.
"""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import HeadAgreement, HeadPair, HeadRequest, Usage
from paragone_models.errors import ModelLoadError
from paragone_models.files.backbones import save_head
from paragone_models.files.loading import load_head, reference_of
from paragone_models.fitting import Choices, FitError, FittedHead, States, fit_head
from paragone_models.golden import check_golden
from paragone_models.kinds import KINDS
from paragone_models.model import PreferenceModel
from paragone_models.spec import BackboneReference, ModelSpec
from paragone_service.cache.keys import conversation_keys, prompt_digest
from paragone_service.config import Settings
from paragone_service.engine.local import LocalEngine
from paragone_service.fitting.agreement import agreement
from paragone_service.fitting.features import hidden_states
from paragone_service.http.errors import ServiceError
from paragone_service.model_settings import ModelSettings
from paragone_service.registry import Registry
from paragone_service.rollout import Rollout
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import Replica
from paragone_service.scoring.request import Call, Problems, RequestItem
from paragone_service.scoring.together import families

__all__ = ["Fitted", "HeadFitting"]

logger = logging.getLogger("paragone.service")

_MOST = 32
"""Heads that a server keeps at a time: each has threads and queues of its own."""
_DIMENSION = 4
_FEWEST_PROMPTS = 2


@dataclass(frozen=True)
class Fitted:
    """A head that is hosted from now on.

    Attributes:
        folder: where it was saved.
        pairs, prompts: how many it was fitted to.
    """

    hosted: HostedModel
    base: str
    folder: Path
    pairs: int
    prompts: int
    penalties: dict[str, float]
    agreement: HeadAgreement
    usage: Usage


@dataclass(frozen=True)
class _Task:
    """What is fitted to what.

    Attributes:
        learned, held_out: pairs with their places in the request's list.
    """

    base: HostedModel
    body: HeadRequest
    spec: ModelSpec
    learned: list[tuple[int, HeadPair]]
    held_out: list[tuple[int, HeadPair]]


class HeadFitting:
    """Fit heads, one at a time."""

    def __init__(self, settings: Settings, registry: Registry, rollout: Rollout) -> None:
        self._settings, self._registry, self._rollout = settings, registry, rollout
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._undoing: set[asyncio.Future[None]] = set()

    @property
    def temporary(self) -> bool:
        """Whether heads are gone when the server ends."""
        return self._settings.models_dir is None

    async def fit(self, body: HeadRequest, call: Call) -> Fitted:
        """Fit a head, host it, and return it with its agreement on pairs that were kept back.

        Raises:
            ServiceError: ``model_refused``, if the model's backbone cannot have another head, the name is taken, or
                another head is being fitted; ``invalid_request``, if no head can be fitted to these pairs; else as for
                scoring.
            ClientGoneError: if the client left meanwhile; as after a deadline, no head is hosted then.
        """
        base = self._registry.find(body.model)
        self._check_base(base)
        self._rollout.check_new(body.name)
        root = self._settings.models_dir
        if root is not None and (root.expanduser() / body.name).exists():
            raise _refused(f"there is a folder {body.name} below models_dir already: choose another name, or load that")
        if self._rollout.making:
            raise _refused("another head is being fitted: one at a time, try again later", retry_after_s=5)
        if len(self._rollout.made_here) >= _MOST:
            raise _refused(f"{_MOST} heads that were fitted here are hosted: unload one first")
        _check_distinct(body.pairs, call.problems)
        _check_distinct(body.held_out or (), Problems("held_out", report=False))
        learned, held_out = _parted(body)
        task = _Task(base, body, _spec_of(base.model.spec, body, len(learned)), learned, held_out)
        self._rollout.making = body.name
        base.under_way += 1  # whoever unloads it waits for the end
        try:
            try:
                states, choices, usage = await self._states(task, call)
            except BaseException:
                self._rollout.making = ""
                raise
            penalties, hosted, folder, compared = await self._hosted(task, states, choices, call, usage)
        finally:
            base.under_way -= 1
        prompts = len({_question(pair) for _, pair in learned})
        return Fitted(hosted, base.name, folder, len(learned), prompts, penalties, compared, usage)

    async def _hosted(
        self, task: _Task, states: States, choices: Choices, call: Call, usage: Usage
    ) -> tuple[dict[str, float], HostedModel, Path, HeadAgreement]:
        """Return the penalties of a head that is hosted from now on, the head, its folder, and its agreement."""
        fitting = asyncio.ensure_future(self._fitted(task, states, choices))
        try:
            penalties, hosted, folder = await asyncio.shield(fitting)
            return penalties, hosted, folder, await self._compared(task, hosted, call, usage)
        except BaseException:
            # Nobody has seen it, whatever ended the request, and whoever asks again wants its name.
            undoing = asyncio.ensure_future(self._undo(task.body.name, fitting))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            if fitting.done():  # else the answer of a request that is over would wait for the thread
                await asyncio.shield(undoing)
            raise

    async def _undo(self, name: str, fitting: asyncio.Future[tuple[dict[str, float], HostedModel, Path]]) -> None:
        """Once it is fitted, host a head no more, and remove its folder."""
        await asyncio.wait([fitting])
        if fitting.cancelled() or fitting.exception() is not None:
            return  # there is none
        _, hosted, folder = fitting.result()
        # The folder first: as long as the name is hosted nobody makes another one there.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if self._registry.loaded(name) is hosted:  # and not unloaded or exchanged meanwhile
            await self._rollout.unload(name)
            logger.warning("model %s: the request for this head was over before its answer; it is gone again", name)

    def close(self) -> None:
        """Remove the heads that are temporary."""
        if self._folder is not None:
            self._folder.cleanup()

    def _check_base(self, base: HostedModel) -> None:
        model = base.model
        if not all(isinstance(replica.engine, LocalEngine) for replica in base.resources.replicas):
            raise _refused(
                f"the backbone of model {base.name} runs on another server: fit a head with `paragone train head`"
            )
        if model.reader is None:
            raise ServiceError(ErrorCode.TEXT_UNAVAILABLE, f"model {base.name} has no tokenizer and reads no text")
        if model.spec.rules.has_steps or model.spec.principle_question is not None:
            what = "steps" if model.spec.rules.has_steps else "by a principle"
            raise _refused(
                f"model {base.name} judges {what}, and a head is fitted to whole responses: name another one"
            )

    async def _states(self, task: _Task, call: Call) -> tuple[States, Choices, Usage]:
        """Return what a head is fitted to, and what that cost."""
        rows: dict[bytes, int] = {}
        items, questions, pairs = [], [], []
        for index, pair in task.learned:
            responses = [pair.first, pair.second]
            keys = conversation_keys(b"", pair.prompt, None, responses)
            fresh = [response for key, response in dict(zip(keys, responses, strict=True)).items() if key not in rows]
            for key in keys:
                if key not in rows:
                    rows[key] = len(rows)
                    questions.append(_question(pair))
            if fresh:
                items.append(RequestItem(index, pair.prompt, None, fresh))
            pairs.append([rows[key] for key in keys])
        states, tokens = await hidden_states(task.base, task.spec, items, call)
        numbers = np.unique([question.hex() for question in questions], return_inverse=True)[1]
        strength = np.array([pair.strength for _, pair in task.learned])
        weight = np.array([pair.weight for _, pair in task.learned])
        choices = Choices(np.array(pairs), (np.sign(strength) + 1) / 2, np.zeros(len(pairs)), weight)
        usage = Usage(forward_responses=len(rows), forward_tokens=tokens, cached_responses=0, truncated=0)
        return States(states[:, -1], numbers), choices, usage

    async def _fitted(
        self, task: _Task, states: States, choices: Choices
    ) -> tuple[dict[str, float], HostedModel, Path]:
        """Fit, save, load and host the head; not broken off."""
        # A thread that ends with it, and its team of OpenMP workers too; see ``load_models``.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fitting")
        task.base.under_way += 1  # a request that is over counts no more, and the thread runs on
        try:
            work = partial(self._made, task, states, choices)
            fitted, model, replicas, folder = await asyncio.get_running_loop().run_in_executor(thread, work)
        except FitError as error:
            raise ServiceError(ErrorCode.INVALID_REQUEST, str(error)) from error
        except (ModelLoadError, OSError) as error:
            raise _refused(f"the head was not fitted: {error}") from error
        finally:
            self._rollout.making = ""
            task.base.under_way -= 1
            thread.shutdown(wait=False)
        options = ModelSettings(source=str(folder), dtype=model.provenance.numerics["dtype"])
        hosted = self._rollout.add(task.body.name, model, replicas, options)
        return fitted.penalties, hosted, folder

    def _made(
        self, task: _Task, states: States, choices: Choices
    ) -> tuple[FittedHead, PreferenceModel, list[Replica], Path]:
        name, base = task.body.name, task.base
        options = self._settings.loaded.get(base.name)
        reference = reference_of(base.model, None if options is None else options.backbone)
        fitted = fit_head(task.spec, states, choices)
        folder = self._place(name)
        try:
            save_head(folder, fitted.tensors, fitted.spec, reference, card=_card(task, fitted, reference))
            template = None if options is None else options.chat_template
            model = load_head(folder, beside=base.model, reference=reference, name=name, chat_template=template)
            replicas = self._registry.devices.beside(base.resources.replicas, model)
            for replica in replicas:
                replica.device.run_now(partial(check_golden, replica.model))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        logger.info("model %s: a head on the backbone of %s, fitted to %d pairs", name, base.name, len(task.learned))
        return fitted, model, replicas, folder

    def _place(self, name: str) -> Path:
        root = self._settings.models_dir
        if root is None:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="paragone-heads-")
            root = Path(self._folder.name)
        folder = root.expanduser() / name
        folder.mkdir(parents=True, exist_ok=False)
        return folder.resolve()

    async def _compared(self, task: _Task, new: HostedModel, call: Call, usage: Usage) -> HeadAgreement:
        call = replace(call, problems=Problems("pairs" if task.body.held_out is None else "held_out", report=False))
        preferred = np.sign([pair.strength for _, pair in task.held_out])
        prompts = len({_question(pair) for _, pair in task.held_out})
        models = [new, *([task.base] if task.base.model.comparator.compares else [])]
        together = families(models)  # a response that both lack is run once
        answers = [
            await _preferred(model, task.held_out, replace(call, together=together.get(model)), usage)
            for model in models
        ]
        right, *before = [answer == preferred for answer in answers]
        return agreement(right, before[0] if before else None, prompts=prompts)


def _check_distinct(pairs: Sequence[HeadPair], problems: Problems) -> None:
    """Refuse pairs of one and the same response, on which no model could agree with anybody."""
    for index, pair in enumerate(pairs):
        first, second = conversation_keys(b"", pair.prompt, None, [pair.first, pair.second])
        if first == second:
            message = "both responses are the same, and none can be preferred: leave the pair out"
            problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, message))


def _parted(body: HeadRequest) -> tuple[list[tuple[int, HeadPair]], list[tuple[int, HeadPair]]]:
    """Return the pairs to learn from and the decided ones to compare on, which share no prompt.

    Raises:
        ServiceError: ``invalid_request``, if there are too few of either, or a prompt is in both.
    """
    pairs = list(enumerate(body.pairs))
    questions = {index: _question(pair) for index, pair in pairs}
    if body.held_out is None:
        # By hash: the same prompts are kept back whenever pairs are sent again, however they are ordered.
        decided = sorted({questions[index] for index, pair in pairs if pair.strength})
        apart = set(decided[: max(1, round(body.held_out_share * len(decided)))])
        held_out = [(index, pair) for index, pair in pairs if questions[index] in apart]
    else:
        held_out = list(enumerate(body.held_out))
        apart = {_question(pair) for _, pair in held_out}
        if both := sum(question in apart for question in questions.values()):
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"{both} of the pairs have a prompt that is held out too: a head knows what it was fitted to",
            )
    learned = [(index, pair) for index, pair in pairs if questions[index] not in apart]
    told = {questions[index] for index, pair in learned if pair.strength}
    if len(told) < _FEWEST_PROMPTS or not any(pair.strength for _, pair in held_out):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"preferences on {len(told)} prompts are left to learn from, and {len(apart)} prompts are kept back; a "
            f"fit needs {_FEWEST_PROMPTS} and 1 at the least, and dozens to be of use: judge responses to more prompts",
        )
    return learned, [(index, pair) for index, pair in held_out if pair.strength]


def _question(pair: HeadPair) -> bytes:
    return prompt_digest(pair.prompt, None)


def _spec_of(base: ModelSpec, body: HeadRequest, pairs: int) -> ModelSpec:
    """Return what the head is: what the model reads, in the same way, and nothing of how it compares."""
    kind = KINDS[body.kind]
    if body.dimension is not None and not kind.has_vector:
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"a {kind.name} head has one number: leave dimension out")
    return replace(
        base,
        kind=body.kind,
        dimension=body.dimension or kind.nearest_dimension(_DIMENSION, 0),
        attributes=(),
        weights=None,
        temperature=1.0,
        skew_weight=1.0,
        calibrated=False,
        gate="none",
        normalise=False,
        domain=f"what somebody preferred in {pairs} pairs",
        backbone=None,
    )


def _card(task: _Task, fitted: FittedHead, reference: BackboneReference) -> str:
    penalties = ", ".join(f"{name} {value:.3g}" for name, value in fitted.penalties.items())
    return (
        f"# {task.body.name}\n\nA {fitted.spec.kind} head on the frozen backbone {reference.source}, fitted by a "
        f"server to {len(task.learned)} pairs (penalties: {penalties}). "
        f"`paragone serve --model {task.body.name}=FOLDER` loads it.\n"
    )


async def _preferred(
    hosted: HostedModel, pairs: Sequence[tuple[int, HeadPair]], call: Call, usage: Usage
) -> NDArray[np.float64]:
    """Return 1 where the first of a pair is preferred, −1 where the second is, 0 where neither is. [P]."""
    items = [RequestItem(index, pair.prompt, None, [pair.first, pair.second]) for index, pair in pairs]
    represented = await hosted.represent(items, call)
    usage.forward_responses += represented.usage.forward_responses
    usage.forward_tokens += represented.usage.forward_tokens
    usage.cached_responses += represented.usage.cached_responses
    usage.truncated += represented.usage.truncated
    logits = hosted.model.comparator.logit(represented.vectors[0::2], represented.vectors[1::2])
    return np.sign(logits)


def _refused(message: str, *, retry_after_s: int | None = None) -> ServiceError:
    return ServiceError(ErrorCode.MODEL_REFUSED, message, retry_after_s=retry_after_s)
