"""Where the nodes of a forest stand in the packed row of one forward pass, and which rows attend to which keys.

A row is one token that is computed. Nodes come in preorder, so the rows that attend to a node's keys are one run: its
own (causally), and behind them those of everything below it (wholly).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paragone_models.packing.tree import NO_PARENT, Forest, Tokens

__all__ = ["Above", "Layout", "chunks", "lay_out"]


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
    """One forward pass.

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
    def held(self) -> tuple[int, ...]:
        """The nodes that rows attend to and that were computed before the pass, in preorder."""
        return tuple(above.node for above in self.above if above.node not in self.rows)

    def path(self, row: int) -> tuple[int, ...]:
        """Return the nodes above a row's own, from position 0 on.

        Args:
            row: in the pass.
        """
        return tuple(above.node for above in self.above if above.first <= row < above.last)


def chunks(forest: Forest, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield runs of nodes (first, one behind the last) that are computed together, in order.

    Args:
        forest: from ``split_long``, so that every single node fits.
        max_tokens: most tokens of one run.
    """
    first, tokens = 0, 0
    for index, node in enumerate(forest.nodes):
        cost = 0 if node.known else len(node.tokens)
        if tokens and tokens + cost > max_tokens:
            yield first, index
            first, tokens = index, 0
        tokens += cost
    if tokens:
        yield first, len(forest.nodes)


def lay_out(forest: Forest, first: int, last: int) -> Layout:
    """Return the packed row of some nodes.

    Args:
        forest: where they stand.
        first: index of the first one.
        last: one behind the last one.
    """
    rows: dict[int, tuple[int, int]] = {}
    below: dict[int, tuple[int, int]] = {}
    row = 0
    for index in range(first, last):
        node = forest.nodes[index]
        if node.known:
            continue
        end = row + len(node.tokens)
        rows[index] = (row, end)
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
