"""Log-probabilities of whole responses, without ever holding the logits of a whole batch.

N sequences, T padded length, M response tokens of the batch, H hidden size, V vocabulary. A sequence is the prompt's
token ids and the response's, as they were sampled; nothing is tokenised again. A pass is padded, or one packed row
(``packing.py``); what is computed from its hidden states is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paragone_models.packing import attention
from paragone_models.packing.attention import Attend
from paragone_training.policy.model.packing import (
    Item,
    PackedRow,
    longest_of_prompts,
    packed_attention,
    packed_row,
    packed_states,
)
from paragone_training.policy.sections import PolicyTrainingSection

__all__ = [
    "ResponseLogprobs",
    "Sequences",
    "autocast",
    "collated",
    "frozen_logprobs",
    "on_device",
    "output_logits",
    "padded_sequences",
    "response_logprobs",
]


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


def padded_sequences(items: Sequence[Item], pad_id: int) -> Sequences:
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


def collated(items: Sequence[Item], pad_id: int, *, packed: bool) -> Sequences | PackedRow:
    """Return prompts and responses as one pass.

    Args:
        items: token ids of a prompt and of a response, N times.
        pad_id: fills up.
        packed: as one row, or padded.
    """
    return packed_row(items) if packed else padded_sequences(items, pad_id)


class ResponseLogprobs(nn.Module):
    """A causal language model that returns one number per response: the sum of its tokens' log-probabilities.

    Args:
        model: a transformers causal language model, with adapters or without.
        chunk_tokens: response tokens whose logits exist at once.
        attend: the attention of packed passes, or None: it takes padded ones alone.
    """

    def __init__(self, model: Any, *, chunk_tokens: int, attend: Attend | None = None) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self._attend = attend
        # FSDP asks what it wraps for the names of its layers
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    @property
    def packs(self) -> bool:
        """Whether its passes are packed rows."""
        return self._attend is not None

    def packing(self) -> AbstractContextManager[None]:
        """Return a block that a packed pass with gradients and its backward pass stand in together."""
        return attention.packed(self._bare.base_model.config) if self.packs else nullcontext()

    @property
    def _bare(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: Sequences | PackedRow) -> Tensor:
        """Return the log-probability of each response, in nats, float32. [N].

        Args:
            batch: one pass, as ``collated`` returns it.

        Raises:
            ValueError: if the pass is packed and the network has no attention for it.
        """
        bare = self._bare
        if isinstance(batch, PackedRow):
            if self._attend is None:
                raise ValueError("a network without packed attention takes padded passes")
            states, targets, owners = packed_states(bare.base_model, batch, self._attend), batch.targets, batch.owners
            return self._summed(bare, states, targets, owners, len(batch.places))[batch.places]
        return self._summed(bare, *_padded_states(bare.base_model, batch), len(batch.input_ids))

    def _summed(self, bare: Any, states: Tensor, targets: Tensor, owners: Tensor, count: int) -> Tensor:
        """Return sums of the targets' log-probabilities by owner, chunk by chunk. [count].

        Args:
            bare: the model without adapters' wrapper.
            states: that predict the targets. [M, H]
            targets: response tokens. [M]
            owners: whose each of them is. [M]
            count: of owners.
        """
        total = torch.zeros(count, dtype=torch.float32, device=states.device)
        for start in range(0, len(states), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            if torch.is_grad_enabled():
                values = checkpoint(_token_logprobs, bare, states[part], targets[part], use_reentrant=False)
            else:
                values = _token_logprobs(bare, states[part], targets[part])
            total = total.index_add(0, owners[part], values)
        return total


def response_logprobs(model: Any, training: PolicyTrainingSection) -> ResponseLogprobs:
    """Return the network of a model as a recipe wants it: packed where it can be, with its chunks of logits.

    Args:
        model: a transformers causal language model, on its device, with adapters or without.
        training: batching and chunk.
    """
    attend = packed_attention(model, training.batching)
    return ResponseLogprobs(model, chunk_tokens=training.chunk_tokens, attend=attend)


def _padded_states(backbone: Any, batch: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states that predict response tokens, the tokens, and whose they are: [M, H], [M], [M]."""
    input_ids, attention_mask, answered = batch
    hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    here = answered[:, 1:]
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(here)[here]
    return hidden[:, :-1][here], input_ids[:, 1:][here], rows


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
    items: Sequence[Item],
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
        batch: sequences in a forward pass; those of like length together, and packed those of one prompt.
        bf16: mixed precision.
    """
    device = next(network.parameters()).device
    network.eval()
    found = [0.0] * len(items)
    with autocast(device, bf16=bf16):
        for places in _by_length(items, batch, by_prompt=network.packs):
            one = collated([items[place] for place in places], pad_id, packed=network.packs)
            values = network(on_device(one, device))
            for place, value in zip(places, values.tolist(), strict=True):
                found[place] = value
    return found


def on_device(batch: Sequences | PackedRow, device: torch.device) -> Sequences | PackedRow:
    """Return a pass with its tensors on a device.

    Args:
        batch: as ``collated`` returns it.
        device: of the network.
    """
    if isinstance(batch, PackedRow):
        return PackedRow(batch.layout, *(part.to(device) for part in batch[1:]))
    return Sequences(*(part.to(device) for part in batch))


def _by_length(items: Sequence[Item], batch: int, *, by_prompt: bool) -> Iterator[list[int]]:
    lengths = [len(prompt) + len(response) for prompt, response in items]
    longest = longest_of_prompts([prompt for prompt, _ in items], lengths) if by_prompt else {}

    def rank(place: int) -> tuple[Any, ...]:
        prompt = tuple(items[place][0])
        return (longest[prompt], prompt, lengths[place]) if by_prompt else (lengths[place],)

    order = sorted(range(len(items)), key=rank)
    for start in range(0, len(order), batch):
        yield order[start : start + batch]
