"""What attention has to know of one packed forward pass, and what it leaves behind.

Shapes: T rows, Hq query heads, Hk key heads, D head size, n tokens of a stored run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.packing.layout import Layout

__all__ = ["Attend", "Rule", "Run", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """The keys and values of a run of tokens in every layer, rotated to their positions already.

    Attributes:
        start: position of the first token.
        keys: by layer. [Hk, n, D] each
        values: by layer. [Hk, n, D] each
    """

    start: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    def __len__(self) -> int:
        return int(self.keys[0].shape[1])

    @property
    def bytes(self) -> int:
        """Size on the device."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def first(self, length: int) -> "Stored":
        """Return the first tokens alone: a view, not a copy."""
        if length == len(self):
            return self
        return Stored(self.start, [key[:, :length] for key in self.keys], [value[:, :length] for value in self.values])


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer attends.

    Attributes:
        scale: what the products of queries and keys are multiplied by.
        window: a position sees this many positions, its own counted; None for all.
        cap: logits are squeezed into (-cap, cap) by a tanh; None for no cap.
    """

    scale: float
    window: int | None
    cap: float | None


@dataclass(slots=True)
class Run:
    """One packed forward pass.

    Attributes:
        layout: rows and who attends to whom.
        held: keys and values of nodes that were computed before this pass.
        keep: how many first tokens of a node to keep, by node.
        wanted: rows whose last hidden states are read, in order. [W]
        kept: keys and values by node, one pair per layer that has run. [Hk, n, D]
        memo: what an attention function computes once per pass.
    """

    layout: Layout
    held: Mapping[int, Stored]
    keep: Mapping[int, int]
    wanted: NDArray[np.int64]
    kept: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def note(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep what is wanted of a layer's keys and values, [Hk, T, D] each.

        Raises:
            RuntimeError: if layers do not run in order, once each: what was kept would belong to another one.
        """
        for node, length in self.keep.items():
            first = self.layout.rows[node][0]
            kept = self.kept.setdefault(node, [])
            if len(kept) != layer:
                raise RuntimeError(f"layer {layer} attends after {len(kept)} others: its keys cannot be kept")
            rows = slice(first, first + length)
            kept.append((key[:, rows].clone(), value[:, rows].clone()))

    def stored(self, node: int, start: int) -> Stored:
        """Return what was kept of a node, after the pass.

        Args:
            node: one of ``keep``.
            start: position of its first token.
        """
        pairs = self.kept[node]
        return Stored(start, [key for key, _ in pairs], [value for _, value in pairs])


class Attend(Protocol):
    """An attention over a packed row: a function of the pass, the layer and its three tensors."""

    def __call__(self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return what every row reads, as [T, Hq, D].

        Args:
            run: the pass.
            layer: index of the layer.
            query: [Hq, T, D]
            key: [Hk, T, D]
            value: [Hk, T, D]
            rule: scale, window and cap.
        """
        ...
