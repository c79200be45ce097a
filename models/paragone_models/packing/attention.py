"""The attention that the models' own code calls in a packed pass, registered with transformers under one name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from paragone_models.packing.packed_attention import Attend, Rule, Run

__all__ = ["NAME", "packed"]

NAME = "paragone_packed"

# What models pass along that packed attention has no use for, or has taken from the pass.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
    | {"position_embeddings", "logits_to_keep", "is_causal"}
)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paragone_run: Run | None = None,
    paragone_attend: Attend | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return what every row of the packed row reads, as [1, T, Hq, D].

    Raises:
        RuntimeError: if it is called outside a packed pass, or for attention that it does not compute.
    """
    if paragone_run is None or paragone_attend is None or attention_mask is not None or query.shape[0] != 1 or dropout:
        raise RuntimeError(f"{NAME} runs in packed passes alone: one row, no mask, no dropout")
    if unknown := sorted(name for name in set(others) - _HARMLESS if others[name] is not None):
        raise RuntimeError(f"{type(module).__name__} asks for attention with {', '.join(unknown)}, which is not packed")
    if query.dtype != value.dtype:  # under autocast: rotated by float32 angles, values are as products give them
        query, key = query.to(value.dtype), key.to(value.dtype)
    layer: int = module.layer_idx  # type: ignore[assignment]  # torch types every attribute as Tensor | Module
    paragone_run.note(layer, key[0], value[0])
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return paragone_attend(paragone_run, layer, query[0], key[0], value[0], rule)[None], None


AttentionInterface.register(NAME, _attention)


@contextmanager
def packed(config: Any) -> Iterator[None]:
    """Have the model with this configuration attend by packed passes inside the block.

    Models look the name up in every layer of every pass, so that the same module serves padded batches before and
    after. Nobody else may run the model meanwhile.

    Args:
        config: the backbone's transformers configuration.
    """
    before = config._attn_implementation_internal  # noqa: SLF001  # the setter walks sub-configurations and can warn
    config._attn_implementation_internal = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation_internal = before  # noqa: SLF001
