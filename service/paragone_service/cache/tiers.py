"""The cache: the bytes of a value, the tier in this process, and the order in which the tiers are asked and filled.

A value is one representation: a header of 12 bytes, then float32, little-endian.

    magic u8 | version u8 | d u16 | tokens u32 | tokens dropped u31, not shown u1 | d × float32

The whole process passes values around in this form: memory stores them as they are, a request joins its values and
numpy reads all rows at once. In Redis each has a seal in front (``seal.py``). n = values, d = length of a
representation.
"""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.metrics import Metrics

__all__ = ["HEADER_BYTES", "Cache", "Codec", "Decoded", "Inspector", "MemoryCache"]

HEADER_BYTES = 12
"""Before the numbers of a value."""
_MAGIC = 0x50
_VERSION = 2  # values of version 1 do not tell whether all words were shown
_NOT_SHOWN = np.uint32(1 << 31)
_MAX_DIMENSION = 2**16 - 1
# What a number of a representation, and a count of tokens, cannot be. Heads give logits, some hundreds at most.
_MAX_NUMBER = 1e6
_MAX_TOKENS = 2**27
_ENTRY_OVERHEAD_BYTES = 128
"""What the ordered dict and the allocator's rounding spend on an entry (74–116 B measured on CPython 3.11)."""
# Keys of damaged values, which are to be overwritten. Beyond these, damaged values are computed anew until they expire.
_MAX_REMEMBERED = 100_000


class Inspector(Protocol):
    """What tells sound values from damaged ones, of one kind of value."""

    def sound(self, values: Sequence[bytes]) -> list[bool]:
        """Return for each value whether it is whole and of this version."""

    def outdated(self, value: bytes) -> bool:
        """Return whether it looks like a value of an earlier version."""


class Decoded(NamedTuple):
    """What values hold.

    Attributes:
        vectors: representations, float32. [n, d]
        dropped: tokens cut from each prompt, uint32. [n]
        shown: whether the model saw all words of each conversation that were not cut. [n]
        tokens: that the model read for each, uint32. [n]
    """

    vectors: NDArray[np.float32]
    dropped: NDArray[np.uint32]
    shown: NDArray[np.bool_]
    tokens: NDArray[np.uint32]


class Codec:
    """Read and write the values of one model.

    Args:
        dimension: length d of its representations.

    Raises:
        ValueError: if a header cannot hold d.
    """

    def __init__(self, dimension: int) -> None:
        if not 1 <= dimension <= _MAX_DIMENSION:
            raise ValueError(f"a representation of {dimension} numbers cannot be cached: 1 … {_MAX_DIMENSION} can")
        self.dimension = dimension
        self.value_bytes = HEADER_BYTES + 4 * dimension
        self._row = np.dtype(
            [
                ("magic", "u1"),
                ("version", "u1"),
                ("dimension", "<u2"),
                ("tokens", "<u4"),
                ("dropped", "<u4"),
                ("vector", "<f4", (dimension,)),
            ]
        )
        assert self._row.itemsize == self.value_bytes
        self.blank = self.encode(np.full((1, dimension), np.nan), [0], [0])[0]
        """A value of NaN that stands for a row in error; it is never stored."""

    def encode(
        self,
        vectors: ArrayLike,
        tokens: ArrayLike,
        dropped: ArrayLike,
        shown: ArrayLike = True,
        counts: Sequence[int] | None = None,  # noqa: ARG002 (all have one length)
    ) -> list[bytes]:
        """Return one value per representation.

        Args:
            vectors: representations. [n, d]
            tokens: that the model read for each. [n]
            dropped: tokens that were cut from each prompt before that. [n]
            shown: whether the model saw all words of each conversation that were not cut. [n]
            counts: for other codecs. [n]
        """
        rows = np.zeros(np.shape(vectors)[0], dtype=self._row)
        rows["magic"] = _MAGIC
        rows["version"] = _VERSION
        rows["dimension"] = self.dimension
        rows["tokens"] = tokens
        rows["dropped"] = np.asarray(dropped, dtype=np.uint32) | np.where(shown, np.uint32(0), _NOT_SHOWN)
        rows["vector"] = vectors
        # Cut from one block: a call per value would cost more than the hash of its text.
        whole, size = rows.tobytes(), self.value_bytes
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Return what values hold that are known to be sound."""
        rows = np.frombuffer(b"".join(values), dtype=self._row)  # no copy: the vectors are views into these bytes
        return Decoded(rows["vector"], rows["dropped"] & ~_NOT_SHOWN, rows["dropped"] < _NOT_SHOWN, rows["tokens"])

    @staticmethod
    def outdated(value: bytes) -> bool:
        """Return whether this looks like a value of an earlier version: replaced, and no sign of damage."""
        return len(value) > HEADER_BYTES and value[0] == _MAGIC and 0 < value[1] < _VERSION

    def sound(self, values: Sequence[bytes]) -> list[bool]:
        """Return for each value whether it is a representation of this model in range, written by this version."""
        # Sizes come first: one value of another size would shift all that follow it in the joined bytes.
        fits = [len(value) == self.value_bytes for value in values]
        rows = np.frombuffer(b"".join(value for value, fit in zip(values, fits, strict=True) if fit), dtype=self._row)
        good = (
            (rows["magic"] == _MAGIC)
            & (rows["version"] == _VERSION)
            & (rows["dimension"] == self.dimension)
            & (rows["tokens"] <= _MAX_TOKENS)
            & (rows["dropped"] & ~_NOT_SHOWN <= _MAX_TOKENS)
            & (np.abs(rows["vector"]) <= _MAX_NUMBER).all(axis=1)  # false for NaN too
        )
        verdicts = iter(good.tolist())
        return [fit and next(verdicts) for fit in fits]  # only values of the right size have a verdict


class MemoryCache:
    """Keep values by key, the least recently used out first. Used from the event loop's thread only.

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
        """Return the value of each key or None, and make those that are there the most recently used."""
        # Bound once: this runs for every response of every request.
        read, touch = self._entries.get, self._entries.move_to_end
        values = [read(key) for key in keys]
        for key, value in zip(keys, values, strict=True):
            if value is not None:
                touch(key)
        return values

    def put(self, key: bytes, value: bytes) -> bytes:
        """Store a value unless the key has one already, and return the value that holds: the first writer wins."""
        # A second run of the same text differs in its last bits, with the batch that it shared. Whoever asks twice must
        # get the same number twice, so the first value stays.
        known = self._entries.get(key)
        if known is not None:
            self._entries.move_to_end(key)
            return known
        self._entries[key] = value
        self.size_bytes += _entry_bytes(key, value)
        while self.size_bytes > self.max_bytes:
            self.size_bytes -= _entry_bytes(*self._entries.popitem(last=False))
        return value


def _entry_bytes(key: bytes, value: bytes) -> int:
    return sys.getsizeof(key) + sys.getsizeof(value) + _ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True)
class _Hits:
    """What the tiers knew.

    Attributes:
        values: of the keys in their order, None for each miss.
    """

    values: list[bytes | None]
    misses: int


class Cache:
    """Keep representations by key: in memory, and in Redis, which is asked once a request.

    Args:
        seal: what values in Redis are sealed with.
    """

    def __init__(
        self, memory: MemoryCache, redis: RedisCache | None, metrics: Metrics, *, seal: Seal | None = None
    ) -> None:
        self._memory = memory
        self._redis = redis
        self._seal = seal or Seal()
        self._metrics = metrics
        self._unsound: set[bytes] = set()
        metrics.watch_cache(lambda: memory.size_bytes, lambda: len(memory))

    async def start(self) -> None:
        """Connect to Redis, if there is one."""
        if self._redis is not None:
            await self._redis.start()

    async def close(self) -> None:
        """Write what is pending and disconnect."""
        if self._redis is not None:
            await self._redis.close()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._memory.max_bytes > 0 or self._redis is not None

    def peek(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what memory knows by now; not counted as hits."""
        return self._memory.get(keys)

    async def get(self, keys: Sequence[bytes], codec: Inspector) -> _Hits:
        """Return the value of each key, from memory or else from Redis, whose sound values also go into memory."""
        values = self._memory.get(keys)
        missing = values.count(None)
        from_memory = len(values) - missing
        from_redis = 0
        if missing and self._redis is not None and self._redis.up:
            # A response that comes twice in a request is asked for once.
            unknown = list(dict.fromkeys(key for key, value in zip(keys, values, strict=True) if value is None))
            known = self._sound(unknown, await self._redis.get(unknown), codec)
            for place, key in enumerate(keys):
                if values[place] is None and key in known:
                    values[place] = known[key]
                    from_redis += 1
        for tier, count in (("memory", from_memory), ("redis", from_redis)):
            if count:
                self._metrics.cache_responses.labels(tier).inc(count)
        return _Hits(values, missing - from_redis)

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        """Store new values in memory at once and in Redis soon; return the values that hold (the first writer's)."""
        holding = [self._memory.put(key, value) for key, value in zip(keys, values, strict=True)]
        if self._redis is not None:
            # Redis keeps the first writer's value too, unless that was read as damaged.
            self._redis.put(
                (key, self._seal.close(key, value), key in self._unsound)
                for key, value in zip(keys, holding, strict=True)
            )
            self._unsound.difference_update(keys)
        return holding

    def _sound(self, keys: list[bytes], raw: list[bytes | None], codec: Inspector) -> dict[bytes, bytes]:
        """Return the sound values by key, put into memory; count the others and remember to overwrite them."""
        opened: dict[bytes, bytes] = {}
        for key, sealed in zip(keys, raw, strict=True):
            if sealed is None:
                continue
            value = self._seal.open(key, sealed)
            if value is None:
                self._unfit(key, outdated=self._seal.outdated(sealed))
            else:
                opened[key] = value
        known = {}
        for (key, value), sound in zip(opened.items(), codec.sound(list(opened.values())), strict=True):
            if sound:
                known[key] = self._memory.put(key, value)
            else:
                self._unfit(key, outdated=codec.outdated(value))
        return known

    def _unfit(self, key: bytes, *, outdated: bool) -> None:
        (self._metrics.cache_outdated if outdated else self._metrics.cache_corrupted).inc()
        if len(self._unsound) < _MAX_REMEMBERED:
            self._unsound.add(key)
