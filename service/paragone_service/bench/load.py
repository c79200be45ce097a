"""Load on a server over HTTP: so many clients, each with one request at a time, and how long every request took."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np

from paragone_service.bench.dialects import Asked, Dialect

__all__ = ["Level", "LoadError", "ask_all"]

_TIMEOUT_S = 600.0


class LoadError(RuntimeError):
    """A server could not be measured."""


@dataclass(frozen=True)
class Level:
    """What one number of clients saw.

    Attributes:
        clients: that asked at the same time.
        responses: scored in all.
        seconds: from the first request to the last answer.
        p50_ms: median of the requests' times.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    clients: int
    responses: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Responses a second."""
        return self.responses / self.seconds


def ask_all(
    url: str,
    dialect: Dialect,
    asked: Sequence[Asked],
    *,
    clients: int,
    batch: int,
    model: str | None = None,
    api_key: str | None = None,
) -> Level:
    """Return how a server does under so many clients.

    Args:
        url: of the server.
        dialect: how it is asked.
        asked: responses, each sent once.
        clients: requests under way at the same time, at most.
        batch: responses of a request.
        model: its name there, or None.
        api_key: bearer key, or None.

    Raises:
        LoadError: if the server cannot be reached, refuses, or answers without a score per response.
    """
    requests = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    return asyncio.run(_ask_all(url, dialect, requests, clients, model, api_key))


async def _ask_all(
    url: str, dialect: Dialect, requests: list[Sequence[Asked]], clients: int, model: str | None, key: str | None
) -> Level:
    waiting, times = iter(requests), list[float]()
    address = url.rstrip("/") + dialect.path
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, limits=limits, headers=headers, trust_env=False) as http:

        async def one_client() -> None:
            for request in waiting:  # shared: whoever is free takes the next one
                began = time.perf_counter()
                answer = await _post(http, address, dialect.body(request, model))
                times.append(time.perf_counter() - began)
                if dialect.scores(answer) != len(request):
                    raise LoadError(
                        f"{address} did not answer with {len(request)} scores but with {str(answer)[:200]}: is "
                        "--dialect right?"
                    )

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(one_client())
        except ExceptionGroup as failures:
            faults = failures.subgroup(LoadError)
            if faults is None:
                raise
            raise faults.exceptions[0] from None
        seconds = time.perf_counter() - began
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(times, [50, 95, 99]))
    return Level(clients, sum(map(len, requests)), seconds, p50, p95, p99)


async def _post(http: httpx2.AsyncClient, address: str, body: dict[str, Any]) -> Any:
    try:
        answer = await http.post(address, json=body)
        if answer.status_code != 200:
            raise LoadError(f"{address} answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()
    except httpx2.HTTPError as error:
        raise LoadError(f"cannot ask {address}: {error or type(error).__name__}") from error
    except ValueError as error:
        raise LoadError(f"{address} did not answer in JSON: {error}") from error
