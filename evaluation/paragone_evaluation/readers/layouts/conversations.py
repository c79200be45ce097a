"""What the prompt and the responses of a pair of conversations are."""

from typing import Any

from paragone_evaluation.readers.layouts.fields import as_prompt, messages_of, prompt_of
from paragone_evaluation.readers.rows import BadRowError, Content, Fields


def chosen_rejected_prompt(row: Fields) -> Content:
    """Return what both conversations begin with; ``prompt`` where they are texts or the answers alone."""
    sides = row.get("chosen"), row.get("rejected")
    if not any(isinstance(side, list) for side in sides):
        return prompt_of(row)
    shared, other = (_conversation(side, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True))
    if shared != other:
        raise BadRowError("chosen and rejected must share every message but the last: the shared ones are the prompt")
    before = messages_of(row.get("prompt"), "prompt") or []
    # Mostly the conversations repeat the prompt, and reading it twice would be wrong. Sometimes they go on from it.
    if not all(message in shared for message in before):
        shared = [*before, *shared]
    return as_prompt(shared) if shared else prompt_of(row)


def _conversation(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the messages before the last one, which must be the assistant's."""
    messages = messages_of(value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, as the other one is, or a list of messages")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(f"field {name!r} must end with the assistant's message, not {messages[-1]['role']!r}")
    return messages[:-1]
