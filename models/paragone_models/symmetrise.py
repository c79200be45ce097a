"""One answer from the two orders in which a pair can be read. No torch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Symmetrise", "symmetrised"]

Float64s = NDArray[np.float64]
Symmetrise = Literal["mean-logit", "mean-probability", "sum", "none"]


def symmetrised(forwards: Float64s, backwards: Float64s, how: Symmetrise) -> Float64s:
    """Return the log-odds that the first response is preferred, from what a model says of both orders.

        mean-logit         (L(a, b) − L(b, a)) / 2
        mean-probability   logit of (σ(L(a, b)) + 1 − σ(L(b, a))) / 2
        sum                L(a, b) − L(b, a), as published for PairRM: twice the log-odds
        none               L(a, b)

    All but ``none`` flip exactly their sign where the responses are swapped. Source of ``sum``: LLM-Blender's
    ``compare`` and ``rank`` (arXiv 2306.02561); of ``mean-probability``: RLHFlow's pair preference model (2405.07863).

    Args:
        forwards: log-odds of first over second with the first one read first. [...]
        backwards: log-odds of second over first with the second one read first; not used by ``none``. [...]

    >>> symmetrised(np.array([2.0]), np.array([-1.0]), "mean-logit").tolist()
    [1.5]
    """
    if how == "none":
        return forwards
    if how == "mean-probability":
        # By logarithms of both shares: 1 − p would lose the digits of a small one.
        own = np.logaddexp(_log_sigmoid(forwards), _log_sigmoid(-backwards))
        return np.asarray(own - np.logaddexp(_log_sigmoid(backwards), _log_sigmoid(-forwards)))
    difference = forwards - backwards
    return difference / 2 if how == "mean-logit" else difference


def _log_sigmoid(values: Float64s) -> Float64s:
    return np.asarray(-np.logaddexp(0.0, -values))
