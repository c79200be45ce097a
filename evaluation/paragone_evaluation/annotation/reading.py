"""Read files in a process of its own, so that the one that asks has its time for requests and answers.

A small input is read in a thread: a process takes as long to start as a thousand rows to read.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paragone_evaluation.annotation.files import is_own
from paragone_evaluation.annotation.kinds import KINDS
from paragone_evaluation.annotation.rows import Chunk, chunks_of
from paragone_evaluation.errors import DataError, EvaluationError
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.options import ReadOptions

__all__ = ["ReadSettings", "Reader", "input_of", "serve"]

_COMMAND = "from paragone_evaluation.annotation.reading import serve; serve()"


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Which rows are read, and how they are cut into chunks.

    Attributes:
        answers: name of the kind of answers.
        output: of the run; what it writes is no input, although a folder or a glob may have it.
        most_forwards, in_pairs, behind: as ``chunks_of`` takes them.
    """

    sources: tuple[str, ...]
    options: ReadOptions
    split: str | None
    output: Path
    answers: str
    most_forwards: int
    most_characters: int
    behind: int = -1
    in_pairs: bool = False

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks, read in this process."""
        return chunks_of(
            input_of(self.sources, self.options, self.split, self.output),
            KINDS[self.answers],
            most_forwards=self.most_forwards,
            most_characters=self.most_characters,
            behind=self.behind,
            in_pairs=self.in_pairs,
        )


def input_of(sources: Sequence[str], options: ReadOptions, split: str | None, output: Path) -> FilePass:
    """Return a pass over the rows of sources, judged or not, without what the run itself writes.

    Raises:
        DataError: if nothing is left to be read.
    """
    reading = FilePass(*sources, options=options, split=split, unjudged=True)
    reading.parts = [part for part in reading.parts if not is_own(output, part.name)]
    if not reading.parts:
        raise DataError(f"{output} is all that would be read: write to another name")
    return reading


class Reader:
    """The chunks of files, one after the other.

    Args:
        apart: read in a process of its own.
    """

    def __init__(self, settings: ReadSettings, *, apart: bool) -> None:
        self._settings, self._apart = settings, apart
        self._process: subprocess.Popen[bytes] | None = None
        self._chunks: Iterator[Chunk] = iter(())

    def __enter__(self) -> Self:
        if not self._apart:
            self._chunks = self._settings.chunks()
            return self
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a command of ours)
            [sys.executable, "-c", _COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            pickle.dump(self._settings, stdin)
        self._chunks = self._received(self._process.stdout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def next(self) -> Chunk | None:
        """Return the next chunk, None behind the last one. May be called from any thread, one at a time.

        Raises:
            DataError: if the files cannot be read.
        """
        return next(self._chunks, None)

    def _received(self, stream: Any) -> Iterator[Chunk]:
        while True:
            try:
                found = pickle.load(stream)  # noqa: S301 (what our own process writes)
            except (EOFError, pickle.UnpicklingError) as error:
                raise EvaluationError("the process that reads the files has died (out of memory?)") from error
            if isinstance(found, Exception):
                raise found
            if found is None:
                return
            yield found


def serve() -> None:
    """Read as the standard input says, and write chunks to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked for the rows says when it is enough
    settings: ReadSettings = pickle.load(sys.stdin.buffer)  # noqa: S301 (what our own process writes)
    with open(os.dup(1), "wb", buffering=1 << 20) as output, contextlib.suppress(BrokenPipeError):  # noqa: PTH123
        os.dup2(2, 1)  # nothing that a library prints gets between the chunks
        found: Chunk | Exception | None = None
        try:
            for chunk in settings.chunks():
                pickle.dump(chunk, output, pickle.HIGHEST_PROTOCOL)
                output.flush()
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 (raised again where it is read)
            found = error
        pickle.dump(found, output, pickle.HIGHEST_PROTOCOL)
