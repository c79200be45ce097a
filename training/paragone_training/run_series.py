"""Numbers of a run over time, from the lines that its trainer wrote: named, in order, and thinned for a chart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Point", "in_words", "numbers_in_words", "numbers_of", "series_of", "thinned"]

Point = tuple[float, float]
"""How far the run was, in its unit, and the number."""

_MOST_POINTS = 300
# What transformers says of a whole run, once: how fast it was, and a mean over everything.
_BOOKKEEPING = ("train_", "total_flos", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
_PLACES = ("time", "step", "steps")
# What people look at first stands first.
_ORDER = ("win rate", "loss", "eval_accuracy", "eval_negative_log_likelihood", "eval")
_LAST = ("grad_norm", "learning_rate")
_HELD_OUT = "eval_"
_WORDS = {
    "eval_accuracy": "agreement",
    "eval_length_accuracy": "agreement of the longer one",
    "eval_matched_accuracy": "agreement, lengths matched",
    "eval_matched_pairs": "pairs, lengths matched",
    "eval_negative_log_likelihood": "negative log-likelihood",
    "grad_norm": "gradient norm",
}


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a trainer's line by name, without what only says where and when it was written."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and name not in _PLACES and not name.startswith(_BOOKKEEPING)
    }


def numbers_in_words(numbers: Mapping[str, float]) -> str:
    """Return a trainer's numbers as one line.

    >>> numbers_in_words({"loss": 0.5, "eval_pairs": 48, "eval_accuracy": 0.75})
    'loss 0.5; held-out rows: pairs 48, agreement 0.75'
    """
    parts = []
    for title, held_out in (("", False), ("held-out rows: ", True)):
        words = [
            f"{_word(name)} {value:.4g}" for name, value in numbers.items() if name.startswith(_HELD_OUT) is held_out
        ]
        parts += [title + ", ".join(words)] if words else []
    return "; ".join(parts)


def in_words(name: str) -> str:
    """Return what people call a trainer's number.

    >>> in_words("eval_accuracy"), in_words("learning_rate"), in_words("win rate (my_judge)")
    ('agreement (held-out rows)', 'learning rate', 'win rate (my_judge)')
    """
    return f"{_word(name)} (held-out rows)" if name.startswith(_HELD_OUT) else _word(name)


def _word(name: str) -> str:
    if "(" in name:  # that of a judge, as its owner writes it
        return name
    return _WORDS.get(name, name.removeprefix(_HELD_OUT).replace("_", " "))


def series_of(rows: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, list[Point]]:
    """Return the points of every number, by its name in words.

    Args:
        rows: how far the run was, and its numbers then. What a resumed run did again takes the place of what was
            there; NaN and infinity are no points.
    """
    found: dict[str, list[Point]] = {}
    for x, numbers in rows:
        for name, value in numbers.items():
            points = found.setdefault(name, [])
            while points and points[-1][0] >= x:
                points.pop()
            if math.isfinite(value):
                points.append((x, value))
    counts = ("eval_pairs", "eval_matched_pairs")  # the same at every evaluation
    shown = [name for name in sorted(found, key=_place) if found[name] and name not in counts]
    return {in_words(name): thinned(found[name]) for name in shown}


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Return at most so many of the points, evenly chosen, the first and the last among them.

    >>> thinned([(x, 0.0) for x in range(9)], 3)
    [(0, 0.0), (4, 0.0), (8, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _place(name: str) -> tuple[int, str]:
    first = next((place for place, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER))
    return (len(_ORDER) + 1 if name in _LAST else first), name
