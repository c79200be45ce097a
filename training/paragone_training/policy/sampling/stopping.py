"""Texts that end a response, beside its end token: the same tokens and the same text, whoever sampled it.

A response ends with the token that completes one of the texts. That token was drawn, so it is trained on; the text that
judges read ends before the stop. Servers look for stops in their own way, and may draw a token more: what they return
is cut here as a response of this process is.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from paragone_training.errors import RecipeError

__all__ = ["Stops"]

# Tokens that a tail has more than a stop has bytes: the first ones may lose a space, or be half a character.
_MARGIN = 8


class Stops:
    """The texts that end a response; none is a valid number of them.

    Raises:
        RecipeError: if a text is empty, or none that a response can contain.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._tail = max((len(text.encode()) for text in texts), default=0) + _MARGIN
        for text in texts:
            # A special token is no text: responses are decoded without.
            if not text or text not in self._decoded(tokenizer(f"a{text}", add_special_tokens=False)["input_ids"]):
                raise RecipeError(
                    f"sampling.stop names {text!r}, which no response contains as text: leave it out (the policy's end "
                    "tokens end responses without it)"
                )

    def text(self, token_ids: Sequence[int]) -> str:
        """Return a response as judges read it, without special tokens and from its first stop on."""
        text = self._decoded(token_ids)
        ends = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def completed(self, token_ids: Sequence[int]) -> bool:
        """Return whether the newest token completes a stop, where none was complete before it."""
        if not self.texts:
            return False
        # Only the end is decoded at each step: every token that is not special has a byte at least.
        plain = (token for token in reversed(token_ids) if token not in self._special)
        tail = list(itertools.islice(plain, self._tail))[::-1]
        # What it shows is asked of the whole: the first token of a tail may be read in another way.
        return self._stopped(tail) and self._stopped(token_ids)

    def cut(self, token_ids: Sequence[int]) -> int | None:
        """Return how many tokens a response has up to the one that completes its first stop; None without one."""
        if not self.texts or not self._stopped(token_ids):
            return None
        low, high = 1, len(token_ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._stopped(token_ids[:middle]) else (middle + 1, high)
        return low

    def _stopped(self, token_ids: Sequence[int]) -> bool:
        text = self._decoded(token_ids)
        return any(stop in text for stop in self.texts)

    def _decoded(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
