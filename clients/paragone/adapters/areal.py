"""AReaL: a ``reward_fn`` for its workflows, to be called from a function at the level of a module.

    score = areal.reward_fn(Client("http://oracle:8000", timeout_s=12))

    def reward(prompt, completions, prompt_ids, completion_ids, **columns):
        return score(prompt, completions, prompt_ids, completion_ids, **columns)

AReaL runs it in worker processes, and sends it there with each call: a function of a module goes by its name, so the
workers keep their client. It calls for one response at a time and names no groups.

A failure is an exception, which AReaL tries again and then raises. A call of more than 15 seconds it makes a reward of
0 in the end: so the client must give up before that.
"""

from collections.abc import Callable, Sequence
from typing import Any

from paragone.adapters.groups import bound, host_turns
from paragone.adapters.single import ENDS, Judged, judged, without_ends
from paragone.client import Client

__all__ = ["reward_fn"]

_HOST_LIMIT_S = 15.0


def reward_fn(
    client: Client,
    *,
    signal: Judged = "reward",
    prompt_field: str = "messages",
    reference_field: str = "answer",
    model: str | None = None,
    ends: Sequence[str] = ENDS,
) -> Callable[..., float]:
    """Return AReaL's reward function.

    Args:
        client: whose ``timeout_s`` is below 15.
        signal: ``reward``, the model's scalar reward; or ``against_reference``, the probability in [0, 1] that the
            completion is preferred to the row's reference, which any kind of model can answer.
        prompt_field: the column that holds what was asked, a text or messages. (The prompt that AReaL hands over is the
            policy's templated text.)
        reference_field: the column that holds the reference.
        model: id of a hosted model; the client's if None.
        ends: texts that are cut from the end of a completion, which AReaL decodes with its special tokens.

    Returns:
        ``reward(prompt, completions, prompt_ids, completion_ids, **columns)``. It raises ``ParagoneError`` if there is
        no answer, and ``KeyError`` for a column that the row does not have.

    Raises:
        ValueError: if the client may take 15 seconds.
    """
    if client.timeout_s >= _HOST_LIMIT_S:
        raise ValueError(
            f"the client gives up after {client.timeout_s:g} s, and AReaL makes a reward of 0 of what takes "
            f"{_HOST_LIMIT_S:g} s: make it with timeout_s=12"
        )
    return bound(_reward, client, signal, (prompt_field, reference_field), model, tuple(ends), name="reward")


def _reward(
    client: Client,
    signal: Judged,
    fields: tuple[str, str],
    model: str | None,
    ends: tuple[str, ...],
    /,
    prompt: str,  # noqa: ARG001 (AReaL's signature)
    completions: str,
    prompt_ids: Sequence[int],  # noqa: ARG001
    completion_ids: Sequence[int],  # noqa: ARG001
    **columns: Any,
) -> float:
    wanted = fields if signal == "against_reference" else fields[:1]
    for field in wanted:
        if columns.get(field) is None:
            raise KeyError(f"the row has no column {field!r}: set prompt_field and reference_field")
    items = [(host_turns(columns[fields[0]], role="user"), without_ends(completions, ends))]
    references = [host_turns(columns[fields[1]], role="assistant")] if len(wanted) == 2 else None
    return judged(client, items, references, model=model)[0]
