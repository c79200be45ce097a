"""The rows of a run, from a prompt to a training pair; the files that hold them, and the folder of these files.

    Prompt         of the recipe's files                                rendered by ``run_prompts``, dealt out here
    Response       samples.parquet                                      one of the K responses to a prompt
    Answer         oracle.parquet, judge.parquet                        the K×K table of one prompt, both orders
    LabelledPair   targets.parquet                                      two responses and the label of their comparison
    TrainingPair   not kept: it is made of the files above and of logprobs.parquet

All random numbers of a run come from streams that are named after the row they are for, so that a run that was
interrupted draws the same ones again. Files appear whole or not at all. One process at a time works in a folder, and a
folder belongs to one recipe.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paragone_evaluation.readers import Prompt
from paragone_training.errors import DiskFullError, FolderTakenError, RecipeError, RunError

__all__ = [
    "Answer",
    "Identity",
    "LabelledPair",
    "Response",
    "TrainingPair",
    "claim",
    "deal",
    "locked",
    "need_space",
    "read_answers",
    "read_json_file",
    "read_rows",
    "read_table",
    "remove_folder",
    "seed_of",
    "stream",
    "write_answers",
    "write_folder",
    "write_json",
    "write_rows",
    "write_table",
    "write_text",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Settings that a resumed run may have changed: none changes a result (more iterations add some), but for the limits
# of servers, which decide what is left out: a run that they stopped has to be able to go on with others.
_MAY_CHANGE = {
    "data": {"max_missing_groups"},
    "oracle": {"url", "api_key_file", "concurrency", "patience_s", "wait_s", "timeout_s"},
    "servers": {"urls", "api_key_file", "reload", "command", "count", "phases", "concurrency", "request_timeout_s"}
    | {"round_timeout_s", "tries", "patience_s", "start_timeout_s"},
    "training": {"iterations", "log_steps", "collective_timeout_s"},
    "evaluation": {"judge_url"},
    "output": {"folder", "trackers", "keep", "push"},
}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and make it if need be; the lock ends with the process, however that ends.

    Raises:
        FolderTakenError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            # The kernel gives the lock back when the process ends, also after a kill -9; a file with a number in it
            # would stay.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise FolderTakenError(
                f"another process ({file.read().strip() or 'unknown'}) runs in {folder}: wait for it, or choose "
                "another --output"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place at the end, or vanishes after an error."""

    def remove() -> None:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove()  # what a killed run left behind
    try:
        yield temporary
        # A rename within a folder is atomic: a stage is done when its file exists.
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove()
        # Only this has a remedy of its own; other errors pass as they are.
        if isinstance(error, OSError) and error.errno in _FULL:
            raise DiskFullError(f"no room on the disk for {path}: free some and resume the run") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder if need be.

    Raises:
        DiskFullError: if there is no room.
    """
    with _whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; NaN is refused.

    Raises:
        DiskFullError: if there is no room.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}; restore it, or remove its folder to compute it again"
        ) from error


def write_table(path: Path, columns: Mapping[str, list[Any]], schema: pa.Schema) -> None:
    """Write a parquet file.

    Raises:
        DiskFullError: if there is no room.
    """
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    with _whole(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a parquet file, with the columns of the schema.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        columns = pq.read_table(path, columns=schema.names).to_pydict()
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path} cannot be read: {error}; remove it, and resuming computes it again") from error
    return zip(*(columns[name] for name in schema.names), strict=True)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Write a whole folder.

    Raises:
        DiskFullError: if there is no room.
    """
    with _whole(path) as temporary:
        temporary.mkdir()
        write(temporary)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there; whenever the process is killed, no part of it is left under its name."""
    going = path.with_name(f".{path.name}.removed")
    if path.exists():
        shutil.rmtree(going, ignore_errors=True)
        path.replace(going)
    if going.exists():
        shutil.rmtree(going)


def need_space(folder: Path, size: int, what: str) -> None:
    """Refuse to begin something of ``size`` bytes that the disk has no room for.

    Raises:
        DiskFullError: if there is less.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Asked beforehand: hours of training are lost when only its last write fails.
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DiskFullError(
            f"{what} needs {size / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free: free some and resume"
        )


def claim(settings: dict[str, Any], folder: Path, *, resume: bool) -> None:
    """Write down the settings of a run in its folder, or check that they are those of the run there.

    Raises:
        RecipeError: if the folder holds a run and ``resume`` is not asked for, or the run was another one.
    """
    path = folder / "recipe.json"
    if not path.exists():
        write_json(path, settings)
        return
    may_change = _MAY_CHANGE
    # What was sampled and asked does not hang on how gradient steps are taken, but for the seed of all.
    if not any(folder.glob("iteration-*/step-*/*")):
        may_change = _MAY_CHANGE | {"training": settings["training"].keys() - {"seed"}}
    if not resume:
        raise RecipeError(f"{folder} holds an earlier run: go on with --resume, or choose another --output")
    # Through JSON and back, so that tuples compare with the lists that were written.
    before, after = (_resolved(tables) for tables in (read_json_file(path), json.loads(json.dumps(settings))))
    changed = []
    for section, values in after.items():
        was = before.get(section)
        if not (isinstance(values, dict) and isinstance(was, dict)):
            changed += [section] if values != was else []
            continue
        # Settings that came with a later version are compared too: a default may have changed.
        fixed = (values.keys() | was.keys()) - may_change.get(section, set())
        changed += [f"{section}.{key}" for key in sorted(fixed) if values.get(key) != was.get(key)]
    if changed:
        raise RecipeError(
            f"{', '.join(changed)} is not what the run in {folder} was started with: put it back, or choose another "
            "--output"
        )
    write_json(path, settings)


def _resolved(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with absolute paths of prompts: a run may have been started with relative ones."""
    return {
        name: table | {"prompts": [str(Path(prompt).resolve()) for prompt in table["prompts"]]}
        if isinstance(table, dict) and "prompts" in table
        else table
        for name, table in tables.items()
    }


@dataclass(frozen=True)
class Response:
    """One row of samples.parquet.

    Attributes:
        number: from 0, among the K responses to the prompt.
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
class Identity:
    """Who answers: a name and the fingerprint of everything that an answer depends on."""

    model: str
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """One row of an oracle's file.

    Attributes:
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
        preference: target probability that chosen is preferred.
        chosen_target: mean win rate or score of chosen; 0 for methods of labelled pairs.
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
_OF_THE_ANSWER = ("prompt_id", "failure", "forward_responses", "cached_responses")
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


_SCHEMAS = {Response: _SAMPLES, LabelledPair: _TARGETS}
_Row = TypeVar("_Row", Response, LabelledPair)


def read_rows(path: Path, kind: type[_Row]) -> list[_Row]:
    """Return the rows of samples.parquet or targets.parquet.

    Raises:
        RunError: if it cannot be read.
    """
    return list(itertools.starmap(kind, read_table(path, _SCHEMAS[kind])))


def write_rows(path: Path, rows: Sequence[_Row], kind: type[_Row]) -> None:
    """Write samples.parquet or targets.parquet; there may be no row.

    Raises:
        DiskFullError: if there is no room.
    """
    schema = _SCHEMAS[kind]
    write_table(path, {name: [getattr(row, name) for row in rows] for name in schema.names}, schema)


def read_answers(path: Path) -> list[Answer]:
    """Return the rows of an oracle's file.

    Raises:
        RunError: if it cannot be read.
    """
    rows = []
    for prompt_id, size, raw, failure, _model, _fingerprint, _chunk, *cost in read_table(path, _ANSWERS):
        # Kept row by row in one list, as parquet has no matrices.
        values = np.asarray([np.nan if value is None else value for value in raw], dtype=np.float64)
        rows.append(Answer(prompt_id, values.reshape(size, size), failure, *cost))
    return rows


def write_answers(path: Path, rows: Sequence[tuple[int, str, str, Answer]]) -> None:
    """Write an oracle's file.

    Raises:
        DiskFullError: if there is no room.
    """
    answers = [answer for *_, answer in rows]
    table: dict[str, list[Any]] = {name: [getattr(answer, name) for answer in answers] for name in _OF_THE_ANSWER}
    table["responses"] = [len(answer.raw) for answer in answers]
    # None and not NaN, which readers of SQL and JSON do not know.
    table["raw"] = [[None if np.isnan(value) else value for value in answer.raw.ravel()] for answer in answers]
    for place, name in enumerate(("chunk", "model", "fingerprint")):
        table[name] = [row[place] for row in rows]
    write_table(path, table, _ANSWERS)


def deal(prompts: Sequence[Prompt], *, iteration: int, per_iteration: int, seed: int) -> list[Prompt]:
    """Return the prompts of one iteration: disjoint parts of a shuffled order, which is reshuffled when used up.

    Args:
        iteration: from 1.
    """
    count = min(per_iteration or len(prompts), len(prompts))
    # In the order of the files, so that all iterations have the same chunks.
    if count == len(prompts):
        return list(prompts)
    hand: list[Prompt] = []
    position = (iteration - 1) * count
    while len(hand) < count:
        # Each turn deals all prompts once; an iteration may take the end of one and the beginning of the next.
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
    # Hashed and not added up, so that streams of neighbouring names have nothing in common.
    digest = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
