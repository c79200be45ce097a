"""Values of process models: a header as every value has it, then one number for each step of the response.

    magic u8 | version u8 | steps u16 | tokens u32 | tokens dropped u31, not shown u1 | steps × float32

n = values, S = the most steps of one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from paragone_service.cache.tiers import HEADER_BYTES, Codec, Decoded

__all__ = ["StepsCodec"]


class StepsCodec(Codec):
    """Read and write the values of a process model, each by the codec of its own length."""

    def __init__(self) -> None:
        self._codecs: dict[int, Codec] = {}
        super().__init__(1)

    def encode(
        self,
        vectors: ArrayLike,
        tokens: ArrayLike,
        dropped: ArrayLike,
        shown: ArrayLike = True,
        counts: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Return one value per row.

        Args:
            vectors: log-odds of each step, and anything behind the last one. [n, S]
            tokens, dropped, shown: as of every codec.
            counts: steps of each row; None: all of them. [n]
        """
        rows = np.asarray(vectors, dtype=np.float32)
        said = np.broadcast_to(shown, len(rows))
        lengths = [rows.shape[1]] * len(rows) if counts is None else counts
        each = zip(rows, np.asarray(tokens), np.asarray(dropped), said, lengths, strict=True)
        return [
            self._of(steps).encode(row[None, :steps], [read], [cut], [seen])[0] for row, read, cut, seen, steps in each
        ]

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Return what values hold that are known to be sound; rows end in NaN where others have more steps."""
        parts = [self._of(_steps(value)).decode([value]) for value in values]
        most = max((part.vectors.shape[1] for part in parts), default=1)
        vectors = np.full((len(parts), most), np.nan, dtype=np.float32)
        for row, part in zip(vectors, parts, strict=True):
            row[: part.vectors.shape[1]] = part.vectors[0]
        joined = [np.concatenate([part[field] for part in parts]) if parts else np.zeros(0) for field in (1, 2, 3)]
        return Decoded(vectors, joined[0].astype(np.uint32), joined[1].astype(bool), joined[2].astype(np.uint32))

    def sound(self, values: Sequence[bytes]) -> list[bool]:
        """Return for each value whether it is one of a process model in range, written by this version."""
        return [bool(steps := _steps(value)) and self._of(steps).sound([value])[0] for value in values]

    def _of(self, steps: int) -> Codec:
        if steps not in self._codecs:
            self._codecs[steps] = Codec(steps)
        return self._codecs[steps]


def _steps(value: bytes) -> int:
    """Return how many steps a value has by its length, 0 if it can have none."""
    steps, rest = divmod(len(value) - HEADER_BYTES, 4)
    return steps if not rest and 0 < steps < 2**16 else 0
