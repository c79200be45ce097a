"""How clients share a thread or a device: whose turn is next, and how long a further piece of work waits.

A connection is a client, and thousands of them ask at once with one text each. So neither question may cost a look at
every client: the answers are kept as clients come, are served and leave.
"""

import heapq
import itertools
from collections.abc import Hashable, Iterator

__all__ = ["Backlog", "Order"]

_PARTS = 3
"""Sizes of backlogs are told apart to this many bits behind their first one: to an eighth."""


class Order:
    """Clients by how much they have had; whoever has had least is first, and of equal ones who came first.

    Args:
        numbers: of those who come, where several orders are to be compared.
    """

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        # Of each client one entry counts, the one with its number. Others, and what has grown since it was entered,
        # are put right when they come to the top.
        self._heap: list[tuple[float, int, Hashable]] = []
        self._entries: dict[Hashable, tuple[float, int]] = {}
        self._numbers = itertools.count() if numbers is None else numbers

    def __bool__(self) -> bool:
        """Return whether there is any client."""
        return bool(self._entries)

    def __contains__(self, client: Hashable) -> bool:
        """Return whether a client is in the order."""
        return client in self._entries

    def add(self, client: Hashable, had: float) -> None:
        """Enter a client that is not in the order, behind those who have had as little."""
        number = next(self._numbers)
        self._entries[client] = (had, number)
        heapq.heappush(self._heap, (had, number, client))

    def remove(self, client: Hashable) -> None:
        """Take a client out."""
        del self._entries[client]

    def raise_to(self, client: Hashable, had: float) -> None:
        """Say what a client has had by now, which is no less than before."""
        self._entries[client] = (had, self._entries[client][1])

    def had(self, client: Hashable) -> float:
        """Return what a client has had."""
        return self._entries[client][0]

    def first(self) -> tuple[float, int, Hashable] | None:
        """Return what the first client has had, its number in the order of coming, and the client; None without any."""
        heap = self._heap
        while heap:
            had, number, client = heap[0]
            entry = self._entries.get(client)
            if entry is None or entry[1] != number:
                heapq.heappop(heap)
            elif entry[0] > had:
                heapq.heapreplace(heap, (entry[0], number, client))
            else:
                return heap[0]
        return None

    def clear(self) -> None:
        """Forget all clients."""
        self._heap.clear()
        self._entries.clear()


class Backlog:
    """What each client has to wait for, in any unit of work.

    Attributes:
        total: of all clients.
    """

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[Hashable, int] = {}
        # By size, in eighths of powers of two: how many clients have so much, and how much all of these have.
        self._sizes: dict[int, list[int]] = {}

    def __contains__(self, client: Hashable) -> bool:
        """Return whether a client has anything."""
        return client in self._of

    def add(self, client: Hashable, work: int) -> None:
        """Add to what a client has, or take from it; never below nothing."""
        before = self._of.pop(client, 0)
        after = max(0, before + work)
        self.total += after - before
        if before:
            self._count(before, -1)
        if after:
            self._of[client] = after
            self._count(after, 1)

    def ahead(self, client: Hashable, work: int) -> int:
        """Return what is done until so much more of a client begins, if time is shared equally.

        That is all of its own, and of each other's as much as its own will be. Backlogs of about that size are taken
        together, which is up to 3 % too much.
        """
        most = self._of.get(client, 0) + work
        return sum(min(size, number * most) for number, size in self._sizes.values())

    def _count(self, work: int, number: int) -> None:
        place = _size(work)
        counted = self._sizes.setdefault(place, [0, 0])
        counted[0] += number
        counted[1] += number * work
        if not counted[0]:
            del self._sizes[place]


def _size(work: int) -> int:
    bits = work.bit_length()
    shift = max(0, bits - 1 - _PARTS)
    return bits << _PARTS | (work >> shift) & ((1 << _PARTS) - 1)
