"""The bytes of one cached representation: a header of 12 bytes, then float32, little-endian.

    magic u8 | version u8 | d u16 | tokens u32 | tokens dropped u32 | d × float32

The whole process passes values around in this form: memory stores them as they are, a request joins its values and
numpy reads all rows at once. n = values, d = length of a representation.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["HEADER_BYTES", "MAGIC", "VERSION", "Codec"]

MAGIC = 0x50
VERSION = 1
HEADER_BYTES = 12
_MAX_DIMENSION = 2**16 - 1


class Codec:
    """Read and write the values of one model.

    Args:
        dimension: length d of its representations.

    Raises:
        ValueError: if a header cannot hold d.
    """

    def __init__(self, dimension: int) -> None:
        if not 1 <= dimension <= _MAX_DIMENSION:
            raise ValueError(f"a representation of {dimension} numbers cannot be cached: 1 … {_MAX_DIMENSION} can")
        self.dimension = dimension
        self.value_bytes = HEADER_BYTES + 4 * dimension
        self._row = np.dtype(
            [
                ("magic", "u1"),
                ("version", "u1"),
                ("dimension", "<u2"),
                ("tokens", "<u4"),
                ("dropped", "<u4"),
                ("vector", "<f4", (dimension,)),
            ]
        )
        assert self._row.itemsize == self.value_bytes
        self.blank = self.encode(np.full((1, dimension), np.nan), [0], [0])[0]
        """A value of NaN that stands for a row in error; it is never stored."""

    def encode(self, vectors: ArrayLike, tokens: ArrayLike, dropped: ArrayLike) -> list[bytes]:
        """Return one value per representation.

        Args:
            vectors: representations. [n, d]
            tokens: tokens that the model read for each. [n]
            dropped: tokens that were cut from each prompt before that. [n]
        """
        rows = np.zeros(np.shape(vectors)[0], dtype=self._row)
        rows["magic"] = MAGIC
        rows["version"] = VERSION
        rows["dimension"] = self.dimension
        rows["tokens"] = tokens
        rows["dropped"] = dropped
        rows["vector"] = vectors
        whole, size = rows.tobytes(), self.value_bytes
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    def decode(self, values: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Return the representations [n, d] and the dropped tokens [n] of values that are known to be sound."""
        rows = np.frombuffer(b"".join(values), dtype=self._row)
        return rows["vector"], rows["dropped"]

    def sound(self, values: Sequence[bytes]) -> list[bool]:
        """Return for each value whether it is a finite representation of this model, written by this version."""
        fits = [len(value) == self.value_bytes for value in values]
        rows = np.frombuffer(b"".join(value for value, fit in zip(values, fits, strict=True) if fit), dtype=self._row)
        good = (
            (rows["magic"] == MAGIC)
            & (rows["version"] == VERSION)
            & (rows["dimension"] == self.dimension)
            & np.isfinite(rows["vector"]).all(axis=1)
        )
        verdicts = iter(good.tolist())
        return [fit and next(verdicts) for fit in fits]
