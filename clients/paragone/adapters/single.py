"""What the adapters share that are asked for one response at a time: its scalar reward, or its chance against another.

A host that names no group cannot have a win rate within one.
"""

from collections.abc import Sequence
from typing import Any, Literal

from paragone.adapters.groups import scalar_rewards
from paragone.async_client import AsyncClient
from paragone.client import Client
from paragone.exceptions import checked

__all__ = ["ENDS", "Judged", "judged", "judged_async", "without_ends"]

Judged = Literal["reward", "against_reference"]

ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")
"""Ends of a turn that are no part of a response."""


def judged(
    client: Client, items: Sequence[tuple[Any, Any]], references: Sequence[Any] | None, *, model: str | None
) -> list[float]:
    """Return each response's scalar reward, or the probability in [0, 1] that it is preferred to its reference.

    Args:
        items: prompts and responses.
        references: one for each, None for scalar rewards.

    Raises:
        ParagoneError: if one has no answer; ``UnsupportedError`` if the model's kind has no scalar.
    """
    if references is None:
        return scalar_rewards(client.rewards(items, model=model))
    answer = client.preferences(_pairs(items, references), model=model)
    return [row.probability for row in checked(answer.preferences)]


async def judged_async(
    client: AsyncClient, items: Sequence[tuple[Any, Any]], references: Sequence[Any] | None, *, model: str | None
) -> list[float]:
    """Return what ``judged`` returns; it raises the same."""
    if references is None:
        return scalar_rewards(await client.rewards(items, model=model))
    answer = await client.preferences(_pairs(items, references), model=model)
    return [row.probability for row in checked(answer.preferences)]


def _pairs(items: Sequence[tuple[Any, Any]], references: Sequence[Any]) -> list[Any]:
    return [(prompt, response, reference) for (prompt, response), reference in zip(items, references, strict=True)]


def without_ends(response: str, ends: Sequence[str]) -> str:
    """Return a response without the ends of turns, and the space before them, that a policy's decoder leaves."""
    shorter = response.rstrip()
    while shorter.endswith(tuple(ends)):
        response = shorter.removesuffix(next(end for end in ends if shorter.endswith(end)))
        shorter = response.rstrip()
    return response
