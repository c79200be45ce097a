"""Attention in a packed pass: what it is told, block by block on a CPU, and the hook through which models call it.

Nodes come in preorder, and a node's first position is the length of the path above it. So ``attend_blocks`` needs one
buffer, indexed by position, for the keys of the path to the node at hand: what stands above was written before, and a
sibling overwrites nothing but its predecessor. A block of rows then sees one range of keys, and a mask is needed on its
diagonal alone, and where a sliding window ends.

Rows and keys of a block are rounded up: oneDNN makes a kernel for every shape that it meets, and packed passes would
hardly ever meet one again; its kernels and the softmax like whole tiles, too. Nobody reads the extra rows, and the
extra keys lie behind the diagonal. On a CPU two plain products with a softmax between them ran this shape 1.2 (float32)
to 2.9 (bfloat16) times as fast as torch's flash kernel, merged by log-sum-exp; docs/log.md has the figures.

Shapes: T rows, W output rows, Hq query heads, Hk key heads, D head size, n tokens of a node or rows of a block, S keys
that a block sees.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from paragone_models.packing.tree import Layout

__all__ = ["NAME", "Attend", "Buffers", "KeysValues", "Rule", "Run", "attend_blocks", "packed"]

NAME = "paragone_packed"
"""Under this name transformers finds the attention of packed passes."""

_LOGITS = 1 << 20
"""About how many logits a block has: they stay in the cache from the first product to the second."""
_GRAIN = 32
"""What rows and keys of a block are rounded up to."""
_FEWEST, _MOST = 64, 192
"""Rows of a block: fewer waste the products, more waste what lies above the diagonal."""

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
        """Size on the device."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

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


class Buffers:
    """Tensors by name, whose memory is used again and again: a fresh megabyte costs more to map than to fill."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with anything in it, valid until its name is asked for again.

        Args:
            like: has its dtype and device, unless another dtype is given.
        """
        dtype = dtype or like.dtype
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != dtype:
            memory = self._memory[name] = like.new_empty(size, dtype=dtype)
        return memory[:size].view(shape)


@dataclass(frozen=True, slots=True)
class _NodeRows:
    """A node of the pass.

    Attributes:
        first: its first row.
        last: one behind its last row.
        start: position of its first row.
        earlier: nodes of earlier passes whose keys must be written before this one's.
    """

    first: int
    last: int
    start: int
    earlier: tuple[int, ...]

    @property
    def end(self) -> int:
        """One behind the position of its last row."""
        return self.start + self.last - self.first


class _Path:
    """One layer of a pass: the keys and values of the path to the node at hand, by position.

    Args:
        longest: positions of the longest path.
        key: of the pass. [Hk, T, D]
        value: of the pass. [Hk, T, D]
        causal: -inf where a column is greater than its row, else 0.
    """

    def __init__(self, buffers: Buffers, longest: int, key: Tensor, value: Tensor, rule: Rule, causal: Tensor) -> None:
        self._buffers = buffers
        self._rule = rule
        self._causal = causal
        self._keys, self._values = (
            buffers.take(name, (len(part), _rounded(longest), part.shape[2]), part)
            for name, part in (("path keys", key), ("path values", value))
        )

    def put(self, start: int, key: Tensor, value: Tensor) -> None:
        """Write keys and values, [Hk, n, D] each, from a position on."""
        end = start + key.shape[1]
        # Keys are scaled once here; scaling logits would touch more numbers, for every block again.
        torch.mul(key, self._rule.scale, out=self._keys[:, start:end])
        self._values[:, start:end] = value
        # What an earlier path or pass left there might not be finite, and zero times that is not zero.
        self._keys[:, end : _rounded(end)] = 0
        self._values[:, end : _rounded(end)] = 0

    def read(self, query: Tensor, position: int, out: Tensor) -> None:
        """Let neighbouring rows read.

        Args:
            query: [Hq, n, D]
            position: of the first row.
            out: receives what they read. [n, Hq, D]
        """
        heads, rows, size = query.shape
        window, cap = self._rule.window, self._rule.cap
        earliest = 0 if window is None else max(0, position - window + 1) // _GRAIN * _GRAIN
        visible = slice(earliest, _rounded(position + rows))
        keys, values = self._keys[:, visible], self._values[:, visible]
        padded = rows if rows == 1 else _rounded(rows)
        # Grouped heads: the queries that share a key head lie one below the other, so one product serves them all.
        grouped = (len(keys), heads // len(keys) * padded)
        queries = self._buffers.take("block queries", (heads, padded, size), query)
        queries[:, :rows] = query
        logits = self._logits(queries.view(*grouped, size), keys, cap)
        by_row = logits.view(heads, padded, -1)
        diagonal = position - earliest
        by_row[:, :, diagonal:] += self._causal[:padded, : by_row.shape[2] - diagonal]
        if window is not None and (outside := diagonal + rows - window) > 0:
            by_row[:, :, :outside] += torch.full_like(by_row[0, :, :outside], -torch.inf).tril_(diagonal - window)
        weights = torch.softmax(logits, -1, out=self._buffers.take("weights", tuple(logits.shape), logits))
        read = self._buffers.take("read", (*grouped, values.shape[2]), query)
        torch.bmm(weights.to(values.dtype), values, out=read)
        out.copy_(read.view(heads, padded, -1)[:, :rows].transpose(0, 1))

    def _logits(self, queries: Tensor, keys: Tensor, cap: float | None) -> Tensor:
        """Return products of queries and keys, [Hk, n · Hq / Hk, S]; in float32 where they go through a tanh."""
        if cap is not None:
            return torch.bmm(queries.float(), keys.float().transpose(1, 2)).div_(cap).tanh_().mul_(cap)
        out = self._buffers.take("logits", (*queries.shape[:2], keys.shape[1]), queries)
        return torch.bmm(queries, keys.transpose(1, 2), out=out)


def attend_blocks(
    run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, outputs_only: bool = False
) -> Tensor:
    """Return what every row reads, see ``Attend``; or what the output rows alone read, as [W, Hq, D].

    Args:
        query: of every row [Hq, T, D], or of the output rows [Hq, W, D].
        key: of every row. [Hk, T, D]
        value: of every row. [Hk, T, D]
    """
    if "nodes" not in run.memo:
        run.memo["nodes"] = list(_node_rows(run))
        run.memo["causal"] = key.new_full((_rounded(_MOST), _rounded(_MOST) + _GRAIN), -torch.inf).triu_(1)
    nodes: list[_NodeRows] = run.memo["nodes"]
    buffers: Buffers = run.memo.setdefault("buffers", Buffers())
    path = _Path(buffers, max(node.end for node in nodes), key, value, rule, run.memo["causal"])
    out = query.new_empty(query.shape[1], len(query), value.shape[2])
    done = 0
    for node in nodes:
        for index in node.earlier:
            states = run.earlier[index]
            path.put(states.start, states.keys[layer], states.values[layer])
        path.put(node.start, key[:, node.first : node.last], value[:, node.first : node.last])
        for first, last in _output_rows(run, node) if outputs_only else _blocks(node, len(query)):
            rows = slice(done, done + last - first)
            path.read(query[:, rows], node.start + first - node.first, out[rows])
            done = rows.stop
    out[done:] = 0  # rows that round the pass up belong to no node
    return out


def _node_rows(run: Run) -> Iterator[_NodeRows]:
    layout = run.layout
    earlier: dict[int, tuple[int, ...]] = {}
    for above in layout.above:
        if above.node not in layout.rows:
            earlier[above.first] = (*earlier.get(above.first, ()), above.node)
    for first, last in layout.rows.values():
        yield _NodeRows(first, last, int(layout.positions[first]), earlier.get(first, ()))


def _blocks(node: _NodeRows, heads: int) -> Iterator[tuple[int, int]]:
    """Yield all rows of a node in blocks, the last one smaller."""
    most = max(_FEWEST, min(_MOST, _LOGITS // (heads * node.end) // _GRAIN * _GRAIN))
    for first in range(node.first, node.last, most):
        yield first, min(first + most, node.last)


def _output_rows(run: Run, node: _NodeRows) -> Iterator[tuple[int, int]]:
    """Yield the output rows of a node, one by one."""
    first, last = run.output_rows.searchsorted((node.first, node.last))
    for row in run.output_rows[first:last].tolist():
        yield row, row + 1


def _rounded(length: int) -> int:
    return -(-length // _GRAIN) * _GRAIN


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
    before = config._attn_implementation_internal  # noqa: SLF001  # the setter walks sub-configurations and can warn
    config._attn_implementation_internal = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation_internal = before  # noqa: SLF001
