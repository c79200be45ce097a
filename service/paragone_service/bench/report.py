"""What a measurement gives: a table to read, JSON to keep, and a page with a plot, one file that fetches nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from rich.table import Table

from paragone_service.bench.compute import Compute
from paragone_service.bench.load import Level

__all__ = ["Measurement", "Side", "as_json", "page", "tables"]

_COLOURS = ("#0b6e4f", "#c84c09", "#4059ad", "#7d4e57", "#6b717e")


@dataclass(frozen=True)
class Side:
    """A server under load.

    Attributes:
        name: for people.
        levels: by number of clients, growing.
    """

    name: str
    levels: Sequence[Level]


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured in one run.

    Attributes:
        machine: what it ran on, in words, by name.
        model: what was run, by name.
        compute: in this process.
        sides: over HTTP.
    """

    machine: Mapping[str, str]
    model: Mapping[str, str]
    compute: Compute
    sides: Sequence[Side]


def as_json(found: Measurement) -> dict[str, Any]:
    """Return all numbers as JSON values.

    Args:
        found: what was measured.
    """
    compute = found.compute
    return {
        "machine": dict(found.machine),
        "model": dict(found.model),
        "compute": asdict(compute) | {"padding": compute.padding, "sharing": compute.sharing},
        "http": [
            {"name": side.name, "levels": [asdict(level) | {"rate": level.rate} for level in side.levels]}
            for side in found.sides
        ],
    }


def compute_rows(compute: Compute) -> list[tuple[str, str]]:
    """Return the lines of the first table.

    Args:
        compute: in this process.
    """
    return [
        ("engine, in this process", f"{compute.responses / compute.engine_s:,.1f} responses/s"),
        ("plain transformers, batches of 16", f"{compute.responses / compute.padded_s:,.1f} responses/s"),
        ("engine : plain transformers", f"{compute.ratio:.2f}"),
        ("plain transformers computes, per real token", f"{compute.padding:.2f} tokens"),
        ("one computed token of the engine stands for", f"{compute.sharing:.2f} tokens"),
        ("matrix peak of this machine, same dtype", f"{compute.peak_flops / 1e9:,.0f} Gflop/s"),
        ("share of it that the engine reached", f"{compute.share_of_peak:.0%}"),
    ]


def tables(found: Measurement) -> list[Table]:
    """Return what is printed.

    Args:
        found: what was measured.
    """
    first = Table("", "", title=", ".join([*found.model.values(), *found.machine.values()]), show_header=False)
    for row in compute_rows(found.compute):
        first.add_row(*row)
    second = Table("over HTTP", "clients", "responses/s", "p50 ms", "p95 ms", "p99 ms")
    for side in found.sides:
        for level in side.levels:
            second.add_row(side.name, *_cells(level))
    return [first, second]


def page(found: Measurement) -> str:
    """Return a page of HTML.

    Args:
        found: what was measured.
    """
    lines = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in compute_rows(found.compute)]
    levels = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (side.name, *_cells(level))) + "</tr>"
        for side in found.sides
        for level in side.levels
    ]
    about = "; ".join(f"{name}: {value}" for name, value in {**found.model, **found.machine}.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Paragone bench</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} td, th {{ padding: .2rem .8rem; text-align: left;
border-bottom: 1px solid #ddd; }} td:not(:first-child) {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style></head><body><h1>Paragone bench</h1><p>{escape(about)}</p>
<h2>In one process</h2><table>{"".join(lines)}</table>
<h2>Over HTTP</h2>
{_plot(found.sides, "responses a second", lambda level: level.rate)}
{_plot(found.sides, "median time of a request, ms", lambda level: level.p50_ms)}
<table><tr><th></th><th>clients</th><th>responses/s</th><th>p50 ms</th><th>p95 ms</th><th>p99 ms</th></tr>
{"".join(levels)}</table></body></html>
"""


def _cells(level: Level) -> tuple[str, str, str, str, str]:
    times = (f"{value:,.1f}" for value in (level.p50_ms, level.p95_ms, level.p99_ms))
    return str(level.clients), f"{level.rate:,.1f}", *times  # type: ignore[return-value]


def _plot(sides: Sequence[Side], title: str, value: Any) -> str:
    """Return an SVG of one line per server over the number of clients; both axes begin at 0, clients are evenly set."""
    counts = sorted({level.clients for side in sides for level in side.levels})
    if not counts:
        return ""
    width, height, left, bottom = 640, 260, 70, 40
    top = _ceiling(max(value(level) for side in sides for level in side.levels))
    across = {count: left + (width - left - 30) * (place + 0.5) / len(counts) for place, count in enumerate(counts)}

    def down(number: float) -> float:
        return height - bottom - (height - bottom - 30) * number / top

    parts = [f'<text x="{left}" y="18" font-weight="600">{escape(title)}</text>']
    for step in range(5):
        number = top * step / 4
        parts.append(
            f'<line x1="{left}" x2="{width - 30}" y1="{down(number):.1f}" y2="{down(number):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 8}" y="{down(number) + 4:.1f}" text-anchor="end">{number:,.3g}</text>'
        )
    parts += [f'<text x="{x:.1f}" y="{height - 18}" text-anchor="middle">{count}</text>' for count, x in across.items()]
    parts.append(f'<text x="{(width + left) / 2:.0f}" y="{height - 2}" text-anchor="middle">clients</text>')
    for number, side in enumerate(sides):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(across[level.clients], down(value(level))) for level in side.levels]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{width - 20}" y="{40 + 18 * number}" fill="{colour}">{escape(side.name)}</text>')
    return f'<svg viewBox="0 0 {width + 220} {height}" font-size="12" role="img">{"".join(parts)}</svg>'


def _ceiling(number: float) -> float:
    """Return the next number above whose quarters are easy to read."""
    scale = 10.0 ** math.floor(math.log10(number)) if number > 0 else 1.0
    return next(scale * step for step in (1, 2, 4, 8, 10, 20) if scale * step >= number * 1.02)
