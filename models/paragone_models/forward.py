"""The forward pass of the local engine: packed where that is exact, else length-sorted batches padded on the right."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paragone_models.network import AbsentBackbone, PreferenceNetwork, gather_reads
from paragone_models.packing.backend import choose
from paragone_models.packing.budget import CANDIDATES, Budget, best_budget
from paragone_models.packing.packer import Forward, Packer
from paragone_models.packing.prompts import PromptStore
from paragone_models.text.encoding import EncodeItem

__all__ = ["LocalForward", "batches", "encode"]

logger = logging.getLogger(__name__)

_PROMPT_BYTES = 256 << 20
_GPU_SHARE = 0.1


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


class LocalForward:
    """Choose how a backbone is run, and run it.

    Args:
        network: the model; only its backbone runs.
        max_batch_tokens: most tokens of one forward pass.
        deterministic: make the hidden states of an item a function of that item alone, bit for bit, on one machine and
            with one number of threads. Costs speed.
        prompt_cache_bytes: memory for keys and values of prompts; 0 keeps none. 256 MB on a CPU and a tenth of the
            free memory on a GPU unless given.

    Attributes:
        batching: ``packed``, or ``padded: `` and why, or ``elsewhere``.
        attention: what attends, for ``numerics``.
        packer: the packed engine, or None.
    """

    def __init__(
        self,
        network: PreferenceNetwork,
        *,
        max_batch_tokens: int,
        deterministic: bool = False,
        prompt_cache_bytes: int | None = None,
    ) -> None:
        self.deterministic = deterministic
        self.max_batch_tokens = max_batch_tokens
        self.packer: Packer | None = None
        self._network = network
        if isinstance(network.backbone, AbsentBackbone):
            self.batching = self.attention = "elsewhere"
            return
        way = choose(network.backbone)
        if isinstance(way, str):
            self.batching = f"padded: {way}"
            self.attention = str(getattr(network.config, "_attn_implementation", None))
        else:
            name, run = way
            self.batching, self.attention = "packed", f"packed {name}"
            self.packer = self._packer(run, prompt_cache_bytes)

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads, in the order of the items.

        Args:
            items: sequences, all with the same number of reads.

        Returns:
            Hidden states, float32, on the backbone's device. [n, R, H]

        Raises:
            ValueError: if the items differ in their number of reads, or the backbone runs elsewhere.
        """
        if isinstance(self._network.backbone, AbsentBackbone):
            raise ValueError("the backbone of this model was not loaded: the engine that it was loaded for runs it")
        if self.packer is None or not items:
            budget = 1 if self.deterministic else self.max_batch_tokens
            return encode(self._network, items, max_batch_tokens=budget)
        if len({len(item.reads) for item in items}) > 1:
            raise ValueError("items of one call must have the same number of reads")
        return self.packer.encode(items)

    def warm_up(self, *, max_length: int, limit_s: float = 10.0) -> Budget:
        """Find the fastest budget by trying, keep it, and return it.

        Args:
            max_length: longest sequence that the backbone reads.
            limit_s: no larger budget is tried once this much time has passed.
        """
        device = next(self._network.backbone.parameters()).device
        if self.deterministic:
            budget = Budget(self.max_batch_tokens, "deterministic sequences run apart, so there is nothing to try")
        else:
            budget = best_budget(
                self._padded_trial if self.packer is None else self.packer.trial,
                CANDIDATES.get(device.type, CANDIDATES["cpu"]),
                vocabulary=self._network.config.get_text_config().vocab_size,
                max_length=max_length,
                limit_s=limit_s,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the largest trial is not what batches will need
        self.max_batch_tokens = budget.tokens
        if self.packer is not None:
            self.packer.max_tokens = budget.tokens
        return budget

    def _padded_trial(self, max_tokens: int, items: Sequence[EncodeItem]) -> int:
        encode(self._network, items, max_batch_tokens=max_tokens)
        return sum(len(item.token_ids) for item in items)

    def _packer(self, run: Forward, prompt_cache_bytes: int | None) -> Packer:
        backbone = self._network.backbone
        device = next(backbone.parameters()).device
        if prompt_cache_bytes is None:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            prompt_cache_bytes = int(free * _GPU_SHARE) if free else _PROMPT_BYTES
        return Packer(
            run,
            device,
            self._network.config.hidden_size,
            store=PromptStore(prompt_cache_bytes),
            max_tokens=self.max_batch_tokens,
            deterministic=self.deterministic,
        )


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
