"""Numbers in words for people: percentages, intervals, and what is not known."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

__all__ = ["counted", "estimate_row", "interval", "interval_cell", "lines", "number", "percent", "points"]

_UNKNOWN = "–"


def counted(count: int, noun: str) -> str:
    """Return how many there are of something.

    >>> counted(1, "prompt"), counted(2, "decided pair")
    ('1 prompt', '2 decided pairs')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(value: float | None, *, digits: int = 1) -> str:
    """Return a share in percent.

    >>> percent(0.66715)
    '66.7 %'
    """
    return _UNKNOWN if value is None else f"{_signless_zero(100 * value, digits)} %"


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points, always with its sign.

    >>> points(0.012)
    '+1.2'
    """
    return _UNKNOWN if value is None else f"{100 * value:+.1f}".replace("-0.0", "+0.0").replace("-", "−")


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a number with a fixed number of digits.

    >>> number(-0.12345)
    '−0.123'
    """
    return _UNKNOWN if value is None else _signless_zero(value, digits)


def interval(estimate: Mapping[str, Any] | None, *, scale: str = "number") -> str:
    """Return the ends of an estimate's interval, or nothing where there are none; one without an upper end says so.

    Args:
        scale: ``percent`` (in percent, without the sign), ``points`` or ``number``.
    """
    if estimate is None or estimate["low"] is None:
        return ""
    low, high = estimate["low"], estimate["high"]
    if high is None:
        return f"{number(low)} – unbounded"
    if scale == "percent":
        return f"{_signless_zero(100 * low, 1)} – {_signless_zero(100 * high, 1)}"
    if scale == "points":
        return f"{points(low)} … {points(high)}"
    # A dash between two numbers of which one has a minus would be read as another minus.
    return f"{number(low)} … {number(high)}" if min(low, high) < 0 else f"{number(low)} – {number(high)}"


def interval_cell(estimate: Mapping[str, Any] | None, *, scale: str = "number") -> Markup:
    """Return the interval for a cell of a page, never broken over two lines."""
    return Markup('<span class="w">{}</span>').format(interval(estimate, scale=scale))


def estimate_row(
    name: str, estimate: Mapping[str, Any] | None, remark: str = "", *, scale: str = "percent"
) -> list[str]:
    """Return the cells of an estimate's row: name, value, interval and remark."""
    show = {"percent": percent, "points": points, "number": number}[scale]
    return [name, show(None if estimate is None else estimate["value"]), interval_cell(estimate, scale=scale), remark]


def lines(row: Mapping[str, Any]) -> str:
    """Return the lines of what was left out, with an ellipsis where these are only the first of them.

    >>> lines({"count": 3, "lines": [4, 9]})
    '4, 9 …'
    """
    return ", ".join(map(str, row["lines"])) + (" …" if row["count"] > len(row["lines"]) > 0 else "")


def _signless_zero(value: float, digits: int) -> str:
    # "−0.0" would say that something is below zero when rounding is all that put it there.
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", "−")
