"""Groups in the memory of one process: all members must come to it, and a restart loses what waits."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from paragone.codes import ErrorCode
from paragone_service.cohorts.groups import Entered, Group, Head, Member, State
from paragone_service.cohorts.store import Claim
from paragone_service.http.errors import ServiceError

__all__ = ["MemoryStore"]

_MAX_BYTES = 256 * 10**6
_GROUP_BYTES = 1_000
_MEMBER_BYTES = 400
"""What Python spends on a group and on a member, beside its content."""
_FULL_RETRY_AFTER_S = 5
_SPARE = 1_000
"""Entries of groups that are gone, before they are looked for."""


@dataclass
class _Kept:
    head: Head
    terms: bytes
    state: State = "open"
    digests: dict[int, bytes] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    table: bytes | None = None
    lease: tuple[bytes, float] = (b"", 0.0)
    size_bytes: int = _GROUP_BYTES


class MemoryStore:
    """Keep groups in this process; settled ones make room for new ones, the oldest first.

    Args:
        keep_s: how long a group is kept after its deadline.
        max_bytes: how much memory all groups may take.
    """

    def __init__(
        self, *, keep_s: float, max_bytes: int = _MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = clock
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._groups: dict[bytes, _Kept] = {}
        self._settled: OrderedDict[bytes, None] = OrderedDict()
        self._expiries: list[tuple[float, bytes, str]] = []

    async def start(self, wake: Callable[[bytes], None]) -> None:
        """Begin; whoever shares this memory knows already what the others did."""

    async def stop(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._settled.clear()
        self._expiries.clear()
        self._size_bytes = 0

    async def enter(self, key: bytes, head: Head, slot: int, digest: bytes) -> Entered:
        """Let a member join, as the contract says.

        Raises:
            ServiceError: ``overloaded``, if open groups take all the memory there is.
        """
        self._expire()
        kept = self._groups.get(key)
        if kept is None or kept.head.attempt < head.attempt:
            self._make_room()
            self._forget(key)
            kept = self._groups[key] = _Kept(head, head.terms_digest())
            self._size_bytes += kept.size_bytes
            self._expect(head.until, key, head)
        fits = kept.head.attempt == head.attempt and kept.terms == head.terms_digest()
        if fits and kept.state == "open" and slot not in kept.digests:
            kept.digests[slot] = digest
            self._add(kept, _MEMBER_BYTES)
        there = fits and (kept.state == "open" or slot in kept.members)
        return Entered(
            kept.head, kept.state, kept.digests[slot] if there else None, kept.members.get(slot) if there else None
        )

    async def put(self, key: bytes, head: Head, slot: int, member: Member) -> bool:
        """Put a member into its slot, as the contract says."""
        kept = self._open(key, head)
        if kept is None or slot in kept.members:
            return False
        kept.members[slot] = member
        self._add(kept, len(member.content or b""))
        if len(kept.members) < head.size:
            return False
        self._settle(key, kept, "whole")
        return True

    async def close(self, key: bytes, head: Head) -> None:
        """Settle the group as it is, as the contract says."""
        kept = self._open(key, head)
        if kept is not None:
            self._settle(key, kept, "closed")

    async def claim(self, key: bytes, head: Head, who: bytes, lease_s: float) -> Claim:
        """Take, renew or leave the lease of comparing a settled group, as the contract says."""
        kept = self._this_one(key, head)
        if kept is None or kept.state == "open":
            return "gone"
        if kept.table is not None:
            return "done"
        holder, until = kept.lease
        if holder != who and until > self.now():
            return "theirs"
        kept.lease = (who, self.now() + lease_s)
        return "ours"

    async def finish(self, key: bytes, head: Head, table: bytes) -> None:
        """Keep the comparisons of a group, as the contract says."""
        kept = self._this_one(key, head)
        if kept is not None and kept.state != "open" and kept.table is None:
            kept.table = table
            self._add(kept, len(table))

    async def read(self, key: bytes) -> Group | None:
        """Return the group that is kept, as the contract says."""
        kept = self._groups.get(key)
        if kept is None:
            return None
        return Group(kept.head, kept.state, {} if kept.state == "open" else kept.members, kept.table)

    def _add(self, kept: _Kept, size: int) -> None:
        kept.size_bytes += size
        self._size_bytes += size

    def _this_one(self, key: bytes, head: Head) -> _Kept | None:
        kept = self._groups.get(key)
        return kept if kept is not None and kept.head.birth == head.birth else None

    def _open(self, key: bytes, head: Head) -> _Kept | None:
        kept = self._this_one(key, head)
        return kept if kept is not None and kept.state == "open" else None

    def _settle(self, key: bytes, kept: _Kept, state: State) -> None:
        kept.state = state
        self._settled[key] = None

    def _make_room(self) -> None:
        while self._size_bytes >= self._max_bytes and self._settled:
            self._forget(next(iter(self._settled)))
        if self._size_bytes >= self._max_bytes:
            raise ServiceError(
                ErrorCode.OVERLOADED,
                f"groups that wait for members take all of the {self._max_bytes} bytes that there are for them: try "
                "again later",
                retry_after_s=_FULL_RETRY_AFTER_S,
            )

    def _expire(self) -> None:
        """Settle the groups whose deadline has passed, and forget those that were kept for long enough."""
        now = self.now()
        while self._expiries and self._expiries[0][0] <= now:
            _, key, birth = heapq.heappop(self._expiries)
            kept = self._groups.get(key)
            if kept is None or kept.head.birth != birth:
                continue
            if kept.head.until + self._keep_s <= now:
                self._forget(key)
                continue
            # If all its clients have left, nobody else closes it, and an open group makes no room.
            if kept.state == "open":
                self._settle(key, kept, "closed")
            self._expect(kept.head.until + self._keep_s, key, kept.head)

    def _expect(self, at: float, key: bytes, head: Head) -> None:
        heapq.heappush(self._expiries, (at, key, head.birth))
        # Groups that began anew or made room leave their entries behind, for as long as a day.
        if len(self._expiries) > 2 * len(self._groups) + _SPARE:
            births = {(key, kept.head.birth) for key, kept in self._groups.items()}
            self._expiries = [entry for entry in self._expiries if entry[1:] in births]
            heapq.heapify(self._expiries)

    def _forget(self, key: bytes) -> None:
        kept = self._groups.pop(key, None)
        if kept is not None:
            self._size_bytes -= kept.size_bytes
            self._settled.pop(key, None)
