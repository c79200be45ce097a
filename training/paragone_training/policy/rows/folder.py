"""The folder of a run: whose it is, which files are whole, and where its processes wait for each other.

Files appear whole or not at all. One process at a time works in a folder, and a folder belongs to one recipe.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined] # torch's stubs lack the store
from torch.distributed.distributed_c10d import _get_default_store

from paragone_training.errors import RecipeError
from paragone_training.policy.errors import DiskFullError, FolderTakenError, RunError

__all__ = [
    "Barrier",
    "claim",
    "locked",
    "need_space",
    "read_json_file",
    "read_table",
    "write_folder",
    "write_json",
    "write_table",
    "write_text",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = "broken"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0

_MAY_CHANGE = {
    "oracle": {"url", "api_key_file", "concurrency", "patience_s", "timeout_s"},
    "servers": {
        "urls",
        "api_key_file",
        "reload",
        "command",
        "count",
        "phases",
        "concurrency",
        "request_timeout_s",
        "round_timeout_s",
        "tries",
        "patience_s",
        "start_timeout_s",
    },
    "training": {"iterations", "log_steps", "collective_timeout_s"},
    "evaluation": {"judge_url"},
    "output": {"folder", "trackers"},
}
"""Settings that a resumed run may have changed: none changes a result (more iterations add some), but for the limits of
servers, which decide what is left out: a run that they stopped has to be able to go on with others."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    _remove(temporary)
    try:
        yield temporary
        # A rename within a folder is atomic: a stage is done when its file exists.
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(temporary)
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


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a parquet file.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        return dict(pq.read_table(path).to_pydict())
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path} cannot be read: {error}; remove it, and resuming computes it again") from error


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Write a whole folder.

    Raises:
        DiskFullError: if there is no room.
    """
    with _whole(path) as temporary:
        temporary.mkdir()
        write(temporary)


def need_space(folder: Path, size: int, what: str) -> None:
    """Refuse to begin something of ``size`` bytes that the disk has no room for.

    Raises:
        DiskFullError: if there is less.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DiskFullError(
            f"{what} needs {size / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free: free some and resume"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def claim(settings: dict[str, Any], folder: Path, *, resume: bool) -> None:
    """Write down the settings of a run in its folder, or check that they are those of the run there.

    Args:
        settings: the tables of the recipe.
        folder: of the run.
        resume: go on with an earlier run.

    Raises:
        RecipeError: if the folder holds a run and ``resume`` is not asked for, or the run was another one.
    """
    path = folder / "recipe.json"
    if not path.exists():
        write_json(path, settings)
        return
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
        fixed = (values.keys() | was.keys()) - _MAY_CHANGE.get(section, set())
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


class Barrier:
    """Hold each process of the run until all have come; left with an error, it tells the others to stop.

    The processes meet in the store by which they found each other, not in a collective. The main process samples for
    hours while the others wait. A collective would break off at its timeout, and on a GPU it would keep the device busy
    that servers draw with. So here the others wait as long as the main process takes. The main process, whose work
    between two barriers is the longest, waits for a limit.

    All processes make their barriers in the same order. One process alone never waits.

    Args:
        limit_s: how long the main process waits for the others.
    """

    _numbers = itertools.count()

    def __init__(self, *, limit_s: float) -> None:
        self._state, self._limit_s = PartialState(), limit_s
        self._passed = 0
        self._store: Any = None
        if self._state.num_processes > 1:
            # A connection of its own: the watchdogs of collectives use the other one.
            store: Any = _get_default_store()
            self._store = PrefixStore(f"paragone/{next(self._numbers)}", store.clone())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if error is None:
            # The store may live in the main process: it is the last that leaves.
            if self._state.is_main_process:
                self._until("left", self._state.num_processes - 1)
            else:
                self._store.add("left", 1)
            return
        with contextlib.suppress(DistError):
            if not self._store.check([_BROKEN]):
                self._store.set(_BROKEN, f"process {self._state.process_index}: {type(error).__name__}: {error}")

    def wait(self) -> None:
        """Return when every process has come here.

        Raises:
            RunError: if another process was stopped by an error, or the main one waited for longer than the limit.
        """
        if self._store is None:
            return
        name, self._passed = f"barrier-{self._passed}", self._passed + 1
        try:
            self._store.add(name, 1)
            self._until(name, self._state.num_processes)
        except DistError as error:
            raise RunError("the main process of the run is gone: see what it printed and resume") from error

    def _until(self, name: str, count: int) -> None:
        """Return when so many have come."""
        assert self._store is not None
        began, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            # Before the count, since a process that stopped will never come.
            if self._store.check([_BROKEN]):
                raise RunError(f"another process of the run stopped: {self._store.get(_BROKEN).decode()}")
            if (here := self._store.add(name, 0)) >= count:
                return
            if self._state.is_main_process and time.monotonic() - began > self._limit_s:
                raise RunError(
                    f"{count - here} of {self._state.num_processes} processes did not come within {self._limit_s:g} s: "
                    "see what they printed and resume, or raise training.collective_timeout_s"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
