"""The term of supervised fine-tuning that goes beside any method's loss."""

import torch
from torch import Tensor

from paragone_training.policy.methods.method import check_vectors, working

__all__ = ["sft_loss"]


def sft_loss(chosen_logprob: Tensor, chosen_tokens: Tensor, preference: Tensor) -> Tensor:
    """Return the negative log-likelihood of the preferred response, per token; 0 where neither is preferred.

        loss = -log pi(chosen) / tokens of chosen

    Source: Pang et al., iterative reasoning preference optimisation (arXiv 2404.19733), equation 1, first term: DPO
    alone lowers the probability of chosen responses too.

    Args:
        chosen_tokens: length of the response, its end token included. [B]
        preference: target probability that chosen is preferred; of a tie, ½, no response is learnt by heart. [B]

    Returns:
        Nats a token. [B]

    Raises:
        ValueError: if shapes differ or are not [B], or a response has no token.
    """
    check_vectors(chosen_logprob=chosen_logprob, chosen_tokens=chosen_tokens, preference=preference)
    if not bool((chosen_tokens >= 1).all()):
        raise ValueError("a response without a token has no likelihood per token: leave its pair out")
    chosen, tokens = working(chosen_logprob, chosen_tokens)
    return torch.where(preference == 0.5, torch.zeros_like(chosen), -chosen / tokens)
