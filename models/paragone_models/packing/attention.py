"""Attention in a packed pass: what it is told, what it leaves behind, and the hook through which models call it.

``cpu``, ``gpu`` and ``segments`` compute it.

Shapes: T rows, W output rows, Hq query heads, Hk key heads, D head size, n tokens of a node.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from paragone_models.packing.tree import Layout

__all__ = ["NAME", "Attend", "KeysValues", "Rule", "Run", "packed"]

NAME = "paragone_packed"
"""Under this name transformers finds the attention of packed passes."""

# What models pass along that packed attention has no use for, or has taken from the pass.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
    | {"position_embeddings", "logits_to_keep", "is_causal"}
)


@dataclass(frozen=True, slots=True)
class KeysValues:
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
        """Memory on the device that it keeps from being used again: a view keeps all that it is a view of."""
        storages = [tensor.untyped_storage() for tensor in (*self.keys, *self.values)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def first(self, length: int) -> "KeysValues":
        """Return the first tokens alone: a view, not a copy."""
        if length == len(self):
            return self
        keys, values = ([part[:, :length] for part in parts] for parts in (self.keys, self.values))
        return KeysValues(self.start, keys, values)


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
        earlier: keys and values of nodes that were computed before this pass.
        keep: of how many first tokens of a node keys and values are kept, by node.
        output_rows: rows whose last hidden states are read, in order. [W]
        kept: keys and values by node, one pair per layer that has run. [Hk, n, D]
        memo: what an attention function computes once per pass.
    """

    layout: Layout
    earlier: Mapping[int, KeysValues]
    keep: Mapping[int, int]
    output_rows: NDArray[np.int64]
    kept: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def note(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the part of a layer's keys and values that ``keep`` names, [Hk, T, D] each.

        Raises:
            RuntimeError: if layers do not run in order, once each: what was kept would belong to another one.
        """
        for node, length in self.keep.items():
            first = self.layout.rows[node][0]
            kept = self.kept.setdefault(node, [])
            if len(kept) != layer:
                raise RuntimeError(f"layer {layer} attends after {len(kept)} others: its keys cannot be kept")
            rows = slice(first, first + length)
            # Copies: a view would keep the whole pass in memory, and buffers are written again by the next layer.
            kept.append((key[:, rows].clone(), value[:, rows].clone()))

    def kept_states(self, node: int, start: int) -> KeysValues:
        """Return what was kept of a node after the pass; its first token is at position ``start``."""
        pairs = self.kept[node]
        return KeysValues(start, [key for key, _ in pairs], [value for _, value in pairs])


class Attend(Protocol):
    """An attention over packed rows: a function of the pass, the layer and its three tensors."""

    def __call__(self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return what every row reads, as [T, Hq, D].

        Args:
            query: [Hq, T, D]
            key: [Hk, T, D]
            value: [Hk, T, D]
        """
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paragone_run: Run | None = None,
    paragone_attend: Attend | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return what every row reads, as [1, T, Hq, D].

    Raises:
        RuntimeError: if it is called outside a packed pass, or for attention that it does not compute.
    """
    if paragone_run is None or paragone_attend is None or attention_mask is not None or query.shape[0] != 1 or dropout:
        raise RuntimeError(f"{NAME} runs in packed passes alone: one row, no mask, no dropout")
    # An option that is ignored in silence would give other numbers than the model's own attention.
    if unknown := sorted(name for name in set(others) - _HARMLESS if others[name] is not None):
        raise RuntimeError(f"{type(module).__name__} asks for attention with {', '.join(unknown)}, which is not packed")
    if query.dtype != value.dtype:  # under autocast: rotated by float32 angles, values are as products give them
        query, key = query.to(value.dtype), key.to(value.dtype)
    layer: int = module.layer_idx  # type: ignore[assignment]  # torch types every attribute as Tensor | Module
    paragone_run.note(layer, key[0], value[0])
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return paragone_attend(paragone_run, layer, query[0], key[0], value[0], rule)[None], None


AttentionInterface.register(NAME, _attention)


@contextmanager
def packed(config: Any) -> Iterator[None]:
    """Have the model with this transformers configuration attend by packed passes inside the block.

    Models look the name up in every layer of every pass, so that the same module serves padded batches before and
    after. Nobody else may run the model meanwhile.
    """
    # In the configuration, and not in the modules: every layer asks it again in every pass.
    before = config._attn_implementation_internal  # noqa: SLF001  # the setter walks sub-configurations and can warn
    config._attn_implementation_internal = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation_internal = before  # noqa: SLF001
