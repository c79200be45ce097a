"""One hosted model that answers: from conversations to representations.

The path of a request: key of every response → cache → for what is missing, ``misses``: join, read, queue, wait →
representations, problems and usage, row by row.

Rows are responses in the order of the request, n of them; an item is a pair, an item or a group of the request.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import Usage
from paragone_models.errors import PreferencesUnavailableError, TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Conversation, Reading
from paragone_service.cache.codec import Codec
from paragone_service.cache.ids import NO_SECRET, Handles
from paragone_service.cache.keys import namespace
from paragone_service.cache.tiers import Cache
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.canary import Canary
from paragone_service.scoring.forwards import Forwards
from paragone_service.scoring.gate_scales import Gate
from paragone_service.scoring.misses import Filled, Misses
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Asked, Call, Represented, placed, unless_gone
from paragone_service.scoring.rows import Rows, rows_of, unknown_ids
from paragone_service.scoring.scheduler import Scheduler

__all__ = ["Oracle"]


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
        secret: what ids are keyed with, from ``secret_of``.
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
        secret: bytes = NO_SECRET,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        self._cache = cache
        self._metrics = metrics
        self._codec = Codec(model.comparator.dimension)
        self._space = namespace(model.identity, model.numerics if strict_cache else None)
        self._handles = Handles(secret, self._space)
        forwards = Forwards(
            name,
            model.represent,
            engine,
            device,
            cache,
            self._codec,
            metrics,
            failure=f"model {name} gave NaN or infinity for a response; nothing was cached",
        )
        self.scheduler = Scheduler(
            name,
            forwards.run,
            forwards.settle,
            turn=device.turn,
            metrics=metrics,
            shares_prompts=engine.shares_prompts,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            clock=clock,
        )
        self._thread = ReadingThread(name, model, clock=clock)
        self._misses = Misses(self._thread, self.scheduler, cache, clock=clock)
        self._canary = Canary(model, engine, self.scheduler, clock=clock)
        self.gate: Gate | None = None
        if model.spec.gate != "none":
            self.gate = Gate(
                name,
                model,
                engine,
                device,
                cache,
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
        await self._canary.close()
        await self.scheduler.close()
        if self.gate is not None:
            await self.gate.scheduler.close()
        await self.engine.close()
        self._thread.close()

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

    async def represent(self, asked: list[Asked], call: Call) -> Represented:
        """Return the representation of every response, in order.

        Args:
            asked: the request; emptied once it was read, so that texts do not wait with what is made of them.
            call: how it wants to be answered.

        Raises:
            ServiceError: for the first item that has no representation, unless the call reports errors; for the whole
                request, if the queue is full, the model reads no text, or ids are unknown.
            ClientGoneError: if the client left meanwhile.
        """
        rows = await rows_of(asked, call, self._space, self._handles)
        found = await self._cache.get(rows.keys, self._codec)
        filled = Filled({})
        if found.misses:
            work = self._fill(asked, call, rows, found.values)
            filled = await (work if call.gone is None else unless_gone(work, call.gone))
        return self._represented(call, rows, found.values, filled)

    async def read(self, conversations: Sequence[Conversation], call: Call) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it sees nothing; read in a thread.

        The call's truncation policy counts, and its timings are filled in.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        return await self._thread.read(conversations, call)

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether a forward succeeded within the last seconds, running a canary if none did.

        Args:
            within_s: how old the last success may be; where batches take long, twice as old as the last one took.
            timeout_s: how long the canary may take, queueing included.
        """
        return await self._canary.alive(within_s=within_s, timeout_s=timeout_s)

    async def _fill(self, asked: list[Asked], call: Call, rows: Rows, values: Sequence[bytes | None]) -> Filled:
        """Return the values that the cache lacks; of a response that is only named there is nothing to run."""
        missing: dict[bytes, int] = {}
        for row, value in enumerate(values):
            if value is None and row not in rows.named:
                missing.setdefault(rows.keys[row], row)
        unknown = [row for row in rows.named if values[row] is None and rows.keys[row] not in missing]
        errors = unknown_ids([rows.named[row] for row in unknown], call)
        filled = await self._misses.fill(asked, call, missing) if missing else Filled({})
        for row in unknown:
            item, _ = rows.named[row]
            rows.problems.setdefault(item, errors[item])
            filled.values[rows.keys[row]] = errors[item]
        return filled

    def _represented(
        self,
        call: Call,
        rows: Rows,
        found: Sequence[bytes | None],
        filled: Filled,
    ) -> Represented:
        keys = rows.keys
        values = [value if value is not None else filled.values[key] for key, value in zip(keys, found, strict=True)]
        errors: dict[int, ServiceError] = {}
        if filled.values:
            errors = {row: value for row, value in enumerate(values) if isinstance(value, ServiceError)}
        sound = [self._codec.blank if isinstance(value, ServiceError) else value for value in values]
        vectors, dropped = self._codec.decode(sound)
        cut = np.flatnonzero(dropped)
        if call.truncation == "error":
            for row in cut.tolist():
                errors[row] = self._truncated(int(dropped[row]))
        problems = rows.problems
        for row in sorted(errors):
            item = rows.items[row]
            if not call.report:
                raise placed(errors[row], call, item)
            problems.setdefault(item, errors[row])
        self._count(found, filled, len(errors), len(cut))
        usage = Usage(
            forward_responses=filled.forward_responses,
            forward_tokens=filled.forward_tokens,
            cached_responses=max(0, len(keys) - filled.forward_answers - len(errors)),
            truncated=len(cut),
        )
        return Represented(vectors, dropped, problems, usage, self._ids(rows) if call.ids else ())

    def _ids(self, rows: Rows) -> list[str | None]:
        """Return an id for each row, or none where nothing is kept that it could lead to."""
        if not self._cache.keeps:
            return [None] * len(rows.keys)
        return [
            None if prompt is None else self._handles.id_of(prompt, key)
            for prompt, key in zip(rows.prompts, rows.keys, strict=True)
        ]

    def _truncated(self, dropped: int) -> ServiceError:
        return ServiceError(
            ErrorCode.CONVERSATION_TRUNCATED,
            f"{dropped} tokens of the prompt are over the limit of {self.model.max_length} tokens: shorten it, or "
            'send "truncation": "prompt" to have it cut from the left',
        )

    def _count(self, found: Sequence[bytes | None], filled: Filled, errors: int, truncated: int) -> None:
        if filled.values:
            misses = found.count(None)
            self._metrics.cache_responses.labels("miss").inc(filled.forward_responses)
            self._metrics.cache_responses.labels("coalesced").inc(max(0, misses - filled.forward_answers - errors))
        if truncated:
            self._metrics.truncations.labels(self.name).inc(truncated)
