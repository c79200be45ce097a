"""The passes of a training step over its pairs: which pairs share a pass, and which passes an optimiser step.

B pairs of a pass; its 2B sequences are all chosen ones, then all rejected ones. An epoch is cut into steps and passes
of nearly equal size, so that the pairs of a step do not depend on the number of processes. Inside a step pairs of like
length share a pass: a step's mean does not depend on their order, and there is less padding. Packed passes have no
padding; there pairs of one prompt share a pass, and those of like length come next.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from paragone_training.policy.methods.method import PairTargets
from paragone_training.policy.model.logprobs import PackedRow, Sequences, collated, longest_of_prompts
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair

__all__ = ["PairPasses", "of_batch", "optimiser_steps", "steps_of_epoch"]


class PairPasses(Dataset[dict[str, Any]]):
    """The passes of an epoch."""

    def __init__(
        self, pairs: Sequence[TrainingPair], *, size: int, step: int, pad_id: int, seed: int, packed: bool = False
    ) -> None:
        self._pairs = list(pairs)
        # Fixed for all epochs and processes: accelerate deals passes out, and steps stay the same.
        self._slices = _slices(len(self._pairs), size, step)
        self._passes_of_step = step // size
        self._pad_id = pad_id
        self._seed = seed
        self._packed = packed
        self._order: list[int] = []
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch, from 0."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._order = list(range(len(self._pairs)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311 - shuffling, not secrets
            # Only inside a step: which pairs a step has is left to chance, or its gradient would be of like lengths.
            for first in range(0, len(self._slices), self._passes_of_step):
                last = first + self._passes_of_step - 1
                step = slice(self._slices[first].start, self._slices[last].stop)
                self._order[step] = self._grouped(self._order[step])

    def _grouped(self, places: list[int]) -> list[int]:
        """Return the pairs of a step, the longest first; packed, prompt by prompt."""
        if not self._packed:
            return sorted(places, key=lambda place: -self._pairs[place].length)
        pairs = [self._pairs[place] for place in places]
        # Pairs of one prompt side by side: then the prompt is computed once in a pass.
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
        """Return B pairs by name: what a pass has, of 2B sequences; ``PairTargets``, and tokens of chosen, each [B]."""
        items = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
        items += [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
        # float64 until they are on the device, where the loss takes what it computes in.
        columns = torch.tensor([pair.targets for pair in pairs], dtype=torch.float64).unbind(dim=1)
        tokens = torch.tensor([len(pair.chosen_ids) for pair in pairs], dtype=torch.float64)
        named = PairTargets(*columns)._asdict() | {"chosen_tokens": tokens}
        return collated(items, self._pad_id, packed=self._packed)._asdict() | named


def of_batch(batch: dict[str, Any]) -> tuple[Sequences | PackedRow, PairTargets]:
    """Return sequences and targets of a collated batch."""
    kind = PackedRow if "layout" in batch else Sequences
    return kind(*(batch[name] for name in kind._fields)), PairTargets(*(batch[name] for name in PairTargets._fields))


def steps_of_epoch(pairs: int, *, size: int, step: int) -> int:
    """Return the optimiser steps of an epoch, of nearly equal size; the number of processes does not matter."""
    passes = step // size
    steps = -(-pairs // step)
    if steps * passes > pairs:
        # The last step would have passes without a pair: spread the pairs over one step less.
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

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    an_epoch = steps_of_epoch(pairs, size=training.pairs_per_pass, step=training.pairs_per_step)
    laid_out = training.schedule_epochs or training.epochs
    # A part of an epoch is rounded up: a training step takes at least one gradient step.
    return max(math.ceil(training.epochs * an_epoch), 1), max(math.ceil(laid_out * an_epoch), 1)


def _slices(pairs: int, size: int, step: int) -> list[slice]:
    """Return which pairs of an epoch's order each pass has: near-equal shares, none empty."""
    passes = steps_of_epoch(pairs, size=size, step=step) * (step // size)
    # Whole numbers by division, not by rounding: no pair is lost, and sizes differ by one at most.
    edges = [pairs * number // passes for number in range(passes + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
