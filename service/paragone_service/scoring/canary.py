"""Whether a model can answer now: by what it ran lately, else by a canary, two tokens that are run to see."""

import asyncio
import time
from collections.abc import Callable

from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, read_plan
from paragone_service.engine.contract import Engine
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.scheduler import Scheduler

__all__ = ["Canary"]


class Canary:
    """Tell whether one hosted model can answer. However many ask, one canary is on its way at most.

    Args:
        model: the loaded model.
        engine: what runs its backbone.
        scheduler: the queue that its responses go through; the canary goes through it as well.
        clock: in seconds; the scheduler's.
    """

    def __init__(
        self,
        model: PreferenceModel,
        engine: Engine,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._engine = engine
        self._scheduler = scheduler
        self._clock = clock
        self._song: asyncio.Task[bool] | None = None

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether a forward succeeded within the last seconds, running a canary if none did.

        Args:
            within_s: how old the last success may be; where batches take long, twice as old as the last one took.
            timeout_s: how long the canary may take, queueing included.
        """
        if not (await self._engine.health()).healthy:
            return False
        if self._clock() - self._scheduler.last_success <= max(within_s, 2 * self._scheduler.last_batch_s):
            return True
        if self._song is None or self._song.done():
            self._song = asyncio.get_running_loop().create_task(self._sing())
        done, _ = await asyncio.wait([self._song], timeout=timeout_s)
        return bool(done) and self._song.result()

    async def close(self) -> None:
        """Call back a canary that is on its way."""
        if self._song is not None:
            self._song.cancel()
            await asyncio.gather(self._song, return_exceptions=True)

    async def _sing(self) -> bool:
        reads = read_plan(self._model.spec, 1, 2, first_token=self._model.first_token)
        item = EncodeItem(token_ids=(0, 0), reads=reads, prompt_length=1)
        try:
            tickets = self._scheduler.submit([(None, item, 0)])
        except ServiceError:
            return False  # a queue that is full and has had no success for a while is not ready
        try:
            return isinstance(await tickets[0].outcome, bytes)
        finally:
            self._scheduler.leave(tickets)
