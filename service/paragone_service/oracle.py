"""One hosted model that answers: from conversations to representations, through cache, reader, scheduler and engine.

The path of a request: key of every response → cache → for what is missing: join what is on its way already, read the
rest in a thread, queue it, wait. All readings are made before the first response is queued.

Rows are responses in the order of the request, n of them; an item is a pair, an item or a group of the request.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Usage
from paragone_models.encoding import EncodeItem
from paragone_models.errors import PreferencesUnavailableError, TextError
from paragone_models.messages import Conversation
from paragone_models.model import PreferenceModel
from paragone_models.network import read_plan
from paragone_models.reader import Reading
from paragone_service.cache.codec import Codec
from paragone_service.cache.keys import conversation_keys, namespace
from paragone_service.cache.tiers import Cache
from paragone_service.calls import Asked, Call, Represented, as_conversation, item_of, placed, unless_gone
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.errors import ServiceError
from paragone_service.gates import Gate
from paragone_service.metrics import Metrics
from paragone_service.scheduler import Scheduler, Ticket
from paragone_service.timings import Timings

__all__ = ["Oracle"]

_KEYS_A_BREATH = 512
_READ_CHUNK = 128
_Readings = Mapping[bytes, Reading | ServiceError]
_Tickets = dict[bytes, Ticket]


@dataclass
class _Missing:
    """What became of the responses that no tier of the cache knew."""

    values: dict[bytes, bytes | ServiceError]
    forward_responses: int = 0
    forward_tokens: int = 0
    forward_answers: int = 0  # of the responses that this request ran, those that gave a representation


class Oracle:
    """Answer for one hosted model.

    Args:
        name: what it is called in requests.
        model: the loaded model.
        engine: what runs its backbone.
        device: the thread that its head runs on, shared with the other models on that device.
        cache: shared by all models.
        metrics: shared by all models.
        max_batch_tokens: budget of a batch.
        max_queue_tokens: how much may wait.
        strict_cache: keep entries apart by numerics too.
        clock: in seconds.
    """

    def __init__(
        self,
        name: str,
        model: PreferenceModel,
        engine: Engine,
        device: DeviceThread,
        cache: Cache,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        strict_cache: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        # One reading at a time: a tokenizer keeps how special tokens are split as state of its own.
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")
        self._device = device
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._codec = Codec(model.comparator.dimension)
        self._space = namespace(model.identity, model.numerics if strict_cache else None)
        self._canary: asyncio.Task[bool] | None = None
        self.scheduler = Scheduler(
            name,
            self._run,
            self._settle,
            turn=device.turn,
            metrics=metrics,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            clock=clock,
        )
        self.gate: Gate | None = None
        if model.spec.gate != "none":
            self.gate = Gate(
                name,
                model,
                engine,
                device,
                metrics,
                max_batch_tokens=max_batch_tokens,
                max_queue_tokens=max_queue_tokens,
                clock=clock,
            )
        queue = self.scheduler
        metrics.watch_queue(
            name,
            lambda: queue.queue_items,
            lambda: queue.queue_tokens,
            lambda: float(queue.last_success >= queue.last_failure),
        )

    def start(self) -> None:
        """Start the schedulers; needs a running event loop."""
        self.scheduler.start()
        if self.gate is not None:
            self.gate.scheduler.start()

    async def close(self) -> None:
        """Stop the schedulers and let go of the engine."""
        if self._canary is not None:
            self._canary.cancel()
            await asyncio.gather(self._canary, return_exceptions=True)
        await self.scheduler.close()
        if self.gate is not None:
            await self.gate.scheduler.close()
        await self.engine.close()
        self._reading.shutdown(wait=True, cancel_futures=True)

    def check_preferences(self) -> None:
        """Refuse comparisons where the model cannot make any.

        Raises:
            ServiceError: ``preferences_unavailable``.
        """
        nothing = np.zeros(self.model.comparator.dimension)
        try:
            self.model.comparator.logit(nothing, nothing)
        except PreferencesUnavailableError as error:
            raise ServiceError(ErrorCode.PREFERENCES_UNAVAILABLE, f"model {self.name}: {error}") from error

    def check_gate(self) -> Gate:
        """Return the model's gate.

        Raises:
            ServiceError: ``return_unavailable``, if it has none.
        """
        if self.gate is None:
            raise ServiceError(
                ErrorCode.RETURN_UNAVAILABLE,
                f'model {self.name} has no gate, and so no scales: leave "gate_scales" out of "return"',
            )
        return self.gate

    async def represent(self, asked: Sequence[Asked], call: Call) -> Represented:
        """Return the representation of every response, in order.

        Raises:
            ServiceError: for the first item that has no representation, unless the call reports errors; for the whole
                request, if the queue is full or the model reads no text.
            ClientGoneError: if the client left meanwhile.
        """
        keys = await self._keys(asked)
        found = await self._cache.get(keys, self._codec)
        if found.misses:
            work = self._fill(asked, call, keys, found.values)
            missing = await (work if call.gone is None else unless_gone(work, call.gone))
        else:
            missing = _Missing({})
        return self._represented(asked, call, keys, found.values, missing)

    async def read(self, conversations: Sequence[Conversation], call: Call) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it sees nothing; read in a thread.

        The call's truncation policy counts, and its timings are filled in.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        reader = self.model.reader
        if reader is None:
            raise ServiceError(
                ErrorCode.TEXT_UNAVAILABLE,
                f"model {self.name} was loaded from a folder without a tokenizer and reads no text: add its "
                "tokenizer files to the folder",
            )
        started = self._clock()
        loop = asyncio.get_running_loop()
        readings: list[Reading | TextError] = []
        for start in range(0, len(conversations), _READ_CHUNK):  # other requests' chunks come in between
            chunk = conversations[start : start + _READ_CHUNK]
            readings += await loop.run_in_executor(
                self._reading, functools.partial(reader.read, chunk, truncation=call.truncation)
            )
        call.timings.tokenize_s += self._clock() - started
        return readings

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether a forward succeeded within the last seconds, running a canary if none did.

        Args:
            within_s: how old the last success may be; where batches take long, twice as old as the last one took.
            timeout_s: how long the canary may take, queueing included.
        """
        if not (await self.engine.health()).healthy:
            return False
        if self._clock() - self.scheduler.last_success <= max(within_s, 2 * self.scheduler.last_batch_s):
            return True
        if self._canary is None or self._canary.done():
            self._canary = asyncio.get_running_loop().create_task(self._sing())
        done, _ = await asyncio.wait([self._canary], timeout=timeout_s)
        return bool(done) and self._canary.result()

    async def _sing(self) -> bool:
        try:
            tickets = self.scheduler.submit([(None, self._canary_item(), 0)])
        except ServiceError:
            return False  # a queue that is full and has had no success for a while is not ready
        try:
            return isinstance(await tickets[0].outcome, bytes)
        finally:
            self.scheduler.leave(tickets)

    def _canary_item(self) -> EncodeItem:
        reads = read_plan(self.model.spec, 1, 2, first_token=self.model.first_token)
        return EncodeItem(token_ids=(0, 0), reads=reads, prompt_length=1)

    async def _keys(self, asked: Sequence[Asked]) -> list[bytes]:
        keys: list[bytes] = []
        for index, one in enumerate(asked):
            keys += conversation_keys(self._space, one.prompt, one.tools, one.responses)
            if index % _KEYS_A_BREATH == _KEYS_A_BREATH - 1:
                await asyncio.sleep(0)
        return keys

    async def _fill(
        self, asked: Sequence[Asked], call: Call, keys: Sequence[bytes], values: Sequence[bytes | None]
    ) -> _Missing:
        """Return the values of all missing keys, having run through the model what nobody else is running."""
        rows = {key: row for row, key in reversed(list(enumerate(keys))) if values[row] is None}
        joined: dict[bytes, Ticket] = {}
        try:
            unread = [key for key in sorted(rows, key=rows.__getitem__) if not self._joins(key, joined)]
            readings = await self._readings(asked, call, {key: rows[key] for key in unread})
            missing = _Missing({key: error for key, error in readings.items() if isinstance(error, ServiceError)})
            own = self._queue(readings, missing, joined, call)
            missing.forward_responses = len(own)
            missing.forward_tokens = sum(ticket.tokens for ticket in own.values())
            joined.update(own)
            waiting = [ticket.outcome for ticket in joined.values() if not ticket.outcome.done()]
            started = self._clock()
            if waiting:
                await asyncio.wait(waiting)
            self._time(call.timings, started, joined)
            missing.values.update((key, ticket.outcome.result()) for key, ticket in joined.items())
            missing.forward_answers = sum(isinstance(missing.values[key], bytes) for key in own)
            return missing
        finally:
            self.scheduler.leave(list(joined.values()))

    def _joins(self, key: bytes, joined: dict[bytes, Ticket]) -> bool:
        ticket = self.scheduler.join(key)
        if ticket is not None:
            joined[key] = ticket
        return ticket is not None

    def _queue(self, readings: _Readings, missing: _Missing, joined: _Tickets, call: Call) -> _Tickets:
        """Queue what still nobody knows: reading took time, in which others may have run the same."""
        known = dict(zip(readings, self._cache.peek(list(readings)), strict=True))
        fresh: dict[bytes, Reading] = {}
        for key, reading in readings.items():
            value = known[key]
            if isinstance(reading, ServiceError):
                continue
            if value is not None:
                missing.values[key] = value
            elif not self._joins(key, joined):
                fresh[key] = reading
        if not fresh:
            return {}
        jobs = [(key, one.item, one.dropped_tokens) for key, one in fresh.items()]
        return dict(zip(fresh, self.scheduler.submit(jobs, client=call.client), strict=True))

    async def _readings(
        self, asked: Sequence[Asked], call: Call, rows: Mapping[bytes, int]
    ) -> dict[bytes, Reading | ServiceError]:
        """Read the conversations at some rows.

        Raises:
            ServiceError: for the first one that cannot be read, unless the call reports errors.
        """
        if not rows:
            return {}
        self.scheduler.check_room()
        flat = [(one, response) for one in asked for response in one.responses]
        conversations = [as_conversation(*flat[row]) for row in rows.values()]
        results = await self.read(conversations, call)
        readings: dict[bytes, Reading | ServiceError] = {}
        for (key, row), result in zip(rows.items(), results, strict=True):
            if isinstance(result, TextError):
                error = ServiceError(ErrorCode(result.code), str(result))
                if not call.report:
                    raise placed(error, call, item_of(asked, row))
                readings[key] = error
            else:
                readings[key] = result
        return readings

    def _time(self, timings: Timings, started: float, tickets: Mapping[bytes, Ticket]) -> None:
        batches = {id(ticket.batch): ticket.batch for ticket in tickets.values() if ticket.batch is not None}
        timings.inference_s += sum(batch.finished - batch.started for batch in batches.values())
        timings.queue_s += max(0.0, self._clock() - started - timings.inference_s)

    def _represented(
        self,
        asked: Sequence[Asked],
        call: Call,
        keys: Sequence[bytes],
        found: Sequence[bytes | None],
        missing: _Missing,
    ) -> Represented:
        values = [value if value is not None else missing.values[key] for key, value in zip(keys, found, strict=True)]
        errors: dict[int, ServiceError] = {}
        if missing.values:
            errors = {row: value for row, value in enumerate(values) if isinstance(value, ServiceError)}
        sound = [self._codec.blank if isinstance(value, ServiceError) else value for value in values]
        vectors, dropped = self._codec.decode(sound)
        cut = np.flatnonzero(dropped)
        if call.truncation == "error":
            for row in cut.tolist():
                errors[row] = self._truncated(int(dropped[row]))
        problems: dict[int, ServiceError] = {}
        for row in sorted(errors):
            item = item_of(asked, row)
            if not call.report:
                raise placed(errors[row], call, item)
            problems.setdefault(item, errors[row])
        self._count(found, missing, len(errors), len(cut))
        usage = Usage(
            forward_responses=missing.forward_responses,
            forward_tokens=missing.forward_tokens,
            cached_responses=max(0, len(keys) - missing.forward_answers - len(errors)),
            truncated=len(cut),
        )
        return Represented(vectors, dropped, problems, usage)

    def _truncated(self, dropped: int) -> ServiceError:
        return ServiceError(
            ErrorCode.CONVERSATION_TRUNCATED,
            f"{dropped} tokens of the prompt are over the limit of {self.model.max_length} tokens: shorten it, or "
            'send "truncation": "prompt" to have it cut from the left',
        )

    def _count(self, found: Sequence[bytes | None], missing: _Missing, errors: int, truncated: int) -> None:
        if missing.values:
            misses = found.count(None)
            self._metrics.cache_responses.labels("miss").inc(missing.forward_responses)
            self._metrics.cache_responses.labels("coalesced").inc(max(0, misses - missing.forward_answers - errors))
        if truncated:
            self._metrics.truncations.labels(self.name).inc(truncated)

    async def _run(self, items: Sequence[EncodeItem]) -> NDArray[np.float32]:
        hidden = await self.engine.encode(items)
        return await self._device.run(lambda: self.model.represent(hidden).numpy(force=True))

    def _settle(self, tickets: Sequence[Ticket], vectors: NDArray[np.float32]) -> list[bytes | ServiceError]:
        """Store the sound rows of a batch, and return each ticket's value or error."""
        finite = np.atleast_1d(np.isfinite(vectors).all(axis=1)).tolist()
        values = self._codec.encode(
            vectors, [ticket.tokens for ticket in tickets], [ticket.dropped for ticket in tickets]
        )
        kept = [index for index, good in enumerate(finite) if good and tickets[index].key is not None]
        held = self._cache.put([tickets[index].key or b"" for index in kept], [values[index] for index in kept])
        outcomes: list[bytes | ServiceError] = list(values)
        for index, value in zip(kept, held, strict=True):
            outcomes[index] = value
        for index, good in enumerate(finite):
            if not good:
                self._metrics.non_finite.labels(self.name).inc()
                outcomes[index] = ServiceError(
                    ErrorCode.NON_FINITE_SCORE,
                    f"model {self.name} gave NaN or infinity for a response; nothing was cached",
                )
        return outcomes
