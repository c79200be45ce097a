"""Forward passes for one of a model's queues: backbone and head over a batch, and what its rows mean to those who wait.

n = items of a batch, d = numbers that the head makes of each.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.cache.codec import Codec
from paragone_service.cache.tiers import Cache
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.scheduler import Ticket

__all__ = ["Forwards"]


class Forwards:
    """Turn the batches of a scheduler into values; those of tickets with a key are cached.

    Args:
        name: what the model is called in requests.
        head: from the hidden states of a batch to its numbers, [n, d].
        engine: what runs the backbone.
        device: the thread that the head runs on.
        cache: where sound values go.
        codec: of the values.
        metrics: where values that are not finite are counted.
        failure: what to say where they are not finite.
    """

    def __init__(
        self,
        name: str,
        head: Callable[[Tensor], Tensor],
        engine: Engine,
        device: DeviceThread,
        cache: Cache,
        codec: Codec,
        metrics: Metrics,
        *,
        failure: str,
    ) -> None:
        self._name = name
        self._head = head
        self._engine = engine
        self._device = device
        self._cache = cache
        self._codec = codec
        self._metrics = metrics
        self._failure = failure

    async def run(self, items: Sequence[EncodeItem]) -> NDArray[np.float32]:
        """Return the numbers of every item, [n, d].

        Raises:
            EngineOutOfMemoryError: if the batch was too large for the device.
            Exception: whatever else the engine raises.
        """
        hidden = await self._engine.encode(items)
        return await self._device.run(lambda: self._head(hidden).numpy(force=True))

    def settle(self, tickets: Sequence[Ticket], vectors: NDArray[np.float32]) -> list[bytes | ServiceError]:
        """Store the sound rows of a batch, and return each ticket's value or error; the first writer's value holds.

        Args:
            tickets: the batch. [n]
            vectors: its numbers. [n, d]
        """
        finite = np.atleast_1d(np.isfinite(vectors).all(axis=1)).tolist()
        values = self._codec.encode(
            vectors, [ticket.tokens for ticket in tickets], [ticket.dropped for ticket in tickets]
        )
        kept = [index for index, good in enumerate(finite) if good and tickets[index].key is not None]
        held = self._cache.put([tickets[index].key or b"" for index in kept], [values[index] for index in kept])
        outcomes: list[bytes | ServiceError] = list(values)
        for index, value in zip(kept, held, strict=True):
            outcomes[index] = value
        for index, good in enumerate(finite):
            if not good:
                self._metrics.non_finite.labels(self._name).inc()
                outcomes[index] = ServiceError(ErrorCode.NON_FINITE_SCORE, self._failure)
        return outcomes
