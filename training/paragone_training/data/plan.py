"""Which responses pass the model together: batches of a budget of responses from as few prompts as fit.

A group larger than the budget is cut into chunks of nearly equal size; only pairs inside a chunk count, so the chunks
are drawn anew every epoch. The *shape* of a plan (how many chunks of which size share a batch) depends on the group
sizes alone: every epoch has the same number of steps, and what fills the shape is random.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Chunk", "plan_epoch", "plan_shape"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some responses of one group.

    Attributes:
        group: index of the group.
        responses: indices of its responses.
    """

    group: int
    responses: tuple[int, ...]


def plan_shape(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Return the chunk sizes of every batch: first fit decreasing, so that large chunks stay alone.

    Args:
        sizes: number of responses of each group.
        budget: responses a batch holds at most.

    Raises:
        ValueError: if the budget cannot hold a pair.
    """
    if budget < 2:
        raise ValueError(f"budget is {budget}; a batch must hold at least the 2 responses of a pair")
    batches: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)
    chunks = sorted((chunk for size in sizes for chunk in _chunk_sizes(size, budget)), reverse=True)
    for chunk in chunks:
        room = next((left for left in range(chunk, budget + 1) if with_room[left]), None)
        if room is None:
            batches.append([chunk])
            with_room[budget - chunk].append(len(batches) - 1)
        else:
            index = with_room[room].pop()
            batches[index].append(chunk)
            with_room[room - chunk].append(index)
    return batches


def plan_epoch(sizes: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[list[Chunk]]:
    """Return the batches of one epoch: every response of every group once.

    Args:
        sizes: number of responses of each group.
        budget: responses a batch holds at most.
        seed: of the run.
        epoch: number of the epoch; the same seed and epoch give the same plan.

    Raises:
        ValueError: if the budget cannot hold a pair.
    """
    draw = random.Random(f"{seed}/{epoch}")  # noqa: S311 - shuffling, not secrets
    by_size: dict[int, list[Chunk]] = defaultdict(list)
    for group, size in enumerate(sizes):
        order = list(range(size))
        draw.shuffle(order)
        start = 0
        for length in _chunk_sizes(size, budget):
            by_size[length].append(Chunk(group, tuple(order[start : start + length])))
            start += length
    for chunks in by_size.values():
        draw.shuffle(chunks)
    batches = [[by_size[length].pop() for length in shape] for shape in plan_shape(sizes, budget)]
    draw.shuffle(batches)
    return batches


def _chunk_sizes(size: int, budget: int) -> list[int]:
    count = -(-size // budget)
    return [size // count + (index < size % count) for index in range(count)]
