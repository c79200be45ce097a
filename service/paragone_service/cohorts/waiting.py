"""A member on its way: it joins its group, is scored when it arrives, waits for the others, and is answered.

Scoring belongs to the group and not to the request: it runs to its end, and is put into the group, if its client has
left. Every process works the answers out from the vectors that the store has, so nobody waits for one replica.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import CohortRequest, Unscored, Usage
from paragone_models.comparator import Comparator
from paragone_models.shaping import measure
from paragone_service.cache.keys import conversation_keys, prompt_digest
from paragone_service.cohorts.groups import (
    Group,
    Head,
    Member,
    Standing,
    check_entry,
    group_key,
    incomplete,
    lost,
    superseded,
)
from paragone_service.cohorts.store import Store
from paragone_service.http.errors import ClientGoneError, ServiceError
from paragone_service.http.middleware import Drain
from paragone_service.references.owners import Vectors
from paragone_service.references.sets import Stored
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Deadline, Problems, RequestItem, response_messages

__all__ = ["Cohorts", "Outcome"]

_LOOK_S = 1.0
"""How often a group is looked at whose news may not have come: another process may have ended, its state be gone."""
_SLACK_S = 5.0
"""How much longer a request may take than its group: so it is the group that ends, and the answer says how."""
_LARGE = 64 * 64
"""Comparisons of a group whose arithmetic holds up the event loop."""
# What is wrong with a member itself. It will be so again: the member does not vote, and nobody waits for it.
_OF_THE_MEMBER = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.EMPTY_PROMPT,
        ErrorCode.UNSUPPORTED_CONTENT,
        ErrorCode.RESPONSE_TOO_LONG,
        ErrorCode.CONVERSATION_TRUNCATED,
        ErrorCode.TOO_MANY_ITEMS,
        ErrorCode.NON_FINITE_SCORE,
    }
)


@dataclass(frozen=True)
class Outcome:
    """What a member is answered from.

    Attributes:
        place: the member's row of the standing.
        bad_references: those that could not be scored.
    """

    group: Group
    standing: Standing
    place: int
    bad_references: Sequence[Unscored]
    usage: Usage


@dataclass(frozen=True)
class _Scored:
    member: Member
    references: NDArray[np.float32]
    bad_references: list[Unscored]
    usage: Usage


class _Room:
    """Those in this process who wait for one group.

    Attributes:
        bell: rung when the group may have changed.
        settled: the group, once it is settled, or why it will not be.
    """

    def __init__(self, key: bytes, head: Head) -> None:
        self.key = key
        self.head = head
        self.waiting = 0
        self.bell = asyncio.Event()
        self.settled: asyncio.Task[Group]
        self._standing: asyncio.Future[Standing] | None = None

    async def standing(self, work_out: Callable[[], Standing], workers: Executor, references: int) -> Standing:
        """Return the group's standing, worked out once for all who wait here."""
        if self._standing is None:
            loop = asyncio.get_running_loop()
            if self.head.size * (self.head.size + references) > _LARGE:
                self._standing = loop.run_in_executor(workers, work_out)
            else:
                self._standing = loop.create_future()
                try:
                    self._standing.set_result(work_out())
                except ServiceError as error:
                    self._standing.set_exception(error)
        return await asyncio.shield(self._standing)


class Cohorts:
    """Answer members of groups.

    Args:
        drain: whether the server is shutting down.
        deadline_s: of groups whose first member names none.
        workers: threads for the arithmetic of large groups.
    """

    def __init__(self, store: Store, drain: Drain, *, deadline_s: float, workers: Executor) -> None:
        self._store = store
        self._drain = drain
        self._deadline_s = deadline_s
        self._workers = workers
        self._rooms: dict[bytes, dict[str, _Room]] = {}
        self._scoring: dict[tuple[bytes, str, int], asyncio.Task[_Scored]] = {}

    async def start(self) -> None:
        """Begin; needs a running event loop."""
        await self._store.start(self._wake)

    async def stop(self) -> None:
        """End what is under way; before the models close."""
        tasks = [*self._scoring.values(), *(room.settled for rooms in self._rooms.values() for room in rooms.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.stop()

    async def answer(
        self,
        model: HostedModel,
        comparator: Comparator,
        body: CohortRequest,
        call: Call,
        *,
        stored: Stored[Vectors] | None = None,
        refusal: ServiceError | None = None,
    ) -> Outcome:
        """Return the member's outcome, once its group is settled.

        Args:
            comparator: what compares the members, with the weights of the request.
            stored: its references, if they are a set's.
            refusal: why the member's response cannot be read at all.

        Raises:
            ServiceError: if the member does not belong to the group or could not be scored, the group did not become
                whole in time, was superseded or lost, or the model cannot run.
            ClientGoneError: if the client left meanwhile; its member stays.
        """
        deadline_s = self._deadline_s if body.deadline_s is None else body.deadline_s
        if call.deadline is not None:
            call.deadline.shorten(deadline_s + _SLACK_S)
        wanted = _head(model, comparator, body, stored, self._store.now() + deadline_s)
        digest = _digest(body, refusal)
        key = group_key(call.tenant, body.group)
        entered = await self._store.enter(key, wanted, body.slot, digest)
        if entered.head.birth == wanted.birth:
            self._wake(key)  # whoever waits for an older attempt, waits in vain
        check_entry(wanted, body.slot, digest, entered)
        async with self._room(key, entered.head) as room:
            score = functools.partial(self._score, room, model, body, call, digest, entered.member, refusal)
            scoring = self._scored(room, body.slot, score)
            group, scored = await _first_of(room, scoring, call, body.slot)
            if body.slot not in group.members or (group.missing and group.head.on_missing == "fail"):
                raise incomplete(group, body.slot)
            if body.listed and not len(scored.references):
                first = scored.bad_references[0]
                raise ServiceError(ErrorCode(first.code), f"no reference can be scored; the first one: {first.message}")
            references = scored.references if body.listed else None if stored is None else stored.references
            work_out = functools.partial(
                Standing.of, group, comparator, references, signal=body.signal, shaping=body.shaping
            )
            standing = await room.standing(work_out, self._workers, 0 if references is None else len(references))
            return Outcome(group, standing, standing.place(body.slot), scored.bad_references, scored.usage)

    def _wake(self, key: bytes) -> None:
        for room in self._rooms.get(key, {}).values():
            room.bell.set()

    @contextlib.asynccontextmanager
    async def _room(self, key: bytes, head: Head) -> AsyncIterator[_Room]:
        rooms = self._rooms.setdefault(key, {})
        room = rooms.get(head.birth)
        if room is None:
            room = rooms[head.birth] = _Room(key, head)
            room.settled = _quiet(self._settled(room))
        room.waiting += 1
        try:
            yield room
        finally:
            room.waiting -= 1
            if not room.waiting:
                room.settled.cancel()
                del rooms[head.birth]
                if not rooms:
                    del self._rooms[key]

    async def _settled(self, room: _Room) -> Group:
        """Return the group once it is settled.

        Raises:
            ServiceError: ``cohort_superseded``, or ``cohort_lost``.
        """
        while True:
            room.bell.clear()
            group = await self._store.read(room.key)
            if group is None:
                raise lost("is gone (evicted, or its server was restarted)")
            if group.head.birth != room.head.birth:
                if group.head.attempt > room.head.attempt:
                    raise superseded(room.head.attempt, group.head.attempt)
                raise lost("is gone, and the group began anew")
            if group.state != "open":
                return group
            left_s = room.head.until - self._store.now()
            if left_s <= 0:
                await self._store.close(room.key, room.head)
                continue
            if self._drain.begun and not self._is_scoring(room):
                # Nobody can join here any more; at another replica the group may still become whole.
                message = "the server is shutting down, and the group waits for members: send it to another replica"
                raise ServiceError(ErrorCode.SHUTTING_DOWN, message, retry_after_s=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_S)):
                    await room.bell.wait()

    def _is_scoring(self, room: _Room) -> bool:
        return any(place[:2] == (room.key, room.head.birth) for place in self._scoring)

    def _scored(
        self, room: _Room, slot: int, score: Callable[[], Coroutine[Any, Any, _Scored]]
    ) -> asyncio.Task[_Scored]:
        """Return the task that scores a member, one for all who send it."""
        place = (room.key, room.head.birth, slot)
        task = self._scoring.get(place)
        if task is None:
            task = self._scoring[place] = _quiet(score())
            task.add_done_callback(lambda _: self._scoring.pop(place, None))
        return task

    async def _score(
        self,
        room: _Room,
        model: HostedModel,
        body: CohortRequest,
        call: Call,
        digest: bytes,
        known: Member | None,
        refusal: ServiceError | None,
    ) -> _Scored:
        """Return the scored member, put into its group; one that is known is not run again."""
        left_s = room.head.until - self._store.now()
        scored = None
        if refusal is None:
            if known is None and left_s <= 0:
                raise incomplete(Group(room.head, "closed"), body.slot)
            try:
                scored = await _represented(model, body, call, digest, known, max(left_s, _SLACK_S))
            except TimeoutError:  # the group has been closed meanwhile
                raise incomplete(Group(room.head, "closed"), body.slot) from None
            member = scored.member
        else:
            member = Member(digest, None, error=(refusal.code, refusal.message))
        if known is None:
            whole = await self._store.put(room.key, room.head, body.slot, member)
            if whole:
                self._wake(room.key)
        error = member.refusal()
        if error is not None:
            raise error
        assert scored is not None
        return scored


async def _represented(
    model: HostedModel, body: CohortRequest, call: Call, digest: bytes, known: Member | None, limit_s: float
) -> _Scored:
    """Return the representations of a member, if it is not known, and of the references.

    Raises:
        ServiceError: if it is not the member's or a reference's own fault that there is none.
    """
    responses = [] if known is not None else [body.response]
    references = list(body.listed)
    items = [
        RequestItem(number, body.prompt, body.tools, (response,))
        for number, response in enumerate([*responses, *references])
    ]
    problems = Problems("cohort", report=True)
    running = asyncio.timeout(limit_s)
    mine = dataclasses.replace(call, problems=problems, gone=None, deadline=Deadline(limit_s, running))
    usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=0)
    vectors: NDArray[np.float32] = np.empty((0, model.model.comparator.dimension), dtype=np.float32)
    member = known
    if items:
        async with running:
            represented = await model.represent(items, mine)
        for error in problems.errors.values():
            if error.code not in _OF_THE_MEMBER:
                raise ServiceError(error.code, error.message, retry_after_s=error.retry_after_s)
        usage, vectors = represented.usage, represented.vectors
    if member is None:
        error_of_it = problems.errors.get(0)
        if error_of_it is not None:
            member = Member(digest, None, error=(error_of_it.code, error_of_it.message))
        else:
            dropped, shown = int(represented.dropped[0]), bool(represented.shown[0])
            measures = None if body.shaping is None else measure(response_messages(body.response))
            member = Member(digest, vectors[0], dropped, shown, measures)
    else:
        usage = _with_known(usage, member)
    first = len(responses)
    bad = {number - first: error for number, error in problems.errors.items() if number >= first}
    sound = [first + place for place in range(len(references)) if place not in bad]
    unscored = [Unscored(reference=place, code=error.code, message=error.message) for place, error in bad.items()]
    return _Scored(member, vectors[sound], unscored, usage)


def _with_known(usage: Usage, member: Member) -> Usage:
    counts = usage.model_dump(exclude_unset=True)
    counts["cached_responses"] += 1
    counts["truncated"] += member.dropped > 0
    if not member.shown:  # only fields that were set are sent
        counts["not_shown"] = counts.get("not_shown", 0) + 1
    return Usage(**counts)


async def _first_of(room: _Room, scoring: asyncio.Task[_Scored], call: Call, slot: int) -> tuple[Group, _Scored]:
    """Return the settled group and the scored member, or raise the first failure of either."""
    gone = None if call.gone is None else asyncio.ensure_future(call.gone())
    waited: set[asyncio.Future[Any]] = {room.settled, scoring}
    try:
        while waited:
            done, _ = await asyncio.wait(
                waited if gone is None else waited | {gone}, return_when=asyncio.FIRST_COMPLETED
            )
            # The member's own error first: a group may be settled by the very member that could not be scored.
            for task in (scoring, room.settled):
                if task in done:
                    task.result()
            if gone in done:
                raise ClientGoneError
            if room.settled in done and slot not in room.settled.result().members:
                raise incomplete(room.settled.result(), slot)  # it comes too late, however soon it is scored
            waited -= done
    finally:
        if gone is not None:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
    return room.settled.result(), scoring.result()


def _quiet(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Return a task whose failure is nobody's fault if nobody waits for it any more."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _head(
    model: HostedModel, comparator: Comparator, body: CohortRequest, stored: Stored[Vectors] | None, until: float
) -> Head:
    references = conversation_keys(b"", body.prompt, body.tools, body.listed)
    if stored is not None:
        references = [stored.version.encode()]
    aggregation = model.model.spec.aggregation
    terms = {
        "prompt": prompt_digest(body.prompt, body.tools).hex(),
        "size": str(body.size),
        "model": json.dumps(
            [model.model.identity, comparator.temperature, comparator.weights, *([aggregation] if aggregation else [])]
        ),
        "skew_weight": str(comparator.skew_weight),
        "list or set of references": hashlib.blake2b(b"".join(references), digest_size=16).hexdigest(),
        "on_missing": body.on_missing,
        "signal": body.signal or "",
        "shaping": "" if body.shaping is None else body.shaping.model_dump_json(),
        "truncation": body.truncation,
    }
    return Head(secrets.token_hex(8), body.attempt, body.size, until, body.on_missing, terms)


def _digest(body: CohortRequest, refusal: ServiceError | None) -> bytes:
    if refusal is not None:
        return hashlib.blake2b(refusal.message.encode(), digest_size=16, person=b"unreadable").digest()
    (key,) = conversation_keys(b"", body.prompt, body.tools, [body.response])
    return key
