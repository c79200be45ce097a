"""What a group is: what its members must agree on, who may join, when it is settled, and what each member is answered.

Pure rules; where a group is kept is the stores' business, and who waits for it is ``waiting.py``'s. A group is *open*
until its last member was put (*whole*) or its deadline has passed (*closed*); then it never changes again.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import OnMissing, Shaping, Signal
from paragone_models.comparator import Comparator
from paragone_models.shaping import Measures
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.groups import group_signal

__all__ = ["Entered", "Group", "Head", "Member", "Standing", "State", "check_entry", "group_key", "incomplete", "lost"]

State = Literal["open", "whole", "closed"]

_SHOWN_SLOTS = 16
_LOST_RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Head:
    """What was fixed when a group began.

    Attributes:
        birth: a random name of this state. A group that was lost and began anew has another one, so that nobody takes
            it for the group that they wait for.
        until: when it is closed, by the store's clock. [seconds]
        terms: what all members must agree on, by name: digests, or short texts.
    """

    birth: str
    attempt: int
    size: int
    until: float
    on_missing: OnMissing
    terms: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return json.dumps(vars(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "Head":
        """Return what ``to_bytes`` made the bytes of."""
        return cls(**json.loads(stored))

    def terms_digest(self) -> bytes:
        """Return the 16 bytes that heads with equal terms share."""
        text = json.dumps(dict(self.terms), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Member:
    """One member as it was scored, or why it could not be.

    Attributes:
        digest: of its response.
        vector: its representation, float32; None if it was not scored. [d]
        dropped: tokens that were cut from its prompt.
        shown: whether the model saw all words of its conversation that were not cut.
        measures: of its text, where a signal is shaped.
        error: the code and the message that its own request was answered with.
    """

    digest: bytes
    vector: NDArray[np.float32] | None
    dropped: int = 0
    shown: bool = True
    measures: Measures | None = None
    error: tuple[str, str] | None = None

    def refusal(self) -> ServiceError | None:
        """Return what its request is answered with, if it could not be scored."""
        return None if self.error is None else ServiceError(ErrorCode(self.error[0]), self.error[1])

    def to_bytes(self) -> bytes:
        """Return the stored form: a line of JSON, then the vector's bytes."""
        told: dict[str, Any] = {"digest": self.digest.hex(), "dropped": self.dropped, "shown": self.shown}
        if self.measures is not None:
            told["measures"] = dataclasses.asdict(self.measures)
        if self.error is not None:
            told["error"] = self.error
        vector = b"" if self.vector is None else self.vector.astype("<f4").tobytes()
        return json.dumps(told).encode() + b"\n" + vector

    @classmethod
    def from_bytes(cls, stored: bytes) -> "Member":
        """Return what ``to_bytes`` made the bytes of."""
        line, _, vector = stored.partition(b"\n")
        told = json.loads(line)
        error, measures = told.get("error"), told.get("measures")
        return cls(
            bytes.fromhex(told["digest"]),
            None if error else np.frombuffer(vector, dtype="<f4"),
            told["dropped"],
            told["shown"],
            None if measures is None else Measures(**measures),
            None if error is None else (error[0], error[1]),
        )


@dataclass(frozen=True)
class Group:
    """A group as it is kept.

    Attributes:
        members: by slot; known only once the group is settled.
    """

    head: Head
    state: State
    members: Mapping[int, Member] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """Slots that nobody was put into."""
        return [slot for slot in range(self.head.size) if slot not in self.members]


class Entered(NamedTuple):
    """What a store says to a member that wants to join.

    Attributes:
        head: of the group that is kept.
        digest: of the response that has the slot; None if none was let in, because terms differ or it is settled.
        member: who was put into the slot already.
    """

    head: Head
    state: State
    digest: bytes | None
    member: Member | None


def group_key(tenant: str | None, group: str) -> bytes:
    """Return the 16 bytes that a group is kept under. Tenants cannot meet in one group."""
    return hashlib.blake2b(json.dumps([tenant, group]).encode(), digest_size=16).digest()


def check_entry(wanted: Head, slot: int, digest: bytes, entered: Entered) -> None:
    """Refuse a member that does not belong to the group that is kept.

    Raises:
        ServiceError: ``cohort_superseded`` for an older attempt; ``cohort_conflict`` if the terms differ, or the slot
            has another response; ``cohort_incomplete`` if the group was settled without this slot.
    """
    kept = entered.head
    if kept.attempt > wanted.attempt:
        raise superseded(wanted.attempt, kept.attempt)
    different = [name for name in wanted.terms if wanted.terms[name] != kept.terms.get(name)]
    if different:
        raise ServiceError(
            ErrorCode.COHORT_CONFLICT,
            f"this group began with another {' and another '.join(different)}: all its members must have the same; use "
            "another group id, or a higher attempt to begin anew",
        )
    if entered.digest is None:
        raise incomplete(Group(kept, "closed"), slot)
    if entered.digest != digest:
        raise ServiceError(
            ErrorCode.COHORT_CONFLICT,
            f"slot {slot} of this group has another response already: a repeat must send the same text; use a higher "
            "attempt to begin anew",
        )


def superseded(attempt: int, newest: int) -> ServiceError:
    """Return what a member of an older attempt is refused with, also while it waits."""
    return ServiceError(
        ErrorCode.COHORT_SUPERSEDED,
        f"attempt {attempt} of this group was superseded by attempt {newest}: send its responses, or a higher attempt",
    )


def incomplete(group: Group, slot: int) -> ServiceError:
    """Return what the members of a group that did not become whole are answered, and those that come after it."""
    if group.members or not group.missing:
        slots = group.missing
        shown = ", ".join(map(str, slots[:_SHOWN_SLOTS])) + (", …" if len(slots) > _SHOWN_SLOTS else "")
        reason = f"{len(slots)} of {group.head.size} members were not there at the group's deadline: slots {shown}"
    else:
        reason = f"slot {slot} was not there at the group's deadline, and the group was closed without it"
    return ServiceError(
        ErrorCode.COHORT_INCOMPLETE, f"{reason}; begin anew with a higher attempt, perhaps with a longer deadline_s"
    )


def lost(reason: str) -> ServiceError:
    """Return what waits for a group is answered whose state is gone: never a smaller group's numbers."""
    return ServiceError(
        ErrorCode.COHORT_LOST,
        f"the group's state {reason}: send all its members again",
        retry_after_s=_LOST_RETRY_AFTER_S,
    )


@dataclass(frozen=True)
class Standing:
    """What the members of a settled group are to each other. K members were scored, of R references.

    Attributes:
        slots: of the scored members. [K]
        matrix: P(row preferred to column), float64. [K, K]
        win_rates: mean over the row, itself counted as ½. [K]
        rewards: None where the kind has no scalar. [K]
        against: probabilities against the references; None without any. [K, R]
        left_alone: whether all others of the group were not scored.
        signal: None if none was asked for, or it compares one with its group that is alone. [K]
    """

    slots: list[int]
    matrix: NDArray[np.float64]
    win_rates: NDArray[np.float64]
    rewards: NDArray[np.float64] | None
    against: NDArray[np.float64] | None
    left_alone: bool
    signal: list[float] | None

    @classmethod
    def of(
        cls,
        group: Group,
        comparator: Comparator,
        references: NDArray[np.float32] | None,
        *,
        signal: Signal | None = None,
        shaping: Shaping | None = None,
    ) -> "Standing":
        """Return the standing of a settled group.

        Args:
            references: representations of those that could be scored. [R, d]
            signal: which signal, or None.
            shaping: of the signal, or None; then every scored member has measures.

        Raises:
            ServiceError: ``non_finite_score``, if the numbers are too large to compare.
        """
        slots, vectors, measures = [], [], []
        for slot, one in sorted(group.members.items()):
            if one.vector is not None:
                slots.append(slot)
                vectors.append(one.vector)
                measures += [] if one.measures is None else [one.measures]
        with np.errstate(all="ignore"):  # what is not finite is found below
            matrix = comparator.matrix(vectors)
            rewards = comparator.rewards(vectors)
            against = comparator.against(vectors, references) if references is not None and len(references) else None
        if not all(bool(np.isfinite(part).all()) for part in (matrix, rewards, against) if part is not None):
            raise ServiceError(ErrorCode.NON_FINITE_SCORE, "the model's numbers are too large to compare")
        values = None
        if signal is not None:
            values = group_signal(signal, matrix, against=against, rewards=rewards, shaping=shaping, measures=measures)
        left_alone = len(slots) == 1 < group.head.size
        return cls(slots, matrix, matrix.mean(axis=1), rewards, against, left_alone, values)

    def place(self, slot: int) -> int:
        """Return the row of a scored member."""
        return self.slots.index(slot)

    def rank(self, place: int) -> int:
        """Return 1 plus the number of members with a higher win rate: equal ones share the better rank."""
        return 1 + int(np.count_nonzero(self.win_rates > self.win_rates[place]))

    def row(self, place: int, size: int) -> list[float | None]:
        """Return a member's probability against that of each slot, [size]; None where that was not scored."""
        row: list[float | None] = [None] * size
        for slot, probability in zip(self.slots, self.matrix[place].tolist(), strict=True):
            row[slot] = probability
        return row

    def reference_win_rate(self, place: int) -> float | None:
        """Return a member's mean probability against the references; None without any."""
        return None if self.against is None else math.fsum(self.against[place]) / self.against.shape[1]
