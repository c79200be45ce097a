"""Attributes that a network weighs into one reward: by the prompt (ArmoRM, QRM), or by all (URM, LDL-Reward).

Shapes: B sequences of a batch, R reads, H hidden size, A attributes, Q quantiles or bins of each, d of a
representation.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paragone_models.spec import ModelSpec

__all__ = ["GatedRatings", "Rated", "WeighedRatings", "binned", "normal"]


class GatedRatings(nn.Module):
    """Turn hidden states into a reward and the ratings that it is made of.

        reward = sum_a scale * g_a * (r T)_a,  g = softmax(gate(h_prompt) / temperature),  r = W h_response

    With quantiles each attribute has Q numbers of which the rating is the mean, and so has the reward. A representation
    is the reward, the ratings (r, or r T where there are quantiles, as each is published), then the reward's quantiles.

    Source: Wang et al. (arXiv 2406.12845), §3; with quantiles Dorka (arXiv 2409.10164); the checkpoints' own settings.

    Args:
        value_head: from the response's hidden state to all numbers of all attributes. [H] to [A · Q]
        gate: from the prompt's last hidden state to one logit per attribute. [H] to [A]
        transform: what ratings are multiplied by, T. [A, A]
        scale: what the gate's weights are multiplied by.
        temperature: what the gate's logits are divided by.
    """

    def __init__(
        self,
        spec: ModelSpec,
        value_head: nn.Linear,
        gate: nn.Module,
        transform: Tensor,
        *,
        scale: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.value_head: nn.Module = value_head
        self.prompt_head: nn.Module = gate
        self.register_buffer("transform", transform)
        self.gate_size = len(transform)
        self._scale = scale
        self._temperature = temperature

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs: the prompt's, then the response's."""
        return 2

    def gate_scales(self, hidden: Tensor) -> Tensor:
        """Return the gate's weight of each attribute; they sum to 1.

        Args:
            hidden: hidden states at the reads, the prompt's first. [B, R, H]

        Returns:
            Weights, float32. [B, A]

        Raises:
            ValueError: if the number of reads is not two.
        """
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return torch.softmax(self.prompt_head(hidden[:, 0].float()) / self._temperature, dim=-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the representation of each sequence.

        Args:
            hidden: hidden states at the reads, the prompt's first. [B, R, H]

        Returns:
            Reward, ratings and the reward's quantiles, float32. [B, d]

        Raises:
            ValueError: if the number of reads is not two.
        """
        shares = self._scale * self.gate_scales(hidden)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            values = self.value_head(hidden[:, -1].float()).view(len(hidden), self.gate_size, -1)
            adjusted = torch.einsum("baq,ac->bcq", values, self.get_buffer("transform"))
            quantiles = (shares[:, :, None] * adjusted).sum(dim=1)
            reward = quantiles.mean(dim=-1, keepdim=True)
            if values.shape[-1] == 1:
                return torch.cat([reward, values[..., 0]], dim=-1)
            return torch.cat([reward, adjusted.mean(dim=-1), quantiles], dim=-1)


class WeighedRatings(nn.Module):
    """Turn the hidden state of a response into a reward, and the ratings that are weighed into it.

        reward = sum_a g_a(h) * r_a

    A representation is the reward, the ratings r, and what else is known of them.

    Args:
        value_head: from a hidden state to the numbers that ratings are made of. [H] to [n]
        weights: from the same state to one weight per attribute, g; they need be no shares of one. [H] to [A]
        rated: makes ratings, and what else is known of them, of those numbers: ``normal``, or what ``binned`` returns.
    """

    def __init__(self, spec: ModelSpec, value_head: nn.Module, weights: nn.Module, rated: "Rated") -> None:
        super().__init__()
        self.spec = spec
        self.value_head = value_head
        self.weights = weights
        self.prompt_head: nn.Module | None = None
        self.gate_size = 0
        self._rated = rated

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs: the response's."""
        return 1

    def gate_scales(self, hidden: Tensor) -> Tensor:  # noqa: ARG002 (as of every head)
        """Raise ValueError: what weighs the attributes reads the response too, and is no gate of the prompt's."""
        raise ValueError(f"this {self.spec.kind} head has no gate that reads the prompt alone, and so no scales")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the representation of each sequence.

        Args:
            hidden: hidden states at the reads. [B, 1, H]

        Returns:
            Reward, ratings and what else is known of them, float32. [B, d]

        Raises:
            ValueError: if the number of reads is not one.
        """
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            state = hidden[:, -1].float()
            ratings, known = self._rated(self.value_head(state))
            reward = (self.weights(state) * ratings).sum(dim=-1, keepdim=True)
            return torch.cat([reward, ratings, known], dim=-1)


Rated = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the numbers of a head to ratings and what else is known of them: [B, n] to [B, A] and [B, …]."""


def normal(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of ratings with a normal distribution each.

        rating_a ~ N(mu_a, sigma_a^2),  (mu_a, log sigma_a) = values 2a and 2a + 1

    Source: URM, Lou et al. (arXiv 2410.00847), §4.1; where the means stand, and that their weights are no shares of
    one: SGLang's forward pass, which its tests hold against the publishers' own.

    Args:
        values: [B, 2 · A]
    """
    means, log_deviations = values.view(len(values), -1, 2).unbind(-1)
    return means, log_deviations.exp()


def binned(bins: int) -> Rated:
    """Return what makes of the logits of bins, [B, A · Q], the mean of each attribute's distribution over them.

        r_a = sum_b b / (Q - 1) * p_ab,  p_a = softmax of the logits of attribute a,  b = 0 … Q - 1

    Source: the authors' class of LDL-Reward-Gemma-2-27B, as RewardBench has it (``ldlreward.py``).

    Args:
        bins: of each attribute, Q.
    """

    def rated(values: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(values.view(len(values), -1, bins), dim=-1)
        return shares @ torch.linspace(0, 1, bins, device=values.device), values[:, :0]

    return rated
