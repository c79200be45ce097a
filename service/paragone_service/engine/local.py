"""The engine in this process: torch, in one thread for each device, so that the event loop never waits for it."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from paragone_models.machine import is_out_of_memory
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem
from paragone_service.engine.contract import EngineOutOfMemoryError, Health
from paragone_service.watchdog import Post

__all__ = ["DeviceThread", "LocalEngine"]

Result = TypeVar("Result")

_BROKEN_DEVICE_MESSAGES = ("CUDA error", "device-side assert", "HIP error", "unspecified launch failure")


class DeviceThread:
    """The one thread that touches a device, and whose turn it is when several models share the device.

    Args:
        name: of the device, unlike that of any other.
        limit_s: how long a forward may take before it counts as stuck.
        threads: how many cores torch uses in it; None: all.

    Attributes:
        turn: taken by a scheduler for one batch; waiting schedulers get it in the order they asked.
        post: the forward that runs, as the watchdog sees it: one that hangs holds up every model on the device.
    """

    def __init__(self, name: str, *, limit_s: float = math.inf, threads: int | None = None) -> None:
        self.name = name
        self.post = Post(limit_s)
        self.turn = asyncio.Lock()  # fair: whoever waits longest is next
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix=f"device-{name}",
            # OpenMP keeps the number by thread; one that was started before keeps its own.
            initializer=None if threads is None else partial(torch.set_num_threads, threads),
        )

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns on the device's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def run_now(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns on the device's thread, without an event loop."""
        return self._thread.submit(work).result()

    def close(self) -> None:
        """Let the thread end after the work it has."""
        self._thread.shutdown(wait=True)


class LocalEngine:
    """Run a model's backbone on the thread of its device."""

    name = "local"

    def __init__(self, model: PreferenceModel, thread: DeviceThread) -> None:
        self.shares_prompts = model.local.batching == "packed"
        self._model = model
        self._thread = thread
        self._broken = ""

    async def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden state of every read of every item, [n, R, H].

        Raises:
            EngineOutOfMemoryError: if the device had not enough memory for the call.
            RuntimeError: whatever else torch says; an error that leaves the device unusable also makes it unhealthy.
        """
        return await self._thread.run(lambda: self._encode(items))

    async def health(self) -> Health:
        """Return unhealthy once the device is in a state that only a new process gets out of."""
        return Health(healthy=not self._broken, detail=self._broken)

    async def close(self) -> None:
        """Do nothing: the thread belongs to the device, not to the model."""

    def _encode(self, items: Sequence[EncodeItem]) -> Tensor:
        try:
            return self._model.encode(items)
        except RuntimeError as error:
            if is_out_of_memory(error):
                torch.cuda.empty_cache()  # else the halves that the scheduler tries next find the same fragments
                raise EngineOutOfMemoryError(str(error)) from error
            if any(message in str(error) for message in _BROKEN_DEVICE_MESSAGES):
                self._broken = f"the device is unusable until the process is restarted: {error}"
            raise
