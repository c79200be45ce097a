"""Packed attention in one kernel call, for GPUs: torch's varlen kernel, and flex attention where that does not serve.

**Varlen**: each node is a sequence of queries, its path the sequence of keys. Keys and values of the path are gathered
in front of the node's own, so that an ordinary causal kernel for sequences of several lengths, aligned at their ends,
does all of it: prefixes, grouped heads and sliding windows. Nothing has to be merged, and the copies are few bytes for
each row beside what the layer's matrix products do for it.

**Flex**: any dtype, and caps on logits. A key is seen by the rows of its node's subtree, which are one range, and by
position. So three numbers a key say it all.

Shapes: T rows, S gathered keys, N nodes, Hq query heads, Hk key heads, D head size.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from paragone_models.packing.attention import Attend, Rule, Run

__all__ = ["flex_attention", "torch_kernel", "varlen_attention"]


@dataclass(frozen=True, slots=True)
class _Borders:
    """Where queries and keys of each node begin and end.

    Attributes:
        gather: rows of own keys, then of the earlier nodes in order, node by node; None if in order already. [S]
        earlier: nodes of earlier passes, whose keys stand behind the own ones.
        queries: borders of the nodes' queries, int32. [N + 1]
        keys: borders of their keys, int32. [N + 1]
    """

    gather: Tensor | None
    earlier: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    max_queries: int
    max_keys: int


class _Kernel(Protocol):
    """Causal attention over sequences of several lengths, aligned at their ends."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, borders: _Borders, rule: Rule) -> Tensor:
        """Return what every query reads, as [T, Hq, D], from query [T, Hq, D], key and value [S, Hk, D] each."""
        ...


def _borders(run: Run, device: torch.device) -> _Borders:
    layout = run.layout
    earlier = layout.earlier
    starts, offset = dict(layout.rows), len(layout.tokens)
    for node in earlier:
        starts[node] = (offset, offset + len(run.earlier[node]))
        offset = starts[node][1]
    rows: list[Tensor] = []
    keys, queries = [0], [0]
    for node, (first, last) in layout.rows.items():
        path = layout.path(first)
        parts = [torch.arange(*starts[part]) for part in (*path, node)]
        rows += parts
        keys.append(keys[-1] + sum(len(part) for part in parts))
        queries.append(queries[-1] + last - first)
    return _Borders(
        gather=torch.cat(rows).to(device) if layout.above else None,
        earlier=earlier,
        queries=torch.tensor(queries, dtype=torch.int32, device=device),
        keys=torch.tensor(keys, dtype=torch.int32, device=device),
        max_queries=max(last - first for first, last in itertools.pairwise(queries)),
        max_keys=max(last - first for first, last in itertools.pairwise(keys)),
    )


def varlen_attention(kernel: _Kernel) -> Attend:
    """Return a packed attention on top of a kernel, ``torch_kernel`` on a GPU."""

    def attend(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        if rule.cap is not None:
            raise NotImplementedError("varlen attention has no cap on its logits")
        borders = run.memo.get("borders")
        if borders is None:
            borders = run.memo["borders"] = _borders(run, query.device)
        earlier = [run.earlier[node] for node in borders.earlier]
        keys = _gathered(key, [states.keys[layer] for states in earlier], borders.gather)
        values = _gathered(value, [states.values[layer] for states in earlier], borders.gather)
        return kernel(query.transpose(0, 1).contiguous(), keys, values, borders, rule)

    return attend


def _gathered(own: Tensor, earlier: list[Tensor], gather: Tensor | None) -> Tensor:
    rows = torch.cat([own, *earlier], dim=1) if earlier else own
    rows = rows.transpose(0, 1)
    return rows.contiguous() if gather is None else rows.index_select(0, gather)


@cache
def _parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, borders: _Borders, rule: Rule) -> Tensor:
    """Run ``torch.nn.attention.varlen.varlen_attn``, whose options differ between torch versions.

    Raises:
        NotImplementedError: if this version of torch has no sliding windows and the layer needs them.
    """
    from torch.nn.attention.varlen import varlen_attn

    parameters = _parameters()
    options: dict[str, Any] = {}
    if "window_size" in parameters:
        options["window_size"] = (-1 if rule.window is None else rule.window - 1, 0)
    elif rule.window is None or rule.window >= borders.max_keys:
        options["is_causal"] = True
    else:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no sliding windows")
    if "scale" in parameters:
        options["scale"] = rule.scale
    else:  # the kernel divides by the root of D itself
        query = query * (rule.scale * query.shape[-1] ** 0.5)
    group = query.shape[1] // key.shape[1]
    if "enable_gqa" in parameters:
        options["enable_gqa"] = group > 1
    elif group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    lengths = (borders.queries, borders.keys, borders.max_queries, borders.max_keys)
    out: Any = varlen_attn(query, key, value, *lengths, **options)
    read: Tensor = out
    return read


def flex_attention(kernel: Callable[..., Tensor] | None = None) -> Attend:
    """Return a packed attention by flex attention.

    Args:
        kernel: called as torch's own, which, compiled, is the default.
    """

    def attend(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        mask = run.memo.get(rule.window)
        if mask is None:
            mask = run.memo[rule.window] = _mask(run, query.device, rule.window)
        earlier = [run.earlier[node] for node in run.layout.earlier]
        keys = torch.cat([key, *(states.keys[layer] for states in earlier)], 1)
        values = torch.cat([value, *(states.values[layer] for states in earlier)], 1)
        # The model's own rows first, then earlier nodes in order: the mask counts keys in this order.
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

    # Dynamic, because no two passes have the same shapes.
    return torch.compile(flex.flex_attention, dynamic=True)


@cache
def _capped(cap: float) -> Any:
    # Cached, so that torch's compiler sees the same function again and does not compile anew.
    def score(logit: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return torch.tanh(logit / cap) * cap

    return score


def _mask(run: Run, device: torch.device, window: int | None) -> Any:
    """Return which row sees which key: rows from ``first`` to before ``last`` of a key, if they are not before it."""
    from torch.nn.attention.flex_attention import create_block_mask

    layout = run.layout
    last_below = {above.node: above.last for above in layout.above}
    first = torch.empty(len(layout.tokens), dtype=torch.int64)
    last = torch.empty_like(first)
    for node, (begin, end) in layout.rows.items():
        first[begin:end], last[begin:end] = begin, max(end, last_below.get(node, end))
    positions = torch.from_numpy(layout.positions)
    firsts, lasts, key_positions = [first], [last], [positions]
    for above in layout.above:
        if above.node not in layout.rows:
            states = run.earlier[above.node]
            firsts.append(torch.full((len(states),), above.first))
            lasts.append(torch.full((len(states),), above.last))
            key_positions.append(torch.arange(states.start, states.start + len(states)))
    first, last, place = (torch.cat(parts).to(device) for parts in (firsts, lasts, key_positions))
    positions = positions.to(device)
    span = window if window is not None else torch.iinfo(torch.int64).max

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        distance = positions[row] - place[key]
        return (first[key] <= row) & (row < last[key]) & (distance >= 0) & (distance < span)

    return create_block_mask(visible, None, None, len(positions), len(place), device=device)
