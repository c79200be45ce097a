"""What a group is: what its members must agree on, who may join, and when it is settled.

Pure rules; where a group is kept is the stores' business, who waits for it is ``waiting.py``'s, and what its members
are to each other is their contest's (``contest.py``). A group is *open* until its last member was put (*whole*) or its
deadline has passed (*closed*); then it never changes again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from paragone.codes import ErrorCode
from paragone.wire import OnMissing
from paragone_models.shaping import Measures
from paragone_service.http.errors import ServiceError

__all__ = [
    "Entered",
    "Group",
    "Head",
    "Member",
    "State",
    "check_entry",
    "group_key",
    "incomplete",
    "lost",
    "superseded",
]

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
        content: what it is compared by, as its contest keeps it; None if it was not scored.
        dropped: tokens that were cut from its prompt.
        shown: whether the model saw all words of its conversation that were not cut.
        measures: of its text, where a signal is shaped.
        error: the code and the message that its own request was answered with.
    """

    digest: bytes
    content: bytes | None
    dropped: int = 0
    shown: bool = True
    measures: Measures | None = None
    error: tuple[str, str] | None = None

    def refusal(self) -> ServiceError | None:
        """Return what its request is answered with, if it could not be scored."""
        return None if self.error is None else ServiceError(ErrorCode(self.error[0]), self.error[1])

    def to_bytes(self) -> bytes:
        """Return the stored form: a line of JSON, then the content."""
        told: dict[str, Any] = {"digest": self.digest.hex(), "dropped": self.dropped, "shown": self.shown}
        if self.measures is not None:
            told["measures"] = dataclasses.asdict(self.measures)
        if self.error is not None:
            told["error"] = self.error
        return json.dumps(told).encode() + b"\n" + (self.content or b"")

    @classmethod
    def from_bytes(cls, stored: bytes) -> "Member":
        """Return what ``to_bytes`` made the bytes of."""
        line, _, content = stored.partition(b"\n")
        told = json.loads(line)
        error, measures = told.get("error"), told.get("measures")
        return cls(
            bytes.fromhex(told["digest"]),
            None if error else content,
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
        table: the comparisons of its members, once they were made; None of a contest that makes none.
    """

    head: Head
    state: State
    members: Mapping[int, Member] = field(default_factory=dict)
    table: bytes | None = None

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
    names = dict.fromkeys([*wanted.terms, *kept.terms])
    different = [name for name in names if wanted.terms.get(name) != kept.terms.get(name)]
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
