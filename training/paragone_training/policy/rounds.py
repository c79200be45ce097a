"""A sampling round: responses sampled chunk by chunk; the oracles are asked for a chunk while the next one is sampled.

    FOLDER/samples.parquet            one row per response
    FOLDER/NAME.parquet               one row per prompt: the K×K table of one oracle, both orders
    FOLDER/parts/…                    chunks of an unfinished round

K is the number of responses to a prompt; a chunk is the prompts that are sampled, asked for and kept together. After a
kill, chunks on disk are neither sampled nor asked for again.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragone_evaluation.readers import Prompt
from paragone_training.policy.errors import RunError
from paragone_training.policy.oracle import OracleClient
from paragone_training.policy.rows.rows import (
    Answer,
    Response,
    read_answers,
    read_responses,
    write_answers,
    write_responses,
)
from paragone_training.policy.sampling.sampler import Missing, Sampled, Sampler

__all__ = ["Round", "play_round"]

logger = logging.getLogger(__name__)


@dataclass
class Round:
    """A round that is on disk.

    Attributes:
        responses: all of them, in the order of the prompts.
        answers: of the first oracle; empty without one.
        loading_s: seconds until the sampler had the policy's weights, a server's start included; 0 if nothing was left.
        sampling_s: seconds of sampling.
        waiting_s: seconds of waiting for oracles after the last sample.
    """

    responses: list[Response]
    answers: list[Answer]
    loading_s: float = 0.0
    sampling_s: float = 0.0
    waiting_s: float = 0.0


def play_round(
    folder: Path,
    prompts: Sequence[Prompt],
    sampler: Callable[[], Sampler],
    oracles: Mapping[str, OracleClient],
    *,
    responses: int,
    batch: int,
    names: tuple[object, ...],
    tokenizer: Any,
    against: Mapping[str, Sequence[str]] | None = None,
) -> Round:
    """Sample responses, ask the oracles, leave both on disk, and return them.

    Args:
        folder: of the round.
        prompts: with token ids.
        sampler: makes the sampler; called only where something is left to sample.
        oracles: by the names of their files.
        responses: K.
        batch: responses of a chunk, about.
        names: what the random numbers are made of.
        tokenizer: of the policy, for the texts.
        against: other responses that join the group of a prompt, behind its own, by prompt id.

    Raises:
        RunError: if an oracle is gone, replaced, or answered nothing at all.
    """
    samples = folder / "samples.parquet"
    files = {name: folder / f"{name}.parquet" for name in oracles}
    if samples.exists() and all(path.exists() for path in files.values()):
        shutil.rmtree(folder / "parts", ignore_errors=True)
        answers = read_answers(next(iter(files.values()))) if files else []
        return Round(read_responses(samples), answers)
    # Whole groups only: an oracle compares the K responses to one prompt with each other.
    size = max(batch // responses, 1)
    chunks = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
    parts = _Parts(folder / "parts", prompts, oracles, against or {})
    # Chunks are numbered from the start of the round, so that a restart finds the same ones on disk.
    left = {number: chunk for number, chunk in enumerate(chunks) if not parts.restore(number)}
    loading_s = sampling_s = 0.0
    if left:
        began = time.monotonic()
        # Only now, because taking the weights may start servers; a round that is on disk needs none.
        ready = sampler()
        loading_s, began = time.monotonic() - began, time.monotonic()
        for number, groups in ready.draw_chunks(left, responses=responses, names=names):
            parts.add(number, _whole_groups(left[number], groups, tokenizer))
            # An oracle that is gone stops the run here, not after hours of sampling.
            parts.collect(wait=False)
        sampling_s = time.monotonic() - began
    began = time.monotonic()
    parts.collect(wait=True)
    waiting_s = time.monotonic() - began
    rows = parts.finish(samples, files)
    return Round(rows, parts.answers_of(next(iter(files))) if files else [], loading_s, sampling_s, waiting_s)


def _whole_groups(chunk: Sequence[Prompt], groups: Sequence[Sampled], tokenizer: Any) -> list[Response]:
    """Return the rows of the groups that were sampled completely, with their texts."""
    rows = []
    for prompt, group in zip(chunk, groups, strict=True):
        if isinstance(group, Missing):
            logger.warning("prompt %s is left out of this round: %s", prompt.id, group.reason)
            continue
        rows += [
            replace(row, text=str(tokenizer.decode(list(row.token_ids), skip_special_tokens=True))) for row in group
        ]
    return rows


class _Parts:
    """The chunks of a round in memory and on disk, and the tables that oracles are asked for.

    A chunk's samples are written before its tables are asked for, and its tables as soon as they come: whatever moment
    a run is killed at, it asks again at most for what was in flight.

    Args:
        folder: of the chunks.
        prompts: of the round.
        oracles: by the names of their files.
        against: other responses of each group.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[Prompt],
        oracles: Mapping[str, OracleClient],
        against: Mapping[str, Sequence[str]],
    ) -> None:
        self._folder, self._oracles, self._against = folder, oracles, against
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._rows: dict[int, list[Response]] = {}
        self._answers: dict[str, dict[int, list[Answer]]] = {name: {} for name in oracles}
        self._pending: dict[tuple[str, int], Future[list[Answer]]] = {}

    def restore(self, number: int) -> bool:
        """Return whether a chunk is on disk; if so its tables are read, or asked for."""
        if not self._part("samples", number).exists():
            return False
        self._rows[number] = read_responses(self._part("samples", number))
        self._ask(number)
        return True

    def add(self, number: int, rows: list[Response]) -> None:
        """Write the samples of a chunk, and ask for its tables."""
        write_responses(self._part("samples", number), rows)
        self._rows[number] = rows
        self._ask(number)

    def collect(self, *, wait: bool) -> None:
        """Write the tables that have come; with ``wait``, all of them. An oracle's error is raised here."""
        for name, number in list(self._pending):
            # In the order of asking; answers that are behind a slow one are written when it has come.
            if wait or self._pending[name, number].done():
                answers = self._pending.pop((name, number)).result()
                self._answers[name][number] = answers
                self._write(self._part(name, number), name, {number: answers})

    def finish(self, samples: Path, files: Mapping[str, Path]) -> list[Response]:
        """Write the files of the whole round, remove the chunks, and return the responses."""
        rows = [row for number in sorted(self._rows) for row in self._rows[number]]
        if not rows:
            shutil.rmtree(self._folder)
            raise RunError(
                "no group of the round was sampled completely: see the log for each, raise the limits and resume"
            )
        for name, path in files.items():
            if not path.exists():
                self._write(path, name, self._answers[name])
            # One broken prompt is left out; a round without any table means that the oracle cannot do its work.
            if all(answer.failure is not None for answer in self.answers_of(name)):
                raise RunError(f"the oracle gave no whole table: {path} says why of each prompt")
        # Last, since a round whose samples are whole does not look for chunks any more.
        if not samples.exists():
            write_responses(samples, rows)
        shutil.rmtree(self._folder)
        return rows

    def answers_of(self, name: str) -> list[Answer]:
        """Return the tables of an oracle, in the order of the prompts."""
        return [answer for number in sorted(self._answers[name]) for answer in self._answers[name][number]]

    def _ask(self, number: int) -> None:
        for name, oracle in self._oracles.items():
            path = self._part(name, number)
            if path.exists():
                self._answers[name][number] = read_answers(path)
            elif groups := list(self._groups(self._rows[number])):
                self._pending[name, number] = oracle.submit(groups)
            else:
                self._answers[name][number] = []
                self._write(path, name, {})

    def _groups(self, rows: Sequence[Response]) -> Iterator[tuple[Prompt, Sequence[str]]]:
        # Rows of a chunk are in the order of its prompts, and a group that could not be sampled has none.
        texts: dict[str, list[str]] = {}
        for row in rows:
            texts.setdefault(row.prompt_id, []).append(row.text)
        for prompt_id, own in texts.items():
            yield self._prompts[prompt_id], [*own, *self._against.get(prompt_id, ())]

    def _part(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:05d}.parquet"

    def _write(self, path: Path, name: str, answers: Mapping[int, Sequence[Answer]]) -> None:
        identity = self._oracles[name].identity
        model, fingerprint = (identity.model, identity.fingerprint) if identity else ("", "")
        rows = [(number, model, fingerprint, answer) for number in sorted(answers) for answer in answers[number]]
        write_answers(path, rows)
