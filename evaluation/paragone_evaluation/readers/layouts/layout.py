"""What a layout is: the columns that tell it, and how its rows become ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paragone_evaluation.readers.layouts.fields import common_of, prompt_of, sides_of
from paragone_evaluation.readers.rows import Content, DataRow, Fields


@dataclass(frozen=True)
class FileLayout:
    """One layout of files.

    Attributes:
        name: as ``--layout`` takes it; two schemas of one layout share it.
        row: makes our row of the fields; the number is that of the line.
        fits: whether a row with these fields is one of this layout.
        schema: what its rows have, in words, where two layouts share a name.
        prompt: of the fields, for files that are read for their prompts alone.
        signed: whether either response may be the preferred one.
        rates: whether single responses are rated in place of being compared.
    """

    name: str
    row: Callable[[Fields, int], DataRow]
    fits: Callable[[Fields], bool]
    schema: str = ""
    prompt: Callable[[Fields], Content] = prompt_of
    signed: bool = False
    rates: bool = False


# Null is no sign of a layout: tables have every column in every row.
def with_any(*names: str, but: str = "") -> Callable[[Fields], bool]:
    """Return a test of a row for one of the columns, and for the lack of another."""
    return lambda row: row.get(but) is None and any(row.get(name) is not None for name in names)


def with_all(*names: str) -> Callable[[Fields], bool]:
    """Return a test of a row for all of the columns."""
    return lambda row: all(row.get(name) is not None for name in names)


def rated_row(row: Fields, line: int, prompt: Content, ratings: Mapping[str, float | None]) -> DataRow:
    """Return the row of one rated response."""
    common = common_of(row)
    return DataRow(line, prompt, sides_of(row, "response"), ratings=(ratings,), subset=common["group"], **common)
