"""The heads of hosted models: from hidden states to the numbers of each sequence, and from these to cached values.

A pass may serve several heads of one backbone. A sequence is run for a head of its own, and others ride with it, each
with reads of its own behind those of the first. n = sequences of a batch, d = numbers that a head makes of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paragone.codes import ErrorCode
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem
from paragone_service.cache.tiers import Cache, Codec
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics

__all__ = ["Compute", "Head", "Rider", "Run"]

Compute = Callable[[PreferenceModel, Tensor], Tensor]
"""From the model on a device and the hidden states of a batch to its numbers, [n, d]."""


class Run(Protocol):
    """A sequence of a batch."""

    @property
    def item(self) -> EncodeItem:
        """Its tokens and reads."""

    @property
    def dropped(self) -> int:
        """Tokens cut from its prompt."""

    @property
    def shown(self) -> bool:
        """Whether it holds all words of the conversation that were not cut."""

    @property
    def riders(self) -> "Sequence[Rider]":
        """Further heads that read its hidden states."""


@dataclass(frozen=True, eq=False)
class Head:
    """One head of a hosted model.

    Attributes:
        name: of the model, for metrics.
        models: it on each of its devices.
        failure: the message where numbers are not finite.
    """

    name: str
    models: Sequence[PreferenceModel]
    compute: Compute
    codec: Codec
    cache: Cache
    metrics: Metrics
    failure: str

    @property
    def reads(self) -> int:
        """Number of reads that it needs of a sequence."""
        return self.models[0].network.head.reads

    def numbers(self, device: int, hidden: Tensor) -> NDArray[np.float32]:
        """Return what it makes of hidden states at its reads, [n, R, H], on one of its devices; [n, d]."""
        numbers: NDArray[np.float32] = self.compute(self.models[device], hidden).numpy(force=True)
        return numbers

    def keep(
        self, keys: Sequence[bytes | None], runs: Sequence[Run], vectors: NDArray[np.float32]
    ) -> list[bytes | ServiceError]:
        """Cache the sound rows of a batch that have a key, and return each row's value or error.

        Args:
            vectors: numbers of the head. [n, d]
        """
        finite = np.atleast_1d(np.isfinite(vectors).all(axis=1)).tolist()
        values = self.codec.encode(
            vectors,
            [len(run.item.token_ids) for run in runs],
            [run.dropped for run in runs],
            [run.shown for run in runs],
            [len(run.item.reads) for run in runs],
        )
        # NaN is never cached: it may come from a broken batch, and the next try may be sound.
        sound = [place for place, good in enumerate(finite) if good and keys[place] is not None]
        kept = self.cache.put([keys[place] or b"" for place in sound], [values[place] for place in sound])
        outcomes: list[bytes | ServiceError] = list(values)
        for place, value in zip(sound, kept, strict=True):
            outcomes[place] = value  # the first writer's, so that an answer never differs from the cache by rounding
        for place, good in enumerate(finite):
            if not good:
                self.metrics.non_finite.labels(self.name).inc()
                outcomes[place] = ServiceError(ErrorCode.NON_FINITE_SCORE, self.failure)
        return outcomes


@dataclass(slots=True, eq=False)
class Rider:
    """A further head that reads the hidden states of a sequence.

    Attributes:
        key: under which its value is cached.
        start: number of its first read, among those of the sequence.
        numbers: what it made of the last pass. [d]
        outcome: the value or the error, from when the sequence has its own; None where that or the head failed.
    """

    head: Head
    key: bytes
    start: int
    numbers: NDArray[np.float32] | None = None
    outcome: bytes | ServiceError | None = None
