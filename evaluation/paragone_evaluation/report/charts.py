"""Charts as inline SVG: no script, no external file, colours from the page's variables."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["best_of_n_chart", "interval_bar", "length_chart", "reliability_chart"]

Scale = Callable[[float], float]

_WIDTH, _HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44


def _axis(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _frame(
    x: Scale, y: Scale, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]], titles: tuple[str, str]
) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value, label in up:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in across:
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="title" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(titles[0])}</text>')
    centre = (_TOP + bottom) / 2
    parts.append(
        f'<text class="title" transform="rotate(-90 13 {centre})" x="13" y="{centre}" text-anchor="middle">'
        f"{escape(titles[1])}</text>"
    )
    return parts


def _svg(parts: Sequence[str], label: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _dot(kind: str, x: float, y: float, size: float, told: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"><title>{told}</title></circle>'


def reliability_chart(table: Mapping[str, Any], *, label: str) -> str:
    """Return a reliability diagram: accuracy by confidence, the area of a dot is its number of pairs.

    Args:
        table: ``edges``, ``count``, ``confidence`` and ``accuracy``; null in empty bins.
        label: what the chart shows, for people who cannot see it.
    """
    shown = [
        (count, sure, right)
        for count, sure, right in zip(table["count"], table["confidence"], table["accuracy"], strict=True)
        if count
    ]
    low = min([0.4, *(right for _, _, right in shown)])
    x = _axis(0.5, 1.0, _LEFT + 8, _WIDTH - _RIGHT - 8)
    y = _axis(low, 1.0, _HEIGHT - _BOTTOM, _TOP)
    across = [(tick / 10, f"{tick * 10}") for tick in range(5, 11)]
    up = [(tick / 10, f"{tick * 10}") for tick in range(int(low * 10 + 0.999), 11)]
    parts = _frame(x, y, across, up, ("confidence of the choice, %", "right, %"))
    parts.append(f'<line class="ideal" x1="{x(0.5)}" y1="{y(0.5)}" x2="{x(1)}" y2="{y(1)}"/>')
    most = max([count for count, *_ in shown], default=1)
    path = " ".join(f"{x(sure):.1f},{y(right):.1f}" for _, sure, right in shown)
    parts.append(f'<polyline class="model" points="{path}"/>')
    for count, sure, right in shown:
        size = 2.5 + 8.5 * (count / most) ** 0.5
        told = f"{count} pairs: {100 * sure:.1f} % sure, {100 * right:.1f} % right"
        parts.append(
            f'<line class="gap" x1="{x(sure):.1f}" x2="{x(sure):.1f}" y1="{y(sure):.1f}" y2="{y(right):.1f}"/>'
            + _dot("model", x(sure), y(right), size, told)
        )
    return _svg(parts, label)


def length_chart(curve: Sequence[Mapping[str, float]]) -> str:
    """Return how often the longer response wins against how many times longer it is, for people and the model.

    Args:
        curve: points with ``ratio``, ``model``, ``human`` and ``count``.
    """
    x = _axis(-0.5, len(curve) - 0.5, _LEFT, _WIDTH - _RIGHT)
    values = [point[side] for point in curve for side in ("model", "human")]
    low, high = max(0.0, min([0.4, *values]) - 0.03), min(1.0, max([0.6, *values]) + 0.03)
    y = _axis(low, high, _HEIGHT - _BOTTOM, _TOP)
    across = [(place, f"{point['ratio']:.3g}×") for place, point in enumerate(curve)]
    up = [(tick / 10, f"{tick * 10}") for tick in range(int(low * 10 + 0.999), int(high * 10) + 1)]
    titles = "the longer one is so many times longer", "longer one preferred, %"
    parts = _frame(x, y, across, up, titles)
    parts.append(f'<line class="ideal" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0.5):.1f}" y2="{y(0.5):.1f}"/>')
    for side in ("human", "model"):
        path = " ".join(f"{x(place):.1f},{y(point[side]):.1f}" for place, point in enumerate(curve))
        parts.append(f'<polyline class="{side}" points="{path}"/>')
        for place, point in enumerate(curve):
            told = f"{point['count']:.0f} pairs: {100 * point[side]:.1f} %"
            parts.append(_dot(side, x(place), y(point[side]), 4.0, told))
    return _svg(parts, "Share of pairs in which the longer response is preferred, by length ratio")


def best_of_n_chart(curve: Mapping[str, Sequence[float]]) -> str:
    """Return the expected human score of the model's choice among n responses, between random and people's own choice.

    Args:
        curve: ``n``, ``model``, ``people`` and ``random``.
    """
    sizes = curve["n"]
    x = _axis(sizes[0] - 0.3, sizes[-1] + 0.3, _LEFT, _WIDTH - _RIGHT)
    values = [*curve["model"], *curve["people"], *curve["random"]]
    margin = 0.06 * ((max(values) - min(values)) or 1.0)
    low, high = min(values) - margin, max(values) + margin
    y = _axis(low, high, _HEIGHT - _BOTTOM, _TOP)
    every = max(1, len(sizes) // 8)
    across = [(size, f"{size:.0f}") for size in sizes[::every]]
    up = [(low + (high - low) * step / 4, f"{low + (high - low) * step / 4:.2f}") for step in range(5)]
    parts = _frame(x, y, across, up, ("best of n", "human score of the choice"))
    for side in ("random", "people", "model"):
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in zip(sizes, curve[side], strict=True))
        kind = {"random": "ideal", "people": "human", "model": "model"}[side]
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    return _svg(parts, "Expected human score of best-of-n by the model, by people and at random")


def interval_bar(estimate: Mapping[str, Any], *, reference: float | None = None, low: float = 0.0) -> str:
    """Return a small bar with a dot at the value, its interval, and a tick at a reference.

    Args:
        estimate: ``value``, ``low`` and ``high``, shares.
        reference: a share to compare with.
        low: share at the left end of the bar.
    """
    x = _axis(low, 1.0, 4, 156)
    parts = ['<line class="axis" x1="4" x2="156" y1="9" y2="9"/>']
    if low < 0.5:
        parts.append(f'<line class="grid" x1="{x(0.5):.1f}" x2="{x(0.5):.1f}" y1="2" y2="16"/>')
    if estimate["low"] is not None and estimate["high"] is not None:
        ends = f'x1="{x(estimate["low"]):.1f}" x2="{x(estimate["high"]):.1f}"'
        parts.append(f'<line class="span" {ends} y1="9" y2="9"/>')
    if reference is not None:
        parts.append(f'<line class="human" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="3" y2="15"/>')
    if estimate["value"] is not None:
        parts.append(f'<circle class="model" cx="{x(estimate["value"]):.1f}" cy="9" r="4"/>')
    return f'<svg class="bar" viewBox="0 0 160 18" aria-hidden="true">{"".join(parts)}</svg>'
