"""Why two columns of numbers differ: every hypothesis is a column of its own, and the one that fits is the cause.

A hypothesis is a way to read a text, a place to read it at, and what is made of the logit. Arithmetic on arrays alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from paragone_evaluation.verification.reference import Readings

__all__ = ["Verdict", "batch_dependence", "judged"]

Floats = NDArray[np.float64]

_EXACT = 1e-3
"""Relative difference, at least absolute, that kernels of float32 make at most."""
_NOISE = 4.0
"""How many times the difference that bfloat16 makes here another bfloat16 server may differ."""
_LEAST_NOISE = 2.0**-8
"""Relative spacing of bfloat16."""
_BEFORE_LAST = 8
_MOST_CUTS = 200


@dataclass(frozen=True)
class Verdict:
    """What came of comparing a column with the reference.

    Attributes:
        agrees: whether it needs nobody's attention.
        cause: in words; empty where the numbers are the same.
        difference: largest one to the reference. [logits]
        unexplained: largest one to the column that the cause predicts. [logits]
        texts: names of the texts that differ, where no cause was found.
    """

    agrees: bool
    cause: str
    difference: float
    unexplained: float = 0.0
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Hypothesis:
    faults: tuple[str, ...]
    values: Floats


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)))


_MADE: Mapping[str, Callable[[Floats], Floats]] = {
    "": lambda logit: logit,
    "a sigmoid over the logit": _sigmoid,
    "a softmax over one logit (always 1)": np.ones_like,
    "a log-sigmoid over the logit": lambda logit: -np.logaddexp(0.0, -logit),
    "the sign turned round": lambda logit: -logit,
}


def judged(readings: Sequence["Readings"], values: Sequence[float], *, tolerance: float | None = None) -> Verdict:
    """Return whether a column of answers is that of the right readings, and if not, which fault explains it.

    Args:
        values: the server's, in the order of the texts. [N]
        tolerance: largest difference that is none; what float32 and bfloat16 make if None. [logits]
    """
    told = np.asarray(values, dtype=np.float64)
    right = np.asarray([one.ways[0].last for one in readings])
    difference = float(np.max(np.abs(told - right)))
    if not np.isfinite(told).all():
        return Verdict(False, "NaN or infinity", float("inf"))
    if tolerance is not None and difference <= tolerance:
        return Verdict(True, "", difference)
    if np.all(np.abs(told - right) <= _allowed(right)):
        return Verdict(True, "", difference)
    half = np.asarray([one.half for one in readings])
    noise = _noise(right, half)
    known = list(_hypotheses(readings, told))
    exact = [one for one in known if np.all(np.abs(told - one.values) <= _allowed(one.values))]
    if exact:
        return _verdict(_best(exact, told), told, difference)
    if np.ptp(told) == 0:
        return Verdict(False, f"the same answer, {told[0]:g}, to every text", difference, difference)
    near = [one for one in known if np.all(np.abs(told - one.values) <= noise)]
    best = _best(near, told) if near else None
    if np.all(np.abs(told - right) <= noise) and (
        best is None or _apart(told, best.values) > 0.5 * _apart(told, right)
    ):
        return Verdict(tolerance is None, "noise of bfloat16", difference, difference)
    if (scaled := _scaled(right, told)) is not None:
        return Verdict(False, scaled, difference)
    if best is not None:
        return _verdict(_Hypothesis((*best.faults, "noise of bfloat16"), best.values), told, difference)
    differ = np.abs(told - right) > np.maximum(noise, _allowed(right))
    names = tuple(one.text.name for one, far in zip(readings, differ, strict=True) if far)
    return Verdict(False, "none of the known causes", difference, difference, names)


def batch_dependence(alone: Sequence[float], together: Sequence[float]) -> float | None:
    """Return how far a text's answer depends on the texts beside it, None where it does not. [logits]."""
    one, many = np.asarray(alone), np.asarray(together)
    far = np.abs(one - many)
    return float(np.max(far)) if np.any(far > _allowed(one)) else None


def _best(fitting: Sequence[_Hypothesis], told: Floats) -> _Hypothesis:
    """Return the hypothesis of the fewest faults, of several the nearest."""
    return min(fitting, key=lambda one: (len(one.faults), _apart(told, one.values)))


def _apart(told: Floats, values: Floats) -> float:
    """Return the root of the mean squared difference."""
    return float(np.sqrt(np.mean((told - values) ** 2)))


def _verdict(found: _Hypothesis, told: Floats, difference: float) -> Verdict:
    left = float(np.max(np.abs(told - found.values)))
    return Verdict(False, ", and ".join(found.faults), difference, left)


def _allowed(values: Floats) -> Floats:
    return np.asarray(_EXACT * np.maximum(1.0, np.abs(values)))


def _noise(right: Floats, half: Floats) -> Floats:
    """Return how far another server in bfloat16 may be from the right values."""
    # The noise of one text here says little about it: kernels round differently, and all texts have the same spread.
    spread = float(np.sqrt(np.mean((half - right) ** 2)))
    return np.asarray(_NOISE * np.maximum(spread, _LEAST_NOISE * np.maximum(1.0, np.abs(right))))


def _hypotheses(readings: Sequence["Readings"], told: Floats) -> Iterator[_Hypothesis]:
    """Yield every column that a known fault, or two of them, would give; those of fewer faults need not come first."""
    for read in _columns(readings, told):
        for made, apply in _MADE.items():
            faults = (*read.faults, *([made] if made else []))
            if faults:
                # Values of logits can be large; what a sigmoid makes of them is right all the same.
                with np.errstate(over="ignore"):
                    yield _Hypothesis(faults, apply(read.values))


def _columns(readings: Sequence["Readings"], told: Floats) -> Iterator[_Hypothesis]:
    for fault in dict.fromkeys(fault for one in readings for fault in one.by_fault):
        # A fault that a text cannot have leaves it as it is.
        ways = [one.by_fault.get(fault, one.ways[0]) for one in readings]
        named = (fault,) if fault else ()
        yield _Hypothesis(named, np.asarray([way.last for way in ways]))
        at = [way.positions for way in ways]
        known = [positions for positions in at if positions is not None]
        if len(known) < len(at):
            continue
        # Where a pad token is taken for the end, the model itself reads before the last token.
        for back in range(1, _BEFORE_LAST + 1):
            name = "the last token" if back == 1 else f"token −{back}"
            values = np.asarray([positions[max(0, len(positions) - back)] for positions in known])
            yield _Hypothesis((*named, f"read at {name}, where the model is not"), values)
        yield _Hypothesis((*named, "read at the first token"), np.asarray([one[0] for one in known]))
        yield _Hypothesis((*named, "read as the mean of all tokens"), np.asarray([one.mean() for one in known]))
        longest = int(np.argmax([len(one) for one in known]))
        for length in _cuts(known[longest], told[longest]):
            cut = [
                positions[length - 1] if len(positions) > length else way.last
                for way, positions in zip(ways, known, strict=True)
            ]
            yield _Hypothesis((*named, f"the end cut off, at {length} tokens"), np.asarray(cut))


def _cuts(positions: Floats, told: float) -> list[int]:
    """Return the lengths to which the longest text may have been cut: those at which it gives what was told."""
    near = np.zeros(len(positions), dtype=bool)
    for made, apply in _MADE.items():
        if "softmax" not in made:
            near |= np.abs(apply(positions) - told) <= 10 * _allowed(positions)
    return [int(at) + 1 for at in np.flatnonzero(near[:-1])][:_MOST_CUTS]


def _scaled(right: Floats, told: Floats) -> str | None:
    """Return the scale and the shift that make one column of the other, where they do."""
    if len(right) < 4 or np.ptp(right) == 0:
        return None
    scale, shift = np.polyfit(right, told, 1)
    if abs(scale) < 1e-6 or np.any(np.abs(scale * right + shift - told) > _allowed(told)):
        return None
    return f"scaled by {scale:.4g} and shifted by {shift:+.4g} (normalised, or an unknown temperature)"
