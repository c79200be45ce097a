"""Log-probabilities of whole responses, without ever holding the logits of a whole batch.

N sequences, T padded length, M response tokens of the batch, H hidden size, V vocabulary. A sequence is the prompt's
token ids and the response's, as they were sampled; nothing is tokenised again.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["ResponseLogprobs", "Sequences", "autocast", "frozen_logprobs", "output_logits", "padded_sequences"]


class Sequences(NamedTuple):
    """Prompts and responses, padded on the right.

    Attributes:
        input_ids: prompt, response, padding. [N, T]
        attention_mask: 1 at prompt and response. [N, T]
        answered: True at the response's tokens. [N, T]
    """

    input_ids: Tensor
    attention_mask: Tensor
    answered: Tensor


def padded_sequences(items: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Sequences:
    """Return prompts and responses as tensors.

    Args:
        items: token ids of a prompt and of a response, N times.
        pad_id: fills up.
    """
    longest = max(len(prompt) + len(response) for prompt, response in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(items), longest), dtype=torch.long)
    answered = torch.zeros((len(items), longest), dtype=torch.bool)
    for row, (prompt, response) in enumerate(items):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response], dtype=torch.long)
        mask[row, :end] = 1
        answered[row, len(prompt) : end] = True
    return Sequences(input_ids, mask, answered)


class ResponseLogprobs(nn.Module):
    """A causal language model that returns one number per response: the sum of its tokens' log-probabilities.

    Args:
        model: a transformers causal language model, with adapters or without.
        chunk_tokens: response tokens whose logits exist at once.
    """

    def __init__(self, model: Any, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        # FSDP asks what it wraps for the names of its layers
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answered: Tensor) -> Tensor:
        """Return the log-probability of each response, in nats, float32. [N].

        Args:
            input_ids: prompt, response, padding. [N, T]
            attention_mask: 1 at prompt and response. [N, T]
            answered: True at the response's tokens. [N, T]
        """
        bare = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = bare.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        here = answered[:, 1:]
        states, targets = hidden[:, :-1][here], input_ids[:, 1:][here]
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(here)[here]
        total = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        for start in range(0, len(states), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            if torch.is_grad_enabled():
                values = checkpoint(_token_logprobs, bare, states[part], targets[part], use_reentrant=False)
            else:
                values = _token_logprobs(bare, states[part], targets[part])
            total = total.index_add(0, rows[part], values)
        return total


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return the logits of hidden states as the model itself computes them, in float32. [M, V].

    Args:
        model: a causal language model.
        hidden: last hidden states. [M, H]
    """
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _token_logprobs(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits = output_logits(model, states)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[Any]:
    """Return the context that both frozen and trained log-probabilities are computed in.

    Args:
        device: of the policy.
        bf16: mixed precision.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


@torch.no_grad()
def frozen_logprobs(
    network: ResponseLogprobs,
    items: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    batch: int,
    bf16: bool = False,
) -> list[float]:
    """Return the log-probability of every response, in nats, in their order. [N].

    Args:
        network: the policy that is asked.
        items: token ids of a prompt and of a response, N times.
        pad_id: fills up.
        batch: sequences in a forward pass; those of like length together.
        bf16: mixed precision.
    """
    device = next(network.parameters()).device
    network.eval()
    found = [0.0] * len(items)
    with autocast(device, bf16=bf16):
        for places in _by_length(items, batch):
            sequences = padded_sequences([items[place] for place in places], pad_id)
            values = network(*(tensor.to(device) for tensor in sequences))
            for place, value in zip(places, values.tolist(), strict=True):
                found[place] = value
    return found


def _by_length(items: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int) -> Iterator[list[int]]:
    order = sorted(range(len(items)), key=lambda place: len(items[place][0]) + len(items[place][1]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]
