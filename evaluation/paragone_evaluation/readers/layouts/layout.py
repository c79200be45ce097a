"""What a layout is: the columns that tell it, how its rows become ours, and what its strengths are."""

from collections.abc import Callable
from dataclasses import dataclass

from paragone_evaluation.readers.layouts.fields import prompt_of
from paragone_evaluation.readers.rows import Content, DataRow, Fields

__all__ = ["FileLayout", "has"]


@dataclass(frozen=True)
class FileLayout:
    """One layout of files.

    Attributes:
        name: as ``--layout`` takes it; two schemas of one layout share it.
        columns: what its rows have, the prompt first; a row that lacks some of them is told so.
        row: makes our row of the fields; the number is that of the line.
        fits: whether a row with these fields is one of this layout: by what its columns hold, not by their names.
        prompt: of the fields, for files that are read for their prompts alone.
        strengths: how strongly a response was preferred and where that comes from, in words.
        schema: what its rows have, in words, where two layouts share a name.
        signed: whether either response may be the preferred one.
        rates: whether single responses are rated in place of being compared.
        by_model: whether a model compared the responses, and no people.
        twos: whether a row is one response, and every two rows in a file are a pair, the preferred one first.
    """

    name: str
    columns: tuple[str, ...]
    row: Callable[[Fields, int], DataRow]
    fits: Callable[[Fields], bool]
    prompt: Callable[[Fields], Content] = prompt_of
    strengths: str = "which one was preferred, not how strongly: strength 1"
    schema: str = ""
    signed: bool = False
    rates: bool = False
    by_model: bool = False
    twos: bool = False

    def likeness(self, row: Fields) -> float:
        """Return the share of the layout's own columns that a row has; a prompt alone is no sign of any."""
        own = self.columns[1:]
        return sum(row.get(name) is not None for name in own) / len(own)


def has(row: Fields, *names: str) -> bool:
    """Return whether a row has a value under each name."""
    # Null is no sign of a layout: tables have every column in every row.
    return all(row.get(name) is not None for name in names)
