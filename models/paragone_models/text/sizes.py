"""How long conversations are, before anything reads them, and which are not read at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paragone_models.errors import TextError
from paragone_models.text.messages import MESSAGE_CHARACTERS, characters, written
from paragone_models.text.pairs import PairText
from paragone_models.text.rendered import Rendered
from paragone_models.text.template import Message, most_characters

if TYPE_CHECKING:
    from paragone_models.text.reader import Readable

__all__ = ["check_size", "sizes"]


def sizes(conversations: Sequence["Readable"]) -> list[tuple[int, int]]:
    """Return how many characters each response has, and its whole conversation, tools included.

    A prompt and tools that several share, as the same objects in a row, are counted once and not for each. Of a
    rendered text nobody knows what is response.
    """
    found: list[tuple[int, int]] = []
    prompt: Sequence[Message] | None = None
    tools: Sequence[Message] | None = None
    before = schemas = 0
    for one in conversations:
        if isinstance(one, Rendered | PairText):
            found.append((0, one.characters))
            continue
        if one.prompt is not prompt:
            prompt, before = one.prompt, characters(one.prompt)
        if one.tools is not tools:
            tools, schemas = one.tools, written(one.tools) if one.tools else 0
        response = characters(one.response)
        found.append((response, before + schemas + response))
    return found


def check_size(response: int, whole: int, max_length: int) -> None:
    """Refuse a conversation that is many times too long to be read.

    Args:
        response: characters of the response.
        whole: characters of all of it.
        max_length: tokens that the model reads.

    Raises:
        TextError: ``response_too_long`` or ``conversation_truncated``.
    """
    most = most_characters(max_length)
    if response > most:
        raise TextError("response_too_long", _oversize("response", response, most, max_length))
    if whole > most:
        raise TextError("conversation_truncated", _oversize("conversation", whole, most, max_length))


def _oversize(part: str, length: int, most: int, max_length: int) -> str:
    return (
        f"the {part} has {length} characters (each message counts for {MESSAGE_CHARACTERS} more); more than "
        f"{most} are not read, for the limit is {max_length} tokens: shorten it"
    )
