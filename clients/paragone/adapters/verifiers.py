"""verifiers and prime-rl: the score of a ``Judge`` plugin, and the win rates of an environment's sibling traces.

    class ParagoneJudge(vf.Judge[float, ParagoneJudgeConfig]):
        async def score(self, task, trace):
            return await verifiers.score(oracle, task, trace)

    class WinRateEnv(BestOfNEnv):
        async def finalize(self, task, episode):
            await verifiers.record_win_rates(oracle, task, episode.traces)

A judge that fails is an exception, which fails the rollout (the host may try it again); a trace that cannot be scored
is marked as failed. Neither is a reward of 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from paragone.adapters.groups import host_turns
from paragone.adapters.single import Judged, judged_async
from paragone.async_client import AsyncClient
from paragone.exceptions import exception_for
from paragone.wire import ItemError, Shaping, Signal

__all__ = ["record_win_rates", "score"]


class _Trace(Protocol):
    """What is read and recorded of a trace."""

    @property
    def last_reply(self) -> str: ...

    @property
    def has_error(self) -> bool: ...

    def record_reward(self, name: str, value: float, weight: float = 1.0) -> None: ...

    def record_error(self, error: Exception) -> None: ...


def _last_reply(trace: _Trace) -> Any:
    return trace.last_reply


async def score(
    client: AsyncClient,
    task: Any,
    trace: _Trace,
    *,
    signal: Judged = "reward",
    reference_field: str = "answer",
    response_of: Callable[[Any], Any] = _last_reply,
    model: str | None = None,
) -> float:
    """Return the reward of one trace, for a judge's ``score``.

    Args:
        task: the task or its data: its system prompt and its prompt are what was asked.
        signal: ``reward``, the model's scalar reward; or ``against_reference``, the probability in [0, 1] that the
            reply is preferred to the task's reference, which any kind of model can answer.
        reference_field: the field of the task's data that holds the reference.
        response_of: finds what is judged of a trace: a text, or messages; the last reply by default.
        model: id of a hosted model; the client's if None.

    Raises:
        ParagoneError: if there is no answer.
        ValueError: if the task has no prompt, or not the reference.
    """
    data = getattr(task, "data", task)
    references = None
    if signal == "against_reference":
        reference = getattr(data, reference_field, None)
        if not isinstance(reference, str):
            raise ValueError(f"the task has no text in {reference_field!r} to compare with: set reference_field")
        references = [reference]
    items = [(_asked(data), host_turns(response_of(trace), role="assistant"))]
    return (await judged_async(client, items, references, model=model))[0]


async def record_win_rates(
    client: AsyncClient,
    task: Any,
    traces: Sequence[_Trace],
    *,
    name: str = "win_rate",
    weight: float = 1.0,
    signal: Signal = "win_rate",
    shaping: Shaping | Mapping[str, float] | None = None,
    references: Sequence[Any] | None = None,
    response_of: Callable[[Any], Any] = _last_reply,
    model: str | None = None,
) -> None:
    """Compare the traces of one episode with each other, and record each one's signal as a reward.

    Traces that failed already are no members of the group. One that cannot be scored, or that has no other to be
    compared with, is marked as failed (``record_error``): the host then trains on no number of it.

    Args:
        task: the task or its data: its system prompt and its prompt are what was asked.
        traces: the siblings; at least two that have not failed, unless the signal needs no group.
        name: of the reward, in the host's records.
        weight: of the reward, as the host takes it.
        signal: which number of a group; ``anchor`` needs references.
        shaping: what the signal gains or loses by length and style.
        references: other responses to the prompt.
        response_of: finds what is judged of a trace: a text, or messages; the last reply by default.
        model: id of a hosted model; the client's if None.

    Raises:
        ParagoneError: if the service does not answer, or refuses the group.
        ValueError: if the task has no prompt.
    """
    members = [trace for trace in traces if not trace.has_error]
    if not members:
        return
    group: dict[str, Any] = {
        "prompt": _asked(getattr(task, "data", task)),
        "responses": [host_turns(response_of(trace), role="assistant") for trace in members],
    }
    if references is not None:
        group["references"] = [host_turns(reference, role="assistant") for reference in references]
    answer = await client.tournaments([group], model=model, signal=signal, shaping=shaping, on_error="report")
    (row,) = answer.tournaments
    if isinstance(row, ItemError):
        # Of the whole group, so of each of its members.
        for trace in members:
            trace.record_error(exception_for(row.error))
        return
    errors = {error.response: exception_for(error) for error in row.errors or ()}
    alone = ValueError("no other trace of the episode could be scored: there is nothing to compare this one with")
    for place, (trace, value) in enumerate(zip(members, row.signal or [None] * len(members), strict=True)):
        if value is None:
            trace.record_error(errors.get(place, alone))
        else:
            trace.record_reward(name, value, weight)


def _asked(data: Any) -> Any:
    """Return what was asked, as messages: a system prompt, and the prompt as a text or messages."""
    prompt, system = data.prompt, getattr(data, "system_prompt", None)
    if not prompt:
        raise ValueError("the task has no prompt: its conversation is opened by the user, and nothing says what it was")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_plain(turn) for turn in prompt]
    first = [{"role": "system", "content": system}] if system else []
    return host_turns([*first, *turns], role="user")


def _plain(turn: Any) -> dict[str, Any]:
    """Return a message of the host, a pydantic object or a dict, with the fields that the wire knows."""
    fields = turn if isinstance(turn, Mapping) else turn.model_dump(mode="json", exclude_none=True)
    known = ("role", "content", "name", "tool_call_id", "reasoning_content")
    message = {field: fields[field] for field in known if fields.get(field) is not None}
    if fields.get("tool_calls"):
        # The host keeps a call's name and arguments beside its id, where OpenAI has an object for them.
        message["tool_calls"] = [
            call
            if "function" in call
            else {"id": call["id"], "type": "function", "function": {n: call[n] for n in ("name", "arguments")}}
            for call in fields["tool_calls"]
        ]
    return message
