"""The process in which one data file is read: run as a script by ``reading.FileReader``.

A file from outside is a program of sorts: a kilobyte of gzip or of a dictionary-encoded column unpacks to gigabytes. So
it is read here, where the kernel limits memory and processor time, and where nothing holds up the event loop.

One argument, JSON: how to read, and the limits. One object of JSON comes out: ``answer``, or ``refused`` and why.
"""

import itertools
import json
import os
import resource
import sys
from typing import Any

from paragone_evaluation.data_summary import described_row, summarised
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.options import ReadOptions

__all__: list[str] = []

_WAYS: tuple[dict[str, Any], ...] = ({}, {"unjudged": True}, {"prompts": True})
"""Read as rows with judgements, as responses that nobody judged, as prompts; the first that reads a row counts."""
_LONGEST_MESSAGE = 4000
_SAME = (
    "prompts", "responses", "pairs", "decided", "ties", "duplicates", "contradictions", "identical", "first_preferred",
    "longer_preferred", "rated", "ratings", "splits",
)  # fmt: skip


class _TooLargeError(Exception):
    """Refuse an answer that has no room: whichever way the file is read, it would be no smaller."""


class _Page:
    """The rows that are answered, as many as there is room for.

    Args:
        most_bytes: of JSON that they may take.
    """

    def __init__(self, name: str, *, offset: int, limit: int, most_bytes: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.not_shown = 0
        self._name, self._most, self._bytes = name, most_bytes, 0
        self._wanted, self._places = range(offset, offset + limit), itertools.count()

    def take(self, row: Any) -> None:
        """Keep the next row of the file, if it was asked for and fits.

        Raises:
            _TooLargeError: if the first one that was asked for does not fit.
        """
        place = next(self._places)
        if place not in self._wanted:
            return
        if self.not_shown:  # rows are skipped from the first on that does not fit: a page has no holes
            self.not_shown += 1
            return
        described = described_row(row)
        size = len(_json(described))
        if self._bytes + size <= self._most:
            self._bytes += size
            self.rows.append(described)
        elif self.rows:
            self.not_shown = 1
        else:
            raise _TooLargeError(
                f"{self._name}: the row of line {row.line} takes {size} bytes of JSON, more than the {self._most} of "
                f"an answer: leave it out, or ask for rows from offset {place + 1}"
            )


def _json(value: Any) -> str:
    # Texts of the file may be whatever JSON can hold, lone surrogates included, so the answer stays ASCII.
    return json.dumps(value, default=str, allow_nan=False)


def _answered(name: str, layout: str, **page: int) -> dict[str, Any]:
    """Return what a file holds and a page of its rows.

    Raises:
        DataError: if no row can be read.
        _TooLargeError: if the first row of the page has no room.
    """
    options, refused = ReadOptions(layout=layout, bad_rows="leave-out"), None
    for way in _WAYS:
        try:
            reading = FilePass(name, options=options, **way)
            rows = _Page(name, **page)
            summary = summarised(reading, seen=rows.take)
        except DataError as error:
            # What the first way says of the file is what `paragone data` says.
            refused = refused or error
            continue
        if summary["read"]:
            return {
                "name": name,
                "layout": summary["files"][0]["layout"],
                "why": summary["files"][0]["why"],
                "count": summary["rows"],
                "read": summary["read"],
                "left_out": summary["left_out"],
                **{field: summary[field] for field in _SAME},
                "offset": page["offset"],
                "not_shown": rows.not_shown,
                "rows": rows.rows,
            }
        refused = refused or _nothing(name, reading)
    assert refused is not None
    raise refused


def _nothing(name: str, reading: FilePass) -> DataError:
    try:
        reading.account.check(remedy="No row can be read: mend the file, or rename its columns.")
    except DataError as error:
        return error
    lost = "".join(f"; {left.count} left out: {left.reason}" for left in reading.account.left_out())
    return DataError(f"{name} has no rows to show: {reading.account.count} were read{lost}")


def _shortened(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def _main() -> None:
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # nothing that a library prints gets into the answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (settings["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (settings["processor_s"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (settings["answer_bytes"],) * 2)
    os.chdir(settings["folder"])  # so that messages call the file by its name
    name = settings["file"]["name"]
    try:
        text = _json({"answer": _answered(**settings["file"])})
        if len(text) > settings["answer_bytes"]:
            raise _TooLargeError(
                f"what {name} holds takes {len(text)} bytes to say, more than the {settings['answer_bytes']} of an "
                "answer: it has too many attributes, splits or reasons to leave rows out"
            )
    except (DataError, _TooLargeError) as error:
        text = json.dumps({"refused": _shortened(str(error))})
    except MemoryError:
        text = json.dumps({"too_much": True})
    except (ValueError, RecursionError) as error:
        text = json.dumps({"refused": f"{name} has rows that JSON cannot hold: {error}"})
    answers.write(text)
    answers.close()


if __name__ == "__main__":
    _main()
