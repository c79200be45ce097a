"""What one call of the packed engine does: its forest, its passes, what each keeps, and where the reads come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paragone_models.packing.layout import Layout, chunks, lay_out
from paragone_models.packing.prompts import Known, PromptStore
from paragone_models.packing.tree import NO_PARENT, Forest, Node, Tokens, grow, split_long
from paragone_models.text.encoding import EncodeItem

__all__ = ["Gather", "Schedule", "isolated", "shared"]

MIN_SHARED = 16
"""Tokens from which on a shared run is worth a node of its own."""
MIN_REUSED = 32
"""Tokens from which on a stored prefix is worth attending to, or worth storing."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows of one pass that belong to a read.

    Attributes:
        item: index of the item.
        read: index of the read.
        first: first row.
        last: one behind the last.
        share: what each row counts.
    """

    item: int
    read: int
    first: int
    last: int
    share: float


@dataclass(slots=True)
class Schedule:
    """The passes of one call, in order.

    Attributes:
        forest: what is computed.
        layouts: one per pass.
        gathers: by pass.
        keep: first tokens of a node to keep, by node.
        known: stored prefixes that the forest continues, by node.
        prompts: prefixes to store, each with its path of nodes, by the pass after which they are complete.
        last_use: the last pass that needs what was kept of a node.
    """

    forest: Forest
    layouts: list[Layout]
    gathers: list[list[Gather]]
    known: dict[int, Known]
    keep: dict[int, int] = field(default_factory=dict)
    prompts: dict[int, list[tuple[Tokens, list[int]]]] = field(default_factory=dict)
    last_use: dict[int, int] = field(default_factory=dict)


def shared(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> Schedule:
    """Return passes in which everything that is shared is computed once.

    Args:
        items: sequences.
        store: what was computed before.
        max_tokens: most rows of a pass.
    """
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    groups: dict[tuple[object, ...], tuple[Known | None, list[int]]] = {}
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        # What is read must be computed: a stored prefix has keys and values, and no hidden states.
        known = store.match(tokens, limit=_first_read(item), at_least=MIN_REUSED) if item.content_key is None else None
        key = (item.content_key, None) if known is None else (item.content_key, known.tokens.tobytes())
        groups.setdefault(key, (known, []))[1].append(index)
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Known] = {}
    for known, owners in groups.values():
        start, trunk = 0, None
        if known is not None:
            start, trunk = len(known.tokens), Node(known.tokens, 0, NO_PARENT, len(owners), known=True)
            trunks[len(forest.nodes)] = known
        tree = grow([sequences[owner] for owner in owners], start=start, min_shared=MIN_SHARED)
        forest.add(trunk, tree, owners)
    forest, trunks = _split(forest, trunks, max_tokens)
    schedule = _scheduled(forest, trunks, list(chunks(forest, max_tokens)), items)
    if store.max_bytes:
        _store_prompts(schedule, items, sequences)
    return schedule


def isolated(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> Schedule:
    """Return passes of one node each, cut by each item alone: prompt, then response.

    Which rows a matrix product has decides its kernels and so its last bits. Here it depends on the item and on nothing
    else, and siblings still share their prompt.

    Args:
        items: sequences.
        store: what was computed before, in the same way.
        max_tokens: most rows of a pass.
    """
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Known] = {}
    groups: dict[tuple[object, bytes], list[int]] = {}
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        groups.setdefault((item.content_key, tokens[: _cut(item)].tobytes()), []).append(index)
    for (content, _), owners in groups.items():
        tokens = sequences[owners[0]][: _cut(items[owners[0]])]
        parent = NO_PARENT
        if len(tokens):
            known = store.exact(tokens) if content is None else None
            parent = len(forest.nodes)
            forest.nodes.append(Node(tokens, 0, NO_PARENT, len(owners), known=known is not None))
            if known is not None:
                trunks[parent] = known
        for owner in owners:
            forest.ends[owner] = len(forest.nodes)
            forest.nodes.append(Node(sequences[owner][len(tokens) :], len(tokens), parent, 1))
    forest, trunks = _split(forest, trunks, max_tokens)
    alone = [(index, index + 1) for index, node in enumerate(forest.nodes) if not node.known]
    schedule = _scheduled(forest, trunks, alone, items)
    if store.max_bytes:
        _store_prompts(schedule, items, sequences, max_whole=max_tokens)
    return schedule


def _first_read(item: EncodeItem) -> int:
    return min((start for start, _ in item.reads), default=len(item.token_ids) - 1)


def _cut(item: EncodeItem) -> int:
    return max(0, min(item.prompt_length, _first_read(item)))


def _split(forest: Forest, trunks: dict[int, Known], max_tokens: int) -> tuple[Forest, dict[int, Known]]:
    """Split long nodes; what is known stays one node, and moves in the list."""
    split = split_long(forest, max_tokens)
    moved = [index for index, node in enumerate(split.nodes) if node.known]
    return split, dict(zip(moved, (trunks[index] for index in sorted(trunks)), strict=True))


def _scheduled(
    forest: Forest, trunks: dict[int, Known], runs: list[tuple[int, int]], items: Sequence[EncodeItem]
) -> Schedule:
    layouts = [lay_out(forest, first, last) for first, last in runs]
    schedule = Schedule(forest, layouts, [[] for _ in layouts], trunks)
    passes = {node: number for number, layout in enumerate(layouts) for node in layout.rows}
    for number, layout in enumerate(layouts):
        for above in layout.above:
            schedule.last_use[above.node] = number
            if above.node not in layout.rows and above.node not in trunks:
                schedule.keep[above.node] = len(forest.nodes[above.node].tokens)
    for index, item in enumerate(items):
        path = [node for node in forest.path(forest.ends[index]) if node not in trunks]
        for read, (start, stop) in enumerate(item.reads):
            for node in path:
                begin, end = forest.nodes[node].start, forest.nodes[node].stop
                first, last = max(start, begin), min(stop, end)
                if first < last:
                    number = passes[node]
                    offset = layouts[number].rows[node][0] - begin
                    share = 1 / (stop - start)
                    schedule.gathers[number].append(Gather(index, read, first + offset, last + offset, share))
    return schedule


def _store_prompts(
    schedule: Schedule, items: Sequence[EncodeItem], sequences: Sequence[Tokens], *, max_whole: int = 0
) -> None:
    """Plan which prefixes are stored: prompts, and what several sequences share anyway.

    With ``max_whole``: exactly the prompts of up to so many tokens.
    """
    forest = schedule.forest
    passes = {node: number for number, layout in enumerate(schedule.layouts) for node in layout.rows}
    seen: set[bytes] = set()
    for index, item in enumerate(items):
        path = forest.path(forest.ends[index])
        if max_whole:
            length = _cut(item)
            if length > max_whole:
                continue  # computed in pieces; attended to as one it would give other bits
        else:
            common = [forest.nodes[node].stop for node in path if forest.nodes[node].sequences > 1]
            length = max([min(item.prompt_length, len(item.token_ids)), *common])
        path = [node for node in path if forest.nodes[node].start < length]
        new = sum(len(forest.nodes[node].tokens) for node in path if node not in schedule.known)
        tokens = sequences[index][:length]
        if item.content_key is not None or new < MIN_REUSED or (key := tokens.tobytes()) in seen:
            continue
        seen.add(key)
        done = max(passes[node] for node in path if node in passes)
        schedule.prompts.setdefault(done, []).append((tokens, path))
        for node in path:
            schedule.last_use[node] = max(schedule.last_use.get(node, 0), done)
            if node in passes:
                wanted = min(forest.nodes[node].stop, length) - forest.nodes[node].start
                schedule.keep[node] = max(schedule.keep.get(node, 0), wanted)
