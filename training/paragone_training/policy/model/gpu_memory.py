"""Memory of a gradient step on each of N processes, from a dry run on the meta device: nothing is allocated.

T tokens of a sequence, P of a prompt. Estimated: weights, gradients, optimiser, saved activations, logits of a chunk.
Not estimated: the libraries themselves, the allocator's gaps, communication buffers, and sampling, which comes before.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paragone_models.packing.attention import packed
from paragone_models.packing.segments import segments_attention
from paragone_training.policy.model.logprobs import packed_row, packed_states, unpacked
from paragone_training.policy.recipe import PolicyRecipe, PolicyTrainingSection
from paragone_training.saved_activations import fused_attention, kept_bytes, meta_attention, saved_bytes

__all__ = ["MemoryPlan", "plan_memory"]

_OPTIMISER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "rmsprop": 1, "sgd": 0}
# A chunk's float32 logits, their exponentials and their gradient, in the backward pass.
_LOGITS_ALIVE = 3


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process, at the peak of a gradient step.

    Attributes:
        weights: what the process holds of the model.
        gathered: with FSDP: the layer at work, the next one, and what belongs to no layer, whole.
        model_weights: number of weights of the whole model.
        rows: tokens of a pass at most, padding counted.
        padded: why passes are padded, or None: they are packed.
    """

    weights: int
    gathered: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    model_weights: int
    rows: int
    padded: str | None

    @property
    def total(self) -> int:
        """Their sum, in bytes."""
        return self.weights + self.gathered + self.gradients + self.optimiser + self.activations + self.logits


def plan_memory(recipe: PolicyRecipe, config: Any, *, tokens: int, prompt: int, shards: int = 1) -> MemoryPlan:
    """Return the memory of a gradient step of one process, on a device of the kind that is here.

    Args:
        tokens: of the longest sequence, T.
        prompt: of the longest prompt, P.
        shards: processes that share weights, gradients and optimiser (FSDP2); 1 shares nothing.
    """
    training = recipe.training
    dtype = getattr(torch, recipe.policy.dtype)
    attention = meta_attention(recipe.policy.attention)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    # A tied output layer is the embeddings under another name.
    weights = sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    trained = _trained(model, recipe)
    # Sharded weights are kept in float32 where passes are in bfloat16; else a layer's products cast as they go.
    itemsize = 4 if shards > 1 and training.bf16 else dtype.itemsize
    computed = torch.bfloat16 if training.bf16 else dtype
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]  # noqa: SLF001
    largest = max((sum(weight.numel() for weight in layer.parameters()) for layer in layers), default=weights)
    outside = weights - sum(weight.numel() for layer in layers for weight in layer.parameters())
    # FSDP2 fetches the next layer while one is at work; what belongs to no layer stays whole throughout.
    gathered = (2 * largest + outside) * computed.itemsize if shards > 1 else 0
    rows, saved, padded = _activations(model.to(computed), training, len(layers), tokens=tokens, prompt=prompt)
    states = _OPTIMISER_STATES.get(training.optimiser, 2)
    return MemoryPlan(
        weights=weights * itemsize // shards,
        gathered=gathered,
        gradients=trained * itemsize // shards,
        optimiser=trained * itemsize * states // shards,
        activations=saved,
        logits=_LOGITS_ALIVE * training.chunk_tokens * config.get_text_config().vocab_size * 4,
        model_weights=weights,
        rows=rows,
        padded=padded,
    )


def _activations(
    model: Any, training: PolicyTrainingSection, layers: int, *, tokens: int, prompt: int
) -> tuple[int, int, str | None]:
    """Return the rows of a pass, the bytes that it saves, and why it is padded, or None."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    padded, pairs = unpacked(model.config, training.batching, device), training.pairs_per_pass
    if padded is None:
        rows = pairs * (2 * tokens - prompt)
        saved = _saved_bytes_packed(model, pairs=pairs, tokens=tokens, prompt=prompt)
    else:
        rows = 2 * pairs * tokens
        saved = saved_bytes(model, sequences=2 * pairs, tokens=tokens)
    if training.gradient_checkpointing:
        # Each layer keeps its input, and one layer at a time is computed again.
        inputs = layers * rows * model.config.get_text_config().hidden_size * model.dtype.itemsize
        saved = inputs + saved // max(layers, 1)
    return rows, saved, padded


def _saved_bytes_packed(model: Any, *, pairs: int, tokens: int, prompt: int) -> int:
    """Return the bytes that a packed forward pass of the backbone saves for its backward pass, weights left out."""
    # Tokens that say whose they are: nothing is shared but a pair's prompt.
    items = [([3 * pair] * prompt, [3 * pair + side] * (tokens - prompt)) for side in (1, 2) for pair in range(pairs)]
    row = packed_row(items)

    def forward() -> Tensor:
        with packed(model.config):
            return packed_states(model.base_model, row, segments_attention(_fused_segment))

    return kept_bytes(model, forward)


def _trained(model: nn.Module, recipe: PolicyRecipe) -> int:
    if recipe.lora is None:
        return sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(recipe.lora.rank * (module.in_features + module.out_features) for module in linear[:-1])


def _fused_segment(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Attend as a fused kernel does to one node of a packed row."""
    return fused_attention(query, key, value, attn_mask)
