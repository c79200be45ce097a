"""The client for coroutines (asyncio); ``paragone.client`` has the same methods for code that waits."""

import asyncio
import contextlib
import threading
import time
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from paragone.addresses import DEFAULT_URL, Addresses
from paragone.batches import (
    PREFERENCES,
    REWARDS,
    TOKENS,
    TOURNAMENTS,
    AnswerT,
    CriteriaLike,
    GroupLike,
    ItemLike,
    PairLike,
    Part,
    PromptLike,
    ReferencesLike,
    RequestOptions,
    ResponseLike,
    Route,
    merge_answers,
    parts_of,
    read_json,
)
from paragone.connection import CONNECTIONS, DEFAULT_MAX_BYTES, Connection
from paragone.exceptions import ParagoneError, UnknownIdError, checked
from paragone.ids import IdMemory
from paragone.single import (
    COHORTS,
    DEFAULT_DEADLINE_S,
    REFERENCES,
    RUNS,
    SingleRequest,
    deletion,
    group_of,
    member_request,
    pair_of,
    references_request,
    run_request,
)
from paragone.tracing import request_span
from paragone.transport import Attempts, send_async
from paragone.wire import (
    Aggregation,
    CohortAnswer,
    CohortReturn,
    Fit,
    ModelInfo,
    ModelsAnswer,
    OnError,
    OnMissing,
    PreferenceReturn,
    PreferencesAnswer,
    ReferenceSet,
    ReferenceSetsAnswer,
    RewardReturn,
    RewardsAnswer,
    RunAnswer,
    RunReport,
    RunsAnswer,
    RunSummary,
    Shaping,
    Signal,
    TokensAnswer,
    Tournament,
    TournamentReturn,
    TournamentsAnswer,
    Truncation,
)

__all__ = ["AsyncClient"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a client has in one event loop.

    Attributes:
        places: of the requests in flight. A bound of the connections would count the wait for one as a server's, and a
            replica that hangs would keep all of them.
        ending: closes the connections.
    """

    http: httpx2.AsyncClient
    places: asyncio.Semaphore
    ending: AsyncGenerator[None, None]


async def _until_the_loop_ends(http: httpx2.AsyncClient) -> AsyncGenerator[None, None]:
    """Close connections with their event loop: ``asyncio.run`` ends the asynchronous generators that it has seen."""
    try:
        yield
    finally:
        await http.aclose()


class AsyncClient:
    """Asks a Paragone service from asyncio coroutines: any number of tasks, in one event loop or in several.

    Each event loop has connections of its own, so that a client outlives the loop of an ``asyncio.run``. Arguments and
    methods are those of ``paragone.Client``; ``transport`` and ``sleep`` are asynchronous.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        retry_s: float = 120.0,
        retries: int | None = None,
        wait_s: float | None = None,
        max_items_per_request: int = 1_000,
        max_bytes_per_request: int = DEFAULT_MAX_BYTES,
        concurrency: int = 4,
        remembered_ids: int = 0,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._connection = Connection.made(
            url,
            api_key=api_key,
            model=model,
            timeout_s=timeout_s,
            retry_s=retry_s,
            retries=retries,
            wait_s=wait_s,
            max_items_per_request=max_items_per_request,
            max_bytes_per_request=max_bytes_per_request,
            concurrency=concurrency,
        )
        self._memory_size = remembered_ids
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._open()

    def _open(self) -> None:
        """Begin with nothing open and nothing known."""
        self._opened: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._addresses = Addresses(self._connection.urls, self._clock)
        self._memory = IdMemory(self._memory_size)

    async def _here(self) -> _Opened:
        """Return the connections of the running event loop; a connection cannot leave the loop that opened it.

        Raises:
            ParagoneError: if the client is closed.
        """
        if self._closed:
            raise ParagoneError("this client is closed: make a new one")
        loop = asyncio.get_running_loop()
        kept = self._opened.get(loop)
        if kept is None:
            connection = self._connection
            http = httpx2.AsyncClient(
                transport=self._transport,
                trust_env=connection.trust_env,
                mounts=connection.direct or None,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
            )
            kept = _Opened(http, asyncio.Semaphore(CONNECTIONS), _until_the_loop_ends(http))
            with self._lock:
                # What a loop has left open that is closed by now can only be dropped.
                self._opened = {other: one for other, one in self._opened.items() if not other.is_closed()}
                self._opened[loop] = kept
            await anext(kept.ending)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        opened = {"_opened", "_lock", "_closed", "_addresses", "_memory"}
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._closed = True
        running = asyncio.get_running_loop()
        opened, self._opened = self._opened, {}
        for loop, one in opened.items():
            if loop is running:
                await one.ending.aclose()
            elif loop.is_running():  # a loop of another thread
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(one.ending.aclose(), loop))

    @property
    def timeout_s(self) -> float:
        """Seconds after which one HTTP request is given up, its retries included."""
        return self._connection.policy.timeout_s

    async def prefer(
        self,
        prompt: PromptLike,
        first: ResponseLike,
        second: ResponseLike,
        *,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        model: str | None = None,
        truncation: Truncation = "prompt",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
    ) -> float:
        """Return what ``Client.prefer`` returns; it raises the same."""
        answer = await self.preferences(
            [pair_of(prompt, first, second, principle=principle, criteria=criteria)],
            model=model,
            truncation=truncation,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
        )
        return checked(answer.preferences)[0].probability

    async def preferences(
        self,
        pairs: Iterable[PairLike],
        *,
        model: str | None = None,
        return_: Sequence[PreferenceReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
    ) -> PreferencesAnswer:
        """Return what ``Client.preferences`` returns; it raises the same."""
        return await self._ask(
            PREFERENCES,
            pairs,
            RequestOptions(
                model=model,
                truncation=truncation,
                on_error=on_error,
                return_=return_,
                skew_weight=skew_weight,
                weights=weights,
                aggregation=aggregation,
            ),
        )

    async def rewards(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        return_: Sequence[RewardReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        skew_weight: float | None = None,
    ) -> RewardsAnswer:
        """Return what ``Client.rewards`` returns; it raises the same."""
        return await self._ask(
            REWARDS,
            items,
            RequestOptions(
                model=model,
                truncation=truncation,
                on_error=on_error,
                return_=return_,
                weights=weights,
                aggregation=aggregation,
                skew_weight=skew_weight,
            ),
        )

    async def tournament(
        self,
        prompt: PromptLike,
        responses: Sequence[ResponseLike],
        *,
        references: ReferencesLike | None = None,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        truncation: Truncation = "prompt",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        comparisons: str = "all",
        fit: Fit = "bradley-terry",
    ) -> Tournament:
        """Return what ``Client.tournament`` returns; it raises the same."""
        answer = await self.tournaments(
            [group_of(prompt, responses, references=references, principle=principle, criteria=criteria)],
            model=model,
            return_=return_,
            signal=signal,
            shaping=shaping,
            truncation=truncation,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
            comparisons=comparisons,
            fit=fit,
        )
        return checked(answer.tournaments)[0]

    async def tournaments(
        self,
        groups: Iterable[GroupLike],
        *,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        comparisons: str = "all",
        fit: Fit = "bradley-terry",
    ) -> TournamentsAnswer:
        """Return what ``Client.tournaments`` returns; it raises the same."""
        options = RequestOptions(
            model=model,
            truncation=truncation,
            on_error=on_error,
            return_=return_,
            signal=signal,
            shaping=shaping,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
            comparisons=comparisons,
            fit=fit,
        )
        return await self._ask(TOURNAMENTS, groups, options)

    async def cohort(
        self,
        prompt: PromptLike,
        response: ResponseLike,
        *,
        group: str,
        slot: int,
        size: int,
        attempt: int = 0,
        references: ReferencesLike | None = None,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        comparisons: str = "all",
        deadline_s: float = DEFAULT_DEADLINE_S,
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        skew_weight: float | None = None,
        on_missing: OnMissing = "fail",
        return_: Sequence[CohortReturn] = (),
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> CohortAnswer:
        """Return what ``Client.cohort`` returns; it raises the same."""
        asked = member_request(
            prompt,
            response,
            group=group,
            slot=slot,
            size=size,
            attempt=attempt,
            references=references,
            principle=principle,
            criteria=criteria,
            comparisons=comparisons,
            deadline_s=deadline_s,
            signal=signal,
            shaping=shaping,
            skew_weight=skew_weight,
            on_missing=on_missing,
            return_=return_,
            model=model or self._connection.model,
            truncation=truncation,
        )
        return read_json(CohortAnswer, await self._send(COHORTS, asked), f"the answer of {COHORTS}")

    async def add_references(
        self,
        name: str,
        items: Iterable[GroupLike],
        *,
        ttl_s: float | None = None,
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> ReferenceSet:
        """Return what ``Client.add_references`` returns; it raises the same."""
        asked = references_request(
            name, items, model=model or self._connection.model, ttl_s=ttl_s, truncation=truncation
        )
        return read_json(ReferenceSet, await self._send(REFERENCES, asked), f"the answer of {REFERENCES}")

    async def references(self) -> list[ReferenceSet]:
        """Return what ``Client.references`` returns; it raises the same."""
        return read_json(ReferenceSetsAnswer, await self._send(REFERENCES), "the list of references").references

    async def delete_references(self, name: str) -> ReferenceSet:
        """Return what ``Client.delete_references`` returns; it raises the same."""
        path, asked = deletion(name)
        return read_json(ReferenceSet, await self._send(path, asked), "the answer of a deletion")

    async def report_run(self, report: RunReport | Mapping[str, Any]) -> RunSummary:
        """Return what ``Client.report_run`` returns; it raises the same."""
        return read_json(RunSummary, await self._send(RUNS, run_request(report)), f"the answer of {RUNS}")

    async def runs(self) -> list[RunSummary]:
        """Return what ``Client.runs`` returns; it raises the same."""
        return read_json(RunsAnswer, await self._send(RUNS), "the list of runs").runs

    async def run(self, name: str) -> RunAnswer:
        """Return what ``Client.run`` returns; it raises the same."""
        return read_json(RunAnswer, await self._send(f"{RUNS}/{urllib.parse.quote(name, safe='')}"), "the run")

    async def tokens(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> TokensAnswer:
        """Return what ``Client.tokens`` returns; it raises the same."""
        return await self._ask(TOKENS, items, RequestOptions(model=model, truncation=truncation, on_error=on_error))

    async def models(self) -> list[ModelInfo]:
        """Return what ``Client.models`` returns; it raises the same."""
        return read_json(ModelsAnswer, await self._send("/v1/models"), "the list of models").models

    async def model(self, id: str) -> ModelInfo:
        """Return what ``Client.model`` returns; it raises the same."""
        content = await self._send(f"/v1/models/{urllib.parse.quote(id, safe='')}")
        return read_json(ModelInfo, content, "the model")

    async def _ask(self, route: Route[AnswerT], batch: Iterable[object], options: RequestOptions) -> AnswerT:
        parts = parts_of(
            route,
            batch,
            options.with_default(self._connection.model),
            max_items=self._connection.max_items,
            max_bytes=self._connection.max_bytes,
            memory=self._memory,
        )
        if len(parts) == 1:
            return await self._ask_part(parts[0])
        # All parts become tasks at once; the semaphore lets so many of them through to the network.
        places_in_flight = asyncio.Semaphore(self._connection.concurrency)

        async def ask_in_turn(part: Part[AnswerT]) -> AnswerT:
            async with places_in_flight:
                return await self._ask_part(part)

        tasks = [asyncio.create_task(ask_in_turn(part)) for part in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            # After a failure, or when this call is cancelled, the other parts are dropped.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return merge_answers(parts, answers)

    async def _ask_part(self, part: Part[AnswerT]) -> AnswerT:
        try:
            while True:
                try:
                    return part.read(await self._send(part.route.path, part))
                except UnknownIdError as error:
                    part = part.without_unknown_ids(error)
        except ParagoneError as error:
            # A part counts its items from 0; the caller knows their places in the batch.
            raise part.renumbered(error) from error.__cause__

    async def _send(self, path: str, part: Part[Any] | SingleRequest | None = None) -> bytes:
        connection = self._connection
        question = connection.question(path)
        if part is not None:
            deletes = isinstance(part, SingleRequest) and part.deletes
            question = connection.question(path, part.body, part.prompt_hash, deletes=deletes)
        policy = part.policy(connection.policy) if isinstance(part, SingleRequest) else connection.policy
        here = await self._here()
        # Members wait for each other: those that had all places would wait for those that have none.
        async with (
            contextlib.nullcontext() if isinstance(part, SingleRequest) and part.group_s is not None else here.places
        ):
            attempts = Attempts(question, policy, self._addresses, self._clock)
            with request_span(f"{question.method} {path}"):
                return await send_async(here.http, attempts, sleep=self._sleep)
