"""The steps of a response, for process reward models: where they end in a text, and where they are read."""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from paragone_models.errors import TextError

__all__ = ["MOST_STEPS", "STEP_END", "step_reads", "stepped"]

MOST_STEPS = 1000
"""Steps of one response."""

STEP_END = f"[step {secrets.token_hex(8)}]"
"""Stands for the end of a step until a text is tokenised. Nobody can write it, since it is another in each process: the
separator itself, in a message, is text."""

_BETWEEN = re.compile(r"\n\s*\n")


def stepped(
    response: Sequence[Mapping[str, Any]], steps: Sequence[str] | None
) -> tuple[tuple[dict[str, Any], ...], int]:
    """Return a response with the mark of an end behind each step, and how many there are.

    Args:
        response: one text by the assistant.
        steps: its steps; None: it is taken apart at empty lines.

    Raises:
        TextError: ``unsupported_content`` for anything but one text, and for too many steps.
    """
    if len(response) != 1 or response[0]["role"] != "assistant" or "tool_calls" in response[0]:
        raise TextError("unsupported_content", "steps are those of one text by the assistant, and of nothing else")
    (message,) = response
    if steps is None:
        steps = [step for step in _BETWEEN.split(message["content"].strip()) if step] or [""]
    if not 1 <= len(steps) <= MOST_STEPS:
        raise TextError(
            "unsupported_content", f"the response has {len(steps)} steps; from 1 to {MOST_STEPS} are scored"
        )
    return ({**message, "content": "".join(step + STEP_END for step in steps)},), len(steps)


def step_reads(
    token_ids: Sequence[int], step_token: int, name: str, *, expected: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Return where the steps of a sequence end, which is where a process model reads.

    Args:
        name: of the token, for errors.
        expected: how many there are; None for any number but none.

    Raises:
        TextError: ``unsupported_content`` if there are others, or none.
    """
    reads = tuple((place, place + 1) for place, token in enumerate(token_ids) if token == step_token)
    if expected is None and not reads:
        raise TextError("unsupported_content", f"the text has no {name!r}, which stands behind each step")
    if expected is not None and len(reads) != expected:
        raise TextError(
            "unsupported_content",
            f"the response has {expected} steps, and the text {len(reads)} times {name!r}: the chat template writes "
            "the response in a way of its own, or another message holds that token",
        )
    return reads
