"""Layouts of files: the columns that tell a layout, and how its rows become ours. One object each, in ``FILE_LAYOUTS``.

A new layout is one ``FileLayout`` with its function, made of the checks of fields.py, which raise ``BadRowError`` where
a field is wrong, and its entry here. docs/data-files.md lists the columns of all layouts.
"""

from collections.abc import Sequence

from paragone_evaluation.readers.layouts import benchmarks, own, published
from paragone_evaluation.readers.layouts.benchmarks import TIES_ID
from paragone_evaluation.readers.layouts.fields import identifier, prompt_of, split_name, split_of, value_of
from paragone_evaluation.readers.layouts.layout import FileLayout
from paragone_evaluation.readers.rows import DataRow, Fields

__all__ = [
    "FILE_LAYOUTS",
    "TIES_ID",
    "FileLayout",
    "fitting_layout",
    "prompt_row",
    "split_name",
    "split_of",
    "value_of",
]

# The first that fits is taken: layouts whose columns are their own come before those whose columns others have as well.
FILE_LAYOUTS = (
    benchmarks.JUDGEBENCH,
    benchmarks.RM_BENCH,
    benchmarks.REWARDBENCH2,
    benchmarks.REWARDBENCH,
    published.ULTRAFEEDBACK,
    published.HELPSTEER2_PREFERENCES,
    own.GROUPS,
    published.HELPSTEER2,
    own.RATINGS,
    own.FIRST_SECOND,
    own.CHOSEN_REJECTED,
)
"""Every layout that is read."""


def fitting_layout(row: Fields, layouts: Sequence[FileLayout]) -> FileLayout | None:
    """Return the first of the layouts that a row's fields belong to, or None."""
    return next((layout for layout in layouts if layout.fits(row)), None)


def prompt_row(row: Fields, line: int) -> DataRow:
    """Return a row's prompt and id alone; a file of prompts needs no layout."""
    known = fitting_layout(row, FILE_LAYOUTS)
    prompt = known.prompt(row) if known else prompt_of(row)
    return DataRow(line, prompt, id=identifier(row), split=split_of(row))
