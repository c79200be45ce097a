"""Bytes that a forward pass saves for its backward pass, found by a run on the meta device: nothing is allocated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

__all__ = ["fused_attention", "kept_bytes", "meta_attention", "saved_bytes"]

_MASKED, _UNMASKED = "paragone-dry-sdpa", "paragone-dry-varlen"


def meta_attention(name: str) -> str:
    """Return an attention implementation that saves on the meta device what transformers' ``name`` saves on a real one.

    Torch's own takes another path there, one that keeps T×T products.
    """
    AttentionInterface.register(_MASKED, _masked)
    AttentionInterface.register(_UNMASKED, _unmasked)
    return {"sdpa": _MASKED, "flash_attention_2": _UNMASKED, "flash_attention_3": _UNMASKED}.get(name, name)


def saved_bytes(model: Any, *, sequences: int, tokens: int) -> int:
    """Return the bytes that a padded pass of a causal model's backbone saves, weights left out.

    Args:
        model: on the meta device, with a ``meta_attention``.
    """
    ids = torch.zeros(sequences, tokens, dtype=torch.long, device="meta")
    # The mask is ready: making one asks for values, and the meta device has none.
    mask = torch.ones(sequences, 1, tokens, tokens, dtype=torch.bool, device="meta")
    return kept_bytes(
        model,
        lambda: model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state,
    )


def kept_bytes(model: Any, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that a pass saves for its backward pass; neither weights nor the result count."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}  # noqa: SLF001 - a storage's identity
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        identity = tensor.untyped_storage()._cdata  # noqa: SLF001
        if identity not in own:
            kept[identity] = tensor  # held, so that its identity is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = forward()
    own.add(hidden.untyped_storage()._cdata)  # noqa: SLF001
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _FusedAttention(torch.autograd.Function):
    """Save what a fused kernel saves: its inputs, its output, and the mask."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, *(() if mask is None else (mask,)))
        return out


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return an output of the right shape, saving what a fused kernel saves."""
    attend: Any = _FusedAttention.apply
    out: Tensor = attend(query, key, value, mask)
    return out


def _masked(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Attend as sdpa does under a mask: heads of keys are repeated, and the mask becomes numbers in every layer."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    out = fused_attention(query, key, value, attention_mask.to(query.dtype))
    return out.transpose(1, 2).contiguous(), None


def _unmasked(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Attend as flash attention does: no mask, heads as they are."""
    return fused_attention(query, key, value, None).transpose(1, 2).contiguous(), None
