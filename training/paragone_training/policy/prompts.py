"""Prompts: rendered to token ids with the policy's chat template, and dealt out to iterations."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RecipeError

__all__ = ["deal", "render"]


def render(prompts: Sequence[Prompt], tokenizer: Any, *, longest: int) -> list[Prompt]:
    """Return the prompts with their token ids.

    Args:
        tokenizer: the policy's, with a chat template.
        longest: tokens that a prompt may have.

    Raises:
        RecipeError: if the tokenizer has no chat template, or a prompt does not fit.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "the policy's tokenizer has no chat template: choose an instruction-tuned model, or set "
            "tokenizer.chat_template and save the tokenizer beside the model"
        )
    rendered = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt.content}] if isinstance(prompt.content, str) else prompt.content
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        if len(tokens) > longest:
            raise RecipeError(
                f"prompt {prompt.id!r} has {len(tokens)} tokens; the context leaves {longest} beside "
                "sampling.max_new_tokens: shorten it, lower max_new_tokens, or leave the prompt out"
            )
        rendered.append(dataclasses.replace(prompt, token_ids=tuple(tokens)))
    return rendered


def deal(prompts: Sequence[Prompt], *, iteration: int, count: int, seed: int) -> list[Prompt]:
    """Return the prompts of one iteration: disjoint parts of a shuffled order, which is reshuffled when used up.

    Args:
        iteration: from 1.
        count: of an iteration; 0 is all.
        seed: of the order.
    """
    if count == 0 or count >= len(prompts):
        return list(prompts)
    dealt: list[Prompt] = []
    position = (iteration - 1) * count
    while len(dealt) < count:
        turn, place = divmod(position + len(dealt), len(prompts))
        order = list(prompts)
        random.Random(f"{seed}/{turn}").shuffle(order)  # noqa: S311 - shuffling, not secrets
        dealt += order[place : place + count - len(dealt)]
    return dealt
