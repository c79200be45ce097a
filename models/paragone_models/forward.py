"""The forward pass of the local engine: length-sorted batches under a token budget, padded on the right."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paragone_models.encoding import EncodeItem
from paragone_models.network import PreferenceNetwork, gather_reads

__all__ = ["batches", "encode"]


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of sequences that run together, longest first.

    Args:
        lengths: tokens per sequence.
        max_batch_tokens: padded tokens a batch may have; a longer sequence runs alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        count = max(1, max_batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


@torch.inference_mode()
def encode(network: PreferenceNetwork, items: Sequence[EncodeItem], *, max_batch_tokens: int) -> Tensor:
    """Return the hidden states at each item's reads, in the order of the items.

    Args:
        network: the model; only its backbone runs.
        items: sequences, all with the same number of reads.
        max_batch_tokens: padded tokens of one forward pass.

    Returns:
        Hidden states, float32, on the backbone's device. [n, R, H]

    Raises:
        ValueError: if the items differ in their number of reads, or max_batch_tokens is below 1.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1")
    device = next(network.backbone.parameters()).device
    hidden_size = network.config.get_text_config().hidden_size
    if not items:
        return torch.empty(0, network.head.reads, hidden_size, device=device)
    if len({len(item.reads) for item in items}) > 1:
        raise ValueError("items of one call must have the same number of reads")
    lengths = [len(item.token_ids) for item in items]
    states = torch.empty(len(items), len(items[0].reads), hidden_size, device=device)
    for indices in batches(lengths, max_batch_tokens):
        longest = lengths[indices[0]]
        input_ids = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[index]] = torch.as_tensor(items[index].token_ids, dtype=torch.long)
        mask = None
        if not network.causal:
            mask = (torch.arange(longest) < torch.tensor([lengths[index] for index in indices])[:, None]).long()
            mask = mask.to(device)
        hidden = network.last_hidden(input_ids.to(device), mask)
        reads = torch.tensor([items[index].reads for index in indices])
        states[torch.tensor(indices, device=device)] = gather_reads(hidden, reads)
    return states
