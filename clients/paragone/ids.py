"""The ids that a service gave to long responses, remembered so that their texts travel once.

A pair is told by ids where they are known. A service may have dropped what an id stands for; it then answers
``unknown_id`` and says which, and the pair is told again: without those ids, and if that fails too, in full.
"""

import enum
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paragone.exceptions import UnknownIdError
from paragone.wire import HandlePair, ItemError, Message, Pair, Preference, Prompt, Response

__all__ = ["Handles", "Telling"]

_LONG_PAIR_BYTES = 1024
"""A pair with less text is always told in full: two ids are about 160 bytes, and remembering them costs a hash."""
_LONG_RESPONSE_BYTES = 256
"""A shorter response is told in full where the other one has no id yet, since the prompt is told as well then."""


class Handles:
    """Remember ids, the most recently used. Safe to share between threads.

    Args:
        most: how many; one takes about 300 bytes.

    Raises:
        ValueError: if it is negative.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"handles={most} must be 0 or more")
        self.most = most
        self._ids: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, keys: Iterable[bytes]) -> list[str | None]:
        """Return the id of each key or None, and make the found ones the most recently used."""
        with self._lock:
            found = []
            for key in keys:
                known = self._ids.get(key)
                if known is not None:
                    self._ids.move_to_end(key)
                found.append(known)
            return found

    def learn(self, key: bytes, name: str) -> None:
        """Remember an id; the least recently used one makes room for it."""
        with self._lock:
            self._ids[key] = name
            self._ids.move_to_end(key)
            while len(self._ids) > self.most:
                self._ids.popitem(last=False)

    def forget(self, names: Sequence[str]) -> None:
        """Forget ids that the service does not know any more."""
        gone = set(names)
        with self._lock:
            for key in [key for key, name in self._ids.items() if name in gone]:
                del self._ids[key]


class _Step(enum.IntEnum):
    """How often a part was told: with all ids, without the unknown ones, in full."""

    ALL_IDS = 0
    KNOWN_IDS = 1
    IN_FULL = 2


@dataclass(frozen=True, slots=True)
class Telling:
    """How the pairs of one request are told.

    Attributes:
        handles: the ids that are remembered.
        model: the model that is asked, as the request names it.
        pairs: the pairs.
        written: their JSON in full.
        step: how often they were told before.
    """

    handles: Handles
    model: str | None
    pairs: Sequence[Pair | HandlePair]
    written: Sequence[bytes]
    step: _Step = _Step.ALL_IDS

    def texts(self) -> list[bytes]:
        """Return the JSON of each pair, by ids where they are known and worth it."""
        return [self._told(pair, text) for pair, text in zip(self.pairs, self.written, strict=True)]

    def again(self, error: UnknownIdError) -> "Telling":
        """Return how the pairs are told after the service did not know some of their ids, which are forgotten.

        Raises:
            UnknownIdError: the error itself, if they were told in full: the ids are the caller's own.
        """
        if self.step is _Step.IN_FULL:
            raise error
        self.handles.forget(error.ids)
        return replace(self, step=_Step(self.step + 1))

    def heard(self, rows: Sequence[Any]) -> None:
        """Remember the ids of an answer.

        Raises:
            UnknownIdError: if errors are reported and some say that an id is unknown, unless all was told in full.
        """
        errors = [row.error for row in rows if isinstance(row, ItemError) and row.error.code == "unknown_id"]
        if errors and self.step is not _Step.IN_FULL:
            raise UnknownIdError(errors[0].message, ids=[name for error in errors for name in error.ids or ()])
        for pair, text, row in zip(self.pairs, self.written, rows, strict=True):
            if isinstance(pair, Pair) and isinstance(row, Preference) and len(text) >= _LONG_PAIR_BYTES:
                for key, name in zip(_keys(self.model, pair), (row.first_id, row.second_id), strict=True):
                    if name is not None:
                        self.handles.learn(key, name)

    def _told(self, pair: Pair | HandlePair, written: bytes) -> bytes:
        if isinstance(pair, HandlePair) or self.step is _Step.IN_FULL or len(written) < _LONG_PAIR_BYTES:
            return written
        first, second = self.handles.find(_keys(self.model, pair))
        if first is not None and second is not None:
            return _json(HandlePair(first_id=first, second_id=second))
        shared = pair.model_dump(include={"prompt", "tools"}, exclude_unset=True)
        if first is not None and len(_canonical(pair.first)) >= _LONG_RESPONSE_BYTES:
            return _json(HandlePair(first_id=first, second=pair.second, **shared))
        if second is not None and len(_canonical(pair.second)) >= _LONG_RESPONSE_BYTES:
            return _json(HandlePair(first=pair.first, second_id=second, **shared))
        return written


def _json(pair: HandlePair) -> bytes:
    return pair.model_dump_json(exclude_unset=True).encode()


def _keys(model: str | None, pair: Pair) -> tuple[bytes, bytes]:
    """Return what the two responses of a pair are remembered by."""
    asked = json.dumps([model, pair.tools], sort_keys=True).encode() + b"\0" + _canonical(pair.prompt) + b"\0"
    shared = hashlib.blake2b(asked, digest_size=16)
    keys = []
    for response in (pair.first, pair.second):
        own = shared.copy()
        own.update(_canonical(response))
        keys.append(own.digest())
    return keys[0], keys[1]


def _canonical(said: Prompt | Response) -> bytes:
    """Return a prompt or a response as bytes that tell it from every other."""
    if isinstance(said, str):
        return json.dumps(said, ensure_ascii=False).encode()
    messages = [said] if isinstance(said, Message) else said
    plain = [message.model_dump(mode="json", exclude_none=True) for message in messages]
    return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
