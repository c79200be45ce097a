"""The ids that a service gave to long responses, remembered so that their texts travel once.

A pair names its responses by their ids where they are known. A service may have dropped what an id stands for; it then
answers ``unknown_id`` and says which, and the pair is written again: without those ids, and if that fails too, in full.
"""

import enum
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from paragone.exceptions import UnknownIdError
from paragone.wire import ItemError, Pair, PairById, Preference, canonical_json, canonical_turns

__all__ = ["IdMemory", "PairWriter"]

_LONG_PAIR_BYTES = 1024
"""A pair with less text always travels in full: two ids are about 160 bytes, and remembering them costs a hash."""
_LONG_RESPONSE_BYTES = 256
"""A shorter response travels in full where the other one has no id yet, since the prompt travels as well then."""


class IdMemory:
    """Remember ids, the most recently used. Safe to share between threads.

    Args:
        size: how many; one takes about 300 bytes.

    Raises:
        ValueError: if it is negative.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"remembered_ids={size} must be 0 or more")
        self.size = size
        self._ids: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, keys: Iterable[bytes]) -> list[str | None]:
        """Return the id of each key or None, and make those that are known the most recently used."""
        ids = []
        with self._lock:
            for key in keys:
                known = self._ids.get(key)
                if known is not None:
                    self._ids.move_to_end(key)
                ids.append(known)
        return ids

    def remember(self, key: bytes, id: str) -> None:
        """Remember an id; the least recently used one makes room for it."""
        with self._lock:
            self._ids[key] = id
            self._ids.move_to_end(key)
            while len(self._ids) > self.size:
                self._ids.popitem(last=False)

    def forget(self, ids: Sequence[str]) -> None:
        """Forget ids that the service does not know any more."""
        gone = set(ids)
        # A scan of all that is remembered. It is rare (a service has lost something), so no second index is kept.
        with self._lock:
            for key in [key for key, known in self._ids.items() if known in gone]:
                del self._ids[key]


class _Step(enum.IntEnum):
    """What a part was written with: all ids, without the unknown ones, none."""

    ALL_IDS = 0
    KNOWN_IDS = 1
    IN_FULL = 2


@dataclass(frozen=True, slots=True)
class PairWriter:
    """Write the pairs of one request by their ids.

    Attributes:
        memory: the ids that are known.
        model: the model that is asked, as the request names it.
        full: their JSON in full.
        step: how they are written now.
    """

    memory: IdMemory
    model: str | None
    pairs: Sequence[object]
    full: Sequence[bytes]
    step: _Step = _Step.ALL_IDS

    def written(self) -> list[bytes]:
        """Return the JSON of each pair, by ids where they are known and worth it."""
        return [self._written(pair, full) for pair, full in zip(self.pairs, self.full, strict=True)]

    def without_unknown(self, error: UnknownIdError) -> "PairWriter":
        """Forget the ids that the service did not know, and return how the pairs are written next.

        Raises:
            UnknownIdError: the error itself, if they were written in full: the ids are the caller's own.
        """
        if self.step is _Step.IN_FULL:
            raise error
        self.memory.forget(error.ids)
        return replace(self, step=_Step(self.step + 1))

    def remember(self, rows: Sequence[Any]) -> None:
        """Remember the ids of an answer.

        Raises:
            UnknownIdError: if errors are reported and some say that an id is unknown, unless all was sent in full.
        """
        errors = [row.error for row in rows if isinstance(row, ItemError) and row.error.code == "unknown_id"]
        # In full, unknown ids are the caller's own: then the errors are the answer.
        if errors and self.step is not _Step.IN_FULL:
            raise UnknownIdError(errors[0].message, ids=[unknown for error in errors for unknown in error.ids or ()])
        for pair, full, row in zip(self.pairs, self.full, rows, strict=True):
            # A pair that came by ids has no texts to be remembered by, and a row in error has no ids.
            if _may_have_ids(pair, full) and isinstance(row, Preference):
                for key, response_id in zip(_keys(self.model, pair), (row.first_id, row.second_id), strict=True):
                    if response_id is not None:
                        self.memory.remember(key, response_id)

    def _written(self, pair: object, full: bytes) -> bytes:
        if self.step is _Step.IN_FULL or not _may_have_ids(pair, full):
            return full
        first, second = self.memory.read(_keys(self.model, pair))
        if first is not None and second is not None:
            return _json(PairById(first_id=first, second_id=second))
        # With one id the prompt must travel along: it is the full response's as well.
        shared = pair.model_dump(include={"prompt", "tools"}, exclude_unset=True)
        if first is not None and len(_turns(pair.first)) >= _LONG_RESPONSE_BYTES:
            return _json(PairById(first_id=first, second=pair.second, **shared))
        if second is not None and len(_turns(pair.second)) >= _LONG_RESPONSE_BYTES:
            return _json(PairById(first=pair.first, second_id=second, **shared))
        return full


def _may_have_ids(pair: object, full: bytes) -> TypeGuard[Pair]:
    # An id says what a response is, and has no room for what it is to be judged by.
    judged = isinstance(pair, Pair) and (pair.principle is not None or pair.criteria is not None)
    return isinstance(pair, Pair) and not judged and len(full) >= _LONG_PAIR_BYTES


def _json(pair: PairById) -> bytes:
    return pair.model_dump_json(exclude_unset=True).encode()


def _turns(response: Any) -> bytes:
    return canonical_turns(response, "assistant")


def _keys(model: str | None, pair: Pair) -> tuple[bytes, bytes]:
    """Return what the two responses of a pair are remembered by: model, tools, prompt and response."""
    prompt = canonical_json([model, pair.tools]) + b"\0" + canonical_turns(pair.prompt, "user") + b"\0"
    # Hashed, because texts of kilobytes are what the memory is there to save. An id is good for one model, prompt and
    # set of tools, so all of these are in the key.
    shared = hashlib.blake2b(prompt, digest_size=16)
    keys = []
    for response in (pair.first, pair.second):
        own = shared.copy()
        own.update(_turns(response))
        keys.append(own.digest())
    return keys[0], keys[1]
