"""The client for coroutines (asyncio); ``paragone.client`` has the same methods for code that waits."""

import asyncio
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Self

import httpx2

from paragone.batches import (
    PREFERENCES,
    REWARDS,
    TOKENS,
    TOURNAMENTS,
    AnswerT,
    GroupLike,
    ItemLike,
    Options,
    PairLike,
    Part,
    PromptLike,
    ResponseLike,
    Route,
    merged,
    parts_of,
    placed,
    read,
    read_model,
    read_models,
    retold,
)
from paragone.exceptions import ParagoneError, UnknownIdError, checked
from paragone.ids import Handles
from paragone.requests import DEFAULT_MAX_BYTES, DEFAULT_URL, Settings
from paragone.transport import Attempts, send_async
from paragone.wire import (
    ModelInfo,
    OnError,
    PreferencesAnswer,
    RewardReturn,
    RewardsAnswer,
    TokensAnswer,
    Tournament,
    TournamentReturn,
    TournamentsAnswer,
    Truncation,
)

__all__ = ["AsyncClient"]


class AsyncClient:
    """Asks a Paragone service from asyncio coroutines. One client serves one event loop, any number of tasks.

    Every method takes ``model=``, the id of a hosted model; without it the client's, else the server's default is
    asked. All methods raise a ``paragone.ParagoneError`` when there is no answer, and never put a number in its
    place.

    Args:
        url: address of the service; a path prefix is kept.
        api_key: sent as a bearer token.
        model: id of the model to ask when a call names none.
        timeout_s: deadline of one HTTP request, its retries included. A batch that is split has one for each part.
        retries: tries after the first one, for failed connections, 502, 503, 504 and 429 with ``Retry-After``.
        max_items_per_request: larger batches are split; every response and reference counts.
        max_bytes_per_request: batches with more bytes of text are split.
        concurrency: most requests of one call in flight.
        handles: how many ids of long responses to remember, about 300 bytes each, so that ``prefer`` and
            ``preferences`` send such a text once; 0: none.
        transport: what carries the requests, if not the network (an ``httpx2`` transport).
        clock: seconds since any fixed moment.
        sleep: waits for some seconds.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 6,
        max_items_per_request: int = 1_000,
        max_bytes_per_request: int = DEFAULT_MAX_BYTES,
        concurrency: int = 4,
        handles: int = 0,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._settings = Settings.made(
            url,
            api_key=api_key,
            model=model,
            timeout_s=timeout_s,
            retries=retries,
            max_items_per_request=max_items_per_request,
            max_bytes_per_request=max_bytes_per_request,
            concurrency=concurrency,
        )
        self._http = httpx2.AsyncClient(transport=transport, trust_env=not self._settings.loopback)
        self._handles = Handles(handles)
        self._clock = clock
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"AsyncClient({self._settings!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        await self._http.aclose()

    async def prefer(
        self,
        prompt: PromptLike,
        first: ResponseLike,
        second: ResponseLike,
        *,
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> float:
        """Return the probability that the first response is preferred to the second.

        Args:
            prompt: a text (one user message) or a list of messages.
            first: the response whose win is measured: a text, a message, or a list of messages.
            second: the response it is compared with.
            model: id of a hosted model.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.

        Raises:
            ParagoneError: if there is no answer.
        """
        answer = await self.preferences([(prompt, first, second)], model=model, truncation=truncation)
        return checked(answer.preferences)[0].probability

    async def preferences(
        self,
        pairs: Iterable[PairLike],
        *,
        model: str | None = None,
        return_: Sequence[Literal["ids"]] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> PreferencesAnswer:
        """Return how probable it is that the first of two responses is preferred, for each pair, in their order.

        Args:
            pairs: ``(prompt, first, second)`` tuples, dicts with these fields, or ``paragone.wire.Pair``; a response
                that an earlier answer gave an id may be named by it (``paragone.wire.HandlePair``).
            model: id of a hosted model.
            return_: what to add to each answer: ``ids``.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.
            on_error: ``refuse`` raises for the first bad pair, ``report`` puts an ``ItemError`` in its place.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the pair at fault.
        """
        return await self._ask(PREFERENCES, pairs, self._settings.options(model, truncation, on_error, return_))

    async def rewards(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        return_: Sequence[RewardReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> RewardsAnswer:
        """Return the reward and the attributes of each response, in their order.

        Args:
            items: ``(prompt, response)`` tuples, dicts with these fields, or ``paragone.wire.Item``; a third field,
                ``references``, holds the response against other responses of the prompt.
            model: id of a hosted model.
            return_: what to add to each answer: ``representation``; ``blocks`` (needs references) and ``gate_scales``
                of general preference models; ``ids``.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.
            on_error: ``refuse`` raises for the first bad item, ``report`` puts an ``ItemError`` in its place.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the item at fault.
        """
        return await self._ask(REWARDS, items, self._settings.options(model, truncation, on_error, return_))

    async def tournament(
        self,
        prompt: PromptLike,
        responses: Sequence[ResponseLike],
        *,
        references: Sequence[ResponseLike] | None = None,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        truncation: Truncation = "prompt",
    ) -> Tournament:
        """Return what follows from the K×K preferences among the responses to one prompt.

        Args:
            prompt: a text (one user message) or a list of messages.
            responses: the K responses.
            references: if given, win rates are against these instead of the group.
            model: id of a hosted model.
            return_: what to add to the answer: ``matrix``, ``ids``.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.

        Raises:
            ParagoneError: if there is no answer.
        """
        group: dict[str, object] = {"prompt": prompt, "responses": responses}
        if references is not None:
            group["references"] = references
        answer = await self.tournaments([group], model=model, return_=return_, truncation=truncation)
        return checked(answer.tournaments)[0]

    async def tournaments(
        self,
        groups: Iterable[GroupLike],
        *,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> TournamentsAnswer:
        """Return a tournament for each group of responses, in their order.

        Args:
            groups: ``(prompt, responses)`` tuples, dicts with these fields, or ``paragone.wire.Group``.
            model: id of a hosted model.
            return_: what to add to each answer: ``matrix``, ``ids``.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.
            on_error: ``refuse`` raises for the first bad group, ``report`` puts an ``ItemError`` in its place.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the group at fault.
        """
        return await self._ask(TOURNAMENTS, groups, self._settings.options(model, truncation, on_error, return_))

    async def tokens(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> TokensAnswer:
        """Return what exactly the model sees of each conversation: text, tokens, read positions, what was cut.

        Args:
            items: ``(prompt, response)`` tuples, dicts with these fields, or ``paragone.wire.Item``.
            model: id of a hosted model.
            truncation: ``prompt`` cuts a prompt that is too long from the left, ``error`` refuses it.
            on_error: ``refuse`` raises for the first bad item, ``report`` puts an ``ItemError`` in its place.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the item at fault.
        """
        return await self._ask(TOKENS, items, self._settings.options(model, truncation, on_error))

    async def models(self) -> list[ModelInfo]:
        """Return the hosted models, the default one first.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_models(await self._send("/v1/models"))

    async def model(self, id: str) -> ModelInfo:
        """Return one hosted model.

        Args:
            id: its name.

        Raises:
            UnknownModelError: if no model of that name is hosted.
            ParagoneError: if there is no answer.
        """
        return read_model(await self._send(f"/v1/models/{urllib.parse.quote(id, safe='')}"))

    async def _ask(self, route: Route[AnswerT], batch: Iterable[object], options: Options) -> AnswerT:
        parts = parts_of(
            route,
            batch,
            options,
            max_items=self._settings.max_items,
            max_bytes=self._settings.max_bytes,
            handles=self._handles,
        )
        if len(parts) == 1:
            return await self._ask_part(route, parts[0])
        places_in_flight = asyncio.Semaphore(self._settings.concurrency)

        async def ask_in_turn(part: Part) -> AnswerT:
            async with places_in_flight:
                return await self._ask_part(route, part)

        asked = [asyncio.create_task(ask_in_turn(part)) for part in parts]
        try:
            answers = await asyncio.gather(*asked)
        finally:
            # After a failure, or when this call is cancelled, the other parts are dropped.
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return merged(route, parts, answers)

    async def _ask_part(self, route: Route[AnswerT], part: Part) -> AnswerT:
        try:
            while True:
                try:
                    return read(route, part, await self._send(route.path, part))
                except UnknownIdError as error:
                    part = retold(part, error)
        except ParagoneError as error:
            raise placed(route, part, error) from error.__cause__

    async def _send(self, path: str, part: Part | None = None) -> bytes:
        question = self._settings.question(path, part)
        attempts = Attempts(question, self._settings.policy, self._clock)
        return await send_async(self._http, question, attempts, sleep=self._sleep)
