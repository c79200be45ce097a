"""Charts as inline SVG: drawn by matplotlib, coloured by the page, so that they follow its light and dark look."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Line", "histogram", "line_chart"]

COLOURS = ("line-1", "line-2", "line-3", "line-4")
"""Names of the page's colours for data."""

# Each colour of a drawing stands for a variable of the page: only there can a colour depend on light or dark.
_PAINT = {
    "line-1": "#1d4ed8",
    "line-2": "#c2410c",
    "line-3": "#3b7d3b",
    "line-4": "#7a4b9d",
    "rule": "#dfdcd3",
    "soft": "#666a73",
    "ink": "#1d1f23",
}
_BARS = 20
_SIZE = (4.6, 2.9)  # inches; the page scales charts to its columns


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        colour: one of ``COLOURS``, or ``soft``.
        dashed: for what is only there to compare with; it has no dots.
        areas: size of each dot, relative to the largest; all alike if empty.
        intervals: lower and upper end of an error bar at each point, or None where there is none; empty for no bars.
        remarks: shown where the pointer rests on a dot, and read aloud; one per point, or none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "line-1"
    dashed: bool = False
    areas: Sequence[float] = ()
    remarks: Sequence[str] = ()
    intervals: Sequence[tuple[float, float] | None] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    across: str,
    up: str = "",
    include: Sequence[float] = (),
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ticks: Mapping[float, str] | None = None,
    whole: bool = False,
    to: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Return a chart as SVG for a page.

    Args:
        title: read aloud in place of the picture.
        across, up: labels of the axes.
        include: values that the vertical axis must show.
        limits: ends of the horizontal and of the vertical axis, for charts that are compared; as the lines need if
            None.
        ticks: labels of the horizontal axis by place; those of matplotlib if None.
        whole: the horizontal axis counts something.
        to: one point for each of the first line, to which a thin line leads from it.
    """
    with _canvas(title) as (figure, axes):
        remarks: dict[str, str] = {}
        for number, line in enumerate(lines):
            remarks |= _draw(axes, line, f"remark-{number}")
        for (x, y), (_, end) in zip(lines[0].points if to else (), to, strict=True):
            axes.plot([x, x], [y, end], color=_PAINT["line-1"], linewidth=0.8, alpha=0.5, clip_on=False)
        axes.margins(x=0.05, y=0.08)
        if include:
            axes.update_datalim([(lines[0].points[0][0], value) for value in include])
            axes.autoscale_view()
        if limits is not None:
            # A little room, so that dots at the ends are whole.
            spans = [(low - 0.04 * (high - low), high + 0.04 * (high - low)) for low, high in limits]
            axes.set_xlim(spans[0])
            axes.set_ylim(spans[1])
        if ticks is not None:
            axes.set_xticks(list(ticks), list(ticks.values()))
        elif whole:
            _count_across(axes)
        return _finished(figure, axes, remarks, title=title, across=across, up=up)


def histogram(
    values: ArrayLike, *, title: str, across: str, up: str, ends: tuple[float, float] | None = None
) -> Markup:
    """Return how often values occur, in bars of equal width, as SVG for a page.

    Args:
        values: at least one, finite. [n]
        title: read aloud in place of the picture.
        across, up: labels of the axes: what the values are, and what is counted.
        ends: of the horizontal axis; the smallest and the largest value if None.
    """
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), bins=_BARS, range=ends)
    with _canvas(title) as (figure, axes):
        bars = axes.bar(edges[:-1], counts, width=0.92 * np.diff(edges), align="edge", color=_PAINT["line-1"])
        remarks = {}
        for number, (bar, count) in enumerate(zip(bars, counts, strict=True)):
            bar.set_gid(f"bar-{number}")
            remarks[f"bar-{number}"] = f"{edges[number]:.3g} to {edges[number + 1]:.3g}: {count:,}"
        axes.margins(x=0.02)
        return _finished(figure, axes, remarks, title=title, across=across, up=up)


@contextmanager
def _canvas(title: str) -> Iterator[tuple["Figure", "Axes"]]:
    # Here, because matplotlib takes a second to import, and a table needs none of it.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=_SIZE)
        # Fixed margins: matplotlib's own layouts draw everything twice.
        yield figure, figure.add_axes((0.14, 0.16, 0.83, 0.81))


def _finished(
    figure: "Figure", axes: "Axes", remarks: Mapping[str, str], *, title: str, across: str, up: str
) -> Markup:
    """Return a drawing as part of a page, its axes in the page's look."""
    axes.set_xlabel(across, color=_PAINT["ink"])
    axes.set_ylabel(up, color=_PAINT["ink"])
    axes.tick_params(colors=_PAINT["soft"], bottom=False, left=False)
    axes.grid(axis="y", color=_PAINT["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    _make_room(axes, labelled=bool(up))
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_PAINT["soft"])
    drawing = io.StringIO()
    # Nothing that changes from day to day or from version to version.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(drawing, format="svg", transparent=True, metadata=nothing)
    return _inline(drawing.getvalue(), title, remarks)


def _count_across(axes: "Axes") -> None:
    """Label whole numbers alone, each once."""
    from matplotlib.ticker import MaxNLocator

    low, high = (round(float(end)) for end in axes.dataLim.intervalx)
    if low == high:
        # Around a single place matplotlib would label parts of it: 0.98, 1.00, 1.02.
        axes.set_xlim(low - 0.5, low + 0.5)
        axes.set_xticks([low])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _make_room(axes: "Axes", *, labelled: bool) -> None:
    """Write vertical labels in full, and move the axis to where the longest of them fits beside the axis's name."""
    low, high = axes.dataLim.intervaly
    largest = max(abs(low), abs(high))
    # A power of ten or an offset stands above the axes otherwise, which is outside of the picture.
    if 0 < largest < 1e-3 or largest >= 1e6:
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    longest = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
    # In points, of which an inch has 72: a character of these labels has 5.6, the axis's name 14.
    left = max(0.14, (5.6 * longest + 10 + 14 * labelled) / (72 * _SIZE[0]))
    axes.set_position((left, 0.16, 0.97 - left, 0.81))


def _draw(axes: "Axes", line: Line, name: str) -> dict[str, str]:
    """Draw a line and its dots; return the remark of each dot by the name of its group in the drawing."""
    paint = _PAINT[line.colour]
    x, y = [point[0] for point in line.points], [point[1] for point in line.points]
    style = (0, (4, 3)) if line.dashed else "solid"
    # Many points make a curve: dots would hide it.
    dots = "o" if not line.dashed and not line.areas and not line.remarks and len(x) <= 30 else None
    axes.plot(x, y, color=paint, linestyle=style, linewidth=1.5, marker=dots, markersize=4, clip_on=False)
    for place, interval in zip(x if line.intervals else (), line.intervals, strict=True):
        if interval is not None:
            axes.plot([place, place], interval, color=paint, linewidth=1.0, marker="_", markersize=6, clip_on=False)
    places = range(len(x)) if line.areas or line.remarks else ()
    for place in places:
        size = 3.0 + 10.0 * line.areas[place] ** 0.5 if line.areas else 5.0
        axes.plot(x[place], y[place], "o", color=paint, markersize=size, clip_on=False, gid=f"{name}-{place}")
    return {f"{name}-{place}": remark for place, remark in enumerate(line.remarks)}


def _inline(drawing: str, title: str, remarks: Mapping[str, str]) -> Markup:
    """Return a drawing of matplotlib as part of a page."""
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None, "matplotlib gives every drawing its box"
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    # Its style sheet speaks of "*", which would be everything on the page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    for group, remark in remarks.items():
        body = body.replace(f'<g id="{group}">', f"<g><title>{escape(remark)}</title>")
    # A page has several drawings, so only names that something refers to may stay; these are hashes with the title.
    used = set(re.findall(r"#(\w+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)
    for name, paint in _PAINT.items():
        body = body.replace(paint, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", " ", body)
    return Markup(f'<svg {box[0]} role="img" aria-label="{escape(title)}">{body}')  # noqa: S704 - our own drawing
