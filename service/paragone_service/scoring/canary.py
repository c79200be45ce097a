"""Two tokens that show whether a model can answer."""

import asyncio

from paragone_models.model import PreferenceModel
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.model_io import canary_item
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job

__all__ = ["Canary"]


class Canary:
    """Run two tokens through the model to see whether it can answer. One run serves all who ask meanwhile."""

    def __init__(self, scheduler: Scheduler, model: PreferenceModel) -> None:
        self._scheduler = scheduler
        self._item = canary_item(model)
        self._run: asyncio.Task[bool] | None = None

    async def returns(self, timeout_s: float) -> bool:
        """Return whether the canary comes back with a value in time."""
        # Load balancers of many replicas ask all the time: they must not fill the queue with canaries.
        if self._run is None or self._run.done():
            self._run = asyncio.get_running_loop().create_task(self._forward())
        done, _ = await asyncio.wait([self._run], timeout=timeout_s)  # which leaves it running for those who wait on
        return bool(done) and self._run.result()

    async def close(self) -> None:
        """Cancel a run that is on its way."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def _forward(self) -> bool:
        try:
            tickets = self._scheduler.submit([Job(None, self._item, 0)])
        except ServiceError:
            return False  # a queue that is full and has had no success for a while is not ready
        try:
            return isinstance(await tickets[0].outcome, bytes)
        finally:
            self._scheduler.leave(tickets)
