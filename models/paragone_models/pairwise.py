"""Models that read both responses at once: their head, and log-odds made of the two orders of a pair.

Shapes: B sequences of a batch, H hidden size.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paragone_models.spec import ModelSpec, Symmetrise

__all__ = ["MarkerHead", "symmetrised"]

Float64s = NDArray[np.float64]


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


class MarkerHead(nn.Module):
    """PairRM's head: one network holds the source against each candidate, each read at its marker.

        L(a, b) = mean over tasks of g([h_s; h_a]) − g([h_s; h_b]),  g = Linear(H, T) ∘ tanh ∘ Linear(2H, H)

    Source: Jiang et al. (arXiv 2306.02561), §3.2, and the checkpoint's own configuration.
    """

    gate_size = 0

    def __init__(self, hidden_size: int, spec: ModelSpec, *, tasks: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.value_head = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, tasks)
        )
        self.prompt_head = None

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs: source, first and second candidate."""
        return 3

    def gate_scales(self, hidden: Tensor) -> Tensor:  # noqa: ARG002 (every head has it)
        """Refuse: there is no gate."""
        raise ValueError("this pairwise head has no gate, and so no scales")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the log-odds of each sequence's first candidate, in this order of the two.

        Args:
            hidden: hidden states at source, first and second candidate. [B, 3, H]

        Returns:
            Log-odds, float32. [B, 1]

        Raises:
            ValueError: if the number of reads is not three.
        """
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            source, first, second = hidden.float().unbind(1)
            left = self.value_head(torch.cat([source, first], dim=-1))
            right = self.value_head(torch.cat([source, second], dim=-1))
            difference: Tensor = (left - right).mean(dim=-1, keepdim=True)
            return difference
