"""Packed attention block by block: rows of a node against the keys of its path, by plain matrix products.

Nodes come in preorder, and a node's first position is the length of the path above it. So one buffer, indexed by
position, holds the keys of the path to the node at hand: what stands above was written before, and a sibling overwrites
nothing but its predecessor. A block of rows then sees one run of keys, and a mask is needed on its diagonal alone, and
where a sliding window ends.

On a CPU two plain products with a softmax between them ran this shape 1.2 (float32) to 2.9 (bfloat16) times as fast as
torch's flash kernel, merged by log-sum-exp; docs/log.md has the figures.

Shapes: T rows, W wanted rows, Hq query heads, Hk key heads, D head size, n rows of a block, S keys that it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paragone_models.packing.run import Rule, Run

__all__ = ["attend_blocks"]

_LOGITS = 1 << 20
"""About how many logits a block has: they stay in the cache from the first product to the second."""
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
    steps: list[_Step] = run.memo["steps"]
    longest = max(step.start + step.last - step.first for step in steps)
    keys, values = (part.new_empty(len(part), longest, part.shape[2]) for part in (key, value))
    out = query.new_empty(query.shape[1], len(query), value.shape[2])
    done = 0
    for step in steps:
        for node in step.held:
            stored = run.held[node]
            place = slice(stored.start, stored.start + len(stored))
            torch.mul(stored.keys[layer], rule.scale, out=keys[:, place])
            values[:, place] = stored.values[layer]
        place = slice(step.start, step.start + step.last - step.first)
        torch.mul(key[:, step.first : step.last], rule.scale, out=keys[:, place])
        values[:, place] = value[:, step.first : step.last]
        for first, last in _wanted(run, step) if wanted else _blocks(step, len(query)):
            rows = slice(done, done + last - first)
            out[rows] = _read(query[:, rows], keys, values, step.start + first - step.first, rule)
            done = rows.stop
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
    """Yield all rows of a node in blocks of nearly equal size."""
    rows = step.last - step.first
    most = max(_FEWEST, min(_MOST, _LOGITS // (heads * (step.start + rows))))
    count = -(-rows // most)
    for index in range(count):
        yield step.first + rows * index // count, step.first + rows * (index + 1) // count


def _wanted(run: Run, step: _Step) -> Iterator[tuple[int, int]]:
    """Yield the wanted rows of a node, one by one."""
    first, last = run.wanted.searchsorted((step.first, step.last))
    for row in run.wanted[first:last].tolist():
        yield row, row + 1


def _read(query: Tensor, keys: Tensor, values: Tensor, position: int, rule: Rule) -> Tensor:
    """Return what neighbouring rows read, as [n, Hq, D].

    Args:
        query: [Hq, n, D]
        keys: scaled, by position. [Hk, at least position + n, D]
        values: by position. [Hk, at least position + n, D]
        position: of the first row.
        rule: window and cap.
    """
    heads, rows, size = query.shape
    earliest = 0 if rule.window is None else position - rule.window + 1
    seen = slice(max(0, earliest), position + rows)
    query = query.reshape(len(keys), -1, size)  # the heads that share a key head, one below the other
    logits = _logits(query, keys[:, seen], rule.cap)
    by_row = logits.view(heads, rows, -1)
    if rows > 1:
        by_row[..., -rows:] += _never(rows, logits).triu_(1)
    if rule.window is not None and (gone := rows - 1 + min(0, earliest)) > 0:
        by_row[..., :gone] += _never(rows, logits)[:, :gone].tril_(min(0, earliest) - 1)
    read = torch.bmm(torch.softmax(logits, -1).to(values.dtype), values[:, seen])
    return read.view(heads, rows, -1).transpose(0, 1)


def _logits(query: Tensor, keys: Tensor, cap: float | None) -> Tensor:
    """Return products of queries and keys, [Hk, n · Hq / Hk, S]; in float32 where they go through a tanh."""
    if cap is None:
        return torch.bmm(query, keys.transpose(1, 2))
    return torch.bmm(query.float(), keys.float().transpose(1, 2)).div_(cap).tanh_().mul_(cap)


def _never(rows: int, like: Tensor) -> Tensor:
    return like.new_full((rows, rows), -torch.inf)
