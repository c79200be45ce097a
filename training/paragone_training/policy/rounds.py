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
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paragone_evaluation.readers import Prompt
from paragone_training.policy.errors import RunError
from paragone_training.policy.oracle.asking import Asker, Chunk, Group
from paragone_training.policy.rows.files import read_table, write_table
from paragone_training.policy.sampling.in_process import Drawn, Missing, Sample, Sampler

__all__ = ["Answer", "Response", "Spent", "play_round", "read_answers", "read_responses"]

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
        loading_s: seconds until the sampler had the policy's weights, a server's start included.
        sampling_s: seconds of drawing.
        waiting_s: seconds of waiting for oracles after the last draw.
    """

    loading_s: float = 0.0
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
    asking = _Asking(parts, askers, responses, against or {})
    left = {number: chunk for number, chunk in enumerate(chunks) if not _samples(parts, number).exists()}
    for number in range(len(chunks)):
        if number not in left:
            asking.begin(number, chunks[number])
    if left:
        began = time.monotonic()
        ready = sampler()
        spent.loading_s = time.monotonic() - began
        began = time.monotonic()
        for number, groups in ready.draw_chunks(left, responses=responses, names=names):
            _write_samples(_samples(parts, number), left[number], groups, decode)
            asking.begin(number, left[number])
            asking.collect(wait=False)
        spent.sampling_s = time.monotonic() - began
    began = time.monotonic()
    asking.collect(wait=True)
    spent.waiting_s = time.monotonic() - began
    numbers = range(len(chunks))
    if not any(_present(parts, number, chunks[number]) for number in numbers):
        shutil.rmtree(parts)
        raise RunError("no group of the round was drawn completely: see the log for each, raise the limits and resume")
    for name in askers:
        _gather(folder / f"{name}.parquet", [parts / f"{name}-{number:05d}.parquet" for number in numbers], _ANSWERS)
        if all(answer.failure is not None for answer in read_answers(folder / f"{name}.parquet")):
            raise RunError(f"the oracle gave no whole table: {folder / name}.parquet says why of each prompt")
    _gather(wanted[0], [_samples(parts, number) for number in numbers], _SAMPLES)
    shutil.rmtree(parts)
    return spent


class _Asking:
    """The chunks that oracles are asked for, and the answers that come.

    Args:
        parts: folder of the chunks.
        askers: oracles, by the names of their files.
        responses: K.
        against: other responses of each group.
    """

    def __init__(
        self, parts: Path, askers: Mapping[str, Asker], responses: int, against: Mapping[str, Sequence[str]]
    ) -> None:
        self._parts, self._askers, self._responses, self._against = parts, askers, responses, against
        self._pending: dict[Path, tuple[Future[Chunk], list[Prompt], Asker, int]] = {}

    def begin(self, number: int, chunk: Sequence[Prompt]) -> None:
        """Ask for the groups of a chunk that are drawn, unless the answer is on disk."""
        for name, asker in self._askers.items():
            answers = self._parts / f"{name}-{number:05d}.parquet"
            if answers.exists():
                continue
            present = _present(self._parts, number, chunk)
            if present:
                rows = read_responses(_samples(self._parts, number))
                groups = _groups(present, rows, self._responses, self._against)
                self._pending[answers] = (asker.submit(groups), present, asker, number)
            else:
                write_table(answers, {name: [] for name in _ANSWERS.names}, _ANSWERS)

    def collect(self, *, wait: bool) -> None:
        """Write the answers that have come; with ``wait``, all of them. An oracle's error is raised here."""
        for path in list(self._pending):
            future, chunk, asker, number = self._pending[path]
            if wait or future.done():
                _write_answers(path, chunk, future.result(), asker, number)
                del self._pending[path]


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


def _samples(parts: Path, number: int) -> Path:
    return parts / f"samples-{number:05d}.parquet"


def _present(parts: Path, number: int, chunk: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of a chunk whose groups were drawn."""
    drawn = set(read_table(_samples(parts, number))["prompt_id"])
    return [prompt for prompt in chunk if prompt.id in drawn]


def _write_samples(
    path: Path, chunk: Sequence[Prompt], groups: Sequence[Drawn], decode: Callable[[Sequence[int]], str]
) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in _SAMPLES.names}
    for prompt, group in zip(chunk, groups, strict=True):
        if isinstance(group, Missing):
            logger.warning("prompt %s is left out of this round: %s", prompt.id, group.reason)
            continue
        for place, sample in enumerate(group):
            row = _row(prompt, place, sample, decode)
            for name, value in zip(_SAMPLES.names, row, strict=True):
                columns[name].append(value)
    write_table(path, columns, _SAMPLES)


def _row(prompt: Prompt, place: int, sample: Sample, decode: Callable[[Sequence[int]], str]) -> tuple[Any, ...]:
    """Return a row of samples.parquet, in the order of its columns."""
    drawn = list(sample.token_ids)
    known = (prompt.id, prompt.text, place, list(prompt.token_ids))
    return (*known, drawn, decode(drawn), sample.finished, sample.logprob)


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
