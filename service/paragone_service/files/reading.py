"""Read a data file that a request brought: in a process of its own, with limits on its memory and time.

The file is written to a temporary folder for as long as it is read, because parquet is read from its end, and is gone
with the answer.
"""

import asyncio
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from paragone.codes import ErrorCode
from paragone.wire import FileQuery
from paragone_service.http.errors import ServiceError

__all__ = ["FileReader"]

_SCRIPT = "paragone_service.files.reading_process"
_AT_ONCE = 2
"""Files that are read at a time: each may take as much memory as the limit says."""
_LONGEST_NAME = 100
_NEEDED, _REMEDY = "pyarrow", "pip install 'paragone[evaluation]' where it runs"
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
        # Threads of its own: whoever leaves does not end a reading, and the next one waits for it all the same.
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files")

    def close(self) -> None:
        """Read no more files; those that are being read end within the limit."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def read(self, query: FileQuery, content: bytes) -> bytes:
        """Return the JSON of a ``FileAnswer``.

        Args:
            content: of the file.

        Raises:
            ServiceError: ``invalid_request``, in the reader's words, if it cannot be read, or takes more memory or time
                than the limits; ``not_found``, if the reader is not installed.
        """
        if importlib.util.find_spec(_NEEDED) is None:
            raise ServiceError(ErrorCode.NOT_FOUND, f"this server reads no files, for want of {_NEEDED}: {_REMEDY}")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, query, content)

    def _read(self, query: FileQuery, content: bytes) -> bytes:
        name = _safe(query.name)
        file = {"name": name, "layout": query.layout, "offset": query.offset, "limit": query.limit}
        limits = {"memory_bytes": self._memory_bytes, "processor_s": math.ceil(self._limit_s) + 1}
        with tempfile.TemporaryDirectory(prefix="paragone-file-") as folder:
            (Path(folder) / name).write_bytes(content)
            settings = json.dumps({"folder": folder, "file": file, **limits})
            try:
                done = subprocess.run(  # noqa: S603 (this interpreter, and a script of ours)
                    # -P: nothing is imported from the folder that it runs in.
                    [sys.executable, "-P", "-m", _SCRIPT, settings],
                    env={**os.environ, **_QUIET},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self._limit_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise _refused(
                    f"reading {name} took more than {self._limit_s:g} s: split the file, or raise file_limit_s"
                ) from None
        if done.stdout.startswith(_ANSWER):
            return done.stdout[len(_ANSWER) : -1]  # handed on as it came: the process is ours
        if done.stdout and "refused" in (said := json.loads(done.stdout)):
            raise _refused(said["refused"])
        if not done.stdout and done.returncode > 0 and b"MemoryError" not in done.stderr:
            raise RuntimeError(f"the process that reads files failed: {done.stderr.decode(errors='replace')[-2000:]}")
        raise _refused(
            f"reading {name} took more than {self._memory_bytes / 1e6:g} MB of memory: split the file, or raise "
            "file_memory_mb"
        )


def _safe(name: str) -> str:
    """Return a name that is one file's in its folder, and no address of a data set elsewhere."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(name.replace("\\", "/")).name)
    return plain[-_LONGEST_NAME:].lstrip(".-") or "file"


def _refused(message: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_REQUEST, message)
