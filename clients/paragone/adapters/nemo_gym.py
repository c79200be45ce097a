"""NeMo Gym: what a resources server needs to score rollouts, with cohorts in place of state of its own.

``examples/nemo_gym`` is that server: a folder for ``resources_servers/``. One ``/verify`` request is one rollout. Its
group's fields are Gym's: ``_ng_group_id``, ``_ng_group_attempt`` and ``_ng_rollout_index``.
"""

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from paragone.adapters.groups import scalar_rewards
from paragone.adapters.signals import GroupSignal
from paragone.async_client import AsyncClient
from paragone.codes import ErrorCode
from paragone.exceptions import ParagoneError, checked
from paragone.wire import OnMissing, Shaping, Signal, canonical_json

__all__ = ["Scorer", "answer_text", "cohort_status", "conversation"]

Score = Signal | Literal["baseline"]

_KNOWN_SLOTS = 100_000
_STATUS: dict[str, int] = {
    ErrorCode.COHORT_CONFLICT: 409,
    ErrorCode.COHORT_SUPERSEDED: 409,
    ErrorCode.COHORT_INCOMPLETE: 503,
    ErrorCode.COHORT_LOST: 503,
}


def conversation(request_input: Any) -> Any:
    """Return the ``input`` of a Responses request as a prompt: a text, or its messages with their texts."""
    if isinstance(request_input, str):
        return request_input
    turns = [turn for turn in request_input if turn.get("type", "message") == "message"]
    return [{"role": turn["role"], "content": _text(turn["content"], "input_text", "output_text")} for turn in turns]


def answer_text(response: Mapping[str, Any]) -> str:
    """Return the text of a Responses object, without its reasoning: all that Gym's own judges are shown."""
    messages = [item for item in response["output"] if item.get("type") == "message"]
    return "".join(_text(item["content"], "output_text") for item in messages)


def cohort_status(error: ParagoneError) -> int | None:
    """Return the HTTP status that Gym's cohorts have for a failure of the group; None if it is none of the group's."""
    return _STATUS.get(error.code or "")


@dataclass
class Scorer:
    """Scores rollouts.

    Attributes:
        score: ``win_rate``, the mean win probability within the group, in [0, 1]; another signal of a group
            (``docs/cohorts.md``); ``baseline``, the probability in [0, 1] that the answer is preferred to
            ``metadata["baseline_response"]`` of the request; or ``reward``, the scalar reward.
        shaping: what a group's signal gains or loses by length and style. Reasoning is not sent, so it cannot count.
        size: rollouts of a group.
        deadline_s: how long a group waits for its last rollout. [seconds]
        on_missing: whether a group that is not whole by then fails, or those that came are scored.
        model: id of a hosted model; the client's if None.
    """

    client: AsyncClient
    score: Score = "win_rate"
    shaping: Shaping | None = None
    size: int = 1
    deadline_s: float = 1800.0
    on_missing: OnMissing = "fail"
    model: str | None = None
    _signal: GroupSignal | None = field(default=None, init=False)
    _run: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _seen: OrderedDict[tuple[str, int], tuple[int, str]] = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        if self.score == "anchor":
            raise ValueError("score 'anchor' has no references here: use 'baseline'")
        self._signal = None if self.score == "baseline" else GroupSignal(self.score, self.shaping)
        if self.shaping is not None and (self.shaping.reasoning_bonus or self.shaping.reasoning_length_penalty):
            raise ValueError("reasoning is not sent to the service, so shaping cannot count it: leave reasoning_… away")
        if self.shaping is not None and self._signal is None:
            raise ValueError("shaping changes a group's signal, and score 'baseline' is none")
        if self._signal is not None and self._signal.needs_rivals and self.size < 2:
            raise ValueError(
                f"a group of {self.size} has no {self.score}: set num_rollouts_per_prompt to the rollouts of a prompt, "
                "or score to 'baseline' or 'reward'"
            )

    async def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``reward`` of a rollout, and in a group ``paragone_rank`` (1 is best) and ``paragone_present``.

        Args:
            row: the body of ``/verify``.

        Raises:
            ValueError: if the rollout lacks its place in the group, or its baseline.
            ParagoneError: if there is no answer; ``cohort_status`` tells failures of the group.
        """
        create = row["responses_create_params"]
        prompt, answer = conversation(create["input"]), answer_text(row["response"])
        if self._signal is not None and self._signal.is_scalar:
            rewards = await self.client.rewards([(prompt, answer)], model=self.model)
            return {"reward": scalar_rewards(rewards)[0]}
        if self._signal is not None:
            return await self._compared(self._signal, row, prompt, answer)
        baseline = (create.get("metadata") or {}).get("baseline_response")
        if not isinstance(baseline, str):
            raise ValueError("responses_create_params.metadata has no text 'baseline_response' to compare with")
        preferences = await self.client.preferences([(prompt, answer, baseline)], model=self.model)
        return {"reward": checked(preferences.preferences)[0].probability}

    async def _compared(self, signal: GroupSignal, row: Mapping[str, Any], prompt: Any, answer: str) -> dict[str, Any]:
        slot = row.get("_ng_rollout_index")
        if not isinstance(slot, int) or not 0 <= slot < self.size:
            raise ValueError(
                f"_ng_rollout_index is {slot}: a rollout of a group of {self.size} has 0 … {self.size - 1}"
            )
        group, attempt = row.get("_ng_group_id"), row.get("_ng_group_attempt") or 0
        if group is None:
            group, attempt = self._own_group(row, slot, answer)
        told = await self.client.cohort(
            prompt,
            answer,
            group=group,
            slot=slot,
            size=self.size,
            attempt=attempt,
            deadline_s=self.deadline_s,
            on_missing=self.on_missing,
            model=self.model,
            **signal.options(),
        )
        reward = signal.of_member(told)
        if reward is None:
            raise ParagoneError(f"no other rollout of the group could be scored: there is no {signal.name}")
        return {"reward": reward, "paragone_rank": told.rank, "paragone_present": told.present}

    def _own_group(self, row: Mapping[str, Any], slot: int, answer: str) -> tuple[str, int]:
        """Return group and attempt of a rollout whose caller names none: its task in this process's run.

        The task may come again: another answer in a slot begins the next attempt.
        """
        task = [row.get("_ng_task_index"), row["responses_create_params"]["input"]]
        group = f"{self._run}/{hashlib.sha256(canonical_json(task)).hexdigest()}"
        attempt, last = self._seen.pop((group, slot), (-1, ""))
        digest = hashlib.sha256(answer.encode()).hexdigest()
        attempt += digest != last
        self._seen[group, slot] = (attempt, digest)
        if len(self._seen) > _KNOWN_SLOTS:
            self._seen.popitem(last=False)
        return group, attempt


def _text(content: Any, *kinds: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type") in kinds)
