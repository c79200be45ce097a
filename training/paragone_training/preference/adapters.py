"""Low-rank adapters: put into a model, and taken over by another model of the same shape."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paragone_training.errors import RecipeError
from paragone_training.preference.recipe import LoraSection

__all__ = ["take_adapters", "with_adapters"]


def with_adapters(model: Any, lora: LoraSection, *, task: str = "CAUSAL_LM") -> Any:
    """Return a model with adapters in its layers, of which they alone are trained.

    Args:
        model: a transformers model, changed in place.
        lora: their rank, scale and places.
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
    """Give a model's adapters the weights of another's.

    Args:
        model: with adapters, changed in place.
        learnt: whole weights of the others, by name.
    """
    mine = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert mine.keys() == learnt.keys()
    for name, weight in mine.items():
        weight.copy_(learnt[name])
