"""Files of a run: each appears whole or not at all, and one process at a time works in a folder."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paragone_training.policy.errors import DiskFullError, FolderTakenError, RunError

__all__ = ["locked", "need_space", "read_json", "read_table", "write_folder", "write_json", "write_table", "write_text"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however that ends.

    Args:
        folder: created if need be.

    Raises:
        FolderTakenError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
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
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(temporary)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise DiskFullError(f"no room on the disk for {path}: free some and resume the run") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Args:
        path: where; its folder is made.
        text: its content.

    Raises:
        DiskFullError: if there is no room.
    """
    with _whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; NaN is refused.

    Args:
        path: where.
        value: plain values.

    Raises:
        DiskFullError: if there is no room.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.

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

    Args:
        path: where.
        columns: by name.
        schema: names and types.

    Raises:
        DiskFullError: if there is no room.
    """
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    with _whole(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a parquet file.

    Args:
        path: the file.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        return dict(pq.read_table(path).to_pydict())
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path} cannot be read: {error}; remove it, and resuming computes it again") from error


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Write a whole folder.

    Args:
        path: where.
        write: writes into the folder it is given.

    Raises:
        DiskFullError: if there is no room.
    """
    with _whole(path) as temporary:
        temporary.mkdir()
        write(temporary)


def need_space(folder: Path, wanted: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it will be written.
        wanted: bytes.
        what: for the message.

    Raises:
        DiskFullError: if there is less.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DiskFullError(
            f"{what} needs {wanted / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free: free some and resume"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
