"""Check the shapes and values that measures are given: nothing is broadcast, and no NaN slips through."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Bools", "Floats", "Ints", "columns", "outcomes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def columns(**arrays: ArrayLike) -> tuple[Floats, ...]:
    """Return the arrays as float64 columns of one length.

    Args:
        **arrays: by name, for the message. each [n]

    Raises:
        ValueError: if one is not one-dimensional, the lengths differ, or a value is NaN or infinite.
    """
    # Nothing is broadcast: a scalar in the place of a column would give a plausible number.
    checked = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    for name, values in checked.items():
        if values.ndim != 1:
            raise ValueError(f"{name} has shape {values.shape}; it must have one dimension")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has NaN or infinity at index {int(np.argmin(np.isfinite(values)))}")
    if len({len(values) for values in checked.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in checked.items())
        raise ValueError(f"the lengths differ: {lengths}; nothing is broadcast")
    return tuple(checked.values())


def outcomes(outcome: Floats) -> Floats:
    """Return the outcomes if they are 1, ½ and 0 only.

    Raises:
        ValueError: if there is another value.
    """
    # Exactly these: a probability in the place of an outcome would pass every formula.
    wrong = ~np.isin(outcome, (0.0, 0.5, 1.0))
    if wrong.any():
        raise ValueError(f"an outcome is 1, ½ or 0, not {outcome[wrong][0]} (index {int(np.argmax(wrong))})")
    return outcome
