"""Asking the oracle: whole K×K tables over HTTP, while sampling goes on; gone, replaced and failing oracles.

A chunk is the unit that is sampled, asked for and kept on disk. K is the number of responses of a group.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from paragone import AsyncClient
from paragone.exceptions import DeadlineError, QuotaExceededError, ServerError, UnavailableError
from paragone.wire import ItemError, Tournament
from paragone_evaluation.readers import Content
from paragone_training.policy.errors import OracleGoneError, OracleReplacedError
from paragone_training.policy.sampling.background import Background

__all__ = ["Asker", "Group", "Identity", "Table"]

logger = logging.getLogger(__name__)

Answered = TypeVar("Answered")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_TRIES_AT_FAULT = 3
"""Tries of a request that the server fails at, before its groups are asked one by one, and each of these."""


@dataclass(frozen=True)
class Group:
    """The responses to one prompt.

    Attributes:
        prompt: as the oracle reads it.
        responses: texts. K
    """

    prompt: Content
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What the oracle said about a group.

    Attributes:
        raw: P(row preferred to column) as answered, both orders; NaN where no answer came. [K, K]
        failure: why comparisons are missing, or None.
    """

    raw: NDArray[np.float64]
    failure: str | None = None


@dataclass(frozen=True)
class Identity:
    """Which model answers: its name and the fingerprint of everything that an answer depends on."""

    model: str
    fingerprint: str


@dataclass(frozen=True)
class Chunk:
    """The tables of one chunk and what they cost.

    Attributes:
        tables: one per group.
        forward_responses: responses that went through the model. [count]
        cached_responses: responses that the service knew already. [count]
        forward_tokens: tokens that went through the model. [count]
    """

    tables: list[Table]
    forward_responses: int
    cached_responses: int
    forward_tokens: int


@dataclass
class _Cost:
    forward_responses: int = 0
    cached_responses: int = 0
    forward_tokens: int = 0


@dataclass
class Asker:
    """Asks in the background; one thread with an event loop of its own.

    Attributes:
        url: of the service.
        model: id of the model, or None for the service's default.
        api_key: bearer key, or None.
        concurrency: most requests in flight.
        patience_s: how long it may be gone.
        timeout_s: deadline of one request.
        identity: who answered so far; None before the first answer.
        learn: told when the identity becomes known.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    concurrency: int = 4
    patience_s: float = 600.0
    timeout_s: float = 120.0
    identity: Identity | None = None
    learn: Callable[[Identity], object] | None = None
    _background: Background = field(init=False, repr=False)
    _client: AsyncClient = field(init=False, repr=False)
    _places: asyncio.Semaphore = field(init=False, repr=False)

    def __enter__(self) -> "Asker":
        self._background = Background("oracle")
        self._background.submit(self._open()).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close(self._client.close())

    def submit(self, groups: Sequence[Group]) -> "Future[Chunk]":
        """Return what will hold the tables of a chunk.

        Args:
            groups: of one chunk.
        """
        return self._background.submit(self._ask_chunk(list(groups)))

    async def _open(self) -> None:
        self._client = AsyncClient(
            self.url, api_key=self.api_key, model=self.model, timeout_s=self.timeout_s, retries=2
        )
        self._places = asyncio.Semaphore(self.concurrency)

    async def _ask_chunk(self, groups: list[Group]) -> Chunk:
        async with self._places:
            cost = _Cost()
            try:
                tables = await self._tournaments(groups, cost)
            except ServerError as error:
                logger.warning("the oracle failed at %d groups (%s); asking them one by one", len(groups), error)
                tables = [Table(_empty(group), str(error)) for group in groups]
            for place, table in enumerate(tables):
                if table.failure is not None:
                    tables[place] = await self._pairs(groups[place], cost)
            return Chunk(tables, cost.forward_responses, cost.cached_responses, cost.forward_tokens)

    async def _tournaments(self, groups: list[Group], cost: _Cost) -> list[Table]:
        asked = [{"prompt": group.prompt, "responses": list(group.responses)} for group in groups]
        answer = await self._patiently(lambda: self._client.tournaments(asked, return_=["matrix"], on_error="report"))
        self._account(answer, cost)
        tables = []
        for group, row in zip(groups, answer.tournaments, strict=True):
            if isinstance(row, ItemError):
                tables.append(Table(_empty(group), f"{row.error.code}: {row.error.message}"))
            else:
                tables.append(Table(_matrix(row)))
        return tables

    async def _pairs(self, group: Group, cost: _Cost) -> Table:
        """Ask every ordered pair on its own, so that what one response spoils is missing, and nothing else."""
        table, failure = _empty(group), None
        size = len(group.responses)
        places = [(first, second) for first in range(size) for second in range(size) if first != second]
        asked = [(group.prompt, group.responses[first], group.responses[second]) for first, second in places]
        try:
            answer = await self._patiently(lambda: self._client.preferences(asked, on_error="report"))
        except ServerError as error:
            logger.warning("the oracle failed at a group again: %s; its comparisons are missing", error)
            return Table(table, str(error))
        self._account(answer, cost)
        for (first, second), row in zip(places, answer.preferences, strict=True):
            if isinstance(row, ItemError):
                failure = f"{row.error.code}: {row.error.message}"
            else:
                table[first, second] = row.probability
        if failure is not None:
            logger.warning("comparisons of a group are missing: %s", failure)
        return Table(table, failure)

    def _account(self, answer: Any, cost: _Cost) -> None:
        found = Identity(answer.model, answer.fingerprint)
        if self.identity is None:
            self.identity = found
            if self.learn is not None:
                self.learn(found)
        if found != self.identity:
            raise OracleReplacedError(
                f"the oracle at {self.url} was {self.identity.model} ({self.identity.fingerprint[:12]}) and is now "
                f"{found.model} ({found.fingerprint[:12]}): host the first one again and resume, or start a new run"
            )
        cost.forward_responses += answer.usage.forward_responses
        cost.cached_responses += answer.usage.cached_responses
        cost.forward_tokens += answer.usage.forward_tokens

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, Answered]]) -> Answered:
        began, wait_s, faults = time.monotonic(), _FIRST_WAIT_S, 0
        while True:
            try:
                return await ask()
            except (UnavailableError, DeadlineError, QuotaExceededError) as error:
                gone_s = time.monotonic() - began
                if gone_s + wait_s > self.patience_s:
                    raise OracleGoneError(
                        f"the oracle at {self.url} gave no answer for {gone_s:.0f} s ({error}), and "
                        f"oracle.patience_s is {self.patience_s:g}: start it and resume"
                    ) from error
                logger.warning("no answer from the oracle for %.0f s (%s); the run pauses", gone_s, error)
            except ServerError as error:
                faults += 1
                if faults >= _TRIES_AT_FAULT:
                    raise
                logger.warning("the oracle failed (%s); asking again", error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _matrix(row: Tournament) -> NDArray[np.float64]:
    assert row.matrix is not None
    return np.asarray(row.matrix, dtype=np.float64)


def _empty(group: Group) -> NDArray[np.float64]:
    table = np.full((len(group.responses),) * 2, math.nan)
    np.fill_diagonal(table, 0.5)
    return table
