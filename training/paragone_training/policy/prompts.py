"""Prompts: read, rendered to token ids with the policy's chat template, and dealt out to iterations."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paragone_evaluation.readers.lines import field, read_lines
from paragone_training.errors import DataError, RecipeError

__all__ = ["Prompt", "deal", "read_prompts", "render"]

Content = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in a run.
        content: text (one user message) or messages, as the oracle is asked.
        token_ids: the policy's rendering, up to where its answer begins.
    """

    id: str
    content: Content
    token_ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The content as one string: JSON where it is messages."""
        return self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)


def read_prompts(paths: Sequence[str], *, split: str) -> list[Prompt]:
    """Return the prompts of files, each once, in their order.

    Args:
        paths: of .jsonl or .jsonl.gz files.
        split: rows whose ``split`` is this are read, and rows without one.

    Raises:
        DataError: if a file cannot be read, two rows share an id, or nothing is left.
    """
    prompts = dict[str, Prompt]()
    seen = set[str]()
    for path in paths:
        for number, row in read_lines(path):
            content = field(row, "prompt", f"{path}:{number}")
            if row.get("split", split) != split:
                continue
            messages = isinstance(content, list) and all(isinstance(message, dict) for message in content)
            if not content or not (isinstance(content, str) or messages):
                raise DataError(f"{path}:{number}: 'prompt' must be a text or a list of messages, and not empty")
            prompt = Prompt(str(row.get("id", f"{len(prompts)}")), content)
            if prompt.id in prompts and prompt.text not in seen:
                raise DataError(f"{path}:{number}: id {prompt.id!r} belongs to another prompt already")
            if prompt.text not in seen:
                seen.add(prompt.text)
                prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"{', '.join(paths)}: no prompt whose split is {split!r}")
    return list(prompts.values())


def render(prompts: Sequence[Prompt], tokenizer: Any, *, longest: int) -> list[Prompt]:
    """Return the prompts with their token ids.

    Args:
        prompts: as read.
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
        rendered.append(Prompt(prompt.id, prompt.content, tuple(tokens)))
    return rendered


def deal(prompts: Sequence[Prompt], *, iteration: int, count: int, seed: int) -> list[Prompt]:
    """Return the prompts of one iteration: disjoint parts of a shuffled order, which is reshuffled when used up.

    Args:
        prompts: all of them.
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
