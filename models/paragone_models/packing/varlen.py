"""Packed attention in one kernel call, for GPUs: each node is a sequence of queries, its path the sequence of keys.

Keys and values of the path are gathered in front of the node's own, so that an ordinary causal kernel for sequences of
several lengths, aligned at their ends, does all of it: prefixes, grouped heads and sliding windows. Nothing has to be
merged, and the copies are few bytes for each row beside what the layer's matrix products do for it.

Shapes: T rows, S gathered keys, N nodes, Hq query heads, Hk key heads, D head size.
"""

import inspect
import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from paragone_models.packing.packed_attention import Attend, Rule, Run

__all__ = ["Kernel", "Sequences", "sequences", "torch_kernel", "varlen_attention"]


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
