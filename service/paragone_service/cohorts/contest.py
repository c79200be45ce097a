"""How the members of a group are held against each other, whatever their model keeps of them, and what comes of it.

A contest belongs to one request. A member is scored when it arrives, as far as that can be done with it alone; the
rest is done once the group is settled. K members were scored, of R references.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paragone.wire import Shaping, Signal, Unscored, Usage
from paragone_models.shaping import Measures
from paragone_service.cohorts.groups import Group, Member
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.groups import Tables, group_signal

__all__ = ["Contest", "Once", "Scored", "Standing", "refused"]

Once = Callable[[Callable[[float], Awaitable[bytes]]], Awaitable[bytes]]
"""Return the group's table: work is done for it in one process, which has so many seconds, and all others read it."""


@dataclass(frozen=True)
class Scored:
    """A member as far as it is scored when it arrives.

    Attributes:
        usage: what that cost.
        references: the representations of those that could be scored, where the model has any. [R, d]
        unscored: the others.
    """

    member: Member
    usage: Usage
    references: NDArray[np.float32] | None = None
    unscored: Sequence[Unscored] = ()


class Contest(Protocol):
    """Hold members against each other as a request wants it."""

    @property
    def header(self) -> Mapping[str, Any]:
        """What the answer says of the model."""

    def terms(self) -> Mapping[str, str]:
        """Return what all members must agree on for the model's sake, as ``Head`` has it."""

    async def scored(self, digest: bytes, known: Member | None, limit_s: float) -> Scored:
        """Return the request's member, which is not run again if it is known.

        Args:
            digest: of its response.

        Raises:
            ServiceError: if it is not the member's or a reference's own fault that there is none.
            TimeoutError: after ``limit_s``.
        """

    async def standing(self, group: Group, scored: Scored, once: Once) -> "Standing":
        """Return what the members of a settled group are to each other, the same from each member's request.

        Raises:
            ServiceError: if nobody of the group has an answer.
        """


@dataclass(frozen=True)
class Standing:
    """What the members of a settled group are to each other.

    Attributes:
        slots: of the scored members. [K]
        tables: what is known of them: probabilities, and rewards where the kind has a scalar.
        win_rates: mean over the row of the matrix, itself counted as ½. [K]
        left_alone: whether all others of the group were not scored.
        signal: None if none was asked for, or it compares one with its group that is alone. [K]
        unscored: members and references that do not count.
        refusals: why, of members that turned out so when they were compared, by their slots.
        details: further fields of each answer, by their names. [K], or none.
        usage: what working it out has cost this process.
    """

    slots: Sequence[int]
    tables: Tables
    win_rates: NDArray[np.float64]
    left_alone: bool
    signal: Sequence[float] | None
    unscored: Sequence[Unscored] = ()
    refusals: Mapping[int, ServiceError] = field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()
    usage: Usage | None = None

    @classmethod
    def of(
        cls,
        group: Group,
        slots: Sequence[int],
        tables: Tables,
        *,
        signal: Signal | None = None,
        shaping: Shaping | None = None,
        **more: Any,
    ) -> "Standing":
        """Return the standing of those who were scored.

        Args:
            signal: which signal, or None.
            shaping: of the signal, or None; then every scored member has measures.
            more: the fields that only some contests have.
        """
        measures: list[Measures] = []
        for slot in slots:
            one = group.members[slot].measures
            measures += [] if one is None else [one]
        values = None
        if signal is not None:
            values = group_signal(
                signal,
                tables.matrix,
                against=tables.against,
                rewards=tables.rewards,
                shaping=shaping,
                measures=measures,
            )
        left_alone = len(slots) == 1 < group.head.size
        return cls(slots, tables, tables.matrix.mean(axis=1), left_alone, values, **more)

    def place(self, slot: int) -> int:
        """Return the row of a scored member.

        Raises:
            ServiceError: why it was not scored.
        """
        if slot in self.refusals:
            raise self.refusals[slot]
        return self.slots.index(slot)

    def rank(self, place: int) -> int:
        """Return 1 plus the number of members with a higher win rate: equal ones share the better rank."""
        return 1 + int(np.count_nonzero(self.win_rates > self.win_rates[place]))

    def row(self, place: int, size: int) -> list[float | None]:
        """Return a member's probability against that of each slot, [size]; None where that was not scored."""
        row: list[float | None] = [None] * size
        for slot, probability in zip(self.slots, self.tables.matrix[place].tolist(), strict=True):
            row[slot] = probability
        return row

    def reference_win_rate(self, place: int) -> float | None:
        """Return a member's mean probability against the references; None without any."""
        against = self.tables.against
        return None if against is None else math.fsum(against[place]) / against.shape[1]


def refused(group: Group) -> list[Unscored]:
    """Return the members that could not be scored when they arrived."""
    errors = [(slot, member.error) for slot, member in sorted(group.members.items()) if member.error is not None]
    return [Unscored(slot=slot, code=code, message=message) for slot, (code, message) in errors]
