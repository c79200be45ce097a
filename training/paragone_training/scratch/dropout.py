"""Dropout for decoders that have none: the Llama and Qwen3 shapes in transformers drop attention weights at most.

Small models trained from random weights on few texts need it: on the embedding, on what every attention and
feed-forward layer adds to the residual stream, and on the hidden states that the head reads. It lives in forward hooks,
so that the saved model is the plain architecture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["residual_dropout"]


@contextmanager
def residual_dropout(
    backbone: nn.Module, head: nn.Module | None = None, *, share: float, head_share: float = 0.0
) -> Iterator[None]:
    """Drop activations while the modules are in training mode, until the context ends.

    Args:
        backbone: a transformers decoder with an embedding and ``layers`` of ``self_attn`` and ``mlp``.
        head: gets its input dropped, or None.
        share: of activations in the backbone.
        head_share: of activations before the head.

    Raises:
        ValueError: if the backbone does not have that shape.
    """
    handles = []
    if share:
        handles += [module.register_forward_hook(_dropping(share)) for module in _sites(backbone)]
    if head is not None and head_share:
        handles.append(head.register_forward_pre_hook(_dropping_input(head_share)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sites(backbone: Any) -> list[nn.Module]:
    try:
        sites = [backbone.get_input_embeddings()]
        for layer in backbone.layers:
            sites += [layer.self_attn, layer.mlp]
    except AttributeError as error:
        raise ValueError(
            f"dropout knows decoders made of self_attn and mlp layers, not {type(backbone).__name__} ({error}): "
            "set training.dropout = 0"
        ) from error
    return sites


def _dropping(share: float) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001 - torch's signature
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (functional.dropout(output[0], share), *output[1:])
        return functional.dropout(output, share)

    return hook


def _dropping_input(share: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not module.training:
            return inputs
        return (functional.dropout(inputs[0], share), *inputs[1:])

    return hook
