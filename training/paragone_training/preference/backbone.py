"""What is trained: a backbone from a checkpoint or from random weights, its tokenizer, adapters, and our head."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, Qwen3Config, Qwen3Model

from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_training.errors import RecipeError
from paragone_training.preference.adapters import with_adapters
from paragone_training.preference.recipe import LoraSection, Recipe
from paragone_training.scratch.sections import BackboneSection, TokenizerSection
from paragone_training.scratch.tokenizer import train_tokenizer

__all__ = ["Student", "add_adapters", "build_student", "check_fit", "merged", "save_memory"]


@dataclass
class Student:
    """A network before training, and what it reads with.

    Attributes:
        network: backbone and head.
        tokenizer: a transformers tokenizer.
        spec: the contents of its paragone.json.
    """

    network: PreferenceNetwork
    tokenizer: Any
    spec: ModelSpec


def build_student(recipe: Recipe, texts: Iterable[str]) -> Student:
    """Return the network that a recipe trains.

    Args:
        recipe: which one.
        texts: of the training rows, for a tokenizer that is trained; nothing else is read from them.

    Raises:
        RecipeError: if the backbone or the tokenizer cannot be loaded, or does not fit the recipe.
    """
    tokenizer = _tokenizer(recipe.tokenizer, recipe.backbone, texts, recipe.model.max_length)
    torch.manual_seed(recipe.training.seed)
    if recipe.backbone.source is None:
        backbone: Any = _from_scratch(recipe.backbone, tokenizer, recipe.model.max_length)
    else:
        backbone = _from_checkpoint(recipe.backbone.source, recipe.backbone)
    check_fit(backbone, tokenizer, recipe)
    head = RepresentationHead(backbone.config.hidden_size, recipe.spec)
    return Student(PreferenceNetwork(backbone, head), tokenizer, recipe.spec)


def add_adapters(network: PreferenceNetwork, lora: LoraSection) -> None:
    """Freeze the backbone and put low-rank adapters into it; the head is trained in full.

    Args:
        network: changed in place.
        lora: rank, scale and places.

    Raises:
        RecipeError: if the backbone has no layer of the names asked for.
    """
    network.backbone = with_adapters(network.backbone, lora, task="FEATURE_EXTRACTION")


def merged(network: PreferenceNetwork) -> PreferenceNetwork:
    """Return the network with its adapters, if any, folded into the backbone's weights.

    Args:
        network: with or without adapters.
    """
    backbone: Any = network.backbone
    if hasattr(backbone, "merge_and_unload"):
        return PreferenceNetwork(backbone.merge_and_unload(), network.head)
    return network


def _tokenizer(section: TokenizerSection, backbone: BackboneSection, texts: Iterable[str], max_length: int) -> Any:
    source = section.source or backbone.source
    if source is None:
        return train_tokenizer(texts, section.vocabulary_size, max_length=max_length)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if section.source else backbone.revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load a tokenizer from {source}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_scratch(section: BackboneSection, tokenizer: Any, max_length: int) -> Any:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        num_key_value_heads=section.heads,
        head_dim=section.hidden_size // section.heads,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    return Qwen3Model(config)


def _from_checkpoint(source: str, section: BackboneSection) -> Any:
    options = {"revision": section.revision, "attn_implementation": section.attention}
    try:
        config = AutoConfig.from_pretrained(source, revision=section.revision)
        if getattr(config, "is_encoder_decoder", False):
            raise RecipeError(f"{source} is an encoder-decoder; a backbone must be a decoder or an encoder")
        return AutoModel.from_pretrained(source, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"cannot load the backbone {source}: {error}") from error


def check_fit(backbone: Any, tokenizer: Any, recipe: Recipe) -> None:
    """Refuse a backbone that is too short for the recipe, or has fewer tokens than the tokenizer.

    Args:
        backbone: a transformers model.
        tokenizer: a transformers tokenizer.
        recipe: how long conversations may be.

    Raises:
        RecipeError: if they do not fit each other.
    """
    config = backbone.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions and recipe.model.max_length > positions:
        raise RecipeError(
            f"model.max_length is {recipe.model.max_length}; the backbone has {positions} positions: ask for no more"
        )
    if len(tokenizer) > config.vocab_size:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer)} tokens and the backbone's embedding {config.vocab_size}: they do not "
            "belong together"
        )


def save_memory(backbone: Any) -> None:
    """Recompute activations in the backward pass.

    Args:
        backbone: a transformers model, changed in place.
    """
    # transformers renames this on the way to version 6
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable()
    backbone.enable_input_require_grads()  # frozen embeddings under adapters would cut the graph
