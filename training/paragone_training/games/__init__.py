"""Exact preference games: steps of every method, their solutions, and where they turn in circles. numpy and scipy only.

A policy is [n], non-negative, and sums to 1; a preference is [n, n] with P[i, j] = P(i beats j) and P + P^T = 1. What a
neural policy does approximately, these functions do exactly: they are what training is tested against.
"""

from paragone_training.games.equilibria import duality_gap, kl, nash, regularised_nash
from paragone_training.games.game import (
    LARGEST_ROTATION,
    Cycles,
    Dynamics,
    best_eta,
    critical_eta,
    largest_step,
    measure_cycles,
    rotation,
    spectral_radius,
)
from paragone_training.games.updates import (
    decreasing_eta,
    egpo_update,
    inpo_update,
    mirror_update,
    mpo_eta,
    nash_mp_step,
    omwu_step,
    reference_iterate,
    sppo_update,
)

__all__ = [
    "LARGEST_ROTATION",
    "Cycles",
    "Dynamics",
    "best_eta",
    "critical_eta",
    "decreasing_eta",
    "duality_gap",
    "egpo_update",
    "inpo_update",
    "kl",
    "largest_step",
    "measure_cycles",
    "mirror_update",
    "mpo_eta",
    "nash",
    "nash_mp_step",
    "omwu_step",
    "reference_iterate",
    "regularised_nash",
    "rotation",
    "spectral_radius",
    "sppo_update",
]
