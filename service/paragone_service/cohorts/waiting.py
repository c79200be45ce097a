"""A member on its way: it joins its group, is scored when it arrives, waits for the others, and is answered.

Scoring belongs to the group and not to the request: it runs to its end, and is put into the group, if its client has
left. Every process works the answers out from what the store has. What is to be done once for a group is done by
whoever has its lease; if that process ends, the lease does, and another one that waits takes it.
"""

import asyncio
import contextlib
import functools
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from paragone.codes import ErrorCode
from paragone.wire import CohortRequest, Usage
from paragone_service.cache.keys import conversation_keys, prompt_digest
from paragone_service.cohorts.contest import Contest, Scored, Standing
from paragone_service.cohorts.groups import Group, Head, Member, check_entry, group_key, incomplete, lost, superseded
from paragone_service.cohorts.store import Store
from paragone_service.http.errors import ClientGoneError, ServiceError
from paragone_service.http.middleware import Drain
from paragone_service.scoring.request import Call

__all__ = ["Cohorts", "Outcome"]

_LOOK_S = 1.0
"""How often a group is looked at whose news may not have come: another process may have ended, its state be gone."""
_SLACK_S = 5.0
"""How much longer a request may take than its group: so it is the group that ends, and the answer says how."""
_LEASE_S = 15.0
_RENEW_S = _LEASE_S / 3


@dataclass(frozen=True)
class Outcome:
    """What a member is answered from.

    Attributes:
        place: the member's row of the standing.
        usage: what the answer has cost: the member's own score, and the group's comparisons where this request began
            them.
    """

    group: Group
    standing: Standing
    place: int
    usage: Usage


class _Room:
    """Those in this process who wait for one group.

    Attributes:
        bell: rung when the group may have changed.
        settled: the group, once it is settled, or why it will not be.
        standing: what its members are to each other, once somebody has asked.
    """

    def __init__(self, key: bytes, head: Head) -> None:
        self.key = key
        self.head = head
        self.waiting = 0
        self.bell = asyncio.Event()
        self.settled: asyncio.Task[Group]
        self.standing: asyncio.Task[Standing] | None = None

    def forget_failure(self, task: asyncio.Task[Standing]) -> None:
        """Have a standing worked out anew that was not: what failed may have passed."""
        if (task.cancelled() or task.exception() is not None) and self.standing is task:
            self.standing = None


class Cohorts:
    """Answer members of groups.

    Args:
        drain: whether the server is shutting down.
        deadline_s: of groups whose first member names none, and how long comparing a group may take.
    """

    def __init__(self, store: Store, drain: Drain, *, deadline_s: float) -> None:
        self._store = store
        self._drain = drain
        self._deadline_s = deadline_s
        self._who = secrets.token_bytes(16)
        self._rooms: dict[bytes, dict[str, _Room]] = {}
        self._scoring: dict[tuple[bytes, str, int], asyncio.Task[Scored]] = {}
        self._comparing: dict[tuple[bytes, str], asyncio.Task[bytes]] = {}

    async def start(self) -> None:
        """Begin; needs a running event loop."""
        await self._store.start(self._wake)

    async def stop(self) -> None:
        """End what is under way; before the models close."""
        rooms = [room for rooms in self._rooms.values() for room in rooms.values()]
        tasks: list[asyncio.Task[Any]] = [
            *self._scoring.values(),
            *self._comparing.values(),
            *(room.settled for room in rooms),
        ]
        tasks += [room.standing for room in rooms if room.standing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.stop()

    async def answer(
        self, contest: Contest, body: CohortRequest, call: Call, *, refusal: ServiceError | None = None
    ) -> Outcome:
        """Return the member's outcome, once its group is settled.

        Args:
            contest: how members are held against each other.
            refusal: why the member's response cannot be read at all.

        Raises:
            ServiceError: if the member does not belong to the group or could not be scored, the group did not become
                whole in time, was superseded or lost, or the model cannot run.
            ClientGoneError: if the client left meanwhile; its member stays.
        """
        deadline_s = self._deadline_s if body.deadline_s is None else body.deadline_s
        if call.deadline is not None:
            call.deadline.shorten(deadline_s + _SLACK_S)
        wanted = _head(contest, body, self._store.now() + deadline_s)
        digest = _digest(body, refusal)
        key = group_key(call.tenant, body.group)
        entered = await self._store.enter(key, wanted, body.slot, digest)
        if entered.head.birth == wanted.birth:
            self._wake(key)  # whoever waits for an older attempt, waits in vain
        check_entry(wanted, body.slot, digest, entered)
        async with self._room(key, entered.head) as room:
            score = functools.partial(self._score, room, contest, body.slot, digest, entered.member, refusal)
            scoring = self._scored(room, body.slot, score)
            group, scored = await _first_of(room, scoring, call, body.slot)
            if body.slot not in group.members or (group.missing and group.head.on_missing == "fail"):
                raise incomplete(group, body.slot)
            standing, began = await self._standing(room, contest, group, scored, call)
            own = standing.usage if began and standing.usage is not None else None
            usage = scored.usage if own is None else scored.usage.plus(own)
            return Outcome(group, standing, standing.place(body.slot), usage)

    async def _standing(
        self, room: _Room, contest: Contest, group: Group, scored: Scored, call: Call
    ) -> tuple[Standing, bool]:
        """Return the group's standing, worked out once for all who wait here, and whether this request began that."""
        began = room.standing is None
        if room.standing is None:
            room.standing = _quiet(contest.standing(group, scored, functools.partial(self._once, room)))
            room.standing.add_done_callback(room.forget_failure)
        task = room.standing
        if not task.done():
            async with _leaving(call) as gone:
                await asyncio.wait({task} if gone is None else {task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
        return task.result(), began

    async def _once(self, room: _Room, work: Callable[[float], Awaitable[bytes]]) -> bytes:
        """Return a settled group's table, for which work is done in one process of all; see ``Once``."""
        place = (room.key, room.head.birth)
        task = self._comparing.get(place)
        if task is None:
            task = self._comparing[place] = _quiet(self._table(room, work))
            task.add_done_callback(lambda _: self._comparing.pop(place, None))
        return await asyncio.shield(task)

    async def _table(self, room: _Room, work: Callable[[float], Awaitable[bytes]]) -> bytes:
        key, head = room.key, room.head
        while True:
            claim = await self._store.claim(key, head, self._who, _LEASE_S)
            if claim == "ours":
                await self._compare(room, work)
                continue
            if claim == "theirs":
                room.bell.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await room.bell.wait()
                continue
            group = _still(await self._store.read(key), head)
            if group.table is not None:
                return group.table

    async def _compare(self, room: _Room, work: Callable[[float], Awaitable[bytes]]) -> None:
        """Do a group's work under its lease, and keep the outcome; a group or a lease that is lost ends it."""
        working = asyncio.ensure_future(work(self._deadline_s))
        claim = functools.partial(self._store.claim, room.key, room.head, self._who)
        try:
            while not working.done():
                room.bell.clear()
                ringing = asyncio.ensure_future(room.bell.wait())
                await asyncio.wait({working, ringing}, timeout=_RENEW_S, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
                if not working.done() and await claim(_LEASE_S) != "ours":
                    return
            await self._store.finish(room.key, room.head, working.result())
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            # Also after a failure, so that another process need not wait for the lease's end.
            with contextlib.suppress(ServiceError):
                await claim(0.0)

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
            group = _still(await self._store.read(room.key), room.head)
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

    def _scored(self, room: _Room, slot: int, score: Callable[[], Coroutine[Any, Any, Scored]]) -> asyncio.Task[Scored]:
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
        contest: Contest,
        slot: int,
        digest: bytes,
        known: Member | None,
        refusal: ServiceError | None,
    ) -> Scored:
        """Return the scored member, put into its group; one that is known is not run again."""
        left_s = room.head.until - self._store.now()
        scored = None
        if refusal is None:
            if known is None and left_s <= 0:
                raise incomplete(Group(room.head, "closed"), slot)
            try:
                scored = await contest.scored(digest, known, max(left_s, _SLACK_S))
            except TimeoutError:  # the group has been closed meanwhile
                raise incomplete(Group(room.head, "closed"), slot) from None
            member = scored.member
        else:
            member = Member(digest, None, error=(refusal.code, refusal.message))
        if known is None:
            whole = await self._store.put(room.key, room.head, slot, member)
            if whole:
                self._wake(room.key)
        error = member.refusal()
        if error is not None:
            raise error
        assert scored is not None
        return scored


def _still(group: Group | None, head: Head) -> Group:
    """Return the group that is kept, if it is the one that is waited for.

    Raises:
        ServiceError: ``cohort_superseded``, or ``cohort_lost``.
    """
    if group is None:
        raise lost("is gone (evicted, or its server was restarted)")
    if group.head.birth != head.birth:
        if group.head.attempt > head.attempt:
            raise superseded(head.attempt, group.head.attempt)
        raise lost("is gone, and the group began anew")
    return group


@contextlib.asynccontextmanager
async def _leaving(call: Call) -> AsyncIterator["asyncio.Task[None] | None"]:
    """Yield what is done once the client has left; None if it cannot leave."""
    gone = None if call.gone is None else asyncio.ensure_future(_awaited(call.gone()))
    try:
        yield gone
    finally:
        if gone is not None:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _first_of(room: _Room, scoring: asyncio.Task[Scored], call: Call, slot: int) -> tuple[Group, Scored]:
    """Return the settled group and the scored member, or raise the first failure of either."""
    waited: set[asyncio.Future[Any]] = {room.settled, scoring}
    async with _leaving(call) as gone:
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
    return room.settled.result(), scoring.result()


def _quiet(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Return a task whose failure is nobody's fault if nobody waits for it any more."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _head(contest: Contest, body: CohortRequest, until: float) -> Head:
    terms = {
        "prompt": prompt_digest(body.prompt, body.tools).hex(),
        "size": str(body.size),
        **contest.terms(),
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
