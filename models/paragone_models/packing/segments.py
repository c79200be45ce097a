"""Packed attention node by node, with gradients: torch's own attention, queries of a node against the keys of its path.

Rows are taken apart by one split and put together by one concatenation, so that the backward pass is a concatenation
too: a slice of its own for every node would give each a gradient as long as the whole row. A mask is as large as one
node's queries times its keys; none is as large as the row.

Shapes: T rows, Hq query heads, Hk key heads, D head size, n rows of a node, S keys of its path and its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paragone_models.packing.attention import Attend, Rule, Run

__all__ = ["segments_attention"]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A node of the pass.

    Attributes:
        rows: how many tokens it has, n.
        path: the nodes above it, from position 0 on.
        seen: tokens of the path and its own, S.
    """

    node: int
    rows: int
    path: tuple[int, ...]
    seen: int


def segments_attention(kernel: Callable[..., Tensor] = scaled_dot_product_attention) -> Attend:
    """Return a packed attention that can be differentiated.

    Args:
        kernel: called as torch's own, which is the default.
    """

    def attend(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        if "segments" not in run.memo:
            run.memo["segments"] = _segments(run)
        segments: list[_Segment] = run.memo["segments"]
        lengths = [segment.rows for segment in segments]
        nodes = [segment.node for segment in segments]
        queries = query.split(lengths, dim=1)
        keys, values = (dict(zip(nodes, part.split(lengths, dim=1), strict=True)) for part in (key, value))
        for node, states in run.earlier.items():
            keys[node], values[node] = states.keys[layer], states.values[layer]
        read = []
        for segment, own in zip(segments, queries, strict=True):
            nodes_seen = (*segment.path, segment.node)
            seen = _joined([keys[node] for node in nodes_seen]), _joined([values[node] for node in nodes_seen])
            masking = _masking(run, segment, rule.window, own)
            read.append(_read(kernel, own, *seen, rule, **masking))
        return torch.cat(read)

    return attend


def _segments(run: Run) -> list[_Segment]:
    layout = run.layout
    segments = []
    for node, (first, last) in layout.rows.items():
        seen = int(layout.positions[first]) + last - first
        segments.append(_Segment(node, last - first, layout.path(first), seen))
    return segments


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _masking(run: Run, segment: _Segment, window: int | None, query: Tensor) -> dict[str, Any]:
    """Return how the kernel is told what a node's rows see: the whole path, their own node causally, in the window.

    A mask has the queries' dtype: of truth values, the kernel would make and keep such a one in every layer.
    """
    if window is not None and window >= segment.seen:
        window = None
    # A first node sees itself alone, and causally: kernels do that without a mask, and fastest.
    if window is None and segment.rows == segment.seen:
        return {"is_causal": True}
    shape = (segment.rows, segment.seen, window)
    mask = run.memo.get(shape)
    if mask is None:
        # Aligned at their ends: the last row is the last key's own.
        diagonal = segment.seen - segment.rows
        mask = query.new_full(shape[:2], -torch.inf).triu_(diagonal + 1)
        if window is not None:
            mask += query.new_full(shape[:2], -torch.inf).tril_(diagonal - window)
        run.memo[shape] = mask
    return {"attn_mask": mask}


def _read(
    kernel: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, rule: Rule, **masking: Any
) -> Tensor:
    """Return what the rows of a node read, as [n, Hq, D].

    Args:
        kernel: as ``segments_attention``.
        query: [Hq, n, D]
        key: [Hk, S, D]
        value: [Hk, S, D]
    """
    if rule.cap is not None:
        return _capped(query, key, value, rule.scale, rule.cap, masking.get("attn_mask"))
    grouped = len(query) != len(key)
    out = kernel(query[None], key[None], value[None], scale=rule.scale, enable_gqa=grouped, **masking)
    return out[0].transpose(0, 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float, mask: Tensor | None) -> Tensor:
    """Return what rows read with a cap on the logits, written out in float32: torch's kernels have none."""
    # In float32, as eager attention computes its softmax: a tanh in bfloat16 would round logits to steps.
    heads, rows, size = query.shape
    if mask is None:
        mask = query.new_full((rows, rows), -torch.inf).triu_(1)
    grouped = query.float().reshape(len(key), -1, size)  # the heads that share a key head, one below the other
    logits = cap * torch.tanh(grouped @ key.float().transpose(1, 2) * (scale / cap))
    seen = logits.view(heads, rows, -1) + mask
    shares = seen.softmax(-1).view(len(key), -1, seen.shape[-1]).to(value.dtype)
    return (shares @ value).view(heads, rows, -1).transpose(0, 1)
