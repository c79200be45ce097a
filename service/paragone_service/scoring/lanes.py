"""A lane of the queue: first in, first out for each client, and among clients as fair in tokens as it goes.

Each client has had so many tokens; the one that has had least is next, and keeps its turn for a quantum, so that the
responses to one prompt stay together. A client that comes, or comes back, starts where the turn is now: nobody saves up
while away, and one client's thousand responses wait behind another's one. With one client a lane is a plain queue.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

__all__ = ["Lane"]

Entry = TypeVar("Entry")


class Lane(Generic[Entry]):
    """Queue entries of several clients."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Entry]] = {}
        self._had: dict[Hashable, int] = {}
        self._turn: Hashable = None
        self._left = 0
        self._now = 0

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._queues)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over everything that waits, client by client."""
        for queue in self._queues.values():
            yield from queue

    def extend(self, client: Hashable, entries: Sequence[Entry]) -> None:
        """Queue entries of a client, in their order.

        Args:
            client: whose they are.
            entries: at least one.
        """
        if client not in self._queues:
            self._queues[client] = deque()
            self._had[client] = self._now
        self._queues[client].extend(entries)

    def peek(self, quantum: int) -> Entry:
        """Return the next entry, which stays.

        Args:
            quantum: tokens for which a client keeps its turn.
        """
        if self._turn not in self._queues or self._left <= 0:
            self._turn = min(self._had, key=self._had.__getitem__)
            self._now = self._had[self._turn]
            self._left = quantum
        return self._queues[self._turn][0]

    def pop(self, tokens: int) -> None:
        """Take the entry that was peeked at.

        Args:
            tokens: what it costs its client.
        """
        queue = self._queues[self._turn]
        queue.popleft()
        self._had[self._turn] += tokens
        self._left -= tokens
        if not queue:
            self._now = max(self._now, min(self._had.values()))
            del self._queues[self._turn], self._had[self._turn]

    def clear(self) -> None:
        """Forget everything that waits."""
        self._queues.clear()
        self._had.clear()
