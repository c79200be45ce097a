"""Which tokens a batch computes, and where they stand: a forest of shared prefixes, laid out in rows.

Sequences that begin alike share a path of nodes, so that their common tokens are computed once. A pass takes a range of
nodes and puts their tokens into one row after another. Nodes come in preorder: a parent before its children, a subtree
in one piece. So the rows that attend to a node's keys are one range: its own rows (causally), and behind them those of
everything below it (wholly).

Shapes: T rows of a pass, each of them one token that is computed.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MIN_SHARED",
    "NO_PARENT",
    "Above",
    "Forest",
    "Layout",
    "Node",
    "Tokens",
    "common_length",
    "grow",
    "lay_out",
    "pass_ranges",
    "split_long",
]

Tokens = NDArray[np.int64]

NO_PARENT = -1

MIN_SHARED = 16
"""Tokens from which on a shared run is worth a node of its own."""


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens.

    Attributes:
        start: position of the first one in its sequences.
        parent: index of the node before it, or ``NO_PARENT``.
        sequences: how many sequences go through it.
        stored: True if its keys and values are stored already, so that it is not computed.
    """

    tokens: Tokens
    start: int
    parent: int
    sequences: int
    stored: bool = False

    @property
    def stop(self) -> int:
        """Position behind its last token."""
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Forest:
    """Prefix trees of a batch, all nodes in preorder.

    Attributes:
        ends: the node in which each sequence ends, in the order given; ``NO_PARENT`` for one that has no tokens left.
    """

    nodes: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens that are computed."""
        return sum(len(node.tokens) for node in self.nodes if not node.stored)

    def add(self, trunk: Node | None, tree: "Forest", owners: Sequence[int]) -> None:
        """Append a tree.

        Args:
            trunk: a stored node that all of it continues, or None.
            tree: as ``grow`` returns it.
            owners: which of this forest's sequences the tree's are.
        """
        # Preorder: the trunk comes before its tree, whose indices move by what stands before it.
        root = NO_PARENT
        if trunk is not None:
            self.nodes.append(trunk)
            root = len(self.nodes) - 1
        offset = len(self.nodes)
        for node in tree.nodes:
            parent = root if node.parent == NO_PARENT else node.parent + offset
            self.nodes.append(replace(node, parent=parent))
        for owner, end in zip(owners, tree.ends, strict=True):
            self.ends[owner] = root if end == NO_PARENT else end + offset

    def path(self, index: int) -> list[int]:
        """Return a node and what stands before it, the root first."""
        path: list[int] = []
        while index != NO_PARENT:
            path.append(index)
            index = self.nodes[index].parent
        return path[::-1]


def common_length(first: Tokens, second: Tokens) -> int:
    """Return how many tokens two sequences have in common from their starts.

    >>> common_length(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def grow(sequences: Sequence[Tokens], *, start: int, min_shared: int) -> Forest:
    """Return the prefix tree of some sequences.

    A run that several sequences share becomes a node of its own from ``min_shared`` tokens on; a shorter one (the first
    tokens of every chat template, say) is computed in each of them, because a node of its own costs more than it saves.

    Args:
        start: position at which computing begins: what stands before is the same in all of them and stored already.
        min_shared: see above; at least 1.
    """
    # Big-endian bytes sort as the numbers do: memcmp instead of a loop over integers.
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    ranked = [sequences[index] for index in order]
    # In sorted order, what a range of sequences has in common is the minimum over its neighbours.
    shared = [common_length(before, after) for before, after in itertools.pairwise(ranked)]
    forest = Forest(ends=[NO_PARENT] * len(sequences))
    # (first, last + 1, position from which tokens are still to be placed, parent). A stack, so that nodes are in
    # preorder; a recursion could be as deep as a chat has turns.
    pending = [(0, len(ranked), start, NO_PARENT)] if ranked else []
    while pending:
        low, high, position, parent = pending.pop()
        # All sequences of a range agree up to here, whatever was placed of it so far.
        common = len(ranked[low]) if high - low == 1 else min(shared[low : high - 1])
        same = common == len(ranked[low]) == len(ranked[high - 1])
        if same or common - position >= min_shared:
            if common > position:
                forest.nodes.append(Node(ranked[low][position:common], position, parent, high - low))
                parent = len(forest.nodes) - 1
            position = max(position, common)
        if same:
            for rank in range(low, high):
                forest.ends[order[rank]] = parent
            continue
        # What ends right here has its tokens placed, or (too short to share) becomes a branch like the others.
        borders = [low, *(rank + 1 for rank in range(low, high - 1) if shared[rank] == common), high]
        pending.extend((first, last, position, parent) for first, last in reversed(list(itertools.pairwise(borders))))
    return forest


def split_long(forest: Forest, longest: int) -> Forest:
    """Return the forest with nodes of at most ``longest`` tokens: a long run becomes a chain."""
    if all(node.stored or len(node.tokens) <= longest for node in forest.nodes):
        return forest
    nodes: list[Node] = []
    last: dict[int, int] = {NO_PARENT: NO_PARENT}
    for index, node in enumerate(forest.nodes):
        parent = last[node.parent]
        step = len(node.tokens) if node.stored else longest
        # A chain in place of the node: preorder stays.
        for begin in range(0, len(node.tokens), step):
            piece = node.tokens[begin : begin + step]
            nodes.append(Node(piece, node.start + begin, parent, node.sequences, node.stored))
            parent = len(nodes) - 1
        last[index] = parent
    return Forest(nodes, [last[end] for end in forest.ends])


@dataclass(frozen=True, slots=True)
class Above:
    """A node and the rows below it.

    Attributes:
        node: index in the forest.
        first: first row that attends to all of the node's keys.
        last: one behind the last such row.
    """

    node: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of one pass.

    Attributes:
        tokens: token id of every row. [T]
        positions: position of every row in its sequences. [T]
        rows: the rows (first, one behind the last) of every node in the pass, by its index.
        above: every node that rows of other nodes attend to, in preorder; in the pass itself, or before it.
    """

    tokens: Tokens
    positions: NDArray[np.int64]
    rows: dict[int, tuple[int, int]]
    above: tuple[Above, ...]

    @property
    def earlier(self) -> tuple[int, ...]:
        """The nodes that rows attend to and that were computed before the pass, in preorder."""
        return tuple(above.node for above in self.above if above.node not in self.rows)

    def path(self, row: int) -> tuple[int, ...]:
        """Return the nodes above a row's own, the root first."""
        # In preorder, so the ancestors come out from the root down.
        return tuple(above.node for above in self.above if above.first <= row < above.last)


def pass_ranges(forest: Forest, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of nodes (first, one behind the last) that are computed together, in order.

    Args:
        forest: from ``split_long``, so that every single node fits.
        max_tokens: most tokens of one pass.
    """
    first, tokens = 0, 0
    for index, node in enumerate(forest.nodes):
        cost = 0 if node.stored else len(node.tokens)
        if tokens and tokens + cost > max_tokens:
            yield first, index
            first, tokens = index, 0
        tokens += cost
    # Stored nodes alone need no pass.
    if tokens:
        yield first, len(forest.nodes)


def lay_out(forest: Forest, first: int, last: int) -> Layout:
    """Return the rows of the nodes from ``first`` to the one before ``last``."""
    rows: dict[int, tuple[int, int]] = {}
    below: dict[int, tuple[int, int]] = {}
    row = 0
    for index in range(first, last):
        node = forest.nodes[index]
        if node.stored:
            continue
        end = row + len(node.tokens)
        rows[index] = (row, end)
        # Preorder makes the rows below an ancestor one range: the first one opens it, the last one ends it.
        ancestor = node.parent
        while ancestor != NO_PARENT:
            below[ancestor] = (below.get(ancestor, (row, end))[0], end)
            ancestor = forest.nodes[ancestor].parent
        row = end
    nodes = [forest.nodes[index] for index in rows]
    return Layout(
        tokens=np.concatenate([node.tokens for node in nodes]),
        positions=np.concatenate([np.arange(node.start, node.stop) for node in nodes]),
        rows=rows,
        above=tuple(Above(index, *below[index]) for index in sorted(below)),
    )
