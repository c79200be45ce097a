"""What goes into a model's engine and what comes out: texts become jobs, and hidden states become cached values.

What is read to be run may wait for long, and much of it at a time: it is kept as bare token ids, two or four bytes each
(a list of Python's ints takes 36), and its rendered text is let go. n = items of a batch, d = numbers that the head
makes of each.
"""

import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, Readable, Reading, evened, read_plan
from paragone_service.cache.tiers import Cache, Codec
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.devices import Device
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Call
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job, Ticket

__all__ = ["Replica", "Resources", "canary_item", "open_queue", "read_jobs"]

_LARGEST_SHORT = 2**16 - 1


async def read_jobs(
    reading: ReadingThread, keys: Sequence[bytes], conversations: Sequence[Readable], call: Call
) -> list[Job | TextError]:
    """Return what is to be run of each conversation, by its cache key, or why it cannot be read.

    Raises:
        ServiceError: ``text_unavailable``, if the model has no tokenizer.
    """
    jobs: list[Job | TextError] = []
    async for chunk in reading.chunks(conversations, call, for_queue=True):
        jobs += [
            one if isinstance(one, TextError) else _job(key, one)
            for key, one in zip(keys[len(jobs) :], chunk, strict=False)
        ]
    return jobs


def _job(key: bytes, reading: Reading) -> Job:
    ids = reading.token_ids
    # Two bytes a token where the vocabulary allows it: a full queue holds millions.
    compact = array("H" if max(ids) <= _LARGEST_SHORT else "I", ids)
    item = EncodeItem(compact, reading.reads, reading.prompt_length)
    return Job(key, item, reading.dropped_tokens, reading.shown)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What runs a hosted model on one device.

    Attributes:
        model: the loaded model, with its weights on that device.
        device: the thread that its heads run on, shared with the other models on that device.
        max_batch_tokens: the budget to begin with.
    """

    model: PreferenceModel
    engine: Engine
    device: DeviceThread
    max_batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the queues of one hosted model share.

    Attributes:
        replicas: at least one; each gives the same numbers, but for rounding.
        max_queue_tokens: how much may wait in each queue.
        max_wait_s: the longest expected wait of a request that names no deadline.
        reading_limit_s: how long reading one chunk of texts may take before it counts as stuck.
    """

    replicas: Sequence[Replica]
    cache: Cache
    metrics: Metrics
    max_queue_tokens: int
    max_wait_s: float = 2.5
    reading_limit_s: float = math.inf
    clock: Callable[[], float] = time.perf_counter


def open_queue(
    name: str, resources: Resources, head: Callable[[PreferenceModel, Tensor], Tensor], codec: Codec, *, failure: str
) -> Scheduler:
    """Return a queue of sequences for one of a model's heads.

    Args:
        head: from the model on a device and the hidden states of a batch to its numbers, [n, d].
        failure: the message where numbers are not finite.
    """
    devices = [
        Device(
            replica.device.name,
            partial(_forward, replica, head),
            replica.device.turn,
            replica.max_batch_tokens,
            replica.device.post,
        )
        for replica in resources.replicas
    ]
    return Scheduler(
        name,
        devices,
        _Settling(name, resources, codec, failure).settle,
        metrics=resources.metrics,
        shares_prompts=all(replica.engine.shares_prompts for replica in resources.replicas),
        max_queue_tokens=resources.max_queue_tokens,
        canary=canary_item(resources.replicas[0].model),
        clock=resources.clock,
    )


def canary_item(model: PreferenceModel) -> EncodeItem:
    """Return two tokens that any of a model's heads can be run on."""
    return EncodeItem((0, 0), read_plan(model.spec, 1, 2, first_token=model.first_token), 1)


async def _forward(
    replica: Replica, head: Callable[[PreferenceModel, Tensor], Tensor], items: Sequence[EncodeItem]
) -> NDArray[np.float32]:
    """Return the numbers of every item, [n, d].

    Raises:
        EngineOutOfMemoryError: if the batch was too large for the device.
        Exception: whatever else the engine raises.
    """
    # The engine gives hidden states and no more, so that one engine serves every head.
    hidden = await replica.engine.encode(evened(items))
    return await replica.device.run(lambda: head(replica.model, hidden).numpy(force=True))


@dataclass(frozen=True)
class _Settling:
    """Turn what the batches of a scheduler gave into values; those of tickets with a key are cached."""

    name: str
    resources: Resources
    codec: Codec
    failure: str

    def settle(self, tickets: Sequence[Ticket], vectors: NDArray[np.float32]) -> list[bytes | ServiceError]:
        """Cache the sound rows of a batch, [n, d], and return each ticket's value or error."""
        finite = np.atleast_1d(np.isfinite(vectors).all(axis=1)).tolist()
        values = self.codec.encode(
            vectors,
            [ticket.tokens for ticket in tickets],
            [ticket.dropped for ticket in tickets],
            [ticket.shown for ticket in tickets],
            [len(ticket.item.reads) for ticket in tickets],
        )
        # NaN is never cached: it may come from a broken batch, and the next try may be sound.
        sound = [place for place, good in enumerate(finite) if good and tickets[place].key is not None]
        kept = self.resources.cache.put([tickets[place].key or b"" for place in sound], [values[p] for p in sound])
        outcomes: list[bytes | ServiceError] = list(values)
        for place, value in zip(sound, kept, strict=True):
            outcomes[place] = value  # the first writer's, so that an answer never differs from the cache by rounding
        for place, good in enumerate(finite):
            if not good:
                self.resources.metrics.non_finite.labels(self.name).inc()
                outcomes[place] = ServiceError(ErrorCode.NON_FINITE_SCORE, self.failure)
        return outcomes
