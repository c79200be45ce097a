"""A linear teacher: a logistic regression on token counts and length, and what a network learns from it.

Eight hundred texts are too few for a decoder from random weights to find out what a linear model sees at once: which
words convince, and how much length counts. The teacher is fitted on the training pairs alone, in a second. It then
labels as many made-up texts as wanted (crops and collages of training responses, of every length, some with tokens
replaced), and the network learns to compare them as the teacher does. Human pairs come after that, and have the last
word.

Shapes: n texts, V vocabulary, F = V + 3 features, P labelled pairs.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_models.losses import preference_loss
from paragone_models.network import PreferenceNetwork
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import read_plan
from paragone_training.data.batches import assemble
from paragone_training.data.groups import PromptGroup
from paragone_training.preference.objective import Objective
from paragone_training.scratch.pretraining import decayed
from paragone_training.scratch.sections import LexicalSection, TeacherSection

__all__ = ["Frame", "Lesson", "Teacher", "distil", "features", "fit_teacher", "imprint", "teach"]

logger = logging.getLogger(__name__)

_SURFACE_WEIGHT = 3.0
"""Length is penalised less than words: a feature this many times larger needs a weight that many times smaller."""
_LOG_EVERY = 100
_PASS = 10
"""Texts of one forward pass."""


@dataclass(frozen=True)
class Teacher:
    """A linear reward over token counts.

    Attributes:
        weights: of the features. [F]
        characters: length of each token in characters. [V]
    """

    weights: Tensor
    characters: Tensor

    def rewards(self, responses: Sequence[Sequence[int]]) -> Tensor:
        """Return the teacher's reward of each response.

        Args:
            responses: their own tokens, without what the template puts around them.

        Returns:
            Rewards, in logits. [n]
        """
        return features(responses, self.characters) @ self.weights


@dataclass(frozen=True)
class Frame:
    """What a template puts around a response: how a conversation's tokens are made from a response's.

    Attributes:
        before: prompt and header of the response.
        after: what ends it.
        prompt_length: tokens of the prompt alone.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Lesson:
    """One prompt and the responses to it that people judged.

    Attributes:
        frame: of the prompt.
        responses: their tokens.
    """

    frame: Frame
    responses: Sequence[Sequence[int]]


def fit_teacher(
    groups: Sequence[PromptGroup], lessons: Sequence[Lesson], characters: Sequence[int], *, penalty: float
) -> Teacher:
    """Return the logistic regression of people's preferences on differences of features, weighted by strength.

        minimise  sum |strength| * -log sigmoid(w . (x_preferred - x_other)) + penalty / 2 * |w|^2

    Args:
        groups: prompts with labels; ties are left out.
        lessons: the tokens of the same groups.
        characters: length of each token in characters. [V]
        penalty: keeps the weights of rare tokens small.
    """
    lengths = torch.tensor(characters, dtype=torch.float32)
    texts, first, second, strength = list[Sequence[int]](), list[int](), list[int](), list[float]()
    for group, lesson in zip(groups, lessons, strict=True):
        for label in group.labels:
            if label.strength:
                first.append(len(texts) + label.first)
                second.append(len(texts) + label.second)
                strength.append(label.strength)
        texts += list(lesson.responses)
    table = features(texts, lengths)
    one, two, signed = torch.tensor(first), torch.tensor(second), torch.tensor(strength)
    weights = torch.zeros(table.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        rewards = table @ weights
        misfit = functional.softplus(-signed.sign() * (rewards[one] - rewards[two])) * signed.abs()
        loss = misfit.sum() + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return Teacher(weights.detach(), lengths)


def imprint(embedding: nn.Embedding, teacher: Teacher, scale: float) -> None:
    """Write what the teacher knows about single tokens into an embedding: its weight and its length, a coordinate each.

    So the network need not learn four thousand weights by gradient, most of them of tokens it hardly sees.

    Args:
        embedding: changed in place.
        teacher: whose weights.
        scale: standard deviation of the two coordinates, in that of all the others.
    """
    table = embedding.weight
    words = (teacher.characters > 0).to(table.device)
    with torch.no_grad():
        spread = table[words].std() * scale
        weights = teacher.weights[: len(teacher.characters)].to(table.device)
        lengths = teacher.characters.to(table.device) / 5 - 1
        table[:, 0] = torch.where(words, weights / weights[words].std() * spread, 0.0)
        table[:, 1] = torch.where(words, lengths * spread, 0.0)


def distil(
    network: PreferenceNetwork,
    spec: ModelSpec,
    teacher: Teacher,
    lessons: Sequence[Lesson],
    objective: Objective,
    section: TeacherSection,
    *,
    pad_id: int,
    seed: int,
) -> list[float]:
    """Teach a network to compare texts as the teacher does; return the divergence of every step.

        loss = mean over pairs of KL(sigmoid(teacher difference) || sigmoid(network's logit))

    Args:
        network: changed in place.
        spec: its read plan.
        teacher: labels every pair of texts under one prompt.
        lessons: prompts and real responses.
        objective: turns representations into logits.
        section: steps, rate and batch.
        pad_id: of the tokenizer.
        seed: of everything drawn.
    """

    def divergence(representations: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        pairs = torch.triu_indices(len(texts), len(texts), 1).T
        wanted = teacher.rewards(texts)
        target = torch.sigmoid(wanted[pairs[:, 0]] - wanted[pairs[:, 1]]).to(representations.device)
        logits = objective.logits(representations, pairs.to(representations.device))
        return preference_loss(logits, target).mean() - functional.binary_cross_entropy(target, target)

    return teach(network, spec, lessons, divergence, section, pad_id=pad_id, seed=seed)


def teach(
    network: PreferenceNetwork,
    spec: ModelSpec,
    lessons: Sequence[Lesson],
    loss: Callable[[Tensor, Sequence[Sequence[int]]], Tensor],
    section: TeacherSection | LexicalSection,
    *,
    pad_id: int,
    seed: int,
    reword: Callable[[Frame, random.Random], Frame] | None = None,
) -> list[float]:
    """Train a network on made-up texts, a few real ones among them; return the loss of every step.

    Args:
        network: changed in place.
        spec: its read plan.
        lessons: prompts and real responses.
        loss: of representations [n, d] of texts, beside the texts' own tokens; a scalar.
        section: steps, rate and batch.
        pad_id: of the tokenizer.
        seed: of everything drawn.
        reword: puts another prompt around a text, or None to keep the lesson's.
    """
    draw = random.Random(seed)  # noqa: S311 - made-up texts, not secrets
    optimizer = torch.optim.AdamW(network.parameters(), lr=section.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    pool = [list(response) for lesson in lessons for response in lesson.responses if len(response)]
    tokens = [token for response in pool for token in response]
    history = list[float]()
    network.train()
    for step in range(section.steps):
        lesson = draw.choice(lessons)
        real = draw.sample(list(lesson.responses), min(len(lesson.responses), section.batch_responses // 3))
        made = [_collage(pool, tokens, section.token_noise, draw) for _ in range(section.batch_responses - len(real))]
        texts = [*real, *made]
        frames = [reword(lesson.frame, draw) if reword else lesson.frame for _ in texts]
        for group in optimizer.param_groups:
            group["lr"] = decayed(section.learning_rate, step, section.steps)
        missed = loss(_represent(network, spec, frames, texts, pad_id=pad_id), texts)
        optimizer.zero_grad()
        missed.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        history.append(missed.item())
        if (step + 1) % _LOG_EVERY == 0:
            mean = sum(history[-_LOG_EVERY:]) / _LOG_EVERY
            logger.info("made-up texts, step %d of %d: loss %.4f", step + 1, section.steps, mean)
    return history


def features(responses: Sequence[Sequence[int]], characters: Tensor) -> Tensor:
    """Return log counts of tokens and length three ways, [n, F].

    Args:
        responses: their own tokens. n of them
        characters: length of each token in characters. [V]
    """
    rows = []
    for response in responses:
        ids = torch.tensor(list(response), dtype=torch.long)
        counts = torch.bincount(ids, minlength=len(characters)).float().log1p()
        written = characters[ids].sum()
        surface = torch.stack(
            [1.2 * ((written + 5).log() - 5.3), 1.3 * (written / 200 - 1.2), 3 * (written / max(1, len(ids)) - 3.9)]
        )
        rows.append(torch.cat([counts, _SURFACE_WEIGHT * surface]))
    return torch.stack(rows)


def _represent(
    network: nn.Module, spec: ModelSpec, frames: Sequence[Frame], texts: Sequence[Sequence[int]], *, pad_id: int
) -> Any:
    """Return representations [n, d]; texts of like length pass together, since most of one batch would be padding."""
    device = next(network.parameters()).device
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    parts = []
    for start in range(0, len(order), _PASS):
        indices = order[start : start + _PASS]
        sequences = [[*frames[index].before, *texts[index], *frames[index].after] for index in indices]
        lengths = zip(indices, sequences, strict=True)
        reads = [read_plan(spec, frames[index].prompt_length, len(sequence)) for index, sequence in lengths]
        batch = assemble(sequences, reads, [], pad_id=pad_id)
        parts.append(
            network(batch["input_ids"].to(device), batch["reads"].to(device), batch["attention_mask"].to(device))
        )
    return torch.cat(parts)[torch.tensor(order, device=device).argsort()]


def _collage(pool: Sequence[list[int]], tokens: Sequence[int], noise: float, draw: random.Random) -> list[int]:
    """Return crops of random responses in a row, of log-uniform length, with tokens replaced in every other text."""
    length = int(math.exp(draw.uniform(math.log(3), math.log(190))))
    text: list[int] = []
    while len(text) < length:
        source = draw.choice(pool)
        start = draw.randint(0, max(0, len(source) - 2))
        text += source[start : start + draw.randint(5, 80)]
    text = text[:length]
    if draw.random() < 0.5:
        return [draw.choice(tokens) if draw.random() < noise else token for token in text]
    return text
