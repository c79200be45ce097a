"""The head of models that read both responses at once and say where each begins.

Shapes: B sequences of a batch, H hidden size.
"""

import torch
from torch import Tensor, nn

from paragone_models.spec import ModelSpec

__all__ = ["MarkerHead"]


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
