"""Keys and values of prompts, kept on the device for siblings that arrive later.

Least recently used first out, under a budget in bytes. An entry is found by hashes of the token prefixes of every 32
tokens, and believed only after its tokens were compared: it is exact, and nobody has to say what belongs together.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from paragone_models.packing.packed_attention import Stored
from paragone_models.packing.tree import Tokens, common_length

__all__ = ["Known", "PromptStore"]

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Known:
    """A prefix whose keys and values are at hand.

    Attributes:
        tokens: token ids, from position 0 on.
        stored: their keys and values.
    """

    tokens: Tokens
    stored: Stored


class PromptStore:
    """Keep keys and values of prefixes under a budget.

    Args:
        max_bytes: 0 keeps nothing.

    Attributes:
        bytes: what the entries take.
        hits: how many sequences found a prefix.
        reused_tokens: how many tokens need not be computed for that.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.reused_tokens = 0
        self._entries: OrderedDict[int, Known] = OrderedDict()
        self._blocks: dict[bytes, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: Tokens, *, limit: int, at_least: int) -> Known | None:
        """Return the longest prefix of a sequence that is known, or None.

        Args:
            tokens: the sequence.
            limit: most tokens to return.
            at_least: a shorter one is not worth it.
        """
        if not self._entries:
            return None
        wanted = tokens[:limit]
        number = self._find(wanted)
        if number is None:
            return None
        entry = self._entries[number]
        length = common_length(entry.tokens, wanted)
        if length < max(1, at_least):
            return None
        self._entries.move_to_end(number)
        self.hits += 1
        self.reused_tokens += length
        return Known(entry.tokens[:length], entry.stored.first(length))

    def exact(self, tokens: Tokens) -> Known | None:
        """Return the entry of exactly these tokens, computed as such, or None."""
        *_, last = [b"", *_blocks(tokens)]
        for number in self._blocks.get(last, ()):
            entry = self._entries[number]
            if len(entry.tokens) == len(tokens) and common_length(entry.tokens, tokens) == len(tokens):
                self._entries.move_to_end(number)
                self.hits += 1
                self.reused_tokens += len(tokens)
                return entry
        return None

    def put(self, known: Known) -> None:
        """Keep a prefix, unless a longer one that begins with it is kept already; it replaces a shorter one.

        Args:
            known: from position 0 on; its tensors are kept as they are, so they must not be views of larger ones.
        """
        size = known.stored.bytes
        if size > self.max_bytes or not len(known.tokens):
            return
        number = self._find(known.tokens)
        if number is not None:
            entry = self._entries[number]
            common = common_length(entry.tokens, known.tokens)
            if common == len(known.tokens):
                self._entries.move_to_end(number)
                return
            if common == len(entry.tokens):
                self._drop(number)
        self._entries[self._next] = known
        for block in _blocks(known.tokens):
            self._blocks.setdefault(block, []).append(self._next)
        self._next += 1
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._blocks.clear()
        self.bytes = 0

    def _find(self, tokens: Tokens) -> int | None:
        """Return the entry that shares the most whole blocks with a sequence; of several the last one kept."""
        for block in reversed(list(_blocks(tokens))):
            if numbers := self._blocks.get(block):
                return numbers[-1]
        return None

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.bytes -= entry.stored.bytes
        for block in _blocks(entry.tokens):
            numbers = self._blocks[block]
            numbers.remove(number)
            if not numbers:
                del self._blocks[block]


def _blocks(tokens: Tokens) -> Iterator[bytes]:
    """Yield a hash of the first 32 tokens, of the first 64, and so on."""
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        digest.update(tokens[first : first + _BLOCK].tobytes())
        yield digest.copy().digest()
