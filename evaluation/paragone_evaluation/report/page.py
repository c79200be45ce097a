"""A page: one file from plain blocks, with its style and drawings inside, no script, and nothing fetched."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paragone_evaluation.report.charts import Line

__all__ = ["Card", "Figure", "PageSection", "PageTable", "interval_bar", "render_page"]

# Every text of a block is escaped, unless it is ``Markup``.


@dataclass(frozen=True)
class Card:
    """One of the few numbers that a reader sees first."""

    title: str
    value: str
    interval: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart from ``line_chart``, its title, the key of its lines, and a remark."""

    title: str
    chart: Markup
    key: Sequence[Line] = ()
    remark: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        numbers: columns that are aligned on the right.
        texts: cells are whole texts, whose lines are kept.
        labelled: of texts: the first column only names the others.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    texts: bool = False
    labelled: bool = False


@dataclass(frozen=True)
class PageSection:
    """A heading and what stands below it, in this order."""

    title: str
    text: str = ""
    code: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[PageTable] = field(default=())
    small: str = ""


def render_page(
    title: str,
    *,
    lead: str,
    sections: Sequence[PageSection],
    cards: Sequence[Card] = (),
    small: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Return a report as HTML.

    Args:
        lead: below the title: what was reported on.
        notes: what a reader must know before the numbers, in a box.
    """
    template = _environment().get_template("page.html")
    return template.render(title=title, lead=lead, cards=cards, small=small, notes=notes, sections=sections)


def interval_bar(value: float | None, low: float | None, high: float | None, *, tick: float | None = None) -> Markup:
    """Return a bar from 0 to 1 with a dot at a share, its interval, and a tick at another share to compare with."""
    # Places are shares of the bar's width, so that it needs no drawing and follows the table's columns.
    parts = [Markup('<i style="left:{:.1f}%;width:{:.1f}%"></i>').format(100 * low, 100 * (high - low))
             if low is not None and high is not None else "",
             Markup('<s style="left:{:.1f}%"></s>').format(100 * tick) if tick is not None else "",
             Markup('<b style="left:{:.1f}%"></b>').format(100 * value) if value is not None else ""]  # fmt: skip
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(Markup("").join(parts))


@cache
def _environment() -> Environment:
    loader = PackageLoader("paragone_evaluation", "report")
    # A name that a template misspells is an error here, and not a gap in a report.
    return Environment(
        loader=loader,
        autoescape=True,
        finalize=_joined,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _joined(value: object) -> object:
    """Return a text in which no line ends between a number and its percent sign."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value
