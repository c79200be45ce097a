"""The rows of a run, from a prompt to a training pair, with the parquet files that they are kept in.

    Prompt         of the recipe's files                                rendered to token ids, dealt out to iterations
    Response       samples.parquet                                      one of the K responses to a prompt
    Answer         oracle.parquet, judge.parquet                        the K×K table of one prompt, both orders
    LabelledPair   targets.parquet                                      two responses and the label of their comparison
    TrainingPair   not kept: it is made of the files above and of logprobs.parquet

All random numbers of a run come from streams that are named after the row they are for, so that a run that was
interrupted draws the same ones again.
"""

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RecipeError
from paragone_training.policy.rows.folder import read_table, write_table

__all__ = [
    "Answer",
    "LabelledPair",
    "Response",
    "TrainingPair",
    "deal",
    "dealt",
    "read_answers",
    "read_responses",
    "read_targets",
    "render",
    "seed_of",
    "stream",
    "write_answers",
    "write_responses",
    "write_targets",
]


@dataclass(frozen=True)
class Response:
    """One row of samples.parquet.

    Attributes:
        prompt_id: of its prompt.
        prompt: text of its prompt.
        number: from 0, among the K responses to the prompt.
        prompt_ids: token ids of its prompt.
        token_ids: as drawn, with the end token where there is one.
        text: decoded; empty until the row is written.
        finished: it has an end token.
        sampler_logprob: sum over its tokens under the policy at temperature 1, in nats, as the sampler computed it;
            None where a sampler does not say.
    """

    prompt_id: str
    prompt: str
    number: int
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    finished: bool
    sampler_logprob: float | None


@dataclass(frozen=True)
class Answer:
    """One row of an oracle's file.

    Attributes:
        prompt_id: of the group that was asked for.
        raw: P(row preferred to column), both orders, NaN where missing. [K, K]
        failure: why comparisons are missing, or None.
        forward_responses: responses that went through the model.
        cached_responses: responses that the service knew already.
    """

    prompt_id: str
    raw: NDArray[np.float64]
    failure: str | None = None
    forward_responses: int = 0
    cached_responses: int = 0


@dataclass(frozen=True)
class LabelledPair:
    """One row of targets.parquet.

    Attributes:
        prompt_id: of both responses.
        chosen: number of the preferred response.
        rejected: number of the other one.
        preference: target probability that chosen is preferred.
        chosen_target: mean win rate or score of chosen; 0 for methods of labelled pairs.
        rejected_target: the same of rejected.
    """

    prompt_id: str
    chosen: int
    rejected: int
    preference: float
    chosen_target: float
    rejected_target: float


@dataclass(frozen=True)
class TrainingPair:
    """One pair with everything that a loss needs.

    Attributes:
        prompt_ids: token ids.
        chosen_ids: token ids.
        rejected_ids: token ids.
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


_SAMPLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("number", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finished", pa.bool_()),
        ("sampler_logprob", pa.float64()),
    ]
)
_ANSWERS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("responses", pa.int32()),
        ("raw", pa.list_(pa.float64())),
        ("failure", pa.string()),
        ("model", pa.string()),
        ("fingerprint", pa.string()),
        ("chunk", pa.int32()),
        ("forward_responses", pa.int32()),
        ("cached_responses", pa.int32()),
    ]
)
_TARGETS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("preference", pa.float64()),
        ("chosen_target", pa.float64()),
        ("rejected_target", pa.float64()),
    ]
)


def read_responses(path: Path) -> list[Response]:
    """Return the rows of a samples file.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    return [Response(*row) for row in zip(*(columns[name] for name in _SAMPLES.names), strict=True)]


def write_responses(path: Path, rows: Sequence[Response]) -> None:
    """Write a samples file.

    Raises:
        DiskFullError: if there is no room.
    """
    write_table(path, {name: [getattr(row, name) for row in rows] for name in _SAMPLES.names}, _SAMPLES)


def read_answers(path: Path) -> list[Answer]:
    """Return the rows of an oracle's file.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    names = ("prompt_id", "responses", "raw", "failure", "forward_responses", "cached_responses")
    rows = []
    for prompt_id, size, raw, failure, *cost in zip(*(columns[name] for name in names), strict=True):
        values = np.asarray([np.nan if value is None else value for value in raw], dtype=np.float64)
        rows.append(Answer(prompt_id, values.reshape(size, size), failure, *cost))
    return rows


def write_answers(path: Path, rows: Sequence[tuple[int, str, str, Answer]]) -> None:
    """Write an oracle's file.

    Args:
        path: of the file.
        rows: number of the chunk, the model's id and fingerprint, and the answer.

    Raises:
        DiskFullError: if there is no room.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _ANSWERS.names}
    for chunk, model, fingerprint, answer in rows:
        values = (
            answer.prompt_id,
            len(answer.raw),
            [None if np.isnan(value) else value for value in answer.raw.ravel()],  # JSON and SQL readers know no NaN
            answer.failure,
            model,
            fingerprint,
            chunk,
            answer.forward_responses,
            answer.cached_responses,
        )
        for name, value in zip(_ANSWERS.names, values, strict=True):
            columns[name].append(value)
    write_table(path, columns, _ANSWERS)


def read_targets(path: Path) -> list[LabelledPair]:
    """Return the rows of targets.parquet.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    return [LabelledPair(*row) for row in zip(*(columns[name] for name in _TARGETS.names), strict=True)]


def write_targets(path: Path, rows: Sequence[LabelledPair]) -> None:
    """Write targets.parquet.

    Raises:
        DiskFullError: if there is no room.
    """
    write_table(path, {name: [getattr(row, name) for row in rows] for name in _TARGETS.names}, _TARGETS)


def render(prompts: Sequence[Prompt], tokenizer: Any, *, longest: int) -> list[Prompt]:
    """Return the prompts with their token ids.

    Args:
        prompts: without token ids.
        tokenizer: of the policy, with a chat template.
        longest: tokens that a prompt may have.

    Raises:
        RecipeError: if the tokenizer has no chat template, or a prompt does not fit.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "the policy's tokenizer has no chat template: choose an instruction-tuned model, or set "
            "tokenizer.chat_template and save the tokenizer beside the model"
        )
    rendered = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt.content}] if isinstance(prompt.content, str) else prompt.content
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        if len(tokens) > longest:
            raise RecipeError(
                f"prompt {prompt.id!r} has {len(tokens)} tokens; the context leaves {longest} beside "
                "sampling.max_new_tokens: shorten it, lower max_new_tokens, or leave the prompt out"
            )
        rendered.append(dataclasses.replace(prompt, token_ids=tuple(tokens)))
    return rendered


def dealt(prompts: int, per_iteration: int) -> int:
    """Return how many of so many prompts an iteration gets; ``per_iteration`` 0 is all."""
    return min(per_iteration or prompts, prompts)


def deal(prompts: Sequence[Prompt], *, iteration: int, per_iteration: int, seed: int) -> list[Prompt]:
    """Return the prompts of one iteration: disjoint parts of a shuffled order, which is reshuffled when used up.

    Args:
        prompts: all of them.
        iteration: from 1.
        per_iteration: as in ``dealt``.
        seed: of the order.
    """
    count = dealt(len(prompts), per_iteration)
    if count == len(prompts):
        return list(prompts)
    hand: list[Prompt] = []
    position = (iteration - 1) * count
    while len(hand) < count:
        turn, place = divmod(position + len(hand), len(prompts))
        order = list(prompts)
        # A seed of its own for each turn: an iteration is dealt without dealing those before it.
        random.Random(f"{seed}/{turn}").shuffle(order)  # noqa: S311 - shuffling, not secrets
        hand += order[place : place + count - len(hand)]
    return hand


def stream(*names: object) -> np.random.Generator:
    """Return the random numbers of a row, of a response say; ``names`` are its seed, iteration, prompt, number."""
    return np.random.Generator(np.random.PCG64(_hashed(*names)))


def seed_of(*names: object) -> int:
    """Return the seed that a server draws a response with, from its names: 53 bits, which every JSON reader keeps."""
    return _hashed(*names) % 2**53


def _hashed(*names: object) -> int:
    digest = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
