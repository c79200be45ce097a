"""The local engine: how a backbone is run in this process, and running it.

Sequences are packed where that is exact, and else run in batches of similar length, padded on the right.

Shapes: n sequences, R reads, H hidden size.
"""

import math
from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paragone_models.errors import ModelLoadError
from paragone_models.machine import CANDIDATES, Budget, best_budget
from paragone_models.network import AbsentBackbone, PreferenceNetwork, gather_reads, output_width
from paragone_models.packing.backend import choose, mixing
from paragone_models.packing.packer import Forward, Packer, PromptStore
from paragone_models.rotary import depending_on_length
from paragone_models.text.reader import EncodeItem

__all__ = ["LocalForward", "batches", "by_prompt"]

# Memory for keys and values of prompts: on a CPU, and as a share of what is free on a GPU.
_PROMPT_BYTES = 256 << 20
_GPU_SHARE = 0.1
# Tables of attention that a layer of a padded batch may make on a CPU, where transformers writes them out: with larger
# ones a batch of DeBERTa is slower than its sequences one by one (`benchmarks/pairwise.py --encoder`).
_TABLE_BYTES = 16 << 20
_PACKED = "packed "


def batches(lengths: Sequence[int], max_batch_tokens: int, max_batch_squares: float = math.inf) -> Iterator[list[int]]:
    """Yield indices of sequences that run together, longest first.

    Args:
        max_batch_tokens: padded tokens a batch may have; a longer sequence runs alone.
        max_batch_squares: the same of the squares of its padded lengths, summed.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        count = max(1, int(min(max_batch_tokens // longest, max_batch_squares / longest**2)))
        yield order[start : start + count]
        start += count


def by_prompt(items: Sequence[EncodeItem]) -> dict[bytes, list[int]]:
    """Return the numbers of the items that share a prompt, by the prompt's tokens in 32 bits, in their order."""
    families: dict[bytes, list[int]] = {}
    for number, item in enumerate(items):
        prompt = array("i", item.token_ids[: item.prompt_length]).tobytes()
        families.setdefault(prompt, []).append(number)
    return families


class LocalForward:
    """Choose how a backbone is run, and run it.

    Args:
        max_batch_tokens: most tokens of one forward pass.
        deterministic: make the hidden states of an item a function of that item alone, bit for bit, on one machine and
            with one number of threads. Costs speed.
        prompt_cache_bytes: memory for keys and values of prompts; 0 keeps none. 256 MB on a CPU and a tenth of the
            free memory on a GPU unless given.
        attention: what has to attend, as another one's attribute says it; else what is fastest here.
        proven: the way in which this very backbone was packed before: it is not tried again.

    Attributes:
        batching: ``packed``, or ``padded: `` and why, or ``elsewhere``.
        attention: what attends, for ``numerics``.
        packer: the packed engine, or None.
        way: the name of how it packs, or None.
    """

    def __init__(
        self,
        network: PreferenceNetwork,
        *,
        max_batch_tokens: int,
        deterministic: bool = False,
        prompt_cache_bytes: int | None = None,
        attention: str | None = None,
        proven: str | None = None,
    ) -> None:
        self.deterministic = self._apart = deterministic
        self.max_batch_tokens = max_batch_tokens
        self._prompt_cache_bytes = prompt_cache_bytes
        self.packer: Packer | None = None
        self.way: str | None = None
        self._network = network
        if isinstance(network.backbone, AbsentBackbone):
            self.batching = self.attention = "elsewhere"
            return
        only = None if attention is None else attention.removeprefix(_PACKED)
        way = choose(network.backbone, only, proven=proven)
        if isinstance(way, str):
            self.attention = str(getattr(network.config, "_attn_implementation", None))
            mixed = mixing(network.backbone, causal=network.causal)
            self._apart = self._apart or mixed is not None
            self.batching = f"padded: {way}" if mixed is None else f"padded: one sequence at a time, because {mixed}"
        else:
            name, run = way
            self.way = name
            self.batching, self.attention = "packed", f"{_PACKED}{name}"
            self.packer = self._packer(run, prompt_cache_bytes)

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads, in the order of the items.

        Args:
            items: sequences, all with the same number of reads.

        Returns:
            Hidden states, float32, on the backbone's device. [n, R, H]

        Raises:
            ValueError: if the items differ in their number of reads, the backbone runs elsewhere, or it reads no
                images and an item has some.
        """
        if isinstance(self._network.backbone, AbsentBackbone):
            raise ValueError("the backbone of this model was not loaded: the engine that it was loaded for runs it")
        if self._network.images is None and any(item.images for item in items):
            name = self._network.config.model_type
            raise ValueError(f"a {name} backbone that was loaded without images cannot read any")
        if self.packer is None or not items:
            # Of one token: every sequence runs alone, so that no neighbour can change its bits.
            budget = 1 if self._apart else self.max_batch_tokens
            return _encode_padded(self._network, items, max_batch_tokens=budget, max_batch_squares=self._squares())
        if len({len(item.reads) for item in items}) > 1:
            raise ValueError("items of one call must have the same number of reads")
        return self.packer.encode(items)

    def _squares(self) -> float:
        """Return how large the squares of a padded batch's lengths may be, summed."""
        on_cpu = next(self._network.backbone.parameters()).device.type == "cpu"
        if not on_cpu or self.attention != "eager":
            return math.inf
        return _TABLE_BYTES / (4 * getattr(self._network.config, "num_attention_heads", 1))

    def again(self, network: PreferenceNetwork) -> "LocalForward":
        """Return what runs a copy of the backbone, on whatever device, in the same way.

        Raises:
            ModelLoadError: if it cannot be run so there.
        """
        local = LocalForward(
            network,
            max_batch_tokens=self.max_batch_tokens,
            deterministic=self.deterministic,
            prompt_cache_bytes=self._prompt_cache_bytes,
            attention=self.attention,
        )
        if (local.batching, local.attention) != (self.batching, self.attention):
            raise ModelLoadError(
                f"on {next(network.parameters()).device} its batches are {local.batching} with {local.attention} "
                f"attention, and {self.batching} with {self.attention} on the first device: their numbers would differ"
            )
        return local

    def warm_up(self, *, max_length: int, limit_s: float = 10.0) -> Budget:
        """Find the fastest budget by trying, keep it, and return it.

        Args:
            max_length: longest sequence that the backbone reads.
            limit_s: no larger budget is tried once this much time has passed.
        """
        device = next(self._network.backbone.parameters()).device
        if self._apart:
            budget = Budget(self.max_batch_tokens, "sequences run apart, so there is nothing to try")
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
        _encode_padded(self._network, items, max_batch_tokens=max_tokens, max_batch_squares=self._squares())
        return sum(len(item.token_ids) for item in items)

    def _packer(self, run: Forward, prompt_cache_bytes: int | None) -> Packer:
        backbone = self._network.backbone
        device = next(backbone.parameters()).device
        if prompt_cache_bytes is None:
            # What is free now: weights are loaded, batches come later and take most of the rest.
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            prompt_cache_bytes = int(free * _GPU_SHARE) if free else _PROMPT_BYTES
        return Packer(
            run,
            device,
            output_width(self._network.config),
            store=PromptStore(prompt_cache_bytes),
            max_tokens=self.max_batch_tokens,
            deterministic=self.deterministic,
        )


@torch.inference_mode()
def _encode_padded(
    network: PreferenceNetwork,
    items: Sequence[EncodeItem],
    *,
    max_batch_tokens: int,
    max_batch_squares: float = math.inf,
) -> Tensor:
    """Return the hidden states at each item's reads, in the order of the items, from padded batches.

    Returns:
        Hidden states, float32, on the backbone's device. [n, R, H]

    Raises:
        ValueError: if the items differ in their number of reads, or max_batch_tokens is below 1.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1")
    device = next(network.backbone.parameters()).device
    hidden_size = output_width(network.config)
    if not items:
        return torch.empty(0, network.head.reads, hidden_size, device=device)
    if len({len(item.reads) for item in items}) > 1:
        raise ValueError("items of one call must have the same number of reads")
    lengths = [len(item.token_ids) for item in items]
    by_length = bool(depending_on_length(network.config))
    states = torch.empty(len(items), len(items[0].reads), hidden_size, device=device)
    for indices in batches(lengths, max_batch_tokens, max_batch_squares):
        # Sorted by falling length, so a batch's first one is its longest.
        longest = lengths[indices[0]]
        input_ids = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[index]] = torch.as_tensor(items[index].token_ids, dtype=torch.long)
        mask = None
        if not network.causal or by_length:
            real = torch.arange(longest) < torch.tensor([lengths[index] for index in indices])[:, None]
            mask = real.long().to(device)
        images = [items[index].images for index in indices]
        if any(images):
            hidden = network.last_hidden_of(input_ids.to(device), mask, images)
        else:
            hidden = network.last_hidden(input_ids.to(device), mask)
        # On the CPU: ``gather_reads`` asks them before it moves them.
        reads = torch.tensor([items[index].reads for index in indices])
        states[torch.tensor(indices, device=device)] = gather_reads(hidden, reads)
    return states
