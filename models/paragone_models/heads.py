"""The head: from hidden states at the read positions to a representation, always in float32.

Shapes: n sequences, R reads each, H hidden size, d length of a representation, k 2-blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_models.spec import ModelSpec

__all__ = ["RepresentationHead"]


class RepresentationHead(nn.Module):
    """Turn hidden states into rewards, ratings or general preference vectors.

    A general preference vector is L2-normalised where the spec says so, then each 2-block is multiplied by the square
    root of its gate weight, so that the skew form of two responses to one prompt carries the weight once:

        representation[2l:2l+2] = sqrt(lambda_l) * v[2l:2l+2] / |v|,  lambda = softmax(prompt_head(h_prompt))

    Source: Zhang et al. (arXiv 2410.02197), §4.1 and Theorem 4.5, with the gate of the published checkpoints.

    Args:
        hidden_size: H.
        spec: what the model is.
        value_head: the module from one hidden state to d numbers; a linear layer without bias unless given.
    """

    def __init__(self, hidden_size: int, spec: ModelSpec, *, value_head: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.value_head = value_head or nn.Linear(hidden_size, spec.dimension, bias=False)
        self.prompt_head = nn.Linear(hidden_size, spec.blocks, bias=False) if spec.gate == "softmax" else None
        if value_head is None:
            self._initialise(hidden_size)

    def _initialise(self, hidden_size: int) -> None:
        for head in (self.value_head, self.prompt_head):
            if isinstance(head, nn.Linear):
                nn.init.normal_(head.weight, std=1 / (hidden_size + 1))

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs: the response's, after the prompt's where there is a gate."""
        return 1 if self.prompt_head is None else 2

    def gate_scales(self, hidden: Tensor) -> Tensor:
        """Return the gate's weight of each 2-block; they sum to 1.

        Args:
            hidden: hidden states at the reads, the prompt's first. [n, R, H]

        Returns:
            Weights lambda, float32. [n, k]

        Raises:
            ValueError: if the head has no gate, or the number of reads is not its own.
        """
        if self.prompt_head is None:
            raise ValueError(f"this {self.spec.kind} head has no gate, and so no scales")
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return torch.softmax(self.prompt_head(hidden[:, 0].float()), dim=-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the representation of each sequence.

        Args:
            hidden: hidden states at the reads of ``ReadPlan``: the gate's prompt state first. [n, R, H]

        Returns:
            Representations, float32. [n, d]

        Raises:
            ValueError: if the number of reads is not the head's.
        """
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")
        # Mixed precision stops here: a bf16 head has only 128 distinct scores between 16 and 32.
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            values: Tensor = self.value_head(hidden[:, -1].float())
            if not self.spec.blocks:
                return values
            start = self.spec.dimension - 2 * self.spec.blocks
            scalar, vector = values[:, :start], values[:, start:]
            if self.spec.normalise:
                vector = functional.normalize(vector, dim=-1, eps=1e-12)
            if self.prompt_head is not None:
                # The root in log space: a weight that underflows to 0 would give sqrt an infinite gradient.
                root = torch.exp(0.5 * torch.log_softmax(self.prompt_head(hidden[:, 0].float()), dim=-1))
                vector = vector * root.repeat_interleave(2, dim=-1)
            return torch.cat([scalar, vector], dim=-1)
