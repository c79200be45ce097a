"""The completions servers of a run: started or met, given each iterate's weights, checked, and put to rest.

RUN/servers/0.log      what a server prints that the run started itself
"""

import asyncio
import logging
import shlex
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from paragone_training.policy.errors import RunError, SamplerGoneError, SamplerMismatchError
from paragone_training.policy.sampling.background import Background, together
from paragone_training.policy.sampling.completions import (
    CompletionsServer,
    Routes,
    ServerFault,
    SglangRoutes,
    VllmRoutes,
)
from paragone_training.policy.sampling.fleet import Fleet
from paragone_training.policy.sampling.probes import Probe, check_probes
from paragone_training.policy.sampling.processes import RunProcess, free_port
from paragone_training.policy.sampling.servers_check import command_line
from paragone_training.policy.sections import ServersSection

__all__ = ["Held", "SamplerServers"]

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_POLL_S = 0.5
_TAIL_CHARACTERS = 2000
_RESTARTS = 3
"""Times that a server is started again with the same weights, before its ending is taken for more than bad luck."""


@dataclass(frozen=True)
class Held:
    """Weights that servers have, or are to have.

    Attributes:
        source: of the iterate, as the run names it.
        model: folder or id that a server loads.
        expected: the trainer's log-probabilities of the stored responses. [R]
    """

    source: str
    model: str
    expected: tuple[float, ...]


class SamplerServers:
    """All servers of a run; a context manager. ``fleet`` is what draws, ``background`` the loop that it belongs to.

    Args:
        section: of the recipe.
        folder: of the run.
        probes: stored responses. R
        tolerance: nats a token that a server may be from the trainer.
        longest: tokens that a prompt and a response may have together.
        texts: token ids by text, to recognise the policy's tokenizer.
    """

    def __init__(
        self,
        section: ServersSection,
        folder: Path,
        probes: Sequence[Probe],
        *,
        tolerance: float,
        longest: int,
        texts: Mapping[str, Sequence[int]],
    ) -> None:
        self._section, self._folder, self._probes = section, folder, probes
        self._tolerance, self._longest, self._texts = tolerance, longest, texts
        self._held: Held | None = None
        self._before: Held | None = None
        self._resting = False
        self._usual: float | None = None
        self._processes: dict[CompletionsServer, RunProcess] = {}
        self._starts: dict[CompletionsServer, int] = {}
        self.noise: float | None = None
        """Largest distance from the trainer after the last load, in nats a token."""

    def __enter__(self) -> "SamplerServers":
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
        """Return whether the servers are awake and have the weights of a source.

        Args:
            source: of an iterate.
        """
        return self._held is not None and self._held.source == source and not self._resting

    def take(self, wanted: Held) -> None:
        """Give the servers the weights of an iterate, and check that they have them.

        Args:
            wanted: the iterate.

        Raises:
            RunError: if a server does not come up, does not take the weights, or is not the policy.
        """
        began = time.monotonic()
        same = self._held is not None and self._held.source == wanted.source
        self.background.submit(self.fleet.close()).result()
        if not same:
            # Of one process: after a restart it is not known what a server has, so it is given the weights again.
            self._before, self._held = self._held, None
        self._load(wanted, same=same)
        self._held, self._resting = wanted, False
        self.noise = max(self.background.submit(together(map(self._admit, self._servers))).result())
        self._usual = self.noise if self._usual is None else self._usual
        self.fleet = self._new_fleet()
        logger.info(
            "%d server(s) have %s after %.1f s, %.2g nats a token from the trainer",
            len(self._servers),
            wanted.model,
            time.monotonic() - began,
            self.noise,
        )

    def rest(self) -> None:
        """Let the run have the device: stop colocated servers, or put them to sleep.

        Raises:
            RunError: if a server cannot be put to sleep.
        """
        if self._section.phases == "disaggregated" or self._held is None or self._resting:
            return
        self.background.submit(self.fleet.close()).result()
        if self._section.reload == "restart":
            self._stop()
        else:
            self._all(lambda server: server.routes.sleep(server))
        self._resting = True

    def _load(self, wanted: Held, *, same: bool) -> None:
        section = self._section
        if section.reload == "restart":
            self._stop()
            for server in self._servers:
                self._start(server, wanted)
        elif section.reload == "command" and not same:
            self._command(wanted)
        self.background.submit(together(map(self._until_ready, self._servers))).result()
        if section.reload == "update":
            if self._resting:
                self._all(lambda server: server.routes.wake(server))
            self._all(lambda server: server.routes.update(server, wanted.model))

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

    def _start(self, server: CompletionsServer, wanted: Held) -> None:
        assert self._section.command is not None
        index, port = self._servers.index(server), httpx2.URL(server.url).port
        words = command_line(self._section.command, model=wanted.model, port=port, index=index)
        try:
            self._processes[server] = RunProcess(words, self._folder / "servers" / f"{index}.log")
        except OSError as error:
            raise RunError(f"servers.command cannot be started: {error}") from error
        self._starts[server] = self._starts.get(server, 0) + 1

    def _stop(self) -> None:
        for process in self._processes.values():
            process.stop()
        self._processes, self._starts = {}, {}

    def _command(self, wanted: Held) -> None:
        assert self._section.command is not None
        words = command_line(self._section.command, model=wanted.model)
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
        assert self._held is not None
        try:
            async with asyncio.timeout(self._section.start_timeout_s):
                await server.meet(longest=self._longest, texts=self._texts)
                served = await together(server.logprob(one.prompt_ids, one.token_ids) for one in self._probes)
        except TimeoutError as error:
            raise SamplerGoneError(f"{server.url} did not score the stored responses in time") from error
        return check_probes(
            server.url,
            served,
            self._held.expected,
            self._probes,
            tolerance=self._tolerance,
            before=self._before.expected if self._before else None,
            usual=self._usual,
        )

    async def _readmit(self, server: CompletionsServer) -> None:
        """Make a server that was gone ready again, with the weights of the others."""
        assert self._held is not None
        process = self._processes.get(server)
        if process is not None and process.ended is not None:
            if self._starts[server] > _RESTARTS:
                raise RunError(f"a sampler server ended {self._starts[server]} times, {process.log}:\n{process.tail()}")
            logger.warning("the server at %s ended with code %s; starting it again", server.url, process.ended)
            process.stop()
            self._start(server, self._held)
        if not await server.ready():
            raise ServerFault(f"{server.url} is not ready", gone=True)
        if self._section.reload == "update":
            # Whoever started it again gave it the weights of a start, not those of this iterate.
            await server.routes.update(server, self._held.model)
        await self._admit(server)

    def _new_fleet(self) -> Fleet:
        return Fleet(self._servers, self._section, self._readmit)

    async def _close(self) -> None:
        await self.fleet.close()
        await self._http.aclose()
