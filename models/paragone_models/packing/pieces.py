"""Packed attention piece by piece: each node to itself, then to what stands above it, merged by log-sum-exp.

No mask is needed: a node sees itself causally and everything above it wholly. Two softmaxes over disjoint keys merge
exactly: with log-sum-exps s and t the second one's share is sigmoid(t - s). Only where a sliding window ends inside a
piece are rows taken in blocks with a mask.

On a CPU each piece is torch's own flash kernel, which returns the log-sum-exp and takes grouped heads and strides as
they are. Logits with a cap (Gemma 2) are computed by plain products.

Shapes: T rows, S keys, Hq query heads, Hk key heads, D head size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from paragone_models.packing.run import Rule, Run

__all__ = ["attend_pieces", "attend_rows"]

_BLOCK = 512
_Piece = tuple[Tensor, Tensor]


def attend_pieces(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return what every row reads, see ``Attend``."""
    merged = _Merged(query)
    for first, last in run.layout.rows.values():
        rows = slice(first, last)
        merged.place(first, *_own(query[:, rows], key[:, rows], value[:, rows], rule))
    for above in run.layout.above:
        keys, values, start = _above(run, layer, above.node, key, value)
        for first, last, skip, mask in _visible(run, above.first, above.last, start, keys.shape[1], rule):
            merged.merge(first, *_piece(query[:, first:last], keys[:, skip:], values[:, skip:], rule, mask=mask))
    return merged.out.to(query.dtype)


def attend_rows(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return what the wanted rows alone read, row by row, as [W, Hq, D].

    Args:
        run: the pass.
        layer: index of the layer.
        query: of the wanted rows. [Hq, W, D]
        key: of all rows. [Hk, T, D]
        value: of all rows. [Hk, T, D]
        rule: without a cap.
    """
    layout = run.layout
    reads = []
    nodes = iter(layout.rows.values())
    first = last = 0
    for index, row in enumerate(run.wanted.tolist()):
        while row >= last:
            first, last = next(nodes)
        parts = [(key[:, first : row + 1], value[:, first : row + 1], int(layout.positions[first]))]
        parts += [
            _above(run, layer, above.node, key, value) for above in layout.above if above.first <= row < above.last
        ]
        earliest = 0 if rule.window is None else int(layout.positions[row]) - rule.window + 1
        seen = [
            (keys[:, max(0, earliest - start) :], values[:, max(0, earliest - start) :])
            for keys, values, start in parts
        ]
        keys = seen[0][0] if len(seen) == 1 else torch.cat([part for part, _ in seen], 1)
        values = seen[0][1] if len(seen) == 1 else torch.cat([part for _, part in seen], 1)
        reads.append(_flash(query[:, index : index + 1], keys, values, rule)[0])
    return torch.cat(reads) if reads else query.transpose(0, 1)


def _above(run: Run, layer: int, node: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the keys and values of a node above other rows, and the position of the first."""
    if node in run.layout.rows:
        rows = slice(*run.layout.rows[node])
        return key[:, rows], value[:, rows], int(run.layout.positions[rows.start])
    held = run.held[node]
    return held.keys[layer], held.values[layer], held.start


class _Merged:
    """What the rows have read so far, and how much weight it had."""

    def __init__(self, query: Tensor) -> None:
        heads, rows, size = query.shape
        self.out = query.new_empty(rows, heads, size, dtype=torch.float32)
        self.weight = query.new_empty(rows, heads, dtype=torch.float32)

    def place(self, first: int, out: Tensor, weight: Tensor) -> None:
        self.out[first : first + len(out)] = out
        self.weight[first : first + len(out)] = weight

    def merge(self, first: int, out: Tensor, weight: Tensor) -> None:
        before = self.weight[first : first + len(out)]
        self.out[first : first + len(out)].lerp_(out.float(), torch.sigmoid(weight - before).unsqueeze(-1))
        torch.logaddexp(before, weight, out=before)


def _own(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> _Piece:
    """Return what a node reads of itself."""
    length = query.shape[1]
    if rule.cap is None and (rule.window is None or rule.window >= length):
        return _flash(query, key, value, rule, causal=True)
    reads, weights = [], []
    for first in range(0, length, _BLOCK):
        last = min(first + _BLOCK, length)
        skip = 0 if rule.window is None else max(0, first - rule.window + 1)
        distance = _distance(torch.arange(first, last), torch.arange(skip, last))
        mask = distance >= 0 if rule.window is None else (distance >= 0) & (distance < rule.window)
        out, weight = _piece(query[:, first:last], key[:, skip:last], value[:, skip:last], rule, mask=mask)
        reads.append(out)
        weights.append(weight)
    return torch.cat(reads), torch.cat(weights)


def _visible(
    run: Run, first: int, last: int, start: int, length: int, rule: Rule
) -> Iterator[tuple[int, int, int, Tensor | None]]:
    """Yield rows (first, one behind the last) with how many of a node's keys they skip, and a mask for the others.

    Args:
        run: the pass.
        first: first row below the node.
        last: one behind the last row below it.
        start: position of the node's first key.
        length: number of its keys.
        rule: the layer's.
    """
    step = _BLOCK if rule.cap is not None else last - first
    if rule.window is None or int(run.layout.positions[first:last].max()) < start + rule.window:
        yield from ((block, min(block + step, last), 0, None) for block in range(first, last, step))
        return
    for begin, end in run.layout.rows.values():
        if not first <= begin < last:
            continue
        position = int(run.layout.positions[begin])
        whole = min(end, begin + max(0, start + rule.window - position))
        some = min(end, begin + max(0, start + length - 1 + rule.window - position))
        for block in range(begin, whole, _BLOCK):
            yield block, min(block + _BLOCK, whole), 0, None
        for block in range(whole, some, _BLOCK):
            stop = min(block + _BLOCK, some)
            rows = torch.arange(block, stop) + (position - begin)
            skip = int(rows[0]) - rule.window + 1 - start
            yield block, stop, skip, _distance(rows, torch.arange(start + skip, start + length)) < rule.window


def _distance(rows: Tensor, keys: Tensor) -> Tensor:
    return rows[:, None] - keys[None, :]


def _piece(query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, mask: Tensor | None) -> _Piece:
    if rule.cap is not None:
        return _capped(query, key, value, rule, mask)
    if mask is None:
        return _flash(query, key, value, rule)
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    return _flash(query, key, value, rule, bias=bias)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, causal: bool = False, bias: Tensor | None = None
) -> _Piece:
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001  # the only one with log-sum-exp
        query[None], key[None], value[None], 0.0, causal, attn_mask=bias, scale=rule.scale
    )
    return out[0].transpose(0, 1), weight[0].transpose(0, 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, rule: Rule, mask: Tensor | None) -> _Piece:
    group = query.shape[0] // key.shape[0]
    key, value = key.float().repeat_interleave(group, 0), value.float().repeat_interleave(group, 0)
    logits = query.float() @ key.transpose(1, 2) * rule.scale
    if rule.cap is not None:
        logits = torch.tanh(logits / rule.cap) * rule.cap
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return (torch.softmax(logits, -1) @ value).transpose(0, 1), torch.logsumexp(logits, -1).transpose(0, 1)
