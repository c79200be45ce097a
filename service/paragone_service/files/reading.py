"""Read a data file that a request brought: in a process of its own, with limits on its memory, time and answer.

The file is written to a temporary folder for as long as it is read, because parquet is read from its end, and is gone
with the answer. Whoever leaves, or is late, takes its place in the line along, and its process.
"""

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path, PurePath
from typing import IO

from paragone.codes import ErrorCode
from paragone.installing import pip_install
from paragone.wire import FileQuery
from paragone_service.http.errors import ClientGoneError, ServiceError

__all__ = ["FileReader"]

_SCRIPT = "paragone_service.files.reading_process"
_AT_ONCE = 2
"""Files that are read at a time: each may take as much memory as the limit says."""
_MOST_WAITING = 14
"""Files that wait for these, those included that are still being sent: each takes its size on the disk."""
_MOST_OF_A_KEY = 8
_RETRY_AFTER_S = 5
_ROWS_BYTES, _ANSWER_BYTES = 16_000_000, 20_000_000
"""JSON that an answer's rows may take, and all of it."""
_LONGEST_NAME = 100
_NEEDED = "pyarrow"
_ANSWER = b'{"answer": '
# Threads and arenas reserve address space that a limit on memory would count.
_QUIET = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class FileReader:
    """Read files, a few at a time.

    Args:
        memory_bytes: that reading one file may take.
        limit_s: seconds that it may take.
    """

    def __init__(self, *, memory_bytes: int, limit_s: float) -> None:
        self._memory_bytes, self._limit_s = memory_bytes, limit_s
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._taken: Counter[str | None] = Counter()

    async def read(
        self,
        query: FileQuery,
        content: AsyncIterator[bytes],
        gone: Callable[[], Awaitable[None]],
        *,
        key: str | None = None,
    ) -> bytes:
        """Return the JSON of a ``FileAnswer``.

        Args:
            key: name of the key that asks, where the server has several: one cannot take all places.
            content: of the file, in pieces; none is taken where there is no room.
            gone: returns once the client has left; called after the last piece.

        Raises:
            ClientGoneError: if the client left meanwhile.
            ServiceError: ``invalid_request``, in the reader's words, if it cannot be read, or takes more memory or time
                than the limits; ``overloaded``, if too many wait; ``not_found``, if the reader is not installed.
        """
        if importlib.util.find_spec(_NEEDED) is None:
            # Whoever asks need not know where on its machine the server is installed.
            remedy = f"where it runs: {pip_install('evaluation', place=False)}"
            raise ServiceError(ErrorCode.NOT_FOUND, f"this server reads no files without {_NEEDED}; {remedy}")
        self._check_room(key)
        name = _safe(query.name)
        self._taken[key] += 1
        try:
            with tempfile.TemporaryDirectory(prefix="paragone-file-") as folder:
                with (Path(folder) / name).open("wb") as file:
                    async for piece in content:
                        file.write(piece)
                return await _unless(gone, self._answer(name, query, folder))
        finally:
            self._taken[key] -= 1

    def _check_room(self, key: str | None) -> None:
        taken, own = self._taken.total(), 0 if key is None else self._taken[key]
        if taken < _AT_ONCE + _MOST_WAITING and own < _MOST_OF_A_KEY:
            return
        crowd = f"{own} files of this key" if own >= _MOST_OF_A_KEY else f"{taken} files"
        raise ServiceError(
            ErrorCode.OVERLOADED,
            f"{crowd} are read or wait, as many as may: try again later",
            retry_after_s=_RETRY_AFTER_S,
        )

    async def _answer(self, name: str, query: FileQuery, folder: str) -> bytes:
        page = {"offset": query.offset, "limit": query.limit, "most_bytes": _ROWS_BYTES}
        limits = {
            "memory_bytes": self._memory_bytes,
            "processor_s": math.ceil(self._limit_s) + 1,
            "answer_bytes": _ANSWER_BYTES,
        }
        settings = json.dumps({"folder": folder, "file": {"name": name, "layout": query.layout, **page}, **limits})
        # Files, whose size the kernel limits: pipes would have to be read along, and an answer that is too long too.
        with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as complaints:
            async with self._reading:
                code = await self._run(name, settings, answers, complaints)
            size = answers.seek(0, os.SEEK_END)
            answers.seek(0)
            # The process may have died in the middle of its answer.
            if code == 0:
                if answers.read(len(_ANSWER)) == _ANSWER:
                    return answers.read(size - len(_ANSWER) - 1)  # handed on as it came: the process is ours
                answers.seek(0)
                if "refused" in (said := json.load(answers)):
                    raise _refused(said["refused"])
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
            last = complaints.read()
        if code > 0 and b"MemoryError" not in last:
            raise RuntimeError(f"the process that reads files failed: {last.decode(errors='replace')}")
        raise _refused(
            f"reading {name} took more than {self._memory_bytes / 1e6:g} MB of memory: split the file, or raise "
            "file_memory_mb"
        )

    async def _run(self, name: str, settings: str, answers: IO[bytes], complaints: IO[bytes]) -> int:
        """Return what the process ended with; it does not outlive this call."""
        process = await asyncio.create_subprocess_exec(
            # -P: nothing is imported from the folder that it runs in.
            *(sys.executable, "-P", "-m", _SCRIPT, settings),
            env={**os.environ, **_QUIET},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=answers,
            stderr=complaints,
        )
        try:
            async with asyncio.timeout(self._limit_s):
                return await process.wait()
        except TimeoutError:
            raise _refused(
                f"reading {name} took more than {self._limit_s:g} s: split the file, or raise file_limit_s"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _unless(gone: Callable[[], Awaitable[None]], work: Awaitable[bytes]) -> bytes:
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        # Both are awaited, so that the process has ended before its folder goes.
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _safe(name: str) -> str:
    """Return a name that is one file's in its folder, and no address of a data set elsewhere."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(name.replace("\\", "/")).name)
    return plain[-_LONGEST_NAME:].lstrip(".-") or "file"


def _refused(message: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_REQUEST, message)
