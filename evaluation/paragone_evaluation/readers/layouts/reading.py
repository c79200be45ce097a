"""The rows of one file in its layout, whichever that turns out to be."""

from collections.abc import Sequence
from dataclasses import replace

from paragone_evaluation.readers.layouts import FILE_LAYOUTS, UNJUDGED, FileLayout, fitting_layout, layout_of
from paragone_evaluation.readers.options import ReadOptions
from paragone_evaluation.readers.rows import BadRowError, DataRow, Fields, Label

__all__ = ["HEAD", "LAYOUTS", "LayoutReader"]

LAYOUTS = tuple(dict.fromkeys(["pairs", "groups", "ratings", *(layout.name for layout in FILE_LAYOUTS)]))
"""Names of the layouts, as ``--layout`` takes them beside ``auto``, our own first."""

HEAD = 64
"""How many rows of a file tell its layout: one row may begin with the prompt's words by chance, or lack a field."""


class LayoutReader:
    """Reads the rows of a file.

    Args:
        head: the first rows of the file.
        options: with the layout's name, the attribute and what is compared in rankings.
        unjudged: rows that nobody judged are read too.

    Attributes:
        layout: the file's, None where its rows fit none.
    """

    def __init__(self, head: Sequence[Fields], options: ReadOptions, *, unjudged: bool = False) -> None:
        # A file that a model judged is asked about as if nobody had: no people said what stands in it.
        layouts = (*(layout for layout in FILE_LAYOUTS if not layout.by_model), *UNJUDGED) if unjudged else FILE_LAYOUTS
        self._candidates = [known for known in layouts if options.layout in ("auto", known.name)]
        self.layout: FileLayout | None = layout_of(head, self._candidates)
        if self.layout is None and options.layout != "auto":
            self.layout = self._candidates[0]
        self._options = options
        self._held: DataRow | None = None

    def row(self, fields: Fields, line: int) -> DataRow | None:
        """Return the row of the fields, None for the first one of two that are a pair together.

        Raises:
            BadRowError: if it cannot be read.
            LeftOutError: if it is of no use.
        """
        if self.layout is None:
            names = ", ".join(sorted(map(str, fields))) or "(none)"
            raise BadRowError(
                f"the fields {names} fit no layout: name your columns with --map (docs/data-files.md lists the layouts)"
            )
        # A row that fits no layout is the file's layout with a field too few, and is told which one.
        if not self.layout.fits(fields) and (other := fitting_layout(fields, self._candidates)) is not None:
            if other.name == self.layout.name:
                raise BadRowError(f"the row has {other.schema}, and the file began with {self.layout.schema}")
            raise BadRowError(f"the row has the fields of {other.name}, and the file began with {self.layout.name}")
        row = self.layout.row(fields, line)
        if self.layout.twos:
            return self._paired(row)
        return row.judged(self._options.attribute, self._options.rankings)

    def _paired(self, row: DataRow) -> DataRow | None:
        preferred, self._held = self._held, None
        if preferred is None:
            self._held = row
            return None
        if preferred.prompt != row.prompt:
            raise BadRowError(
                f"two rows in a row are a pair, the preferred one first, and this one has another prompt than line "
                f"{preferred.line}"
            )
        return replace(preferred, responses=(*preferred.responses, *row.responses), labels=(Label(0, 1, 1.0),))

    def waiting(self) -> tuple[int, str] | None:
        """Return the line of a row that waits for the other one of its pair, and what is wrong; None if none does."""
        return (self._held.line, "it is the first row of a pair, and the file ends there") if self._held else None
