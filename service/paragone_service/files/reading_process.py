"""The process in which one data file is read: run as a script by ``reading.FileReader``.

A file from outside is a program of sorts: a kilobyte of gzip or of a dictionary-encoded column unpacks to gigabytes. So
it is read here, where the kernel limits memory and processor time, and where nothing holds up the event loop.

One argument, JSON: how to read, and the limits. One object of JSON comes out: ``answer``, or ``refused`` and why.
"""

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
_SAME = (
    "prompts", "responses", "pairs", "decided", "ties", "duplicates", "contradictions", "identical", "first_preferred",
    "longer_preferred", "rated", "ratings", "splits",
)  # fmt: skip


def _answered(name: str, layout: str, offset: int, limit: int) -> dict[str, Any]:
    """Return what a file holds and a page of its rows.

    Raises:
        DataError: if no row can be read.
    """
    options, refused = ReadOptions(layout=layout, bad_rows="leave-out"), None
    for way in _WAYS:
        try:
            reading = FilePass(name, options=options, **way)
            summary, page = _read(reading, offset, limit)
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
                "offset": offset,
                "rows": page,
            }
        refused = refused or _nothing(name, reading)
    assert refused is not None
    raise refused


def _read(reading: FilePass, offset: int, limit: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    page: list[dict[str, Any]] = []
    places = iter(range(sys.maxsize))

    def keep(row: Any) -> None:
        if offset <= next(places) < offset + limit:
            page.append(described_row(row))

    return summarised(reading, seen=keep), page


def _nothing(name: str, reading: FilePass) -> DataError:
    try:
        reading.account.check(remedy="No row can be read: mend the file, or rename its columns.")
    except DataError as error:
        return error
    lost = "".join(f"; {left.count} left out: {left.reason}" for left in reading.account.left_out())
    return DataError(f"{name} has no rows to show: {reading.account.count} were read{lost}")


def _main() -> None:
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # nothing that a library prints gets into the answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (settings["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (settings["processor_s"],) * 2)
    os.chdir(settings["folder"])  # so that messages call the file by its name
    name = settings["file"]["name"]
    try:
        # Texts of the file may be whatever JSON can hold, lone surrogates included, so the answer stays ASCII.
        text = json.dumps({"answer": _answered(**settings["file"])}, default=str, allow_nan=False)
    except DataError as error:
        text = json.dumps({"refused": str(error)})
    except MemoryError:
        text = json.dumps({"too_much": True})
    except (ValueError, RecursionError) as error:
        text = json.dumps({"refused": f"{name} has rows that JSON cannot hold: {error}"})
    answers.write(text)
    answers.close()


if __name__ == "__main__":
    _main()
