"""A linear teacher of ratings: a ridge regression on token counts and length, and what a network learns from it.

The sibling of ``scratch.teacher``, for kinds that rate: eight hundred rated texts are too few for a decoder
to find out by gradient which words go with which rating, and a mean over positions hides length until the network has
learned to count. The ridge is fitted on the rated training rows alone. It then rates made-up texts under made-up
prompts, and the network learns to rate as it does.

Shapes: n texts, V vocabulary, F = V + 3 features, A attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.losses import regression_loss
from paragone_models.text.reader import TextReader
from paragone_training.data.batches import read_groups
from paragone_training.preference.backbone import Student
from paragone_training.preference.ratings.batches import RatedGroup
from paragone_training.preference.stages import padding_id
from paragone_training.scratch.corpus import lessons, token_lengths
from paragone_training.scratch.rewording import Rewording
from paragone_training.scratch.sections import TeacherSection
from paragone_training.scratch.teacher import features, teach

__all__ = ["RatingTeacher", "fit_rating_teacher", "imprint_ratings", "learn_from_teacher"]


@dataclass(frozen=True)
class RatingTeacher:
    """Linear ratings over token counts, kept within what people gave.

    Attributes:
        weights: of the features. [F, A]
        bias: the mean rating where the features are at their mean. [A]
        centre: mean of the features. [F]
        lowest: rating that was given. [A]
        highest: rating that was given. [A]
        characters: length of each token in characters. [V]
    """

    weights: Tensor
    bias: Tensor
    centre: Tensor
    lowest: Tensor
    highest: Tensor
    characters: Tensor

    def ratings(self, responses: Sequence[Sequence[int]]) -> Tensor:
        """Return the teacher's ratings of each response.

        Args:
            responses: their own tokens, without what the template puts around them.

        Returns:
            Ratings, on people's scale. [n, A]
        """
        found = (features(responses, self.characters) - self.centre) @ self.weights + self.bias
        return found.clamp(self.lowest, self.highest)


def fit_rating_teacher(
    responses: Sequence[Sequence[int]], ratings: Tensor, characters: Sequence[int], *, penalty: float
) -> RatingTeacher:
    """Return the ridge regression of people's ratings on features, one attribute at a time.

        minimise  sum (w . (x - mean x) + mean y - y)^2 + penalty * |w|^2

    Args:
        responses: their own tokens. n of them
        ratings: NaN where nobody rated. [n, A]
        characters: length of each token in characters. [V]
        penalty: keeps the weights of rare tokens small.
    """
    lengths = torch.tensor(characters, dtype=torch.float32)
    everything = features(responses, lengths).double()
    centre = everything.mean(dim=0)
    columns, means, lows, highs = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for column in ratings.double().T:
        known = ~torch.isnan(column)
        target = column[known]
        rows = everything[known] - centre
        # (X'X + p I)^-1 X' y = X' (X X' + p I)^-1 y: far fewer texts than features
        kernel = rows @ rows.T + penalty * torch.eye(len(rows), dtype=rows.dtype)
        columns.append(rows.T @ torch.linalg.solve(kernel, target - target.mean()))
        means.append(target.mean())
        lows.append(target.min())
        highs.append(target.max())
    return RatingTeacher(
        weights=torch.stack(columns, dim=1).float(),
        bias=torch.stack(means).float(),
        centre=centre.float(),
        lowest=torch.stack(lows).float(),
        highest=torch.stack(highs).float(),
        characters=lengths,
    )


def imprint_ratings(embedding: nn.Embedding, teacher: RatingTeacher, scale: float) -> None:
    """Write what the teacher knows about tokens into an embedding: a coordinate per attribute, and one of length.

    Args:
        embedding: changed in place; its width is more than A.
        teacher: whose weights.
        scale: standard deviation of these coordinates, in that of all the others.
    """
    table = embedding.weight
    words = (teacher.characters > 0).to(table.device)
    with torch.no_grad():
        spread = table[words].std() * scale
        weights = teacher.weights[: len(teacher.characters)].to(table.device)
        for attribute, column in enumerate(weights.T):
            table[:, attribute] = torch.where(words, column / column[words].std() * spread, 0.0)
        lengths = teacher.characters.to(table.device) / 5 - 1
        table[:, weights.shape[1]] = torch.where(words, lengths * spread, 0.0)


def learn_from_teacher(
    student: Student, groups: Sequence[RatedGroup], section: TeacherSection, *, seed: int
) -> list[float]:
    """Fit a teacher on rated responses, imprint it, and teach a network to rate as it does; return every step's loss.

        loss = mean over texts and attributes of (network's rating - teacher's)^2

    Args:
        student: whose network is changed in place.
        groups: prompts with rated responses; the only rows that are used.
        section: steps, rate, batch and the teacher's penalty.
        seed: of everything drawn.
    """
    reader = TextReader(student.tokenizer, student.spec)
    plain = [group.group for group in groups]
    taught = lessons(plain, read_groups(plain, reader), reader)
    rated = torch.tensor([row for group in groups for row in group.ratings], dtype=torch.float32)
    responses = [response for lesson in taught for response in lesson.responses]
    teacher = fit_rating_teacher(responses, rated, token_lengths(student.tokenizer), penalty=section.penalty)
    network = student.network
    if section.imprint:
        backbone: Any = network.backbone
        imprint_ratings(backbone.get_input_embeddings(), teacher, section.imprint)

    def distance(representations: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        wanted = teacher.ratings(texts).to(representations.device)
        return regression_loss(representations, wanted, mask=torch.ones_like(wanted)).mean()

    return teach(
        network,
        student.spec,
        taught,
        distance,
        section,
        pad_id=padding_id(student),
        seed=seed,
        reword=Rewording(taught),
    )
