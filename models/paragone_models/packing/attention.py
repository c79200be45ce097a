"""What attention has to know of one packed forward pass, and what it leaves behind.

Shapes: T rows, Hq query heads, Hk key heads, D head size, n tokens of a stored run.


Memory that is used again and again: a fresh megabyte costs more to map than to fill.

Packed attention block by block: rows of a node against the keys of its path, by plain matrix products.

Nodes come in preorder, and a node's first position is the length of the path above it. So one buffer, indexed by
position, holds the keys of the path to the node at hand: what stands above was written before, and a sibling overwrites
nothing but its predecessor. A block of rows then sees one run of keys, and a mask is needed on its diagonal alone, and
where a sliding window ends.

Rows and keys of a block are rounded up: oneDNN makes a kernel for every shape that it meets, and packed passes would
hardly ever meet one again; its kernels and the softmax like whole tiles, too. The rows too many are not read, the keys
too many lie behind the diagonal.

On a CPU two plain products with a softmax between them ran this shape 1.2 (float32) to 2.9 (bfloat16) times as fast as
torch's flash kernel, merged by log-sum-exp; docs/log.md has the figures.

Shapes: T rows, W wanted rows, Hq query heads, Hk key heads, D head size, n rows of a block, S keys that it sees.


The attention that the models' own code calls in a packed pass, registered with transformers under one name.
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

__all__ = ["NAME", "Attend", "Rooms", "Rule", "Run", "Stored", "attend_blocks", "packed"]


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


_LOGITS = 1 << 20
"""About how many logits a block has: they stay in the cache from the first product to the second."""
_GRAIN = 32
"""What rows and keys of a block are rounded up to."""
_FEWEST, _MOST = 64, 192
"""Rows of a block: fewer waste the products, more waste what lies above the diagonal."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of the pass, and what was computed before the pass that is written above it first.

    Attributes:
        first: its first row.
        last: one behind its last row.
        start: position of its first row.
        held: nodes of earlier passes whose first rows below are this node's.
    """

    first: int
    last: int
    start: int
    held: tuple[int, ...]

    @property
    def end(self) -> int:
        """One behind the position of its last row."""
        return self.start + self.last - self.first


class _Blocks:
    """One layer of a pass: the keys and values of the path to the node at hand, by position.

    Args:
        rooms: for everything.
        longest: of all paths.
        key: of the pass. [Hk, T, D]
        value: of the pass. [Hk, T, D]
        rule: the layer's.
        later: -inf where a column is greater than its row, else 0.
    """

    def __init__(self, rooms: Rooms, longest: int, key: Tensor, value: Tensor, rule: Rule, later: Tensor) -> None:
        self._rooms = rooms
        self._rule = rule
        self._later = later
        self._keys, self._values = (
            rooms.take(name, (len(part), _rounded(longest), part.shape[2]), part)
            for name, part in (("path keys", key), ("path values", value))
        )

    def put(self, start: int, key: Tensor, value: Tensor) -> None:
        """Write keys and values, [Hk, n, D] each, from a position on."""
        end = start + key.shape[1]
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
            out: for what they read. [n, Hq, D]
        """
        heads, rows, size = query.shape
        window, cap = self._rule.window, self._rule.cap
        earliest = 0 if window is None else max(0, position - window + 1) // _GRAIN * _GRAIN
        seen = slice(earliest, _rounded(position + rows))
        keys, values = self._keys[:, seen], self._values[:, seen]
        some = rows if rows == 1 else _rounded(rows)
        grouped = (len(keys), heads // len(keys) * some)  # the heads that share a key head, one below the other
        queries = self._rooms.take("block queries", (heads, some, size), query)
        queries[:, :rows] = query
        logits = self._logits(queries.view(*grouped, size), keys, cap)
        by_row = logits.view(heads, some, -1)
        own = position - earliest
        by_row[:, :, own:] += self._later[:some, : by_row.shape[2] - own]
        if window is not None and (gone := own + rows - window) > 0:
            by_row[:, :, :gone] += torch.full_like(by_row[0, :, :gone], -torch.inf).tril_(own - window)
        weights = torch.softmax(logits, -1, out=self._rooms.take("weights", tuple(logits.shape), logits))
        read = self._rooms.take("read", (*grouped, values.shape[2]), query)
        torch.bmm(weights.to(values.dtype), values, out=read)
        out.copy_(read.view(heads, some, -1)[:, :rows].transpose(0, 1))

    def _logits(self, queries: Tensor, keys: Tensor, cap: float | None) -> Tensor:
        """Return products of queries and keys, [Hk, n · Hq / Hk, S]; in float32 where they go through a tanh."""
        if cap is not None:
            return torch.bmm(queries.float(), keys.float().transpose(1, 2)).div_(cap).tanh_().mul_(cap)
        out = self._rooms.take("logits", (*queries.shape[:2], keys.shape[1]), queries)
        return torch.bmm(queries, keys.transpose(1, 2), out=out)


def attend_blocks(
    run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, wanted: bool = False
) -> Tensor:
    """Return what every row reads, see ``Attend``; or what the wanted rows alone read, as [W, Hq, D].

    Args:
        run: the pass.
        layer: index of the layer.
        query: of every row [Hq, T, D], or of the wanted rows [Hq, W, D].
        key: of every row. [Hk, T, D]
        value: of every row. [Hk, T, D]
        rule: the layer's.
        wanted: read for the wanted rows alone.
    """
    if "steps" not in run.memo:
        run.memo["steps"] = list(_steps(run))
        run.memo["later"] = key.new_full((_rounded(_MOST), _rounded(_MOST) + _GRAIN), -torch.inf).triu_(1)
    steps: list[_Step] = run.memo["steps"]
    rooms: Rooms = run.memo.setdefault("rooms", Rooms())
    blocks = _Blocks(rooms, max(step.end for step in steps), key, value, rule, run.memo["later"])
    out = query.new_empty(query.shape[1], len(query), value.shape[2])
    done = 0
    for step in steps:
        for node in step.held:
            stored = run.held[node]
            blocks.put(stored.start, stored.keys[layer], stored.values[layer])
        blocks.put(step.start, key[:, step.first : step.last], value[:, step.first : step.last])
        for first, last in _wanted(run, step) if wanted else _blocks(step, len(query)):
            rows = slice(done, done + last - first)
            blocks.read(query[:, rows], step.start + first - step.first, out[rows])
            done = rows.stop
    out[done:] = 0  # rows of no node
    return out


def _steps(run: Run) -> Iterator[_Step]:
    layout = run.layout
    held: dict[int, tuple[int, ...]] = {}
    for above in layout.above:
        if above.node not in layout.rows:
            held[above.first] = (*held.get(above.first, ()), above.node)
    for first, last in layout.rows.values():
        yield _Step(first, last, int(layout.positions[first]), held.get(first, ()))


def _blocks(step: _Step, heads: int) -> Iterator[tuple[int, int]]:
    """Yield all rows of a node in blocks, the last one smaller."""
    most = max(_FEWEST, min(_MOST, _LOGITS // (heads * step.end) // _GRAIN * _GRAIN))
    for first in range(step.first, step.last, most):
        yield first, min(first + most, step.last)


def _wanted(run: Run, step: _Step) -> Iterator[tuple[int, int]]:
    """Yield the wanted rows of a node, one by one."""
    first, last = run.wanted.searchsorted((step.first, step.last))
    for row in run.wanted[first:last].tolist():
        yield row, row + 1


def _rounded(length: int) -> int:
    return -(-length // _GRAIN) * _GRAIN


NAME = "paragone_packed"

# What models pass along that packed attention has no use for, or has taken from the pass.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
    | {"position_embeddings", "logits_to_keep", "is_causal"}
)


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
    """Return what every row of the packed row reads, as [1, T, Hq, D].

    Raises:
        RuntimeError: if it is called outside a packed pass, or for attention that it does not compute.
    """
    if paragone_run is None or paragone_attend is None or attention_mask is not None or query.shape[0] != 1 or dropout:
        raise RuntimeError(f"{NAME} runs in packed passes alone: one row, no mask, no dropout")
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
    """Have the model with this configuration attend by packed passes inside the block.

    Models look the name up in every layer of every pass, so that the same module serves padded batches before and
    after. Nobody else may run the model meanwhile.

    Args:
        config: the backbone's transformers configuration.
    """
    before = config._attn_implementation_internal  # noqa: SLF001  # the setter walks sub-configurations and can warn
    config._attn_implementation_internal = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation_internal = before  # noqa: SLF001
