"""Tables, JSON and a page of one measurement."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from paragone_service.bench.compute import Compute
from paragone_service.bench.load import Level
from paragone_service.bench.measurement import Measurement

if TYPE_CHECKING:
    from paragone_evaluation.report.page import Figure

__all__ = ["headline", "page", "tables", "values"]

_LEVEL_HEAD = ("over HTTP", "clients", "responses/s", "p50 ms", "p95 ms", "p99 ms")


def values(measurement: Measurement) -> dict[str, Any]:
    """Return all numbers as JSON values."""
    compute = measurement.compute
    return {
        "machine": dict(measurement.machine),
        "model": dict(measurement.model),
        "compute": {**asdict(compute), "padding": compute.padding, "sharing": compute.sharing},
        "http": [
            {"name": side.name, "levels": [{**asdict(level), "rate": level.rate} for level in side.levels]}
            for side in measurement.sides
        ],
    }


def tables(measurement: Measurement) -> list[Table]:
    """Return what is printed."""
    title = ", ".join([*measurement.model.values(), *measurement.machine.values()])
    in_process = Table("", "", title=title, show_header=False)
    for row in _compute_rows(measurement.compute):
        in_process.add_row(*row)
    over_http = Table(*_LEVEL_HEAD)
    for cells in _level_rows(measurement):
        over_http.add_row(*cells)
    return [in_process, over_http]


def headline(measurement: Measurement) -> str:
    """Return the result in two sentences: this process beside plain transformers, and the best that HTTP gave."""
    compute = measurement.compute
    rate, plain = compute.responses / compute.engine_s, compute.responses / compute.padded_s
    first = (
        f"In one process {rate:,.1f} responses/s, {compute.ratio:.2f} times plain transformers ({plain:,.1f}), at "
        f"{100 * compute.share_of_peak:.0f} % of the machine's matrix peak."
    )
    best = [(side.name, max(side.levels, key=lambda level: level.rate)) for side in measurement.sides if side.levels]
    over_http = "; ".join(
        f"{name} {level.rate:,.1f} responses/s with {level.clients} at once, 95 % of requests within "
        f"{level.p95_ms:,.0f} ms"
        for name, level in best
    )
    return f"{first} Over HTTP at most: {over_http}." if best else first


def page(measurement: Measurement) -> str:
    """Return a page of HTML.

    Raises:
        ModuleNotFoundError: if the extra ``evaluation``, which has the look of reports, is not installed.
    """
    from paragone_evaluation.report.page import PageSection, PageTable, render_page

    facts = {**measurement.model, **measurement.machine}
    charts = [
        _chart(measurement, "Responses a second", lambda level: level.rate),
        _chart(measurement, "Median time of a request, ms", lambda level: level.p50_ms),
    ]
    return render_page(
        "Paragone bench",
        lead=headline(measurement),
        small="; ".join(f"{name}: {value}" for name, value in facts.items()),
        sections=[
            PageSection("In one process", tables=[PageTable(("", ""), _compute_rows(measurement.compute), (1,))]),
            PageSection(
                "Over HTTP",
                figures=charts,
                tables=[PageTable(("", *_LEVEL_HEAD[1:]), _level_rows(measurement), (1, 2, 3, 4, 5))],
            ),
        ],
    )


def _chart(measurement: Measurement, title: str, value: Callable[[Level], float]) -> "Figure":
    from paragone_evaluation.report.charts import COLOURS, Line, line_chart
    from paragone_evaluation.report.page import Figure

    # Numbers of clients grow by factors: evenly set, each is as easy to read as the others.
    counts = sorted({level.clients for side in measurement.sides for level in side.levels})
    lines = [
        Line(
            side.name,
            [(counts.index(level.clients), value(level)) for level in side.levels],
            COLOURS[number % len(COLOURS)],
            remarks=[f"{level.clients} at once: {value(level):,.1f}" for level in side.levels],
        )
        for number, side in enumerate(measurement.sides)
    ]
    ticks = {float(place): str(count) for place, count in enumerate(counts)}
    return Figure(title, line_chart(lines, title=title, across="clients", include=(0,), ticks=ticks), lines)


def _compute_rows(compute: Compute) -> list[tuple[str, str]]:
    """Return the measures of one process, in words."""
    return [
        ("engine, in this process", f"{compute.responses / compute.engine_s:,.1f} responses/s"),
        ("plain transformers, batches of 16", f"{compute.responses / compute.padded_s:,.1f} responses/s"),
        ("engine : plain transformers", f"{compute.ratio:.2f}"),
        ("plain transformers computes, per real token", f"{compute.padding:.2f} tokens"),
        ("one computed token of the engine stands for", f"{compute.sharing:.2f} tokens"),
        ("matrix peak of this machine, same dtype", f"{compute.peak_flops / 1e9:,.0f} Gflop/s"),
        ("share of it that the engine reached", f"{compute.share_of_peak:.0%}"),
    ]


def _level_rows(measurement: Measurement) -> list[tuple[str, ...]]:
    return [
        (
            side.name,
            str(level.clients),
            f"{level.rate:,.1f}",
            *(f"{value:,.1f}" for value in (level.p50_ms, level.p95_ms, level.p99_ms)),
        )
        for side in measurement.sides
        for level in side.levels
    ]
