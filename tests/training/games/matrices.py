"""The games that the exact updates are tested on: P[i, j] = P(row beats column)."""

import numpy as np

ROCK_PAPER_SCISSORS = np.array([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]])
"""Three responses in a circle of unequal strength; the Nash equilibrium is (3, 2, 4) / 9."""
START = np.array([0.5, 0.3, 0.2])
NASH = np.array([3.0, 2.0, 4.0]) / 9.0

PENTAGON = np.array(
    [
        [0.50, 0.90, 0.55, 0.42, 0.10],
        [0.10, 0.50, 0.85, 0.60, 0.45],
        [0.45, 0.15, 0.50, 0.95, 0.52],
        [0.58, 0.40, 0.05, 0.50, 0.80],
        [0.90, 0.55, 0.48, 0.20, 0.50],
    ]
)
"""Five responses, each beating the next two around a circle, unequally: a full-support Nash, two rotations."""
PENTAGON_START = np.array([0.3, 0.25, 0.2, 0.15, 0.1])

CONDORCET = np.array([[0.5, 0.7, 0.8], [0.3, 0.5, 0.9], [0.2, 0.1, 0.5]])
"""The first response beats both others."""


def deterministic_rock_paper_scissors() -> np.ndarray:
    return np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])


def random_game(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an intransitive game and a full-support policy."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(scale=2.0, size=(size, size))
    game = 1.0 / (1.0 + np.exp(-(scores - scores.T)))
    return game, draw.dirichlet(np.ones(size)) * 0.9 + 0.1 / size
