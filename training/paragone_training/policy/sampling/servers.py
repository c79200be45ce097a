"""The completions servers of a run: started or met, given each iterate's weights, checked, put to rest; many as one.

RUN/servers/0.log      what a server prints that the run started itself

Load goes to the least busy server, failed and slow responses to another one. K is the number of responses of a group.
Each response is one request with a seed of its own, so that a run that is resumed sends the same request again; servers
promise the same tokens for it only while their batches are the same.
"""

import asyncio
import logging
import random
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RunError, SamplerGoneError, SamplerMismatchError
from paragone_training.policy.model.logprobs import Item
from paragone_training.policy.oracle import Background, RunProcess, free_port, together
from paragone_training.policy.recipe import ServersSection, command_line
from paragone_training.policy.rows import Response, seed_of
from paragone_training.policy.sampling.completions import (
    CompletionsServer,
    Routes,
    ServerFault,
    SglangRoutes,
    VllmRoutes,
    check_probes,
)
from paragone_training.policy.sampling.drawing import Chunk, Decoding, Missing, Sampled

__all__ = ["FleetSampler", "SamplerServers"]

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_POLL_S = 0.5
_TAIL_CHARACTERS = 2000
# Times that a server is started again with the same weights, before its ending is taken for more than bad luck.
_RESTARTS = 3
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
# How often a request that waits for a server looks whether all of them are gone.
_CHECK_S = 1.0


@dataclass
class _State:
    server: CompletionsServer
    running: int = 0
    lost: bool = False


@dataclass
class _Fleet:
    """Servers with the same weights. Its coroutines belong to one event loop."""

    servers: Sequence[CompletionsServer]
    limits: ServersSection
    readmit: Callable[[CompletionsServer], Awaitable[None]]
    _states: list[_State] = field(init=False)
    _changed: asyncio.Condition = field(init=False, default_factory=asyncio.Condition)
    _recoveries: "set[asyncio.Task[None]]" = field(init=False, default_factory=set)
    _failure: RunError | None = field(init=False, default=None)
    _answered: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._states = [_State(server) for server in self.servers]

    async def respond(
        self, prompt: Prompt, number: int, *, seed: int, decoding: Decoding, end_ids: Sequence[int]
    ) -> Response | Missing:
        """Return a response, asked of other servers where one fails or is slow; Missing after the last try."""
        tried: list[CompletionsServer] = []
        reason, wait_s, failures = "", _FIRST_WAIT_S, 0
        while failures < self.limits.tries:
            state = await self._least_busy(tried)
            try:
                async with asyncio.timeout(self.limits.request_timeout_s):
                    row = await state.server.complete(prompt, number, seed=seed, decoding=decoding, end_ids=end_ids)
                self._answered = time.monotonic()
                return row
            except ServerFault as error:
                reason = str(error)
                if error.gone:
                    # That is the server's failure, not this response's: patience_s bounds it.
                    # Whoever asked it last sees it first; a lost server is recovered by one task, however many saw it.
                    self._lose(state, reason)
                    continue
            except TimeoutError:
                reason = f"{state.server.url} took longer than servers.request_timeout_s"
            finally:
                await self._leave(state)
            failures += 1
            tried.append(state.server)
            logger.warning("try %d of %d of a response failed: %s", failures, self.limits.tries, reason)
            if len(set(tried)) == len(self._states) and failures < self.limits.tries:
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - it spreads load, it hides nothing
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return Missing(f"{self.limits.tries} tries failed, the last one: {reason}")

    async def close(self) -> None:
        """End the attempts to get lost servers back."""
        for task in self._recoveries:
            task.cancel()
        await asyncio.gather(*self._recoveries, return_exceptions=True)

    async def _least_busy(self, tried: Sequence[CompletionsServer]) -> _State:
        """Return a server with a place, of those that were tried least often, and take the place."""
        async with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                # Servers that failed this response are tried last, not never: there may be no other.
                well = [state for state in self._states if not state.lost]
                fewest = min((tried.count(state.server) for state in well), default=0)
                free = [
                    state
                    for state in well
                    if tried.count(state.server) == fewest and state.running < self.limits.concurrency
                ]
                if free:
                    state = min(free, key=lambda state: state.running)
                    state.running += 1
                    return state
                gone_s = time.monotonic() - self._answered
                if not well and gone_s > self.limits.patience_s:
                    raise SamplerGoneError(
                        f"no sampler server answered for {gone_s:.0f} s, and servers.patience_s is "
                        f"{self.limits.patience_s:g}: start one and resume"
                    )
                try:
                    # Woken when a place is free; and now and then, since servers that are gone wake nobody.
                    async with asyncio.timeout(_CHECK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _leave(self, state: _State) -> None:
        async with self._changed:
            # Also after an error: a place that is not given back is lost for the whole run.
            state.running -= 1
            self._changed.notify(1)

    def _lose(self, state: _State, reason: str) -> None:
        if not state.lost:
            state.lost = True
            logger.warning("a sampler server is gone: %s; its responses are asked of others", reason)
            task = asyncio.get_running_loop().create_task(self._recover(state))
            self._recoveries.add(task)
            task.add_done_callback(self._recoveries.discard)

    async def _recover(self, state: _State) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self.readmit(state.server)
                break
            except ServerFault:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            except RunError as error:
                self._failure = error
                return
        logger.info("%s is back", state.server.url)
        async with self._changed:
            state.lost = False
            self._answered = time.monotonic()
            self._changed.notify_all()


class FleetSampler:
    """Samples with servers, all chunks at once as far as there is place."""

    def __init__(self, fleet: _Fleet, background: Background, decoding: Decoding, end_ids: Sequence[int]) -> None:
        self._fleet, self._background = fleet, background
        self._decoding, self._end_ids = decoding, end_ids

    def draw_chunks(
        self, chunks: Iterable[Chunk], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk as soon as it is complete.

        Raises:
            RunError: if the servers are gone or are not the policy.
        """
        # All at once: which of them is complete first is the servers' affair.
        wanted, limits = dict(chunks), self._fleet.limits
        places = limits.concurrency * len(self._fleet.servers)
        # Chunks are small, and the slowest response of a chunk decides when it is done.
        largest = max(len(prompts) for prompts in wanted.values()) * responses
        # More chunks than fill the places, so that none is free while a chunk's last response is drawn.
        window = asyncio.Semaphore(2 * places // largest + 2)
        until = time.monotonic() + limits.round_timeout_s if limits.round_timeout_s else None
        futures = {
            self._background.submit(self._chunk(prompts, responses, names, window, until)): number
            for number, prompts in wanted.items()
        }
        try:
            # In the order in which they are complete, so that the oracle has work as early as possible.
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # An error in one chunk, or a reader that stops, ends the others.
            for future in futures:
                future.cancel()

    async def _chunk(
        self,
        prompts: Sequence[Prompt],
        responses: int,
        names: tuple[object, ...],
        window: asyncio.Semaphore,
        until: float | None,
    ) -> list[Sampled]:
        async with window:
            return await together(self._group(prompt, responses, names, until) for prompt in prompts)

    async def _group(self, prompt: Prompt, responses: int, names: tuple[object, ...], until: float | None) -> Sampled:
        left_s = None if until is None else max(until - time.monotonic(), 0.0)
        try:
            async with asyncio.timeout(left_s):
                rows = await together(
                    self._fleet.respond(
                        prompt,
                        number,
                        seed=seed_of(*names, prompt.id, number),
                        decoding=self._decoding,
                        end_ids=self._end_ids,
                    )
                    for number in range(responses)
                )
        except TimeoutError:
            return Missing("it was not complete within servers.round_timeout_s")
        missing = next((row for row in rows if isinstance(row, Missing)), None)
        return missing or [row for row in rows if isinstance(row, Response)]


@dataclass(frozen=True)
class _Weights:
    """Weights that servers have, or are to have."""

    source: str
    model: str
    expected: Sequence[float]


class SamplerServers:
    """All servers of a run; a context manager. ``fleet`` is what draws, ``background`` the loop that it belongs to.

    Args:
        tolerance: nats a token that a server may be from the trainer.
        longest: tokens that a prompt and a response may have together.
        texts: token ids by text, to recognise the policy's tokenizer.
    """

    def __init__(
        self,
        section: ServersSection,
        folder: Path,
        probes: Sequence[Item],
        *,
        tolerance: float,
        longest: int,
        texts: Mapping[str, Sequence[int]],
    ) -> None:
        self._section, self._folder, self._probes = section, folder, probes
        self._tolerance, self._longest, self._texts = tolerance, longest, texts
        self._weights: _Weights | None = None
        self._before: _Weights | None = None
        self._resting = False
        self._usual: float | None = None
        self._processes: dict[CompletionsServer, RunProcess] = {}
        self._starts: dict[CompletionsServer, int] = {}
        self.noise: float | None = None
        """Largest distance from the trainer after the last load, in nats a token."""

    def __enter__(self) -> "SamplerServers":
        # trust_env off below: a proxy of the environment is not meant for servers of a run.
        key = self._section.api_key_file
        headers = {"Authorization": f"Bearer {Path(key).read_text(encoding='utf-8').strip()}"} if key else {}
        self.background = Background("samplers")
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),  # asyncio.timeout bounds each request as a whole
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )
        routes: Routes = VllmRoutes() if self._section.kind == "vllm" else SglangRoutes()
        urls = self._section.urls or [f"http://127.0.0.1:{free_port()}" for _ in range(self._section.count)]
        self._servers = [CompletionsServer(url, routes, self._http, model=self._section.model) for url in urls]
        self.fleet = self._new_fleet()
        return self

    def __exit__(self, *_: object) -> None:
        self.background.close(self._close())
        self._stop()

    def holds(self, source: str) -> bool:
        """Return whether the servers are awake and have the weights of a source."""
        return self._weights is not None and self._weights.source == source and not self._resting

    def take(self, source: str, model: str, expected: Sequence[float]) -> None:
        """Give the servers the weights of an iterate, and check that they have them.

        Args:
            source: of the weights, as the run names it.
            model: the folder or id that a server loads.
            expected: the trainer's log-probabilities of the stored responses. [R]

        Raises:
            RunError: if a server does not come up, does not take the weights, or is not the policy.
        """
        began, weights = time.monotonic(), _Weights(source, model, expected)
        same = self._weights is not None and self._weights.source == source
        self.background.submit(self.fleet.close()).result()
        if not same:
            # Of one process: after a restart it is not known what a server has, so it is given the weights again.
            self._before, self._weights = self._weights, None
        self._load(weights, same=same)
        self._weights, self._resting = weights, False
        # Each of them: one server with old weights would spoil its share of the round.
        self.noise = max(self.background.submit(together(map(self._admit, self._servers))).result())
        # The first load sets what is normal for this dtype and these kernels.
        self._usual = self.noise if self._usual is None else self._usual
        self.fleet = self._new_fleet()
        logger.info(
            "%d server(s) have %s after %.1f s, %.2g nats a token from the trainer",
            len(self._servers),
            weights.model,
            time.monotonic() - began,
            self.noise,
        )

    def rest(self) -> None:
        """Let the run have the device: stop colocated servers, or put them to sleep.

        Raises:
            RunError: if a server cannot be put to sleep.
        """
        if self._section.phases == "disaggregated" or self._weights is None or self._resting:
            return
        self.background.submit(self.fleet.close()).result()
        if self._section.reload == "restart":
            self._stop()
        else:
            # Asleep and not stopped: they belong to somebody else.
            self._all(lambda server: server.routes.sleep(server))
        self._resting = True

    def _load(self, weights: _Weights, *, same: bool) -> None:
        section = self._section
        if section.reload == "restart":
            self._stop()
            for server in self._servers:
                self._start(server, weights)
        elif section.reload == "command" and not same:
            self._command(weights)
        self.background.submit(together(map(self._until_ready, self._servers))).result()
        if section.reload == "update":
            if self._resting:
                self._all(lambda server: server.routes.wake(server))
            self._all(lambda server: server.routes.update(server, weights.model))

    def _all(self, work: Callable[[CompletionsServer], Coroutine[Any, Any, None]]) -> None:
        """Have every server do something that only it can do, within ``start_timeout_s``."""

        async def bounded(server: CompletionsServer) -> None:
            try:
                async with asyncio.timeout(self._section.start_timeout_s):
                    await work(server)
            except (ServerFault, SamplerMismatchError, TimeoutError) as error:
                raise RunError(
                    f"{error or server.url + ' took longer than servers.start_timeout_s'}. reload = 'update' and "
                    "colocated phases need VLLM_SERVER_DEV_MODE=1 (vLLM), and a folder that the server sees too"
                ) from error

        self.background.submit(together(map(bounded, self._servers))).result()

    def _start(self, server: CompletionsServer, weights: _Weights) -> None:
        assert self._section.command is not None
        # The same port after a restart, as responses are asked of this address.
        index, port = self._servers.index(server), httpx2.URL(server.url).port
        words = command_line(self._section.command, model=weights.model, port=port, index=index)
        try:
            self._processes[server] = RunProcess(words, self._folder / "servers" / f"{index}.log")
        except OSError as error:
            raise RunError(f"servers.command cannot be started: {error}") from error
        self._starts[server] = self._starts.get(server, 0) + 1

    def _stop(self) -> None:
        for process in self._processes.values():
            process.stop()
        self._processes, self._starts = {}, {}

    def _command(self, weights: _Weights) -> None:
        assert self._section.command is not None
        words = command_line(self._section.command, model=weights.model)
        try:
            done = subprocess.run(  # noqa: S603 - the recipe's own command
                words, capture_output=True, text=True, check=False, timeout=self._section.start_timeout_s
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"servers.command {shlex.join(words)} could not be run: {error}") from error
        if done.returncode:
            tail = (done.stdout + done.stderr)[-_TAIL_CHARACTERS:]
            raise RunError(f"servers.command {shlex.join(words)} ended with code {done.returncode}:\n{tail}")

    async def _until_ready(self, server: CompletionsServer) -> None:
        until = time.monotonic() + self._section.start_timeout_s
        while not await server.ready():
            process = self._processes.get(server)
            if process is not None and process.ended is not None:
                raise RunError(f"a sampler server ended with code {process.ended}, {process.log}:\n{process.tail()}")
            if time.monotonic() > until:
                raise SamplerGoneError(
                    f"{server.url} was not ready after servers.start_timeout_s, {self._section.start_timeout_s:g} s: "
                    "start it and resume"
                )
            await asyncio.sleep(_POLL_S)

    async def _admit(self, server: CompletionsServer) -> float:
        """Return how far a server is from the trainer; refuse one that is not the policy, or has other weights."""
        assert self._weights is not None
        try:
            async with asyncio.timeout(self._section.start_timeout_s):
                await server.meet(longest=self._longest, texts=self._texts)
                # After the meeting: a server of another model would score, and only its numbers would look odd.
                served = await together(server.logprob(prompt_ids, token_ids) for prompt_ids, token_ids in self._probes)
        except TimeoutError as error:
            raise SamplerGoneError(f"{server.url} did not score the stored responses in time") from error
        return check_probes(
            server.url,
            served,
            self._weights.expected,
            self._probes,
            tolerance=self._tolerance,
            before=self._before.expected if self._before else None,
            usual=self._usual,
        )

    async def _readmit(self, server: CompletionsServer) -> None:
        """Make a server that was gone ready again, with the weights of the others."""
        assert self._weights is not None
        process = self._processes.get(server)
        if process is not None and process.ended is not None:
            # Weights that crash a server crash it every time.
            if self._starts[server] > _RESTARTS:
                raise RunError(f"a sampler server ended {self._starts[server]} times, {process.log}:\n{process.tail()}")
            logger.warning("the server at %s ended with code %s; starting it again", server.url, process.ended)
            process.stop()
            self._start(server, self._weights)
        if not await server.ready():
            raise ServerFault(f"{server.url} is not ready", gone=True)
        if self._section.reload == "update":
            # Whoever started it again gave it the weights of a start, not those of this iterate.
            await server.routes.update(server, self._weights.model)
        await self._admit(server)

    def _new_fleet(self) -> _Fleet:
        return _Fleet(self._servers, self._section, self._readmit)

    async def _close(self) -> None:
        await self.fleet.close()
        await self._http.aclose()
