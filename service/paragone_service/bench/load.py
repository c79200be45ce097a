"""Load on a server over HTTP: how it is asked, so many clients with one request at a time each, and one of our own.

Each dialect turns single responses into one request, and counts the scores that came back: a server that answers with
anything else is not measured but refused.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import httpx2
import numpy as np

from paragone.addresses import without_userinfo
from paragone_service.bench import BenchError

__all__ = ["DIALECTS", "Level", "ScoredText", "ask_all", "check_address", "served_model"]

_TIMEOUT_S = 600.0
_READY_S = 1800.0  # a large model is read from a slow disk, and its kernels are compiled
_STOP_S = 30.0


@dataclass(frozen=True)
class ScoredText:
    """One response to be scored.

    Attributes:
        rendered: prompt and response as the model's template writes them, for servers that take whole texts.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    response: Any
    rendered: str
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def item(self) -> dict[str, Any]:
        """The wire's item of ``/v1/rewards``."""
        item = {"prompt": self.prompt, "response": self.response}
        return item if self.tools is None else item | {"tools": self.tools}


@dataclass(frozen=True)
class _Dialect:
    """A way of asking: a path, a request's JSON, and how many scores an answer holds, −1 if it is none."""

    path: str
    body: Callable[[Sequence[ScoredText], str | None], dict[str, Any]]
    scores: Callable[[Any], int]


def _named(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    return {"model": model, **body} if model else body


def _listed(name: str) -> Callable[[Any], int]:
    def count(answer: Any) -> int:
        scores = answer.get(name) if isinstance(answer, Mapping) else None
        return len(scores) if isinstance(scores, list) else -1

    return count


DIALECTS: Mapping[str, _Dialect] = {
    "paragone": _Dialect(
        "/v1/rewards",
        lambda texts, model: _named({"items": [text.item for text in texts]}, model),
        _listed("rewards"),
    ),
    "openrlhf": _Dialect(
        "/get_reward", lambda texts, _model: {"query": [text.rendered for text in texts]}, _listed("rewards")
    ),
    "vllm": _Dialect(
        "/classify", lambda texts, model: _named({"input": [text.rendered for text in texts]}, model), _listed("data")
    ),
    "tei": _Dialect(
        "/predict",
        lambda texts, _model: {"inputs": [[text.rendered] for text in texts]},
        lambda answer: len(answer) if isinstance(answer, list) else -1,
    ),
}
"""By name; every request holds single responses, in the shape that the server's own clients send."""


@dataclass(frozen=True)
class Level:
    """The measurement at one number of clients: seconds in all, and percentiles of the requests' times."""

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


def check_address(url: str, *, wait_s: float) -> None:
    """Return once something answers at an address, whatever it says.

    Args:
        wait_s: how long it may take to start.

    Raises:
        BenchError: if nothing answers there.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            httpx2.get(url, timeout=10.0, trust_env=False)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if time.monotonic() >= deadline or not isinstance(error, httpx2.TransportError):
                # The reason of an address that cannot be read may be a part of the password in it.
                reason = "it cannot be read" if isinstance(error, httpx2.InvalidURL) else error or type(error).__name__
                raise BenchError(
                    f"nothing answers at {without_userinfo(url)} ({reason}): is a server running there? --wait-s "
                    "waits for one that is still starting"
                ) from error
        else:
            return
        time.sleep(0.25)


def ask_all(
    url: str,
    dialect: str,
    texts: Sequence[ScoredText],
    *,
    clients: int,
    batch: int,
    model: str | None = None,
    api_key: str | None = None,
) -> Level:
    """Send each text once and return how the server does under so many clients.

    Args:
        clients: requests under way at the same time, at most.
        batch: responses of a request.

    Raises:
        BenchError: if the server cannot be reached, refuses, or answers without a score per response.
    """
    requests = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    return asyncio.run(_ask_all(url, DIALECTS[dialect], requests, clients, model, api_key))


async def _ask_all(
    url: str, dialect: _Dialect, requests: list[Sequence[ScoredText]], clients: int, model: str | None, key: str | None
) -> Level:
    waiting, times = iter(requests), list[float]()
    address = url.rstrip("/") + dialect.path
    shown = without_userinfo(address)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # As many connections as clients: with fewer, requests would queue here and the server look slow.
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, limits=limits, headers=headers, trust_env=False) as http:

        async def one_client() -> None:
            for request in waiting:  # shared: whoever is free takes the next one
                began = time.perf_counter()
                answer = await _post(http, address, dialect.body(request, model))
                times.append(time.perf_counter() - began)
                if dialect.scores(answer) != len(request):
                    raise BenchError(
                        f"{shown} did not answer with {len(request)} scores but with {str(answer)[:200]}: is "
                        "--dialect right?"
                    )

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(one_client())
        except ExceptionGroup as failures:
            # All clients fail for the same reason; the first one tells it.
            faults = failures.subgroup(BenchError)
            if faults is None:
                raise
            raise faults.exceptions[0] from None
        seconds = time.perf_counter() - began
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(times, [50, 95, 99]))
    return Level(clients, sum(map(len, requests)), seconds, p50, p95, p99)


async def _post(http: httpx2.AsyncClient, address: str, body: dict[str, Any]) -> Any:
    try:
        answer = await http.post(address, json=body)
    except httpx2.InvalidURL:
        raise BenchError(f"cannot ask {without_userinfo(address)}: the address cannot be read") from None
    except httpx2.HTTPError as error:
        raise BenchError(f"cannot ask {without_userinfo(address)}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise BenchError(f"{without_userinfo(address)} answered {answer.status_code}: {answer.text[:200]}")
    try:
        return answer.json()
    except ValueError as error:
        raise BenchError(f"{without_userinfo(address)} did not answer in JSON: {error}") from error


@contextlib.contextmanager
def served_model(source: str, options: Sequence[str] = ()) -> Iterator[str]:
    """Yield the address of a ``paragone serve`` that hosts one model as ``bench``, and stop it afterwards.

    Raises:
        BenchError: if the server ends before it is ready; its last words are in the message.
    """
    # The kernel names a free port. Nobody holds it until the server binds it, which is a risk of milliseconds.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    # A file and not a pipe: nobody reads while requests are timed, and a full pipe would stop the server.
    with TemporaryFile() as log:
        process = subprocess.Popen(_command(source, port, options), stdout=log, stderr=log)  # noqa: S603 - our own command
        try:
            _wait(process, f"http://127.0.0.1:{port}/readyz", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            # A server drains before it ends, and may hang in that.
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command(source: str, port: int, options: Sequence[str]) -> list[str]:
    serve = [sys.executable, "-m", "paragone.cli", "serve", "--port", str(port), "--model", f"bench={source}"]
    # All clients at once are what is measured: a large model on a small machine would refuse most of them.
    return [*serve, "--max-wait-s", f"{_TIMEOUT_S:g}", *options]


def _wait(process: "subprocess.Popen[bytes]", address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            words = log.read().decode(errors="replace")[-2000:]  # the end of a traceback, which says why
            raise BenchError(f"paragone serve ended with {process.returncode} before it was ready:\n{words}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(address, timeout=2.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise BenchError(f"paragone serve was not ready after {_READY_S:g} s")
