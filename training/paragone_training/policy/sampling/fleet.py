"""Many completions servers as one sampler: load goes to the least busy, failed and slow responses to another one.

K is the number of responses of a group. Each response is one request with a seed of its own, so that a run that is
resumed sends the same request again; servers promise the same tokens for it only while their batches are the same.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field

from paragone_evaluation.readers import Prompt
from paragone_training.policy.errors import RunError, SamplerGoneError
from paragone_training.policy.sampling.background import Background, together
from paragone_training.policy.sampling.completions import CompletionsServer, ServerFault
from paragone_training.policy.sampling.in_process import Draw, Drawn, Missing, Sample, seed_of
from paragone_training.policy.sections import ServersSection

__all__ = ["Fleet", "FleetSampler"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_CHECK_S = 1.0
"""How often a request that waits for a server looks whether all of them are gone."""


@dataclass
class _State:
    server: CompletionsServer
    running: int = 0
    lost: bool = False


@dataclass
class Fleet:
    """Servers with the same weights. Its coroutines belong to one event loop.

    Attributes:
        servers: at least one.
        limits: of a recipe.
        readmit: makes a server that was gone ready again, with the right weights; raises ServerFault while it is not.
    """

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
        self, prompt_ids: Sequence[int], *, seed: int, settings: Draw, end_ids: Sequence[int]
    ) -> Sample | Missing:
        """Return a response, asked of other servers where one fails or is slow; Missing after the last try.

        Args:
            prompt_ids: what it continues.
            seed: of its random numbers, the same with every try.
            settings: how tokens are drawn.
            end_ids: tokens that end a response.

        Raises:
            SamplerGoneError: if no server answers for longer than ``patience_s``.
            SamplerMismatchError: if a server is not the policy.
        """
        tried: list[CompletionsServer] = []
        reason, wait_s, failures = "", _FIRST_WAIT_S, 0
        while failures < self.limits.tries:
            state = await self._least_busy(tried)
            try:
                async with asyncio.timeout(self.limits.request_timeout_s):
                    found = await state.server.complete(prompt_ids, seed=seed, settings=settings, end_ids=end_ids)
                self._answered = time.monotonic()
                return found
            except ServerFault as error:
                reason = str(error)
                if error.gone:
                    # That is the server's failure, not this response's: patience_s bounds it.
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
                    async with asyncio.timeout(_CHECK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _leave(self, state: _State) -> None:
        async with self._changed:
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
    """Draws with servers, all chunks at once as far as there is place.

    Args:
        fleet: with the policy's weights.
        background: the loop that the fleet belongs to.
        settings: how tokens are drawn.
        end_ids: tokens that end a response.
    """

    def __init__(self, fleet: Fleet, background: Background, settings: Draw, end_ids: Sequence[int]) -> None:
        self._fleet, self._background = fleet, background
        self._settings, self._end_ids = settings, end_ids

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Drawn]]]:
        """Yield the number and the groups of each chunk as soon as it is complete.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
            responses: K, to each prompt.
            names: what the seeds are made of, beside prompt and number.

        Raises:
            RunError: if the servers are gone or are not the policy.
        """
        limits = self._fleet.limits
        places = limits.concurrency * len(self._fleet.servers)
        largest = max(len(prompts) for prompts in chunks.values()) * responses
        # More chunks than fill the places, so that none is free while a chunk's last response is drawn.
        window = asyncio.Semaphore(2 * places // largest + 2)
        until = time.monotonic() + limits.round_timeout_s if limits.round_timeout_s else None
        futures = {
            self._background.submit(self._chunk(prompts, responses, names, window, until)): number
            for number, prompts in chunks.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    async def _chunk(
        self,
        prompts: Sequence[Prompt],
        responses: int,
        names: tuple[object, ...],
        window: asyncio.Semaphore,
        until: float | None,
    ) -> list[Drawn]:
        async with window:
            return await together(self._group(prompt, responses, names, until) for prompt in prompts)

    async def _group(self, prompt: Prompt, responses: int, names: tuple[object, ...], until: float | None) -> Drawn:
        left_s = None if until is None else max(until - time.monotonic(), 0.0)
        try:
            async with asyncio.timeout(left_s):
                found = await together(
                    self._fleet.respond(
                        prompt.token_ids,
                        seed=seed_of(*names, prompt.id, number),
                        settings=self._settings,
                        end_ids=self._end_ids,
                    )
                    for number in range(responses)
                )
        except TimeoutError:
            return Missing("it was not complete within servers.round_timeout_s")
        missing = next((one for one in found if isinstance(one, Missing)), None)
        return missing or [one for one in found if isinstance(one, Sample)]
