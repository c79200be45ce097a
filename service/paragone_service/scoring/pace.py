"""How long batches take on one device: as long as the smallest one, and so much more for each token."""

import math

__all__ = ["Pace"]

_MEMORY = 0.8  # of the sums, against the last batch's: about the last five batches count
_CREEP = 1.01
"""Growth a batch of the shortest time known, until one takes as long: a model may have become slower."""
_PATIENCE_S, _PATIENCE = 4.0, 5
"""How long a forward may take at least, and how many times as long as its size suggests, until it is overdue."""


class Pace:
    """Measure batches, and expect the next ones.

    Attributes:
        tokens_per_s: of the last batches; 0 before the first.
        least_s: time of the smallest batch; infinite before the first.
    """

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self.least_s = math.inf
        self._sum_s, self._sum_tokens, self._sum_batches = 0.0, 0.0, 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Count a batch that has run."""
        speed = tokens / max(seconds, 1e-6)
        self.tokens_per_s = _MEMORY * self.tokens_per_s + (1 - _MEMORY) * speed if self.tokens_per_s else speed
        self.least_s = min(seconds, _CREEP * self.least_s)
        self._sum_s = _MEMORY * self._sum_s + seconds
        self._sum_tokens = _MEMORY * self._sum_tokens + tokens
        self._sum_batches = _MEMORY * self._sum_batches + 1

    def expected_s(self, tokens: int) -> float:
        """Return how long a batch will take, as far as is known; 0 before the first."""
        return self.least_s + tokens * self._per_token_s() if self._sum_tokens else 0.0

    def tokens_in(self, times_least: float) -> float:
        """Return the size of a batch that takes so many times as long as the smallest one; infinite if unknown."""
        per_token_s = self._per_token_s() if self._sum_tokens else 0.0
        return (times_least - 1) * self.least_s / per_token_s if per_token_s else math.inf

    def patience_s(self, tokens: int) -> float:
        """Return after how long a forward is overdue."""
        return max(_PATIENCE_S, _PATIENCE * tokens / self.tokens_per_s) if self.tokens_per_s else math.inf

    def _per_token_s(self) -> float:
        return max(0.0, self._sum_s - self.least_s * self._sum_batches) / self._sum_tokens
