"""Linear teachers on token counts and length, of preferences and of ratings, and what a network learns from them.

A linear model sees at once what a decoder from random weights does not find in eight hundred texts: which words
convince, and how much length counts. A teacher is fitted on the training rows alone, in a second. It then labels
made-up texts (``lessons``), and the network learns to judge them as the teacher does. People's own labels come after
that, and have the last word.

Shapes: n texts, V vocabulary, F = V + 3 features, A attributes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_models.losses import preference_loss, regression_loss
from paragone_models.network import PreferenceNetwork
from paragone_models.spec import ModelSpec
from paragone_training.data import PromptGroup
from paragone_training.scratch.lessons import Lesson, Rewording, features, teach
from paragone_training.scratch.sections import TeacherSection

__all__ = ["distil", "distil_ratings", "fit_rating_teacher", "fit_teacher", "imprint"]


@dataclass(frozen=True)
class _Teacher:
    """A linear reward over features.

    Attributes:
        weights: of the features. [F]
        characters: length of each token in characters. [V]
    """

    weights: Tensor
    characters: Tensor

    def rewards(self, responses: Sequence[Sequence[int]]) -> Tensor:
        """Return the teacher's reward of each response, in logits, [n]."""
        return features(responses, self.characters) @ self.weights


@dataclass(frozen=True)
class _RatingTeacher:
    """Linear ratings over features, kept within what people gave.

    Attributes:
        weights: of the features. [F, A]
        bias: the mean rating, where the features are at their mean. [A]
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
        """Return the teacher's ratings of each response, on people's scale, [n, A]."""
        ratings = (features(responses, self.characters) - self.centre) @ self.weights + self.bias
        # A made-up text may be shorter or longer than any that was rated; a line goes on, a scale does not.
        return ratings.clamp(self.lowest, self.highest)


def fit_teacher(
    groups: Sequence[PromptGroup], lessons: Sequence[Lesson], characters: Sequence[int], *, penalty: float
) -> _Teacher:
    """Return the logistic regression of people's preferences on differences of features, weighted by strength.

        minimise  sum |strength| * -log sigmoid(w . (x_preferred - x_other)) + penalty / 2 * |w|^2

    Args:
        groups: prompts with labels; ties are left out.
        characters: length of each token in characters. [V]
    """
    lengths = torch.tensor(characters, dtype=torch.float32)
    texts, rows, strengths = list[Sequence[int]](), list[tuple[int, int]](), list[float]()
    for group, lesson in zip(groups, lessons, strict=True):
        for label in group.labels:
            if label.strength:
                rows.append((len(texts) + label.first, len(texts) + label.second))
                strengths.append(label.strength)
        texts += list(lesson.responses)
    table = features(texts, lengths)
    first, second = torch.tensor(rows).T
    strength = torch.tensor(strengths)
    # No intercept: it would cancel in every difference.
    weights = torch.zeros(table.shape[1], requires_grad=True)
    # Convex and small, so it is solved to the end: the same rows give the same teacher.
    solver = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        rewards = table @ weights
        misfit = functional.softplus(-strength.sign() * (rewards[first] - rewards[second])) * strength.abs()
        loss = misfit.sum() + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return _Teacher(weights.detach(), lengths)


def fit_rating_teacher(
    responses: Sequence[Sequence[int]], ratings: Tensor, characters: Sequence[int], *, penalty: float
) -> _RatingTeacher:
    """Return the ridge regression of people's ratings on features, one attribute at a time.

        minimise  sum (w . (x - mean x) + mean y - y)^2 + penalty * |w|^2

    Args:
        responses: their own tokens. n of them
        ratings: NaN where nobody rated. [n, A]
        characters: length of each token in characters. [V]
    """
    lengths = torch.tensor(characters, dtype=torch.float32)
    everything = features(responses, lengths).double()
    centre = everything.mean(dim=0)
    columns, means, lowest, highest = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    # Attribute by attribute: each has its own rows, since people rated some and not others.
    for column in ratings.double().T:
        known = ~torch.isnan(column)
        target = column[known]
        rows = everything[known] - centre
        # (X'X + p I)^-1 X' y = X' (X X' + p I)^-1 y: far fewer texts than features
        kernel = rows @ rows.T + penalty * torch.eye(len(rows), dtype=rows.dtype)
        columns.append(rows.T @ torch.linalg.solve(kernel, target - target.mean()))
        means.append(target.mean())
        lowest.append(target.min())
        highest.append(target.max())
    return _RatingTeacher(
        weights=torch.stack(columns, dim=1).float(),
        bias=torch.stack(means).float(),
        centre=centre.float(),
        lowest=torch.stack(lowest).float(),
        highest=torch.stack(highest).float(),
        characters=lengths,
    )


def imprint(embedding: nn.Embedding, teacher: _Teacher | _RatingTeacher, scale: float) -> None:
    """Write what a teacher knows about single tokens into an embedding: a coordinate per weight, and one of length.

    So the network need not learn four thousand weights by gradient, most of them of tokens that it hardly sees.

    Args:
        embedding: changed in place; it is wider than the teacher has weights per token.
        scale: standard deviation of these coordinates, in that of all the others.
    """
    table = embedding.weight
    # Special tokens stand for no characters. They are no words, and get no weight.
    words = (teacher.characters > 0).to(table.device)
    weights = teacher.weights[: len(teacher.characters)].reshape(len(teacher.characters), -1).to(table.device)
    lengths = teacher.characters.to(table.device) / 5 - 1
    with torch.no_grad():
        # Measured before anything is written, so that the scale is that of random weights.
        spread = table[words].std() * scale
        for coordinate, column in enumerate(weights.T):
            table[:, coordinate] = torch.where(words, column / column[words].std() * spread, 0.0)
        table[:, weights.shape[1]] = torch.where(words, lengths * spread, 0.0)


def distil(
    network: PreferenceNetwork,
    spec: ModelSpec,
    teacher: _Teacher,
    lessons: Sequence[Lesson],
    logits: Callable[[Tensor, Tensor], Tensor],
    section: TeacherSection,
    *,
    pad_id: int,
    seed: int,
) -> list[float]:
    """Teach a network to compare texts as a teacher does; return the divergence of every step.

        loss = mean over pairs of KL(sigmoid(teacher difference) || sigmoid(network's logit))

    Args:
        network: changed in place.
        teacher: labels every pair of texts under one prompt.
        logits: log-odds of pairs [P, 2] of representations [n, d], in the network's kind. [P]
    """

    def divergence(representations: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        # Every pair of the step's texts has a label: n texts cost n passes and teach n (n - 1) / 2 comparisons. The
        # teacher's entropy is taken off, so that a loss of 0 means that nothing is left to learn.
        pairs = torch.triu_indices(len(texts), len(texts), 1).T
        rewards = teacher.rewards(texts)
        target = torch.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).to(representations.device)
        compared = logits(representations, pairs.to(representations.device))
        return preference_loss(compared, target).mean() - functional.binary_cross_entropy(target, target)

    return teach(network, spec, lessons, divergence, section, pad_id=pad_id, seed=seed)


def distil_ratings(
    network: PreferenceNetwork,
    spec: ModelSpec,
    teacher: _RatingTeacher,
    lessons: Sequence[Lesson],
    section: TeacherSection,
    *,
    pad_id: int,
    seed: int,
) -> list[float]:
    """Teach a network to rate texts as a teacher does, under made-up prompts; return the loss of every step.

        loss = mean over texts and attributes of (network's rating - teacher's)^2

    Args:
        network: changed in place.
    """

    def distance(representations: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        ratings = teacher.ratings(texts).to(representations.device)
        return regression_loss(representations, ratings, mask=torch.ones_like(ratings)).mean()

    # A rating, unlike a comparison, may learn an offset per prompt: most texts stand under another one.
    reword = Rewording(lessons)
    return teach(network, spec, lessons, distance, section, pad_id=pad_id, seed=seed, reword=reword)
