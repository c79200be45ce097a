"""A sampling round: responses drawn chunk by chunk, each chunk asked for while the next one is drawn, all kept on disk.

    FOLDER/samples.parquet            one row per response
    FOLDER/NAME.parquet               one row per prompt: the K×K table of one oracle, both orders
    FOLDER/parts/…                    chunks of an unfinished round

K is the number of responses of a group. After a kill, chunks on disk are neither drawn nor asked for again.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paragone_training.policy.errors import RunError
from paragone_training.policy.files import read_table, write_table
from paragone_training.policy.oracle import Asker, Chunk, Group
from paragone_training.policy.prompts import Prompt
from paragone_training.policy.sampling import Sample

__all__ = ["Answer", "Response", "Sampler", "Spent", "play_round", "read_answers", "read_responses"]

logger = logging.getLogger(__name__)

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


class Sampler(Protocol):
    """Draws responses."""

    def sample(self, prompts: Sequence[Prompt], *, responses: int, names: tuple[object, ...]) -> list[Sample]:
        """Return ``responses`` samples of each prompt, those of a prompt together.

        Args:
            prompts: with token ids.
            responses: to each.
            names: what the random numbers are made of, beside prompt and number.
        """


@dataclass(frozen=True)
class Response:
    """One row of samples.parquet."""

    prompt_id: str
    prompt: str
    number: int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finished: bool
    sampler_logprob: float | None


@dataclass(frozen=True)
class Answer:
    """One row of an oracle's table file.

    Attributes:
        prompt_id: whose group.
        raw: P(row preferred to column), NaN where missing. [K, K]
        failure: why comparisons are missing, or None.
    """

    prompt_id: str
    raw: NDArray[np.float64]
    failure: str | None


@dataclass
class Spent:
    """Where a round's time and the oracle's passes went.

    Attributes:
        sampling_s: seconds of drawing.
        waiting_s: seconds of waiting for oracles after the last draw.
    """

    sampling_s: float = 0.0
    waiting_s: float = 0.0


def play_round(
    folder: Path,
    prompts: Sequence[Prompt],
    sampler: Callable[[], Sampler],
    askers: Mapping[str, Asker],
    *,
    responses: int,
    batch: int,
    names: tuple[object, ...],
    decode: Callable[[Sequence[int]], str],
    against: Mapping[str, Sequence[str]] | None = None,
) -> Spent:
    """Draw responses, ask the oracles, and leave both on disk.

    Args:
        folder: of the round.
        prompts: with token ids.
        sampler: makes what draws; called only where something is left to draw.
        askers: oracles, by the names of their files.
        responses: K, to each prompt.
        batch: responses of a chunk, about.
        names: what the random numbers are made of.
        decode: text of a response's token ids.
        against: other responses that join the group of a prompt, behind its own, by prompt id.

    Returns:
        What it took this time.

    Raises:
        RunError: if an oracle is gone, replaced, or answered nothing at all.
    """
    spent = Spent()
    wanted = [folder / "samples.parquet", *(folder / f"{name}.parquet" for name in askers)]
    parts = folder / "parts"
    if all(path.exists() for path in wanted):
        shutil.rmtree(parts, ignore_errors=True)
        return spent
    size = max(batch // responses, 1)
    chunks = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
    ready = None
    pending: dict[Path, tuple[Future[Chunk], list[Prompt], Asker, int]] = {}
    for number, chunk in enumerate(chunks):
        path = parts / f"samples-{number:05d}.parquet"
        began = time.monotonic()
        if not path.exists():
            ready = ready or sampler()
            drawn = ready.sample(chunk, responses=responses, names=names)
            _write_samples(path, chunk, drawn, responses, decode)
            spent.sampling_s += time.monotonic() - began
        rows = read_responses(path)
        for name, asker in askers.items():
            answers = parts / f"{name}-{number:05d}.parquet"
            if not answers.exists():
                groups = _groups(chunk, rows, responses, against or {})
                pending[answers] = (asker.submit(groups), chunk, asker, number)
        _collect(pending, wait=False)
    began = time.monotonic()
    _collect(pending, wait=True)
    spent.waiting_s = time.monotonic() - began
    for name in askers:
        _gather(folder / f"{name}.parquet", [parts / f"{name}-{n:05d}.parquet" for n in range(len(chunks))], _ANSWERS)
        if all(answer.failure is not None for answer in read_answers(folder / f"{name}.parquet")):
            raise RunError(f"the oracle gave no whole table: {folder / name}.parquet says why of each prompt")
    _gather(wanted[0], [parts / f"samples-{n:05d}.parquet" for n in range(len(chunks))], _SAMPLES)
    shutil.rmtree(parts)
    return spent


def read_responses(path: Path) -> list[Response]:
    """Return the rows of a samples file.

    Args:
        path: the file.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    return [Response(*row) for row in zip(*(columns[name] for name in _SAMPLES.names), strict=True)]


def read_answers(path: Path) -> list[Answer]:
    """Return the rows of an oracle's file.

    Args:
        path: the file.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    answers = []
    for prompt_id, size, raw, failure in zip(
        columns["prompt_id"], columns["responses"], columns["raw"], columns["failure"], strict=True
    ):
        values = np.asarray([np.nan if value is None else value for value in raw], dtype=np.float64)
        answers.append(Answer(prompt_id, values.reshape(size, size), failure))
    return answers


def _groups(
    chunk: Sequence[Prompt], rows: Sequence[Response], responses: int, against: Mapping[str, Sequence[str]]
) -> list[Group]:
    groups = []
    for place, prompt in enumerate(chunk):
        own = tuple(row.text for row in rows[place * responses : (place + 1) * responses])
        groups.append(Group(prompt.content, own + tuple(against.get(prompt.id, ()))))
    return groups


def _collect(pending: dict[Path, tuple["Future[Chunk]", list[Prompt], Asker, int]], *, wait: bool) -> None:
    """Write the answers that have come; with ``wait``, all of them. An oracle's error is raised here."""
    for path in list(pending):
        future, chunk, asker, number = pending[path]
        if wait or future.done():
            _write_answers(path, chunk, future.result(), asker, number)
            del pending[path]


def _write_samples(
    path: Path,
    chunk: Sequence[Prompt],
    drawn: Sequence[Sample],
    responses: int,
    decode: Callable[[Sequence[int]], str],
) -> None:
    owners = [prompt for prompt in chunk for _ in range(responses)]
    columns: dict[str, list[Any]] = {
        "prompt_id": [prompt.id for prompt in owners],
        "prompt": [prompt.text for prompt in owners],
        "number": [place % responses for place in range(len(owners))],
        "prompt_ids": [list(prompt.token_ids) for prompt in owners],
        "token_ids": [list(sample.token_ids) for sample in drawn],
        "text": [decode(sample.token_ids) for sample in drawn],
        "finished": [sample.finished for sample in drawn],
        "sampler_logprob": [sample.logprob for sample in drawn],
    }
    write_table(path, columns, _SAMPLES)


def _write_answers(path: Path, chunk: Sequence[Prompt], answer: Chunk, asker: Asker, number: int) -> None:
    assert asker.identity is not None
    # What a chunk cost stands in its first row, so that a column sums to what the round cost.
    rest = [0] * (len(chunk) - 1)
    columns: dict[str, list[Any]] = {
        "prompt_id": [prompt.id for prompt in chunk],
        "responses": [len(table.raw) for table in answer.tables],
        "raw": [[None if np.isnan(value) else value for value in table.raw.ravel()] for table in answer.tables],
        "failure": [table.failure for table in answer.tables],
        "model": [asker.identity.model] * len(chunk),
        "fingerprint": [asker.identity.fingerprint] * len(chunk),
        "chunk": [number] * len(chunk),
        "forward_responses": [answer.forward_responses, *rest],
        "cached_responses": [answer.cached_responses, *rest],
    }
    write_table(path, columns, _ANSWERS)


def _gather(path: Path, parts: Sequence[Path], schema: pa.Schema) -> None:
    if path.exists():
        return
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for part in parts:
        for name, values in read_table(part).items():
            columns[name] += values
    write_table(path, columns, schema)
