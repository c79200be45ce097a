"""The first tier of the cache: values of this process, least recently used first out, bounded in bytes."""

import sys
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["MemoryCache"]

_ENTRY_OVERHEAD_BYTES = 128
"""What the ordered dict and the allocator's rounding spend on an entry (74–116 B measured on CPython 3.11)."""


class MemoryCache:
    """Keep values by key. Used from the event loop's thread only.

    Args:
        max_bytes: how much memory keys, values and the table itself may take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key or None, and make the found ones the most recently used."""
        entries = self._entries
        find, touch = entries.get, entries.move_to_end
        found = [find(key) for key in keys]
        for key, value in zip(keys, found, strict=True):
            if value is not None:
                touch(key)
        return found

    def put(self, key: bytes, value: bytes) -> bytes:
        """Store a value unless the key has one already, and return the value that holds: the first writer wins."""
        held = self._entries.get(key)
        if held is not None:
            self._entries.move_to_end(key)
            return held
        self._entries[key] = value
        self.size_bytes += _cost(key, value)
        while self.size_bytes > self.max_bytes:
            old_key, old_value = self._entries.popitem(last=False)
            self.size_bytes -= _cost(old_key, old_value)
        return value


def _cost(key: bytes, value: bytes) -> int:
    return sys.getsizeof(key) + sys.getsizeof(value) + _ENTRY_OVERHEAD_BYTES
