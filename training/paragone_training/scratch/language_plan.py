"""What training a language model would do, without doing it: chats, tokens, steps, memory.

The chats are read and the tokenizer is trained for it, which takes seconds; the model is built on the meta device.
Not estimated: the libraries themselves, gaps of the allocator, and what a layer's backward pass makes.
"""

import torch
from transformers import AutoModelForCausalLM

from paragone_training.policy.model.gpu_memory import saved_bytes
from paragone_training.scratch.language import LanguageRecipe, decoder_config, read_texts
from paragone_training.scratch.pretraining import batches_of

__all__ = ["describe_language_plan"]

_ATTENTION = "paragone-dry-varlen"
"""Saves what a fused kernel without a mask saves; the policy's memory plan registers it."""
_ADAM_STATES = 2
_LOGITS_ALIVE = 3
"""Logits of a batch, their exponentials and their gradient."""


def describe_language_plan(recipe: LanguageRecipe) -> str:
    """Return the plan of a training in words.

    Args:
        recipe: what would be trained, and on what.

    Raises:
        DataError: if the data cannot be used.
    """
    texts, section = read_texts(recipe), recipe.training
    batches = list(batches_of(texts.train, section.batch_tokens))
    tokens = sum(map(len, texts.train))
    left_out = sum(texts.counts) - len(texts.train) - len(texts.held_out)
    config = decoder_config(recipe, texts.tokenizer)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=_ATTENTION)
    weights = sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    # A batch is sorted by length: its last document is the longest.
    sequences, longest = max(((len(batch), len(batch[-1])) for batch in batches), key=lambda size: size[0] * size[1])
    parts = {
        "weights": 4 * weights,
        "gradients": 4 * weights,
        "optimiser": 4 * _ADAM_STATES * weights,
        "activations": saved_bytes(model, sequences=sequences, tokens=longest),
        "logits of a batch": 4 * _LOGITS_ALIVE * sequences * (longest - 1) * len(texts.tokenizer),
    }
    figures = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in parts.items())
    disk = weights * getattr(torch, recipe.output.dtype).itemsize / 1e6
    return "\n".join(
        [
            f"{len(texts.train)} chats of {tokens} tokens to learn from, {len(texts.held_out)} held out; {left_out} "
            f"are longer than max_length {recipe.max_length} and left out",
            f"{len(batches)} batches of at most {section.batch_tokens} tokens, padding counted; "
            f"{section.epochs} epochs, {section.epochs * len(batches)} optimiser steps on "
            f"{section.epochs * tokens} tokens",
            f"{weights / 1e6:,.1f} M weights; the largest batch is {sequences} chats of {longest} tokens",
            f"memory, MB: {sum(parts.values()) / 1e6:.2f} = {figures}",
            f"disk: {disk:.2f} MB",
        ]
    )
