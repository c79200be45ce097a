"""Where groups are kept: the contract of its two kinds, memory of one process and a Redis that replicas share."""

from collections.abc import Callable
from typing import Literal, Protocol

from paragone_service.cohorts.groups import Entered, Group, Head, Member

__all__ = ["Claim", "Store"]

Claim = Literal["ours", "theirs", "done", "gone"]
"""Whose it is to compare a group: who asked, somebody else, nobody any more, or there is no such settled group."""


class Store(Protocol):
    """Keep groups by key. Each method is one indivisible step, whoever else calls at the same time.

    All raise ``ServiceError`` (``cohort_lost``, ``overloaded``) if the state cannot be reached or has no room.
    """

    def now(self) -> float:
        """Return the time that ``Head.until`` counts by, in seconds."""

    async def start(self, wake: Callable[[bytes], None]) -> None:
        """Begin; needs a running event loop.

        Args:
            wake: told the key of a group that somebody else may have settled or begun anew.
        """

    async def stop(self) -> None:
        """Let go of everything."""

    async def enter(self, key: bytes, head: Head, slot: int, digest: bytes) -> Entered:
        """Let a member join, beginning the group with ``head`` if there is none, or only an older attempt.

        A slot is taken if the group is open, its attempt and terms are those of ``head``, and nobody has it yet.
        """

    async def put(self, key: bytes, head: Head, slot: int, member: Member) -> bool:
        """Put a member into its slot, if the group is still this one and open; return whether that made it whole."""

    async def close(self, key: bytes, head: Head) -> None:
        """Settle the group as it is, if it is still this one and open."""

    async def claim(self, key: bytes, head: Head, who: bytes, lease_s: float) -> Claim:
        """Take, renew or (with 0 seconds) leave the lease of comparing a settled group, and return whose it is."""

    async def finish(self, key: bytes, head: Head, table: bytes) -> None:
        """Keep the comparisons of a group, if it is still this one, is settled and has none yet."""

    async def read(self, key: bytes) -> Group | None:
        """Return the group that is kept, with its members if it is settled; None if there is none."""
