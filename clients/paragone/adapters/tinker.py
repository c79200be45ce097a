"""tinker-cookbook: a ``PreferenceModel`` for its preference environments, and group rewards from one tournament.

    class GroupBuilder(tinker.TournamentRewards, PairwisePreferenceGroupBuilder):
        pass  # and its preference_model is a tinker.PreferenceModel

The host's own builder awaits one comparison after the other, and splits groups so that there are not too many. Here a
group is one request. A failure is an exception: the host has no other word for "no reward".
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from paragone.adapters.signals import GroupSignal
from paragone.async_client import AsyncClient
from paragone.wire import Shaping, Signal, Tournament

__all__ = ["PreferenceModel", "TournamentRewards"]


class _Comparison(Protocol):
    """What is read of tinker-cookbook's ``Comparison``: three lists of messages."""

    prompt_conversation: Sequence[Any]
    completion_A: Sequence[Any]  # noqa: N815 (the host's name)
    completion_B: Sequence[Any]  # noqa: N815


class PreferenceModel:
    """Says how much B is preferred to A: 1 strongly, 0 not at all, -1 when A is strongly preferred.

    Args:
        model: id of a hosted model; the client's if None.
    """

    def __init__(self, client: AsyncClient, *, model: str | None = None) -> None:
        self._client = client
        self._model = model

    async def __call__(self, comparison: _Comparison) -> float:
        """Return ``P(B ≻ A) − P(A ≻ B)``, in [-1, 1].

        Raises:
            ParagoneError: if there is no answer. It is not a tie: a 0 would say that both are equally good.
        """
        probability = await self._client.prefer(
            _messages(comparison.prompt_conversation),
            _messages(comparison.completion_B),
            _messages(comparison.completion_A),
            model=self._model,
        )
        return 2.0 * probability - 1.0

    async def tournament(
        self, prompt: Sequence[Any], responses: Sequence[Any], *, signal: Signal, shaping: Shaping | None
    ) -> Tournament:
        """Return the tournament of one group, with a signal.

        Raises:
            ParagoneError: if there is no answer for every response.
        """
        return await self._client.tournament(
            _messages(prompt), responses, model=self._model, signal=signal, shaping=shaping
        )


class TournamentRewards:
    """What makes a ``PairwisePreferenceGroupBuilder`` ask one tournament for a group: put it before the host's class.

    Attributes:
        signal: which number of a group is the reward; None for the host's own, wins minus losses.
        shaping: what the signal gains or loses by length and style.
    """

    signal: ClassVar[Signal | None] = None
    shaping: ClassVar[Shaping | None] = None

    # What it reads of the host's class.
    convo_prefix: Sequence[Any]
    preference_model: PreferenceModel
    get_response_message: Callable[[Any], tuple[list[Any], bool]]
    _preprocess_message: Callable[[Any], Any]

    async def compute_group_rewards(
        self,
        trajectory_group: Sequence[Any],
        env_group: Sequence[Any],  # noqa: ARG002 (the host's signature)
    ) -> list[tuple[float, dict[str, float]]]:
        """Return the reward and the metrics of each trajectory.

            reward_i = 2 (mean over the others of P(i ≻ j)) − 1 − [the answer has no valid end]

        The first term is what the host computes from all pairs of a whole group; with a ``signal`` it is that.

        Raises:
            ParagoneError: if there is no answer for every trajectory.
            ValueError: if a trajectory is alone: the host would call it a tie.
        """
        if len(trajectory_group) < 2:
            raise ValueError("a trajectory that is alone is compared with nothing: let num_envs be 2 or more")
        replies = [self.get_response_message(trajectory) for trajectory in trajectory_group]
        responses = [_messages([self._preprocess_message(message) for message in messages]) for messages, _ in replies]
        row = await self.preference_model.tournament(
            self.convo_prefix, responses, signal=self.signal or "win_rate", shaping=self.shaping
        )
        values = GroupSignal(self.signal or "win_rate", self.shaping).all_values(row)
        if self.signal is None and self.shaping is None:
            # From the mean over the group, itself counted as ½, to that over the others.
            size = len(values)
            values = [2.0 * (size * value - 0.5) / (size - 1) - 1.0 for value in values]
        name = "win_minus_loss" if self.signal is None else self.signal
        # As the host has it, metrics too: an answer that does not end by itself loses 1.
        return [
            (value + float(valid) - 1.0, {name: value, "format": float(valid)})
            for value, (_, valid) in zip(values, replies, strict=True)
        ]


def _messages(turns: Sequence[Any]) -> list[dict[str, Any]]:
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> dict[str, Any]:
    """Return a message of tinker-cookbook's renderers as the wire takes it.

    Thoughts are put into their own field, and what is there for training only is left out. Parts that are neither text
    nor thoughts stay parts: the service refuses what its model cannot read.
    """
    message = {name: turn[name] for name in ("role", "content", "name", "tool_call_id") if turn.get(name) is not None}
    calls = turn.get("tool_calls")
    if calls:
        message["tool_calls"] = [call if isinstance(call, dict) else call.model_dump(mode="json") for call in calls]
    parts = message.get("content")
    if isinstance(parts, list):
        # Parts of text alone become one text: most chat templates read nothing else.
        thoughts = "".join(part["thinking"] for part in parts if part.get("type") == "thinking")
        rest = [part for part in parts if part.get("type") != "thinking"]
        plain = all(part.get("type") == "text" for part in rest)
        message["content"] = "".join(part["text"] for part in rest) if plain else rest
        if thoughts:
            message["reasoning_content"] = thoughts
    return message
