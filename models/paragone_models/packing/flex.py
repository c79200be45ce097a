"""Packed attention as flex attention, for GPUs: any dtype, and caps on logits.

A key is seen by the rows of its node's subtree, which are one run, and by position. So three numbers a key say it all.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from paragone_models.packing.packed_attention import Attend, Rule, Run

__all__ = ["flex_attention"]


def flex_attention(kernel: Callable[..., Tensor] | None = None) -> Attend:
    """Return a packed attention by flex attention.

    Args:
        kernel: called as torch's own, which, compiled, is the default.
    """

    def attend(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        mask = run.memo.get(rule.window)
        if mask is None:
            mask = run.memo[rule.window] = _mask(run, query.device, rule.window)
        held = [run.held[node] for node in run.layout.held]
        keys = torch.cat([key, *(stored.keys[layer] for stored in held)], 1)
        values = torch.cat([value, *(stored.values[layer] for stored in held)], 1)
        out: Tensor = (kernel or _compiled())(
            query[None],
            keys[None],
            values[None],
            score_mod=None if rule.cap is None else _capped(rule.cap),
            block_mask=mask,
            scale=rule.scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        return out[0].transpose(0, 1)

    return attend


@cache
def _compiled() -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention, dynamic=True)


@cache
def _capped(cap: float) -> Any:
    def score(logit: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return torch.tanh(logit / cap) * cap

    return score


def _mask(run: Run, device: torch.device, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    layout = run.layout
    behind = {above.node: above.last for above in layout.above}
    first = torch.empty(len(layout.tokens), dtype=torch.int64)
    last = torch.empty_like(first)
    for node, (begin, end) in layout.rows.items():
        first[begin:end], last[begin:end] = begin, max(end, behind.get(node, end))
    positions = torch.from_numpy(layout.positions)
    firsts, lasts, places = [first], [last], [positions]
    for above in layout.above:
        if above.node not in layout.rows:
            stored = run.held[above.node]
            firsts.append(torch.full((len(stored),), above.first))
            lasts.append(torch.full((len(stored),), above.last))
            places.append(torch.arange(stored.start, stored.start + len(stored)))
    first, last, place = (torch.cat(parts).to(device) for parts in (firsts, lasts, places))
    positions = positions.to(device)
    span = window if window is not None else torch.iinfo(torch.int64).max

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        distance = positions[row] - place[key]
        return (first[key] <= row) & (row < last[key]) & (distance >= 0) & (distance < span)

    return create_block_mask(visible, None, None, len(positions), len(place), device=device)
