"""Made-up texts that a network from random weights learns from before it sees a label: how they are made and taught.

Eight hundred texts are too few for a decoder from random weights. So it first learns from crops and collages of them,
of every length, some with tokens replaced. What there is to learn is a loss that the caller brings: a teacher's opinion
(``teachers``), or words and length (``lexical``).

Shapes: n texts, d length of a representation, V vocabulary, F = V + 3 features.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.errors import TextError
from paragone_models.network import PreferenceNetwork
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import Reading, TextReader, conversation, read_plan
from paragone_training.data import PromptGroup, assemble
from paragone_training.errors import DataError
from paragone_training.scratch.pretraining import decayed
from paragone_training.scratch.sections import LexicalSection, TeacherSection

__all__ = ["SURFACE", "Lesson", "Rewording", "features", "lessons", "teach", "token_lengths"]

logger = logging.getLogger(__name__)

# Measures of length among the features, the last ones.
SURFACE = 3
# Length is penalised less than words: a feature this many times larger needs a weight that many times smaller.
_SURFACE_WEIGHT = 3.0
_LOG_EVERY = 100
# Texts of one forward pass.
_PASS = 10
# Share of texts that keep their lesson's prompt.
_OWN_PROMPT = 0.2
# Shortest and longest made-up prompt, in tokens.
_PROMPT_TOKENS = (3, 40)

Tokens = Sequence[int]


@dataclass(frozen=True)
class _Frame:
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
    """One prompt, and the tokens of the responses to it that people judged."""

    frame: _Frame
    responses: Sequence[Tokens]


def lessons(groups: Sequence[PromptGroup], readings: Sequence[Sequence[Reading]], reader: TextReader) -> list[Lesson]:
    """Return each prompt's frame and the tokens of its responses alone.

    Raises:
        DataError: if a prompt leaves no room for a response.
    """
    empties = reader.read([conversation(group.pair.prompt_messages, "") for group in groups])
    return [_lesson(group, seen, empty) for group, seen, empty in zip(groups, readings, empties, strict=True)]


def _lesson(group: PromptGroup, readings: Sequence[Reading], empty: Reading | TextError) -> Lesson:
    if not isinstance(empty, Reading):
        raise DataError(f"{group.pair.where}: {empty}")
    # What all conversations share with the empty one is the frame. A conversation that lost tokens from the left starts
    # elsewhere and says nothing about it.
    shared = min(
        [len(empty.token_ids)]
        + [_alike([empty.token_ids, reading.token_ids]) for reading in readings if reading.dropped_tokens == 0]
    )
    after = tuple(empty.token_ids[shared:])
    frame = _Frame(tuple(empty.token_ids[:shared]), after, empty.prompt_length)
    return Lesson(frame, [reading.token_ids[shared : len(reading.token_ids) - len(after)] for reading in readings])


def _alike(sequences: Sequence[Tokens]) -> int:
    """Return how many tokens all sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def token_lengths(tokenizer: Any) -> list[int]:
    """Return how many characters each token of a byte-level vocabulary stands for; special tokens stand for none."""
    # A byte-level token writes each byte as one character, so the length of its name is what it stands for.
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [0 if index in special else len(name) for index, name in enumerate(names)]


def features(responses: Sequence[Tokens], characters: Tensor) -> Tensor:
    """Return log counts of tokens, and length in three ways, [n, F].

    Args:
        responses: their own tokens, without what the template puts around them. n of them
        characters: length of each token in characters. [V]
    """
    rows = []
    for response in responses:
        ids = torch.tensor(list(response), dtype=torch.long)
        counts = torch.bincount(ids, minlength=len(characters)).float().log1p()
        written = characters[ids].sum()
        # The constants centre and scale the measures for arguments of a few sentences.
        surface = torch.stack(
            [1.2 * ((written + 5).log() - 5.3), 1.3 * (written / 200 - 1.2), 3 * (written / max(1, len(ids)) - 3.9)]
        )
        rows.append(torch.cat([counts, _SURFACE_WEIGHT * surface]))
    return torch.stack(rows)


class Rewording:
    """Puts a made-up prompt around most texts: a crop of a random response, inside the template.

    A comparison does not notice what a network adds to all responses of a prompt; a rating does. With a few training
    prompts a network learns an offset for each, and rates under a new prompt by accident.

    Args:
        lessons: their frames show the template: what all begin and end with. A single prompt shows none.
    """

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        befores = [lesson.frame.before for lesson in lessons]
        self._first = _alike(befores)
        self._last = min(_alike([before[::-1] for before in befores]), min(map(len, befores)) - self._first)
        self._pool = [response for lesson in lessons for response in lesson.responses if len(response)]

    def __call__(self, frame: _Frame, draw: random.Random) -> _Frame:
        """Return the frame, or one with another prompt."""
        if draw.random() < _OWN_PROMPT:
            return frame
        source = draw.choice(self._pool)
        start = draw.randint(0, max(0, len(source) - 2))
        prompt = source[start : start + draw.randint(*_PROMPT_TOKENS)]
        end = len(frame.before) - self._last
        # The prompt changes in length, and where the response is read moves with it.
        before = (*frame.before[: self._first], *prompt, *frame.before[end:])
        return _Frame(before, frame.after, frame.prompt_length + len(before) - len(frame.before))


def teach(
    network: PreferenceNetwork,
    spec: ModelSpec,
    lessons: Sequence[Lesson],
    loss: Callable[[Tensor, Sequence[Tokens]], Tensor],
    section: TeacherSection | LexicalSection,
    *,
    pad_id: int,
    seed: int,
    reword: Callable[[_Frame, random.Random], _Frame] | None = None,
) -> list[float]:
    """Train a network on made-up texts, a few real ones among them; return the loss of every step.

    Args:
        network: changed in place.
        loss: of representations [n, d] of texts, beside the texts' own tokens; a scalar.
        reword: puts another prompt around a text, or None to keep the lesson's.
    """
    draw = random.Random(seed)  # noqa: S311 - made-up texts, not secrets
    optimizer = torch.optim.AdamW(network.parameters(), lr=section.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    pool = [list(response) for lesson in lessons for response in lesson.responses if len(response)]
    tokens = [token for response in pool for token in response]
    history = list[float]()
    network.train()
    for step in range(section.steps):
        # All texts of a step stand under one prompt: a comparison across prompts would mean nothing.
        lesson = draw.choice(lessons)
        real = draw.sample(list(lesson.responses), min(len(lesson.responses), section.batch_responses // 3))
        made = [_collage(pool, tokens, section.token_noise, draw) for _ in range(section.batch_responses - len(real))]
        texts = [*real, *made]
        frames = [reword(lesson.frame, draw) if reword else lesson.frame for _ in texts]
        for group in optimizer.param_groups:
            group["lr"] = decayed(section.learning_rate, step, section.steps)
        missed = loss(_represented(network, spec, frames, texts, pad_id=pad_id), texts)
        optimizer.zero_grad()
        missed.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        history.append(missed.item())
        if (step + 1) % _LOG_EVERY == 0:
            mean = sum(history[-_LOG_EVERY:]) / _LOG_EVERY
            logger.info("made-up texts, step %d of %d: loss %.4f", step + 1, section.steps, mean)
    return history


def _represented(
    network: nn.Module, spec: ModelSpec, frames: Sequence[_Frame], texts: Sequence[Tokens], *, pad_id: int
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


def _collage(pool: Sequence[list[int]], tokens: Tokens, noise: float, draw: random.Random) -> list[int]:
    """Return crops of random responses in a row, of log-uniform length, with tokens replaced in every other text."""
    # As many short texts as long ones, on a log scale.
    length = int(math.exp(draw.uniform(math.log(3), math.log(190))))
    text: list[int] = []
    while len(text) < length:
        source = draw.choice(pool)
        start = draw.randint(0, max(0, len(source) - 2))
        text += source[start : start + draw.randint(5, 80)]
    text = text[:length]
    # Noise in half of them: no crop can be learned by heart, and the other half looks as real texts do.
    if draw.random() < 0.5:
        return [draw.choice(tokens) if draw.random() < noise else token for token in text]
    return text
