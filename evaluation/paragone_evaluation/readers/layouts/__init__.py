"""Layouts of files: the columns that tell a layout, and how its rows become ours. One object each, in ``FILE_LAYOUTS``.

A new layout is one ``FileLayout`` with its function, made of the checks of fields.py, which raise ``BadRowError`` where
a field is wrong, and its entry here. docs/data-files.md lists the columns of all layouts.
"""

from collections.abc import Sequence

from paragone_evaluation.readers.layouts import annotated, benchmarks, own, published, trainers, unjudged
from paragone_evaluation.readers.layouts.benchmarks import TIES_ID
from paragone_evaluation.readers.layouts.fields import identifier, split_name, split_of, tools_of, value_of
from paragone_evaluation.readers.layouts.layout import FileLayout
from paragone_evaluation.readers.layouts.trainers import only_prompt
from paragone_evaluation.readers.rows import DataRow, Fields

__all__ = [
    "FILE_LAYOUTS",
    "TIES_ID",
    "UNJUDGED",
    "UNJUDGED_NAME",
    "FileLayout",
    "fitting_layout",
    "layout_of",
    "prompt_row",
    "split_name",
    "split_of",
    "value_of",
]

FILE_LAYOUTS = (
    benchmarks.JUDGEBENCH,
    benchmarks.RM_BENCH,
    benchmarks.REWARDBENCH2,
    benchmarks.IF_REWARDBENCH,
    benchmarks.BEST_OF,
    benchmarks.REWARDBENCH,
    published.ULTRAFEEDBACK,
    published.HELPSTEER2_PREFERENCES,
    published.HELPSTEER3,
    published.ARENA_CONVERSATIONS,
    published.ARENA,
    published.SHP,
    published.PKU_SAFERLHF,
    published.NECTAR,
    published.SUMMARIES,
    published.SUMMARY_AXES,
    trainers.OPENAI_PREFERENCES,
    trainers.NEMO_RL,
    trainers.OUTPUTS,
    own.GROUPS,
    *annotated.ANNOTATED,
    published.HELPSTEER2,
    own.RATINGS,
    own.FIRST_SECOND,
    *own.CHOSEN_REJECTED,
    own.SWIFT,
    trainers.KTO,
    trainers.NEMO_TEXT,
)
"""Every layout that is read; where several fit, the first one is taken."""
UNJUDGED, UNJUDGED_NAME = unjudged.UNJUDGED, unjudged.NAME

_LEAST = 0.5  # share of its own columns by which a layout is still recognised


def fitting_layout(row: Fields, layouts: Sequence[FileLayout]) -> FileLayout | None:
    """Return the first of the layouts that a row's fields belong to, or None."""
    return next((layout for layout in layouts if layout.fits(row)), None)


def layout_of(rows: Sequence[Fields], layouts: Sequence[FileLayout]) -> FileLayout | None:
    """Return the layout of a file that begins with these rows.

    It is the one that fits most of them, of several the one that fits the first row, of several still the first. Where
    none fits any row it is the one that the first row comes nearest to, so that the row can be told what it lacks; None
    where the columns are of no layout.
    """
    counts = [(sum(fitting := [layout.fits(row) for row in rows]), fitting[:1] == [True]) for layout in layouts]
    if (most := max(counts, default=(0, False)))[0]:
        return layouts[counts.index(most)]
    nearest = max(layouts, key=lambda layout: layout.likeness(rows[0]), default=None) if rows else None
    return nearest if nearest and nearest.likeness(rows[0]) >= _LEAST else None


def prompt_row(row: Fields, line: int, layout: FileLayout | None = None) -> DataRow:
    """Return a row's prompt, tools and id alone; a file of prompts needs no layout."""
    known = layout or fitting_layout(row, FILE_LAYOUTS)
    prompt = known.prompt(row) if known else only_prompt(row)
    return DataRow(line, prompt, id=identifier(row), split=split_of(row), tools=tools_of(row.get("tools")))
