"""What goes into a model's engine and what comes out: texts become jobs, and hidden states become cached values.

What is read to be run may wait for long, and much of it at a time: it is kept as bare token ids, two or four bytes each
(a list of Python's ints takes 36), and its rendered text is let go. n = items of a batch, d = numbers that the head
makes of each.
"""

import logging
import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, Readable, Reading, evened, read_plan
from paragone_service.cache.tiers import Cache, Codec
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.devices import Device
from paragone_service.scoring.heads import Compute, Head, Rider, Run
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Call
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job, Ticket

__all__ = ["Replica", "Resources", "canary_item", "compact", "open_queue", "read_jobs"]

logger = logging.getLogger(__name__)

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
    return Job(key, compact(reading.item), reading.dropped_tokens, reading.shown)


def compact(item: EncodeItem) -> EncodeItem:
    """Return the same with two bytes a token where the vocabulary allows it, else four."""
    ids = item.token_ids
    return replace(item, token_ids=array("H" if max(ids) <= _LARGEST_SHORT else "I", ids))


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

    def head(self, name: str, compute: Compute, codec: Codec, *, failure: str) -> Head:
        """Return one of the model's heads.

        Args:
            failure: the message where numbers are not finite.
        """
        models = tuple(replica.model for replica in self.replicas)
        return Head(name, models, compute, codec, self.cache, self.metrics, failure)


def open_queue(head: Head, resources: Resources) -> Scheduler:
    """Return a queue of sequences for one of a model's heads."""
    devices = [
        Device(
            replica.device.name,
            partial(_forward, number, replica, head),
            replica.device.turn,
            replica.max_batch_tokens,
            replica.device.post,
        )
        for number, replica in enumerate(resources.replicas)
    ]
    return Scheduler(
        head.name,
        devices,
        partial(_settle, head),
        metrics=resources.metrics,
        shares_prompts=all(replica.engine.shares_prompts for replica in resources.replicas),
        max_queue_tokens=resources.max_queue_tokens,
        canary=canary_item(resources.replicas[0].model),
        clock=resources.clock,
    )


def canary_item(model: PreferenceModel) -> EncodeItem:
    """Return two tokens that any of a model's heads can be run on."""
    return EncodeItem((0, 0), read_plan(model.spec, 1, 2, first_token=model.first_token), 1)


async def _forward(number: int, replica: Replica, head: Head, jobs: Sequence[Run]) -> NDArray[np.float32]:
    """Return the numbers of every job, [n, d], and note those of its riders.

    Args:
        number: of the device, among those of the model.

    Raises:
        EngineOutOfMemoryError: if the batch was too large for the device.
        Exception: whatever else the engine raises.
    """
    # The engine gives hidden states and no more, so that one engine serves every head.
    hidden = await replica.engine.encode(evened([job.item for job in jobs]))
    riders = _riders(jobs)

    def computed() -> NDArray[np.float32]:
        for other, places in riders.items():
            rows = torch.tensor([row for row, _ in places], device=hidden.device)
            first = torch.tensor([rider.start for _, rider in places], device=hidden.device)
            reads = first[:, None] + torch.arange(other.reads, device=hidden.device)
            try:
                made = other.numbers(number, hidden[rows[:, None], reads])
            except torch.OutOfMemoryError:
                raise
            except Exception:
                # Its model is asked by itself later, and says what is wrong. The others have no part in it.
                logger.exception("%s failed on another model's pass", other.name)
                continue
            for (_, rider), numbers in zip(places, made, strict=True):
                rider.numbers = numbers
        return head.numbers(number, hidden[:, : head.reads] if riders else hidden)

    return await replica.device.run(computed)


def _settle(head: Head, tickets: Sequence[Ticket], vectors: NDArray[np.float32]) -> Sequence[bytes | ServiceError]:
    """Keep what the heads have made of a batch, and return the values or errors of the queue's own."""
    for other, places in _riders(tickets).items():
        numbers = [rider.numbers for _, rider in places if rider.numbers is not None]
        if not numbers:
            continue
        runs = [tickets[row] for row, _ in places]
        outcomes = other.keep([rider.key for _, rider in places], runs, np.stack(numbers))
        for (_, rider), outcome in zip(places, outcomes, strict=True):
            rider.outcome, rider.numbers = outcome, None
    return head.keep([ticket.key for ticket in tickets], tickets, vectors)


def _riders(jobs: Sequence[Run]) -> dict[Head, list[tuple[int, Rider]]]:
    """Return who rides with which job, by their heads."""
    by_head: dict[Head, list[tuple[int, Rider]]] = {}
    for row, job in enumerate(jobs):
        for rider in job.riders:
            by_head.setdefault(rider.head, []).append((row, rider))
    return by_head
