"""The preference oracle of a run: whole K×K tables over HTTP while sampling goes on; and what else runs beside a run.

Whatever fails at an oracle is asked again while its patience lasts, and never becomes data: after that the run stops.
One that is replaced, or refuses the key, stops it at once. Only what the oracle refuses of a prompt or a response, as
too long, is missing. K is the number of responses of a group: a prompt with the texts that are compared.

An event loop runs in a thread. Services and servers run in processes that end with the run, also after a kill -9.
"""

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray

from paragone import AsyncClient
from paragone.exceptions import (
    DeadlineError,
    KeyRefusedError,
    NonFiniteScoreError,
    ParagoneError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    exception_for,
)
from paragone.wire import ItemError
from paragone_evaluation.readers import Prompt
from paragone_models.kinds import KINDS
from paragone_training.errors import OracleGoneError, OracleReplacedError, RecipeError, RunError
from paragone_training.policy.rows import Answer, Identity

__all__ = ["Background", "Oracle", "OracleClient", "RunProcess", "free_port", "own_service", "together"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# PR_SET_PDEATHSIG of Linux's prctl.
_DIE_WITH_PARENT = 1
_GRACE_S = 20.0
_TAIL_CHARACTERS = 2000


# A prompt and the texts that are compared. K
_Group = tuple[Prompt, Sequence[str]]

_START_S = 600.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
# Waiting mends none of these: the recipe, the key or the server's set-up has to change.
_FINAL = (KeyRefusedError, RequestError, UnknownModelError)
# What the oracle has against one prompt or response, and would have again.
_REFUSALS = (RequestError, NonFiniteScoreError)


class Background:
    """A running event loop in a thread; what is submitted and not done at the end is cancelled."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._running = set[asyncio.Task[Any]]()
        # A daemon, so that an error in the main thread ends the program and not only that thread.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Return what will hold the result of a coroutine that runs in the loop."""
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    def close(self, last: Coroutine[Any, Any, Any]) -> None:
        """Cancel what runs, run ``last``, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        asyncio.run_coroutine_threadsafe(last, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _tracked(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        # Only these are cancelled at the end; tasks that they have made are theirs to end.
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await work

    async def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Return the results of coroutines that run side by side; the first error ends the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # callers handle errors by their type
    return [task.result() for task in running]


def free_port() -> int:
    """Return a port of this host that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RunProcess:
    """A process that was started, in a group of its own with whatever it starts itself.

    Args:
        log: file that takes what it prints, behind what is there.

    Raises:
        OSError: if the program cannot be started.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # The kernel stops the process with this one, also after a kill -9 (Linux; elsewhere it would stay behind).
        linux = sys.platform == "linux"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, or the recipe's
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A group of its own, so that whatever it starts can be ended with it.
                start_new_session=True,
                preexec_fn=_die_with_parent if linux else None,
            )

    @property
    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]

    def stop(self) -> None:
        """End the process and its children, and wait until its memory is free."""
        # Gently first: a server gives its GPU memory back in order.
        self._process.terminate()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Children that outlive it would keep the device's memory.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    # The run may have died between the fork and the call above: nobody would tell this process.
    if os.getppid() == 1:
        os._exit(1)


class Oracle(Protocol):
    """Whom a round asks for tables."""

    @property
    def identity(self) -> Identity | None:
        """Of who answered; None before the first answer."""

    def submit(self, groups: Sequence[_Group]) -> "Future[list[Answer]]":
        """Return what will hold the tables of some groups."""


@dataclass
class OracleClient:
    """Asks in the background; one thread with an event loop of its own. A context manager.

    Attributes:
        model: id of the model, or None for the service's default.
        skew_weight: of a hybrid model, in place of its own.
        identity: of the model that answered so far; None before the first answer.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    concurrency: int = 4
    patience_s: float = 600.0
    timeout_s: float = 120.0
    skew_weight: float | None = None
    identity: Identity | None = None
    on_identity: Callable[[Identity], object] | None = None
    _background: Background = field(init=False, repr=False)
    _client: AsyncClient = field(init=False, repr=False)
    _places: asyncio.Semaphore = field(init=False, repr=False)

    def __enter__(self) -> "OracleClient":
        self._background = Background("oracle")
        self._background.submit(self._open()).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close(self._client.close())

    def meet(self, wait_s: float) -> None:
        """Return once the oracle has answered: a wrong address must not be found out after a round of sampling.

        Args:
            wait_s: how long one that never answered this run may take to start; one that did has ``patience_s``.

        Raises:
            OracleGoneError: if nothing answers there.
            RecipeError: if its model has no skew weight, and is to be asked with one.
            ParagoneError: if it does not host the model, or refuses the key.
        """
        self._background.submit(self._meet(wait_s if self.identity is None else self.patience_s)).result()

    async def _meet(self, wait_s: float) -> None:
        async with AsyncClient(self.url, api_key=self.api_key, timeout_s=max(wait_s, 60.0), retry_s=wait_s) as client:
            try:
                listed = await client.models() if self.model is None else [await client.model(self.model)]
            except (UnavailableError, DeadlineError) as error:
                raise OracleGoneError(
                    f"the oracle at {self.url} does not answer ({error}): start it, and set oracle.wait_s if it takes "
                    "long to start"
                ) from error
        # The first one answers where none is named.
        for found in listed[:1] if self.skew_weight is not None else ():
            if not any(kind.name == found.kind and kind.weighs_skew for kind in KINDS.values()):
                raise RecipeError(
                    f"oracle.skew_weights weigh the cyclic part of a hybrid model, and {found.id} at {self.url} is of "
                    f"kind {found.kind}: remove them, or ask another model"
                )

    def submit(self, groups: Sequence[_Group]) -> "Future[list[Answer]]":
        """Return what will hold the tables of some groups; what all of them cost stands in the first."""
        return self._background.submit(self._tables(list(groups)))

    async def _open(self) -> None:
        # Few tries: what the client gives up on, ``_patiently`` waits for.
        self._client = AsyncClient(
            self.url, api_key=self.api_key, model=self.model, timeout_s=self.timeout_s, retries=2
        )
        self._places = asyncio.Semaphore(self.concurrency)

    async def _tables(self, groups: list[_Group]) -> list[Answer]:
        # One request a chunk: the service batches its responses, and knows repeated ones.
        async with self._places:
            answers, cost = await self._tournaments(groups)
            if answers:
                # So that a column of the file sums to what the round cost.
                answers[0] = replace(answers[0], forward_responses=cost[0], cached_responses=cost[1])
            return answers

    async def _tournaments(self, groups: list[_Group]) -> tuple[list[Answer], tuple[int, int]]:
        # Reported, because what is too long must not cost the chunk its other tables, nor a group its other responses.
        bodies = [{**_asked(prompt), "responses": list(texts)} for prompt, texts in groups]

        async def ask() -> Any:
            answer = await self._client.tournaments(
                bodies, return_=["matrix"], on_error="report", skew_weight=self.skew_weight
            )
            return _without_faults(answer, answer.tournaments)

        reply = await self._patiently(ask)
        cost = self._checked(reply)
        answers = []
        for (prompt, texts), row in zip(groups, reply.tournaments, strict=True):
            errors = [row.error] if isinstance(row, ItemError) else (row.errors or [])
            failure = f"{errors[0].code}: {errors[0].message}" if errors else None
            if failure is not None:
                logger.warning("comparisons of a group are missing: %s", failure)
            table = _empty(texts)
            if not isinstance(row, ItemError):
                # What is null there becomes NaN, which is missing here; a response ties with itself all the same.
                table = np.asarray(row.matrix, dtype=np.float64)
                np.fill_diagonal(table, 0.5)
            answers.append(Answer(prompt.id, table, failure))
        return answers, cost

    def _checked(self, reply: Any) -> tuple[int, int]:
        """Return what a reply cost: responses that went through the model, and known ones; refuse another model."""
        identity = Identity(reply.model, reply.fingerprint)
        if self.identity is None:
            self.identity = identity
            if self.on_identity is not None:
                self.on_identity(identity)
        # Win rates of two judges do not compare, and a run may be resumed weeks later.
        if identity != self.identity:
            raise OracleReplacedError(
                f"the oracle at {self.url} was {self.identity.model} ({self.identity.fingerprint[:12]}) and is now "
                f"{identity.model} ({identity.fingerprint[:12]}): host the first one again and resume, or start a new "
                "run"
            )
        return reply.usage.forward_responses, reply.usage.cached_responses

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        # The client's own retries are for blips; a service that is restarted is gone for minutes.
        began, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return await ask()
            except _FINAL:
                raise
            except ParagoneError as error:
                gone_s = time.monotonic() - began
                if gone_s + wait_s > self.patience_s:
                    raise OracleGoneError(
                        f"the oracle at {self.url} gave no answer for {gone_s:.0f} s ({error}), and "
                        f"oracle.patience_s is {self.patience_s:g}: mend it and resume; what it did not answer is "
                        "asked again"
                    ) from error
                logger.warning("no answer from the oracle for %.0f s (%s); the run pauses", gone_s, error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _without_faults(answer: Any, rows: Iterable[Any]) -> Any:
    """Return an answer whose errors are all refusals of groups or responses; raise the first fault of the oracle."""
    for row in rows:
        for detail in [row.error] if isinstance(row, ItemError) else row.errors or ():
            if not isinstance(error := exception_for(detail), _REFUSALS):
                raise error
    return answer


def _asked(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as the service takes it: the tools that the policy was shown are shown to its judge."""
    return {"prompt": prompt.content} | ({"tools": list(prompt.tools)} if prompt.tools else {})


def _empty(texts: Sequence[str]) -> NDArray[np.float64]:
    table = np.full((len(texts), len(texts)), math.nan)
    # A response ties with itself, whether it was asked for or not.
    np.fill_diagonal(table, 0.5)
    return table


@contextlib.contextmanager
def own_service(sources: Sequence[str], log: Path) -> Iterator[str]:
    """Yield the URL of a service that hosts models, as ``paragone serve --model`` takes them; stop it at the end.

    Raises:
        RunError: if it does not come up; the log's last lines are in the message.
    """
    port = free_port()
    # A process and not a thread: the service has its own event loop, threads and memory, and the client stays the only
    # door.
    command = [sys.executable, "-m", "paragone.cli", "serve", "--port", str(port), "--log-level", "warning"]
    for source in sources:
        command += ["--model", source]
    process = RunProcess(command, log)
    # This host alone may ask it: the service of a run has no key.
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        logger.info("the service of this run hosts %s at %s", ", ".join(sources), url)
        yield url
    finally:
        process.stop()


def _wait_until_ready(process: RunProcess, url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.ended is not None:
            raise RunError(f"the service of this run ended with code {process.ended}:\n{process.tail()}")
        # Plain HTTP: a client would wait and retry by rules of its own.
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == httpx2.codes.OK:
                return
        time.sleep(0.2)
    raise RunError(f"the service of this run was not ready after {_START_S:.0f} s; its log is {process.log}")
