"""From planned chunks to tensors: one forward pass, each distinct response in it once.

Shapes: n responses, T padded length, R reads, P labelled pairs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paragone_models.errors import TextError
from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_training.data.groups import Label, PromptGroup
from paragone_training.data.plan import Chunk, plan_epoch, plan_shape
from paragone_training.errors import DataError

__all__ = ["Batch", "PairBatches", "TokenNoise", "assemble", "read_groups"]


class Batch(TypedDict):
    """What the trainer gets.

    ``input_ids`` [n, T] and ``attention_mask`` [n, T] are padded on the right, ``reads`` is [n, R, 2], ``pairs`` [P, 2]
    are row numbers (the first's win is measured), ``strength`` [P] is signed.
    """

    input_ids: Tensor
    attention_mask: Tensor
    reads: Tensor
    pairs: Tensor
    strength: Tensor


@dataclass(frozen=True)
class TokenNoise:
    """Replace a share of a sequence's tokens by random ones, so that no single word can be learned by heart.

    Attributes:
        share: probability of each token.
        vocabulary: tokens that may be drawn.
        kept: tokens that are never replaced, such as those that mark turns.
    """

    share: float
    vocabulary: Sequence[int]
    kept: frozenset[int]

    def apply(self, token_ids: Sequence[int], draw: random.Random) -> list[int]:
        """Return the tokens with some replaced.

        Args:
            token_ids: a sequence.
            draw: source of randomness.
        """
        return [
            draw.choice(self.vocabulary) if draw.random() < self.share and token not in self.kept else token
            for token in token_ids
        ]


def read_groups(groups: Sequence[PromptGroup], reader: TextReader) -> list[list[Reading]]:
    """Return what the model sees of every response of every group.

    Args:
        groups: from ``group_pairs``.
        reader: of the model that is trained.

    Raises:
        DataError: if a response does not fit the model; file and line are named.
    """
    readings = []
    for group in groups:
        prompt = group.pair.prompt_messages
        results = reader.read([conversation(prompt, response) for response in group.responses])
        for result in results:
            if isinstance(result, TextError):
                raise DataError(f"{group.pair.where} or a row with its prompt: {result}")
        readings.append([result for result in results if isinstance(result, Reading)])
    return readings


def assemble(
    token_ids: Sequence[Sequence[int]],
    reads: Sequence[Sequence[tuple[int, int]]],
    labels: Sequence[Label],
    *,
    pad_id: int,
) -> Batch:
    """Return one padded batch.

    Args:
        token_ids: one sequence per distinct response.
        reads: the read plan of each.
        labels: judgements, by row number.
        pad_id: fills up shorter sequences; a causal backbone never sees it from a real token.
    """
    longest = max(map(len, token_ids))
    input_ids = torch.full((len(token_ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(token_ids):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        reads=torch.tensor([list(plan) for plan in reads], dtype=torch.long),
        pairs=torch.tensor([(label.first, label.second) for label in labels], dtype=torch.long).reshape(-1, 2),
        strength=torch.tensor([label.strength for label in labels], dtype=torch.float32),
    )


class PairBatches(Dataset[Batch]):
    """The batches of an epoch, each one item, drawn anew by ``set_epoch``.

    Args:
        groups: prompts with their responses and labels.
        readings: what the model sees of them, from ``read_groups``.
        budget: responses a batch holds at most.
        pad_id: of the tokenizer.
        seed: of the run.
        noise: or None to leave the tokens alone.
    """

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        readings: Sequence[Sequence[Reading]],
        *,
        budget: int,
        pad_id: int,
        seed: int = 0,
        noise: TokenNoise | None = None,
    ) -> None:
        self._groups, self._readings = groups, readings
        self._budget, self._pad_id, self._seed, self._noise = budget, pad_id, seed, noise
        self._sizes = [len(group.responses) for group in groups]
        self._length = len(plan_shape(self._sizes, budget))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the chunks and their order anew.

        Args:
            epoch: number of the epoch.
        """
        self.epoch = epoch
        self._plan = plan_epoch(self._sizes, self._budget, seed=self._seed, epoch=epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        sequences: list[Sequence[int]] = []
        reads: list[Sequence[tuple[int, int]]] = []
        labels: list[Label] = []
        draw = random.Random(f"{self._seed}/{self.epoch}/{index}")  # noqa: S311 - noise, not secrets
        for chunk in self._plan[index]:
            labels.extend(self._labels(chunk, len(sequences)))
            for response in chunk.responses:
                reading = self._readings[chunk.group][response]
                sequences.append(self._noise.apply(reading.token_ids, draw) if self._noise else reading.token_ids)
                reads.append(reading.reads)
        return assemble(sequences, reads, labels, pad_id=self._pad_id)

    def _labels(self, chunk: Chunk, offset: int) -> list[Label]:
        rows = {response: offset + row for row, response in enumerate(chunk.responses)}
        return [
            Label(rows[label.first], rows[label.second], label.strength)
            for label in self._groups[chunk.group].labels
            if label.first in rows and label.second in rows
        ]
