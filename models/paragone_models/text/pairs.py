"""Two responses to one prompt, for a model that reads both at once; and the letters that it answers with."""

from dataclasses import dataclass
from typing import Any

from paragone_models.errors import ModelLoadError
from paragone_models.text.messages import characters
from paragone_models.text.template import Message, encoded_texts

__all__ = ["PairText", "letter_ids"]

_LETTERS = ["A", "B"]


@dataclass(frozen=True, slots=True)
class PairText:
    """A prompt and two responses, in the order in which the model reads them."""

    prompt: tuple[Message, ...]
    first: tuple[Message, ...]
    second: tuple[Message, ...]

    @property
    def characters(self) -> int:
        """About how long it is, in characters."""
        return characters(self.prompt) + characters(self.first) + characters(self.second)


def letter_ids(tokenizer: Any) -> tuple[int, int]:
    """Return the tokens of the answers A and B.

    Raises:
        ModelLoadError: if one of them is not a single token.
    """
    ids = encoded_texts(tokenizer, _LETTERS)
    if any(len(one) != 1 for one in ids) or ids[0] == ids[1]:
        raise ModelLoadError(f"the tokenizer has no single tokens for A and B, but {ids[0]} and {ids[1]}")
    return ids[0][0], ids[1][0]
