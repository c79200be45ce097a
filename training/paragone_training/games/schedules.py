"""Schedules over iterations: which iterate is the reference, and INPO's decreasing step."""

from paragone_training.games.inputs import check_positive

__all__ = ["decreasing_eta", "reference_iterate"]


def reference_iterate(iteration: int, *, every: int | None = None) -> int:
    """Return which iterate is the reference mu in this iteration.

        every None: 0, the initial policy;  every n: n * floor(t / n)

    ``every=1`` is the previous iterate (the policy that generates the data). Resetting the reference every n iterations
    turns a method that solves the regularised game into one whose last iterate solves the game without reference.
    Source: COMAL (arXiv 2410.23223), algorithm 1, which is also MPO's magnet (arXiv 2410.16714).

    Args:
        iteration: t, from 0; in iteration t the policy in training starts from iterate t.
        every: iterations between resets; None never resets.

    Returns:
        An index of an iterate, at most ``iteration``.

    Raises:
        ValueError: if iteration is negative, or every is given and below 1.
    """
    if iteration < 0:
        raise ValueError(f"iteration must not be negative, not {iteration}")
    if every is None:
        return 0
    if every < 1:
        raise ValueError(f"every must be at least 1 iteration, not {every}")
    return iteration - iteration % every


def decreasing_eta(iteration: int, *, tau: float) -> float:
    """Return INPO's eta for last-iterate convergence: the step shrinks as 1/t.

        eta_t = tau (t + 2) / 2

    It starts at eta = tau, where the current policy has weight 0. Source: Zhang et al., INPO (arXiv 2407.00617), the
    theorem on the last iterate in §3.

    Args:
        iteration: t, from 0.
        tau: weight of the KL to the reference.

    Raises:
        ValueError: if iteration is negative or tau is not positive and finite.
    """
    check_positive(tau=tau)
    if iteration < 0:
        raise ValueError(f"iteration must not be negative, not {iteration}")
    return tau * (iteration + 2) / 2
