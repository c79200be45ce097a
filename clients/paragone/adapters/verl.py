"""verl: a reward manager, which sees prompts and groups, and a ``compute_score``, which sees neither.

In the file that ``reward.reward_manager.module.path`` names (with ``source=importlib`` and ``name=RewardManager``):

    from paragone import AsyncClient
    from paragone.adapters import verl

    class RewardManager(verl.RewardManager):
        client = AsyncClient("http://oracle:8000")

verl has no word for a sample without a score: every failure is an exception, which ends the step. (Its manager
``rate_limited`` would make 0.0 of it: do not put a ``compute_score`` of here under that one.)
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Literal, overload

from paragone.adapters.groups import bound, host_turns, scalar_rewards
from paragone.adapters.signals import GroupSignal
from paragone.async_client import AsyncClient
from paragone.client import Client
from paragone.codes import ErrorCode
from paragone.exceptions import ParagoneError, checked
from paragone.wire import Shaping, Signal

__all__ = ["RewardManager", "compute_score"]

Alone = Literal["reward", "against_ground_truth"]
Scores = dict[str, float]

_VALIDATING = frozenset({"val", "valid", "validation", "test", "dev", "eval"})
_KNOWN_GROUPS = 100_000


class _Slots:
    """Numbers the samples of each group in the order in which they come, for all managers of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def next(self, group: str, size: int) -> tuple[int, int]:
        """Return attempt and slot. A group that comes again after it was whole is a new attempt."""
        with self._lock:
            count = self._counts.pop(group, 0)
            self._counts[group] = count + 1
            if len(self._counts) > _KNOWN_GROUPS:
                self._counts.popitem(last=False)
        return divmod(count, size)


_SLOTS = _Slots()


class RewardManager:
    """A reward manager whose score is a signal of the rollouts of one prompt, from cohorts.

    A subclass sets the attributes. verl gives the samples of a group to any of its reward workers, and only one worker
    can number them: set ``reward.num_workers=1``. It waits for answers and computes nothing.

    Attributes:
        client: whom to ask.
        model: id of a hosted model; the client's if None.
        signal: ``win_rate``, the mean win probability within the group, in [0, 1]; another signal of a group
            (``docs/cohorts.md``), where ``anchor`` is the ground truth; or ``reward``, the scalar reward.
        shaping: what the signal gains or loses by length and style within its group.
        alone: the score of a sample that has no group, as in validation: ``reward``, the scalar reward; or
            ``against_ground_truth``, the probability in [0, 1] that it is preferred to the ground truth.
        reference_set: name of a stored set (``Client.add_references``): if given, a sample that has no group scores the
            probability in [0, 1] that it is preferred to the set's responses to its prompt, whatever ``alone`` says.
        deadline_s: how long a group waits for its last sample. [seconds]

    Raises:
        ValueError: if a group's signal is asked for with several reward workers.
    """

    client: AsyncClient
    model: str | None = None
    signal: Signal = "win_rate"
    shaping: Shaping | None = None
    alone: Alone = "reward"
    reference_set: str | None = None
    deadline_s: float = 1800.0

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,  # noqa: ARG002 (verl's signature; the service scores)
        **kwargs: Any,  # noqa: ARG002 (reward_router_address, reward_model_tokenizer)
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._size = int(config.actor_rollout_ref.rollout.n)
        self._signal = GroupSignal(self.signal, self.shaping)
        workers = getattr(getattr(config, "reward", None), "num_workers", None)
        if self._signal.needs_rivals and self._size > 1 and workers not in (None, 1):
            raise ValueError(
                f"reward.num_workers is {workers}, and a group's samples go to any of them, where nobody can number "
                "them: set reward.num_workers=1, or signal='reward'"
            )

    def validating(self, data: Any, extra_info: Any) -> bool:
        """Return whether a sample belongs to validation, where it has no group.

        verl tells a manager so in ``meta_info`` alone, which it leaves away where it scores during the rollout; so the
        field ``split`` that data sets for verl keep in ``extra_info`` is read too. Override it for other data.
        """
        told = getattr(data, "meta_info", None) or {}
        split = extra_info.get("split") if isinstance(extra_info, dict) else None
        return bool(told.get("validate")) or (isinstance(split, str) and split.lower() in _VALIDATING)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the score of a sample, in verl's shape.

        Raises:
            KeyError: if the sample has no ``raw_prompt``, or none of its group's ``uid``.
            ParagoneError: if there is no answer.
        """
        item = data[-1:][0]  # the last of several outputs of one trajectory holds its response
        fields = item.non_tensor_batch
        prompt = host_turns(list(_field(fields, "raw_prompt", "set data.return_raw_chat=True")), role="user")
        response = await asyncio.to_thread(self.tokenizer.decode, _response_ids(item.batch), skip_special_tokens=True)
        sample = (prompt, response, (fields.get("reward_model") or {}).get("ground_truth"))
        if self._signal.is_scalar:
            told = await _scored(self.client, "reward", self.model, sample)
        elif not self._signal.needs_rivals:
            told = await _scored(self.client, "against_ground_truth", self.model, sample)
        elif self._size == 1 or self.validating(data, fields.get("extra_info")):
            told = await self._alone(sample)
        else:
            group = str(_field(fields, "uid", "the trainer names a group's samples by it: use verl 0.7 or newer"))
            told = await self._compared(group, sample)
        return {"reward_score": told["score"], "reward_extra_info": told}

    async def _alone(self, sample: tuple[Any, str, Any]) -> Scores:
        if self.reference_set is None:
            return await _scored(self.client, self.alone, self.model, sample)
        references = {"set": self.reference_set}
        row = await self.client.tournament(sample[0], [sample[1]], references=references, model=self.model)
        return {"score": GroupSignal().all_values(row)[0]}

    async def _compared(self, group: str, sample: tuple[Any, str, Any]) -> Scores:
        prompt, response, truth = sample
        attempt, slot = _SLOTS.next(group, self._size)
        try:
            answer = await self.client.cohort(
                prompt,
                response,
                group=group,
                slot=slot,
                size=self._size,
                attempt=attempt,
                references=[_truth(truth)] if self.signal == "anchor" else None,
                deadline_s=self.deadline_s,
                model=self.model,
                **self._signal.options(),
            )
        except ParagoneError as error:
            if error.code == ErrorCode.COHORT_INCOMPLETE:
                error.add_note("if these were samples of validation: let their extra_info['split'] say so")
            raise
        score = self._signal.of_member(answer)
        if score is None or answer.rank is None:
            raise ParagoneError(f"no other sample of group {group!r} could be scored: there is no {self.signal}")
        return {"score": score, "rank": float(answer.rank)}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Any:
        """Return verl's tensor of rewards, [B, T]: each score at the last token of its response."""
        responses = data.batch["responses"]
        lengths = data.batch["attention_mask"][:, -responses.shape[1] :].sum(dim=1)
        placed = responses * 0.0  # floats of the same shape and device, without importing torch
        for row, score in enumerate(scores):
            placed[row, int(lengths[row]) - 1] = score
        return placed


@overload
def compute_score(
    client: AsyncClient, *, signal: Alone = ..., prompt_field: str = ..., model: str | None = ...
) -> Callable[..., Coroutine[Any, Any, Scores]]: ...


@overload
def compute_score(
    client: Client, *, signal: Alone = ..., prompt_field: str = ..., model: str | None = ...
) -> Callable[..., Scores]: ...


def compute_score(
    client: AsyncClient | Client,
    *,
    signal: Alone = "reward",
    prompt_field: str = "prompt",
    model: str | None = None,
) -> Callable[..., Any]:
    """Return a function for ``reward.custom_reward_function``: a coroutine function, or for a ``Client`` a plain one.

    verl asks it for one sample at a time and does not say what was asked, so the data set has to keep the prompt in
    ``extra_info``. A failure is an exception.

    Args:
        signal: ``reward``, the model's scalar reward; or ``against_ground_truth``, the probability in [0, 1] that the
            solution is preferred to the ground truth, which any kind of model can answer.
        prompt_field: the field of ``extra_info`` that holds the prompt, a text or a list of messages.
        model: id of a hosted model; the client's if None.

    Returns:
        ``compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)``, which gives ``{"score": …}``
        and raises ``KeyError`` if ``extra_info`` has no prompt, and ``ParagoneError`` if there is no answer.
    """
    function = _score if isinstance(client, AsyncClient) else _score_waiting
    return bound(function, client, signal, prompt_field, model, name="score")


async def _score(
    client: AsyncClient,
    signal: Alone,
    prompt_field: str,
    model: str | None,
    /,  # whatever else verl passes by name
    data_source: str,  # noqa: ARG001 (verl's signature)
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> Scores:
    prompt = _prompt(extra_info, prompt_field)
    return await _scored(client, signal, model, (prompt, solution_str, ground_truth))


def _score_waiting(
    client: Client,
    signal: Alone,
    prompt_field: str,
    model: str | None,
    /,
    data_source: str,  # noqa: ARG001 (verl's signature)
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> Scores:
    prompt = _prompt(extra_info, prompt_field)
    if signal == "reward":
        return {"score": scalar_rewards(client.rewards([(prompt, solution_str)], model=model))[0]}
    return _preferred(client.preferences([(prompt, solution_str, _truth(ground_truth))], model=model))


async def _scored(client: AsyncClient, signal: Alone, model: str | None, sample: tuple[Any, str, Any]) -> Scores:
    """Return the score of a sample that is compared with no rollout.

    Args:
        sample: prompt, response and ground truth.
    """
    prompt, response, truth = sample
    if signal == "reward":
        return {"score": scalar_rewards(await client.rewards([(prompt, response)], model=model))[0]}
    return _preferred(await client.preferences([(prompt, response, _truth(truth))], model=model))


def _preferred(answer: Any) -> Scores:
    (preference,) = checked(answer.preferences)
    return {"score": preference.probability, "logit": preference.logit}


def _truth(ground_truth: Any) -> Any:
    if not ground_truth:
        raise ValueError("the sample has no ground truth to compare with: use the signal 'reward'")
    return host_turns(ground_truth, role="assistant")


def _prompt(extra_info: dict[str, Any] | None, prompt_field: str) -> Any:
    if not extra_info or prompt_field not in extra_info:
        raise KeyError(f"extra_info has no {prompt_field!r}: let the data set keep the prompt there")
    return host_turns(extra_info[prompt_field], role="user")


def _field(fields: Any, name: str, remedy: str) -> Any:
    if name not in fields:
        raise KeyError(f"the sample has no {name!r}: {remedy}")
    return fields[name]


def _response_ids(batch: Any) -> Any:
    """Return the tokens of the response, [T], without the padding behind them."""
    responses = batch["responses"]
    return responses[: int(batch["attention_mask"][-responses.shape[-1] :].sum())]
