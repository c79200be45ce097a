"""Memory that is used again and again: a fresh megabyte costs more to map than to fill."""

import math

import torch
from torch import Tensor

__all__ = ["Rooms"]


class Rooms:
    """Tensors by name, whose memory stays."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with anything in it, valid until its name is asked for again.

        Args:
            name: which memory.
            shape: of the tensor.
            like: has its dtype and device.
            dtype: another one.
        """
        dtype = dtype or like.dtype
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != dtype:
            memory = self._memory[name] = like.new_empty(size, dtype=dtype)
        return memory[:size].view(shape)
