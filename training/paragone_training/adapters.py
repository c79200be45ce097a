"""What spares memory in training: low-rank adapters in place of all weights, and activations computed again."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paragone_training.errors import RecipeError
from paragone_training.settings import LoraSection

__all__ = ["recompute_activations", "take_adapters", "with_adapters"]


def with_adapters(model: Any, lora: LoraSection, *, task: str = "CAUSAL_LM") -> Any:
    """Return a transformers model with adapters in its layers, of which they alone are trained.

    Args:
        task: peft's name of what the model is for.

    Raises:
        RecipeError: if the model has no layer of the names asked for.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # scaled by alpha / rank: any number will do
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        task_type=task,
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers under a name that transformers is about to drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"lora.targets {list(lora.targets)}: {error}") from error


@torch.no_grad()
def take_adapters(model: Any, learnt: Mapping[str, Tensor]) -> None:
    """Give a model's adapters, in place, the weights of another model of the same shape."""
    # An assertion: both models are made here, by ``with_adapters``, of the same checkpoint.
    mine = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert mine.keys() == learnt.keys()
    for name, weight in mine.items():
        weight.copy_(learnt[name])


def recompute_activations(backbone: Any) -> None:
    """Have a transformers model compute activations again in the backward pass, in place of keeping them."""
    # transformers renames this on the way to version 6
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable()
    backbone.enable_input_require_grads()  # frozen embeddings under adapters would cut the graph
