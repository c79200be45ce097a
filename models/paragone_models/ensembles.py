"""What several models say of one comparison, as one answer. No torch.

m = members, n = comparisons. Members' log-odds are ``logits[i, j]``, temperature applied. All that is made of them
flips exactly its sign where the two responses are swapped, so that the two probabilities sum to 1.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

__all__ = ["PessimismForm", "check_pessimism", "combined", "routed"]

Float64s = NDArray[np.float64]
PessimismForm = Literal["spread", "log-mean-exp"]

# Below the least, the rounding of a sum of exponents, divided by it, would be more than 1e-9 of a logit.
_LEAST_PESSIMISM, _MOST_PESSIMISM = 1e-6, 1e6


def check_pessimism(pessimism: float) -> None:
    """Raise an error if an ensemble cannot be that pessimistic.

    Raises:
        ValueError: if it is neither 0 nor in [1e-6, 1e6].
    """
    if pessimism != 0 and not _LEAST_PESSIMISM <= pessimism <= _MOST_PESSIMISM:
        raise ValueError(
            f"pessimism is {pessimism}: give 0, or a number from {_LEAST_PESSIMISM:g} to {_MOST_PESSIMISM:g}"
        )


def combined(
    logits: Float64s, weights: Sequence[float], *, pessimism: float = 0.0, form: PessimismForm = "spread"
) -> tuple[Float64s, Float64s]:
    """Return the log-odds of an ensemble, and their spread.

        mean = Σ w_i z_i,  spread² = Σ w_i (z_i − mean)²,  Σ w_i = 1,  s = sign(mean)
        spread         z = s · max(|mean| − pessimism · spread, 0)
        log-mean-exp   z = s · max(−log Σ w_i exp(−pessimism · s · z_i) / pessimism, 0)

    Both are pessimistic about whomever the mean prefers, and never beyond ½. The first is that of reward ensembles
    (Coste et al., arXiv 2310.02743, there mean − β·variance of a reward). The second is the effective reward
    −log E exp(−β r) / β of arXiv 2606.09073: the mean for β → 0, about mean − β/2 · variance for a small one, and the
    worst member for β → ∞. As it stands it belittles the first response in both orders, and the two probabilities
    would sum to less than 1; taken of s · z_i, it is the same number in both orders.

    Args:
        logits: of each member; NaN gives NaN. [m, n]
        weights: of the members, at least 0 and not all of them 0. [m]
        pessimism: see ``check_pessimism``, in spreads or in 1 / nats; 0 gives the mean.

    Returns:
        Log-odds and spread. [n] each

    Raises:
        ValueError: see ``check_pessimism``.

    >>> combined(np.array([[2.0], [4.0]]), [1, 1], pessimism=0.5)[0].tolist()
    [2.5]
    """
    check_pessimism(pessimism)
    shares = np.asarray(weights, dtype=np.float64)[:, None] / sum(weights)
    mean = (shares * logits).sum(axis=0)
    spread = np.sqrt((shares * (logits - mean) ** 2).sum(axis=0))
    sign = np.sign(mean)
    if pessimism == 0:
        return mean, spread
    if form == "spread":
        worth = np.abs(mean) - pessimism * spread
    else:
        # Of what differs from the mean: the sum of large exponents would lose the digits of a small difference.
        worth = np.abs(mean) - logsumexp(-pessimism * (sign * (logits - mean)), axis=0, b=shares) / pessimism
    # Pessimism never adds: what rounding does to members that agree is not above their mean either.
    return sign * np.clip(worth, 0.0, np.abs(mean)), spread


def routed(
    logits: Float64s,
    weights: Sequence[float],
    margin: float,
    *,
    pessimism: float = 0.0,
    form: PessimismForm = "spread",
) -> tuple[Float64s, NDArray[np.bool_]]:
    """Return the log-odds of an ensemble that asks all its members only where the first one is not sure.

    Args:
        logits: see ``combined``; of members after the first they count only where they are asked. [m, n]
        margin: log-odds of the first, up or down, from which its word is enough; above 0.

    Returns:
        Log-odds [n], and where the others were asked [n].

    Raises:
        ValueError: see ``check_pessimism``.
    """
    asked = np.abs(logits[0]) < margin
    together, _ = combined(logits[:, asked], weights, pessimism=pessimism, form=form)
    answers = logits[0].copy()
    answers[asked] = together
    return answers, asked
