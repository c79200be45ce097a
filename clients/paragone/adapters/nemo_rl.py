"""NeMo-RL: the rewards of a batch of message logs, for the ``step`` of an environment.

    class PreferenceEnvironment(EnvironmentInterface):
        def step(self, message_log_batch, metadata):
            values = nemo_rl.rewards(oracle, message_log_batch, num_generations=16)

A failure is an exception: a reward there is a number of a tensor, and nothing else says that there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paragone.adapters.groups import host_turns
from paragone.adapters.signals import GroupSignal
from paragone.adapters.single import judged
from paragone.client import Client
from paragone.exceptions import checked
from paragone.wire import Shaping, Signal

__all__ = ["rewards", "split"]


def split(message_log: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a message log as what was asked and what the policy said last, with the fields that the wire knows.

    Raises:
        ValueError: if the log does not end with a turn of the assistant.
    """
    turns = [{name: turn[name] for name in ("role", "content") if name in turn} for turn in message_log]
    if len(turns) < 2 or turns[-1].get("role") != "assistant":
        raise ValueError("a message log must end with a turn of the assistant, after what was asked")
    return turns[:-1], turns[-1:]


def rewards(
    client: Client,
    message_logs: Sequence[Sequence[Mapping[str, Any]]],
    *,
    num_generations: int | None = None,
    signal: Signal = "win_rate",
    shaping: Shaping | Mapping[str, float] | None = None,
    references: Sequence[Any] | None = None,
    model: str | None = None,
) -> list[float]:
    """Return one reward per message log.

    Args:
        message_logs: of a batch, as NeMo-RL's ``step`` gets them. In a batch that is generated at once, those of one
            prompt follow each other; with asynchronous rollouts a step has one of them, and no group.
        num_generations: how many logs each prompt has (``grpo.num_generations_per_prompt``); None: no groups, and the
            reward is the scalar, or the probability against the references.
        signal: which number of a group.
        shaping: what the signal gains or loses by length and style.
        references: another response for each log, without groups.
        model: id of a hosted model; the client's if None.

    Raises:
        ParagoneError: if one has no answer.
        ValueError: if the logs are not whole groups of one prompt each, or do not end with the assistant.
    """
    asked = [split(message_log) for message_log in message_logs]
    if num_generations is None:
        others = None if references is None else [host_turns(one, role="assistant") for one in references]
        return judged(client, asked, others, model=model)
    if num_generations < 2 or len(asked) % num_generations:
        raise ValueError(
            f"{len(asked)} message logs are not whole groups of {num_generations}: with asynchronous rollouts leave "
            "num_generations out, and use the scalar reward or references"
        )
    groups = []
    for start in range(0, len(asked), num_generations):
        members = asked[start : start + num_generations]
        if any(prompt != members[0][0] for prompt, _ in members):
            raise ValueError(f"message logs {start} and on are not of one prompt: is num_generations the trainer's?")
        groups.append((members[0][0], [response for _, response in members]))
    answer = client.tournaments(groups, model=model, signal=signal, shaping=shaping)
    return [value for row in checked(answer.tournaments) for value in GroupSignal(signal, shaping).all_values(row)]
