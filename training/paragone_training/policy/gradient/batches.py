"""Pairs as passes of a policy trainer: order by epoch, both sequences of a pair in one pass.

B pairs of a pass; its 2B sequences are all chosen ones, then all rejected ones. An epoch is cut into
steps and passes of nearly equal size, so that the pairs of a step do not depend on the number of processes. Inside a
step pairs of like length share a pass: a step's mean does not depend on their order, and there is less padding. Where
passes are packed there is none; then pairs of one prompt share a pass, and those of like length come next.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from paragone_training.policy.methods.methods import PairTargets
from paragone_training.policy.model.logprobs import Sequences, collated
from paragone_training.policy.model.packing import PackedRow, longest_of_prompts
from paragone_training.policy.sections import PolicyTrainingSection

__all__ = ["PairPasses", "TrainingPair", "of_batch", "optimiser_steps", "steps_of_epoch"]


@dataclass(frozen=True)
class TrainingPair:
    """One pair with everything a loss wants.

    Attributes:
        prompt_ids: token ids of the prompt.
        chosen_ids: of the chosen response.
        rejected_ids: of the other one.
        targets: preference, own targets and frozen columns, in the order of ``PairTargets``.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    targets: tuple[float, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class PairPasses(Dataset[dict[str, Any]]):
    """The passes of an epoch.

    Args:
        pairs: what is trained on.
        size: most pairs of a pass.
        step: pairs of an optimiser step, over all processes.
        pad_id: fills up.
        seed: of the order.
        packed: as one row without padding.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """

    def __init__(
        self, pairs: Sequence[TrainingPair], *, size: int, step: int, pad_id: int, seed: int, packed: bool = False
    ) -> None:
        self._pairs = list(pairs)
        self._slices = _slices(len(self._pairs), size, step)
        self._passes_of_step = step // size
        self._pad_id = pad_id
        self._seed = seed
        self._packed = packed
        self._order: list[int] = []
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch.

        Args:
            epoch: from 0.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._order = list(range(len(self._pairs)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311 - shuffling, not secrets
            for first in range(0, len(self._slices), self._passes_of_step):
                last = first + self._passes_of_step - 1
                step = slice(self._slices[first].start, self._slices[last].stop)
                self._order[step] = self._grouped(self._order[step])

    def _grouped(self, places: list[int]) -> list[int]:
        """Return the pairs of a step, the longest first; packed, prompt by prompt."""
        if not self._packed:
            return sorted(places, key=lambda place: -self._pairs[place].length)
        pairs = [self._pairs[place] for place in places]
        longest = longest_of_prompts([pair.prompt_ids for pair in pairs], [pair.length for pair in pairs])

        def rank(place: int) -> tuple[int, tuple[int, ...], int]:
            pair = self._pairs[place]
            return -longest[pair.prompt_ids], pair.prompt_ids, -pair.length

        return sorted(places, key=rank)

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.collated([self._pairs[place] for place in self._order[self._slices[index]]])

    def collated(self, pairs: Sequence[TrainingPair]) -> dict[str, Any]:
        """Return pairs by name: what a pass has, of 2B sequences, and what ``PairTargets`` has, each [B].

        Args:
            pairs: B of them.
        """
        items = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
        items += [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
        columns = torch.tensor([pair.targets for pair in pairs], dtype=torch.float64).unbind(dim=1)
        return collated(items, self._pad_id, packed=self._packed)._asdict() | PairTargets(*columns)._asdict()


def of_batch(batch: dict[str, Any]) -> tuple[Sequences | PackedRow, PairTargets]:
    """Return the two parts of a collated batch.

    Args:
        batch: as ``PairPasses`` gives it.
    """
    kind = PackedRow if "layout" in batch else Sequences
    return kind(*(batch[name] for name in kind._fields)), PairTargets(*(batch[name] for name in PairTargets._fields))


def steps_of_epoch(pairs: int, *, size: int, step: int) -> int:
    """Return the optimiser steps of an epoch, of nearly equal size; the number of processes does not matter.

    Args:
        pairs: of the epoch.
        size: most pairs of a pass.
        step: pairs of a step: at most, or a few more where one pair a pass leaves no other way.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    passes = step // size
    steps = -(-pairs // step)
    if steps * passes > pairs:
        steps = pairs // step
    if steps == 0 and pairs >= passes:
        steps = 1
    if steps == 0:
        raise ValueError(
            f"{pairs} pairs cannot fill the {passes} passes of a step: sample more prompts, or lower pairs_per_step"
        )
    return steps


def optimiser_steps(pairs: int, training: PolicyTrainingSection) -> tuple[int, int]:
    """Return the optimiser steps that are run, and those that the schedule is laid out for.

    Args:
        pairs: of the iteration.
        training: epochs and pairs of a step.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    an_epoch = steps_of_epoch(pairs, size=training.pairs_per_pass, step=training.pairs_per_step)
    laid_out = training.schedule_epochs or training.epochs
    return max(math.ceil(training.epochs * an_epoch), 1), max(math.ceil(laid_out * an_epoch), 1)


def _slices(pairs: int, size: int, step: int) -> list[slice]:
    """Return which pairs of an epoch's order each pass has: near-equal shares, none empty."""
    passes = steps_of_epoch(pairs, size=size, step=step) * (step // size)
    edges = [pairs * number // passes for number in range(passes + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
