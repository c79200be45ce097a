"""Pieces of Markdown that the generated pages share."""

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["cell", "paragraph", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the text of a cell is Markdown and may have several lines."""
    lines = [_row(header), _row(["---"] * len(header)), *(_row([cell(text) for text in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return Markdown that can stand in a cell: on one line, with no bar that would end it."""
    # In code a backslash before a bar would be shown.
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda found: f"<code>{html.escape(found[1])}</code>", " ".join(text.split()))
    text = text.replace("\\|", "|").replace("|", "&#124;")
    # A narrow cell ends its line between two choices, not within one.
    return re.sub(r"<code>.*?</code>", lambda found: found[0].replace("&#124;", "&#124;<wbr>"), text)


def paragraph(text: str) -> str:
    """Return a docstring's prose as Markdown: ``code`` as `code`, [K] as no link, an empty line before lists."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text.strip())
    text = "".join(part if part.startswith("`") else part.replace("[", r"\[") for part in re.split(r"(`[^`]*`)", text))
    return re.sub(r"^(?![*-] )(.+)\n(?=[*-] )", r"\1\n\n", text, flags=re.MULTILINE)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
