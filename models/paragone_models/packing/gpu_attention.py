"""Packed attention in one kernel call, for GPUs: each node is a sequence of queries, its path the sequence of keys.

Keys and values of the path are gathered in front of the node's own, so that an ordinary causal kernel for sequences of
several lengths, aligned at their ends, does all of it: prefixes, grouped heads and sliding windows. Nothing has to be
merged, and the copies are few bytes for each row beside what the layer's matrix products do for it.

Shapes: T rows, S gathered keys, N nodes, Hq query heads, Hk key heads, D head size.


Packed attention as flex attention, for GPUs: any dtype, and caps on logits.

A key is seen by the rows of its node's subtree, which are one run, and by position. So three numbers a key say it all.
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

__all__ = ["Kernel", "Sequences", "flex_attention", "sequences", "torch_kernel", "varlen_attention"]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where queries and keys of each node begin and end.

    Attributes:
        gather: rows of (own keys, then the keys of held nodes in order), node by node; None if they are in order. [S]
        held: nodes whose stored keys stand behind the own ones.
        queries: borders of the nodes' queries, int32. [N + 1]
        keys: borders of their keys, int32. [N + 1]
        max_queries: of one node.
        max_keys: of one node.
    """

    gather: Tensor | None
    held: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    max_queries: int
    max_keys: int


class Kernel(Protocol):
    """Causal attention over sequences of several lengths, aligned at their ends."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, where: Sequences, rule: Rule) -> Tensor:
        """Return what every query reads, as [T, Hq, D].

        Args:
            query: [T, Hq, D]
            key: [S, Hk, D]
            value: [S, Hk, D]
            where: borders.
            rule: scale and window.
        """
        ...


def sequences(run: Run, device: torch.device) -> Sequences:
    """Return the sequences of a pass.

    Args:
        run: the pass.
        device: where the borders are wanted.
    """
    layout = run.layout
    held = layout.held
    starts, offset = dict(layout.rows), len(layout.tokens)
    for node in held:
        starts[node] = (offset, offset + len(run.held[node]))
        offset = starts[node][1]
    rows: list[Tensor] = []
    keys, queries = [0], [0]
    for node, (first, last) in layout.rows.items():
        path = layout.path(first)
        parts = [torch.arange(*starts[part]) for part in (*path, node)]
        rows += parts
        keys.append(keys[-1] + sum(len(part) for part in parts))
        queries.append(queries[-1] + last - first)
    return Sequences(
        gather=torch.cat(rows).to(device) if layout.above else None,
        held=held,
        queries=torch.tensor(queries, dtype=torch.int32, device=device),
        keys=torch.tensor(keys, dtype=torch.int32, device=device),
        max_queries=max(last - first for first, last in itertools.pairwise(queries)),
        max_keys=max(last - first for first, last in itertools.pairwise(keys)),
    )


def varlen_attention(kernel: Kernel) -> Attend:
    """Return a packed attention on top of a kernel.

    Args:
        kernel: ``torch_kernel`` on a GPU.
    """

    def attend(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        if rule.cap is not None:
            raise NotImplementedError("varlen attention has no cap on its logits")
        where = run.memo.get("sequences")
        if where is None:
            where = run.memo["sequences"] = sequences(run, query.device)
        held = [run.held[node] for node in where.held]
        keys = _gathered(key, [stored.keys[layer] for stored in held], where.gather)
        values = _gathered(value, [stored.values[layer] for stored in held], where.gather)
        return kernel(query.transpose(0, 1).contiguous(), keys, values, where, rule)

    return attend


def _gathered(own: Tensor, held: list[Tensor], gather: Tensor | None) -> Tensor:
    rows = torch.cat([own, *held], dim=1) if held else own
    rows = rows.transpose(0, 1)
    return rows.contiguous() if gather is None else rows.index_select(0, gather)


@cache
def _parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, where: Sequences, rule: Rule) -> Tensor:
    """Run ``torch.nn.attention.varlen.varlen_attn``, whose options differ between torch versions; see ``Kernel``.

    Raises:
        NotImplementedError: if this version of torch has no sliding windows and the layer needs them.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters()
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1 if rule.window is None else rule.window - 1, 0)
    elif rule.window is None or rule.window >= where.max_keys:
        options["is_causal"] = True
    else:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no sliding windows")
    if "scale" in known:
        options["scale"] = rule.scale
    else:
        query = query * (rule.scale * query.shape[-1] ** 0.5)
    group = query.shape[1] // key.shape[1]
    if "enable_gqa" in known:
        options["enable_gqa"] = group > 1
    elif group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out: Any = varlen_attn(query, key, value, where.queries, where.keys, where.max_queries, where.max_keys, **options)
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
