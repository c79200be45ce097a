"""One hosted model: from the responses of a request to their representations, and whether the model can answer at all.

The path of a request: a key for every response → cache → what it lacks is joined where another request has it on its
way (single flight), else read, queued and waited for → representations, problems and usage, row by row.
"""

import asyncio
import contextlib
import dataclasses
import operator
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import Usage
from paragone_models.comparator import Comparator
from paragone_models.errors import PreferencesUnavailableError, TextError
from paragone_models.model import PreferenceModel
from paragone_models.steps import rewards_of_steps
from paragone_models.text.reader import Readable, Reading
from paragone_models.text.sizes import sizes
from paragone_service.cache.keys import NO_SECRET, Ids, carried, namespace
from paragone_service.cache.steps import StepsCodec
from paragone_service.cache.tiers import Codec
from paragone_service.http.errors import ClientGoneError, ServiceError
from paragone_service.scoring.admission import Admission
from paragone_service.scoring.canary import Canary
from paragone_service.scoring.gate import Gate, GateScales
from paragone_service.scoring.model_io import Resources, open_queue, read_jobs
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Call, Represented, RequestItem, Row, as_conversations
from paragone_service.scoring.rows import add_unknown_ids, rows_of
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job, Ticket, wait_for
from paragone_service.scoring.together import pass_of

__all__ = ["HostedModel"]

Result = TypeVar("Result")

_PATIENCE_S = 4.0
"""Reading some of a request's texts for longer than this, a model is not ready."""
_STUCK_RETRY_AFTER_S = 5


@dataclass
class _Filled:
    """The values of a request's misses.

    Attributes:
        values: by key, or why there is none.
        forward_responses: those that this request ran.
        forward_tokens: their tokens.
        forward_answers: those among them that gave a representation.
    """

    values: dict[bytes, bytes | ServiceError] = field(default_factory=dict)
    forward_responses: int = 0
    forward_tokens: int = 0
    forward_answers: int = 0


class HostedModel:
    """Answer for one model.

    Args:
        name: what it is called in requests.
        resources: what runs it and keeps its representations; an attribute too.
        strict_cache: keep entries apart by numerics too.
        secret: what ids are keyed with, from ``secret_of``.

    Attributes:
        header: what every answer says of the model.
        admission: lets requests in that need the device.
        takes_principles: whether items say what they are judged by.
        under_way: how many requests it works on that the cache could not answer.
        head: what makes representations of hidden states.
        pass_: equal to that of another model whose responses one pass can serve too; None where there can be none.
    """

    fatal = True

    def __init__(
        self,
        name: str,
        model: PreferenceModel,
        resources: Resources,
        *,
        strict_cache: bool = False,
        secret: bytes = NO_SECRET,
    ) -> None:
        self.name = name
        self.model = model
        self.under_way = 0
        self.resources = resources
        self.engine = resources.replicas[0].engine
        self._engines = list(dict.fromkeys(replica.engine for replica in resources.replicas))
        self.header = {
            "model": name,
            "identity": model.identity,
            "fingerprint": model.fingerprint,
            "calibrated": model.spec.calibrated,
        }
        self._cache = resources.cache
        self._metrics = resources.metrics
        self._clock = resources.clock
        self._codec = StepsCodec() if model.spec.rules.has_steps else Codec(model.comparator.dimension)
        # Two names of one model share its entries: the space is made of the identity, and not of the name.
        self._numerics = model.provenance.numerics if strict_cache else None
        self._secret = secret
        self._ids_of_tenants: dict[str | None, Ids] = {}
        self.admission = Admission(name, resources.metrics, max_wait_s=resources.max_wait_s, clock=resources.clock)
        failure = f"model {name} gave NaN or infinity for a response; nothing was cached"
        self.head = resources.head(name, PreferenceModel.represent, self._codec, failure=failure)
        self.pass_ = pass_of(model, resources)
        self.scheduler = queue = open_queue(self.head, resources)
        self._reading = ReadingThread(
            name, model, queue.stocked, lacking=queue.lacking, limit_s=resources.reading_limit_s, clock=self._clock
        )
        queue.when_not_stocked = self._reading.go_on
        self._gate = None if model.spec.gate == "none" else Gate(name, model, resources, self._reading)
        self._canary = Canary(self.scheduler, model)
        self._suspended: asyncio.Future[str] | None = None
        self.takes_principles = model.spec.principle_question is not None
        self._no_preferences: str | None = None
        try:  # the comparator knows best whether it can compare; it is asked once, and not by every request
            model.comparator.logit(*np.zeros((2, model.comparator.dimension)))
        except PreferencesUnavailableError as error:
            self._no_preferences = f"model {name}: {error}"
        self._metrics.watch_queue(
            name,
            lambda: queue.queue_items,
            lambda: queue.queue_tokens,
            self.admission.backlog_s,
            lambda: float(queue.workers.last_success >= queue.workers.last_failure),
        )

    def start(self) -> None:
        """Start the queues; needs a running event loop."""
        self.resume()
        for scheduler in self.schedulers():
            scheduler.start()

    def schedulers(self) -> list[Scheduler]:
        """Return its queues: of responses, and of prompts where it has a gate."""
        return [self.scheduler] if self._gate is None else [self.scheduler, self._gate.scheduler]

    def stuck_worker(self) -> str:
        """Return which worker hangs or died; empty if none. Any thread may ask."""
        troubles = (scheduler.workers.trouble() for scheduler in self.schedulers())
        return self._reading.post.stuck() or next(filter(None, troubles), "")

    def suspend(self, reason: str) -> None:
        """Fail every request that needs a worker, until ``resume``; what is cached is answered."""
        if self._suspended is not None and not self._suspended.done():
            self._suspended.set_result(reason)

    def resume(self) -> None:
        """Take requests (again); needs a running event loop."""
        self._suspended = asyncio.get_running_loop().create_future()

    def forget_metrics(self) -> None:
        """Show it in the metrics no more."""
        self._metrics.forget_model(self.name, [device.name for device in self.scheduler.devices])

    async def close(self) -> None:
        """Stop the queues and let go of the engine."""
        # Inwards: nobody may submit to a queue that is closed, nor an engine be called that is.
        await self._canary.close()
        await self.scheduler.close()
        if self._gate is not None:
            await self._gate.scheduler.close()
        for engine in self._engines:
            await engine.close()
        self._reading.close()

    def check_preferences(self, comparator: Comparator | None = None) -> None:
        """Refuse comparisons where the model cannot make any.

        Args:
            comparator: with a request's own numbers; None for the model's.

        Raises:
            ServiceError: ``preferences_unavailable``.
        """
        if comparator is not None and comparator.compares:
            return
        if self._no_preferences is not None:
            raise ServiceError(ErrorCode.PREFERENCES_UNAVAILABLE, self._no_preferences)

    def check_gate(self) -> Gate:
        """Return the model's gate.

        Raises:
            ServiceError: ``return_unavailable``, if it has none.
        """
        if self._gate is None:
            raise ServiceError(
                ErrorCode.RETURN_UNAVAILABLE,
                f'model {self.name} has no gate, and so no scales: leave "gate_scales" out of "return"',
            )
        return self._gate

    async def gate_scales(self, items: Sequence[RequestItem], call: Call) -> GateScales:
        """Return the gate's weights for the items that have no problem yet.

        Raises:
            ServiceError: ``return_unavailable``, if the model has no gate; else as for ``represent``.
            ClientGoneError: if the client left meanwhile.
        """
        return await self.unless_gone(self.check_gate().scales(items, call), call)

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether a forward succeeded within the last seconds, running a canary if none did.

        Args:
            within_s: how old the last success may be; where batches take long, twice as old as the last one took.
            timeout_s: how long the canary may take, queueing included.
        """
        workers = self.scheduler.workers
        if self.stuck_worker() or self._reading.post.busy_s() > _PATIENCE_S or workers.overdue():
            return False
        if not any([(await engine.health()).healthy for engine in self._engines]):
            return False  # a device in ruins fails every canary; there is no need to send one
        if self._clock() - workers.last_success <= max(within_s, 2 * workers.last_batch_s):
            return True
        return await self._canary.returns(timeout_s)

    async def read(self, conversations: Sequence[Readable], call: Call) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it sees nothing; read in a thread.

        The call's truncation policy counts, and its timings are filled in.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer; ``overloaded``, if it would wait for too
                long.
        """
        size = sum(whole for _, whole in sizes(conversations))
        self.admission.check_wait(self._reading.expected_wait_s(size, call.client), size, call.deadline)
        return await self.unless_gone(self._reading.read(conversations, call), call)

    def key_of(self, key: bytes, tenant: str | None) -> bytes:
        """Return the key of a response from the one that it has of another model."""
        return carried(key, self._ids_of(tenant).space)

    async def known(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return what the cache holds under keys of this model."""
        return (await self._cache.get(keys, self._codec)).values

    async def represent(self, items: list[RequestItem], call: Call) -> Represented:
        """Return the representation of every response, in order.

        Args:
            items: of the request; emptied once they were read, so that texts do not wait with what is made of them.

        Raises:
            ServiceError: for the first response without a representation, unless the call reports errors; for the whole
                request, if the queue is full, the model reads no text, or ids are unknown.
            ClientGoneError: if the client left meanwhile.
        """
        indices = [item.index for item in items]  # kept apart, since the items are emptied on the way
        ids = self._ids_of(call.tenant)
        rows = await rows_of(items, call, ids)
        hits = await self._cache.get([*map(operator.attrgetter("key"), rows)], self._codec)
        filled = _Filled()
        if not hits.misses:
            self.admission.parsed(call.client, call.body_bytes, 0, 0)
        else:
            filled = await self.unless_gone(self._fill(items, rows, hits.values, call), call)
        return self._represented(indices, rows, hits.values, filled, call, ids)

    def _ids_of(self, tenant: str | None) -> Ids:
        """Return the ids of a tenant, in the space of its own entries: a hit of another would tell what it asked."""
        ids = self._ids_of_tenants.get(tenant)
        if ids is None:
            space = namespace(self.model.identity, self._numerics, tenant=tenant)
            ids = self._ids_of_tenants[tenant] = Ids(self._secret, space)
        return ids

    async def _fill(
        self, items: list[RequestItem], rows: Sequence[Row], values: Sequence[bytes | None], call: Call
    ) -> _Filled:
        """Return the values that the cache lacks, having run through the model what nobody else is running."""
        # By key, each with the number of its first row: a response that comes twice is run once.
        missing: dict[bytes, int] = {}
        for number, row in enumerate(rows):
            if values[number] is None and row.id is None:
                missing.setdefault(row.key, number)
        # An id may also stand for a response that this very request has in full.
        unknown = [
            row
            for row, value in zip(rows, values, strict=True)
            if value is None and row.id is not None and row.key not in missing
        ]
        errors = add_unknown_ids(unknown, call.problems)
        filled = _Filled(dict(errors))
        if call.together is not None:
            filled.values.update((key, value) for key, value in call.together.values.items() if key in missing)
            missing = {key: number for key, number in missing.items() if key not in filled.values}
            await call.together.look_up(self, missing, call.tenant)
        if not missing:
            return filled
        joined: dict[bytes, Ticket] = {}
        try:
            joined.update(self.scheduler.join(missing, deadline=call.deadline))
            for key in joined:
                del missing[key]
            own = await self._run(items, rows, missing, filled, joined, call)
            filled.values.update((key, ticket.outcome.result()) for key, ticket in joined.items())
            if call.together is not None:
                call.together.learn(joined.values())
            filled.forward_responses = len(own)
            filled.forward_tokens = sum(ticket.tokens for ticket in own.values())
            filled.forward_answers = sum(isinstance(filled.values[key], bytes) for key in own)
            return filled
        finally:
            # Also when the client has left, or an error refuses the request: its tickets lose a waiter each.
            self.scheduler.leave(list(joined.values()))

    async def _run(
        self,
        items: list[RequestItem],
        rows: Sequence[Row],
        missing: Mapping[bytes, int],
        filled: _Filled,
        joined: dict[bytes, Ticket],
        call: Call,
    ) -> dict[bytes, Ticket]:
        """Read and run what is missing, wait for it and for what was joined, and return the tickets of its own."""
        responses = [(item, response) for item in items for response in item.responses]
        conversations = as_conversations([responses[number] for number in missing.values()])
        size = sum(whole for _, whole in sizes(conversations))
        self.admission.parsed(call.client, call.body_bytes, size, len(missing))
        reading_s = self._reading.expected_wait_s(size, call.client)
        admitted = self.admission.admitted(
            size, len(missing), call.client, call.deadline, before_s=reading_s, reservation=call.reservation
        )
        with admitted if missing else contextlib.nullcontext() as entry:
            if entry is not None:
                call = dataclasses.replace(call, rested=entry.rested)
            jobs = await self._jobs(conversations, rows, missing, filled, call)
            # The texts of all that waits would take more than its tokens do.
            items.clear()
            responses.clear()
            conversations.clear()
            own = await self._queue_paid(jobs, filled, joined, call)
            if entry is not None:
                for ticket in own.values():
                    ticket.outcome.add_done_callback(entry.one_finished)
            await wait_for(list(joined.values()), call.timings, self._clock)
        return own

    async def _jobs(
        self,
        conversations: Sequence[Readable],
        rows: Sequence[Row],
        unread: Mapping[bytes, int],
        filled: _Filled,
        call: Call,
    ) -> list[Job]:
        """Read the responses at some rows; what cannot be read is a problem, and an error among the values.

        All is read before the first response is queued, so that an item that cannot be read refuses its request before
        anything was computed.
        """
        if not unread:
            return []
        self.scheduler.check_room()  # reading for a queue that is full already would be work for nothing
        jobs = []
        for (key, number), job in zip(
            unread.items(), await read_jobs(self._reading, list(unread), conversations, call), strict=True
        ):
            if isinstance(job, TextError):
                filled.values[key] = error = ServiceError(ErrorCode(job.code), str(job))
                call.problems.add_row(rows[number], error)
            else:
                jobs.append(job if call.together is None else call.together.with_riders(self, job, call.tenant))
        return jobs

    async def _queue_paid(
        self, jobs: Sequence[Job], filled: _Filled, joined: dict[bytes, Ticket], call: Call
    ) -> dict[bytes, Ticket]:
        """Queue the jobs for what their tokens cost the key; what need not or cannot be run is given back."""
        spending = call.spending if jobs else None
        cost = sum(len(job.item.token_ids) for job in jobs)
        if spending is not None:
            await spending.tokens(cost)
        own: dict[bytes, Ticket] = {}
        try:
            own = self._queue(jobs, filled, joined, call)
            joined.update(own)  # before anything is awaited: whoever is cancelled here leaves its tickets
        finally:
            if spending is not None:
                await spending.give_back(cost - sum(ticket.tokens for ticket in own.values()))
        return own

    def _queue(
        self, jobs: Sequence[Job], filled: _Filled, joined: dict[bytes, Ticket], call: Call
    ) -> dict[bytes, Ticket]:
        """Queue the jobs that still nobody knows: reading took time, in which others may have run the same."""
        fresh = {job.key: job for job in jobs if job.key is not None}
        for key, value in zip(list(fresh), self._cache.peek(list(fresh)), strict=True):
            if value is not None:
                filled.values[key] = value
                del fresh[key]
        # No await from here to ``submit``: nobody else can queue one of these keys in between.
        running = self.scheduler.join(fresh, deadline=call.deadline)
        joined.update(running)
        for key in running:
            del fresh[key]
        if not fresh:
            return {}
        return dict(
            zip(
                fresh,
                self.scheduler.submit(
                    list(fresh.values()), client=call.client, deadline=call.deadline, rested=call.rested
                ),
                strict=True,
            )
        )

    def _represented(
        self,
        items: Sequence[int],
        rows: Sequence[Row],
        hits: Sequence[bytes | None],
        filled: _Filled,
        call: Call,
        ids: Ids,
    ) -> Represented:
        values = [value if value is not None else filled.values[row.key] for row, value in zip(rows, hits, strict=True)]
        errors: dict[int, ServiceError] = {}
        if filled.values:
            errors = {number: value for number, value in enumerate(values) if isinstance(value, ServiceError)}
        # Rows in error have a value of NaN, so that all rows are decoded at once and keep their places.
        decoded = self._codec.decode(
            [self._codec.blank if isinstance(value, ServiceError) else value for value in values]
        )
        dropped = decoded.dropped
        cut = np.flatnonzero(dropped)
        if call.truncation == "error":
            # The reader refuses such conversations itself; these were cached when somebody allowed the cut.
            for number in cut.tolist():
                errors[number] = self._truncated(int(dropped[number]))
        for number in sorted(errors):  # in the order of the request: the first bad item is the one that is named
            call.problems.add_row(rows[number], errors[number])
        if filled.values:
            # Of the misses: what another request had on its way, or what came twice in this one.
            joined = max(0, hits.count(None) - filled.forward_answers - len(errors))
            self._metrics.cache_responses.labels("miss").inc(filled.forward_responses)
            self._metrics.cache_responses.labels("coalesced").inc(joined)
        if len(cut):
            self._metrics.truncations.labels(self.name).inc(len(cut))
        usage = Usage(
            forward_responses=filled.forward_responses,
            forward_tokens=filled.forward_tokens,
            cached_responses=max(0, len(rows) - filled.forward_answers - len(errors)),
            truncated=len(cut),
        )
        not_shown = len(rows) - int(np.count_nonzero(decoded.shown))
        if not_shown:  # only fields that were set are sent
            usage.not_shown = not_shown
        row_ids = self._row_ids(rows, ids) if call.ids else ()
        vectors, steps = decoded.vectors, None
        if self.model.spec.rules.has_steps:
            steps = vectors
            vectors = rewards_of_steps(steps, call.aggregation or self.model.spec.aggregation)
        return Represented(vectors, dropped, decoded.shown, items, usage, row_ids, decoded.tokens, steps)

    async def unless_gone(self, work: Coroutine[Any, Any, Result], call: Call) -> Result:
        """Return what ``work`` returns, or cancel it when the client leaves first, or a worker turns out to hang.

        Raises:
            ClientGoneError: if the client left.
            ServiceError: ``engine_unavailable``, if the model is suspended, now or meanwhile.
        """
        suspended = self._suspended
        assert suspended is not None  # nobody asks before ``start``
        if suspended.done():
            work.close()
            raise self._stuck(suspended.result())
        self.under_way += 1
        working = asyncio.ensure_future(work)
        ended_by: list[asyncio.Future[Any]] = [suspended]
        if call.gone is not None:
            ended_by.append(asyncio.ensure_future(call.gone()))
        try:
            await asyncio.wait([working, *ended_by], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if suspended.done():
                raise self._stuck(suspended.result())
            raise ClientGoneError
        finally:
            # All are awaited, so that the work has let go of its tickets before the answer leaves.
            tasks = [working, *ended_by[1:]]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.under_way -= 1

    def _stuck(self, reason: str) -> ServiceError:
        return ServiceError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"model {self.name} cannot run ({reason}): try another replica, or later",
            retry_after_s=_STUCK_RETRY_AFTER_S,
        )

    def _row_ids(self, rows: Sequence[Row], ids: Ids) -> list[str | None]:
        """Return an id for each row, or none where nothing is kept that it could lead to."""
        if not self._cache.keeps:
            return [None] * len(rows)
        return [None if row.prompt is None else ids.id_of(row.prompt, row.key) for row in rows]

    def _truncated(self, dropped: int) -> ServiceError:
        return ServiceError(
            ErrorCode.CONVERSATION_TRUNCATED,
            f"{dropped} tokens of the prompt are over the limit of {self.model.spec.max_length} tokens: shorten it, or "
            'send "truncation": "prompt" to have it cut from the left',
        )
