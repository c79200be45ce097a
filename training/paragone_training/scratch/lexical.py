"""A start without labels: a network learns to tell which words a text has, and how long it is.

A decoder from random weights that reads the mean of its hidden states does not see length, and eight hundred texts are
too few to learn words from preferences. So it first learns to predict what a linear model would look at: the principal
directions of log word counts (latent semantic analysis, Deerwester et al. 1990) and three measures of length, on real
texts and on collages of them. No preference and no rating is used. So models that are trained from this start are
compared on what their labels taught them; a teacher (``teachers``) would have told them the preferences.

Shapes: n texts, V vocabulary, k directions, C = k + 3 coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_training.scratch.lessons import SURFACE, Lesson, Rewording, features, teach
from paragone_training.scratch.sections import LexicalSection

__all__ = ["fit_lexicon", "learn_lexicon"]


@dataclass(frozen=True)
class _Lexicon:
    """Standardised coordinates of texts: directions of word counts, and length.

    Attributes:
        directions: orthonormal columns. [V, k]
        mean: of the training texts' coordinates. [C]
        deviation: of the same, their standard deviation. [C]
        characters: length of each token in characters. [V]
    """

    directions: Tensor
    mean: Tensor
    deviation: Tensor
    characters: Tensor

    def coordinates(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return what the network has to tell of texts: mean 0 and deviation 1 over the training texts, [n, C]."""
        return (_projected(texts, self.directions, self.characters) - self.mean) / self.deviation


def fit_lexicon(lessons: Sequence[Lesson], characters: Sequence[int], *, coordinates: int) -> _Lexicon:
    """Return the principal directions of the training texts' log word counts, and the scale of all coordinates.

    Args:
        characters: length of each token in characters. [V]
        coordinates: how many directions, k; there are never more than texts.
    """
    lengths = torch.tensor(characters, dtype=torch.float32)
    texts = [response for lesson in lessons for response in lesson.responses if len(response)]
    # Words alone: length has coordinates of its own, and would be the first direction otherwise.
    counts = features(texts, lengths)[:, :-SURFACE]
    _, _, rows = torch.linalg.svd(counts - counts.mean(dim=0), full_matrices=False)
    directions = rows[:coordinates].T.contiguous()
    projected = _projected(texts, directions, lengths)
    # A coordinate that never varies is told as it is: dividing by its deviation would make noise of it.
    deviation = projected.std(dim=0, correction=0)
    return _Lexicon(directions, projected.mean(dim=0), torch.where(deviation > 0, deviation, 1.0), lengths)


def learn_lexicon(
    network: PreferenceNetwork,
    spec: ModelSpec,
    lexicon: _Lexicon,
    lessons: Sequence[Lesson],
    section: LexicalSection,
    *,
    pad_id: int,
    seed: int,
) -> list[float]:
    """Teach a backbone to tell the lexicon's coordinates; return the mean squared error of every step.

    Args:
        network: its backbone is changed in place; its head stays as it was.
    """
    torch.manual_seed(seed)
    backbone: Any = network.backbone
    if section.imprint:
        _imprint(backbone.get_input_embeddings(), lexicon, section.imprint)
    coordinates = len(lexicon.mean)
    names = tuple(f"coordinate {number}" for number in range(coordinates))
    # A regression head tells the coordinates, as if they were ratings. It is thrown away.
    telling = replace(
        spec, kind="regression", dimension=coordinates, attributes=names, gate="none", normalise=False, weights=None
    )
    width = backbone.config.hidden_size
    # With a bias, unlike a head of rewards: coordinates have an origin.
    head = RepresentationHead(width, telling, value_head=nn.Linear(width, coordinates))
    probe = PreferenceNetwork(backbone, head).to(next(network.parameters()).device)

    def misfit(predicted: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        return (predicted - lexicon.coordinates(texts).to(predicted.device)).square().mean()

    return teach(probe, telling, lessons, misfit, section, pad_id=pad_id, seed=seed, reword=Rewording(lessons))


def _projected(texts: Sequence[Sequence[int]], directions: Tensor, characters: Tensor) -> Tensor:
    """Return raw coordinates, [n, C]."""
    table = features(texts, characters)
    return torch.cat([table[:, :-SURFACE] @ directions, table[:, -SURFACE:]], dim=1)


def _imprint(embedding: nn.Embedding, lexicon: _Lexicon, scale: float) -> None:
    """Write each token's directions and length into the first coordinates of its embedding."""
    table, directions = embedding.weight, lexicon.directions.to(embedding.weight.device)
    words = directions.shape[1]
    characters = lexicon.characters.to(table.device)
    with torch.no_grad():
        spread = table.std() * scale
        # a token's weight in a direction has heavy tails: one word must not outshout all others
        table[:, :words] = (directions / directions.std(dim=0)).clamp(-5, 5) * spread / 2
        table[:, words] = torch.where(characters > 0, (characters / 5 - 1) * spread, 0.0)
