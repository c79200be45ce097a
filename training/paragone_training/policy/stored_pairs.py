"""A round that nobody sampled: the responses and preferences of data files, in place of an oracle's.

A stored preference counts as 1, a tie as ½, and several judgements of the same two responses as their mean; comparisons
that nobody made are missing. From here on it is a round as any other: its files, tables, targets and columns.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.readers import Prompt, as_messages, read_pairs
from paragone_training.data import PromptGroup, group_pairs, training_pairs
from paragone_training.errors import RunError
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import Answer, Response, read_answers, read_rows, write_answers, write_rows
from paragone_training.policy.sampling.rounds import Round

__all__ = ["prompts_of_groups", "stored_groups", "stored_round"]

logger = logging.getLogger(__name__)


def stored_groups(recipe: PolicyRecipe) -> list[PromptGroup]:
    """Return the pairs that a recipe is trained on, by prompt, each distinct response once.

    Raises:
        DataError: if the files cannot be read, or hold no preference of the split.
    """
    pairs = read_pairs(*recipe.data.pairs, options=recipe.data.reading)
    return group_pairs(training_pairs(pairs, split=recipe.data.split), ties=True)


def prompts_of_groups(groups: Sequence[PromptGroup]) -> list[Prompt]:
    """Return the groups' prompts, called by their number."""
    return [
        Prompt(
            str(number), group.pair.prompt_messages, tools=json.loads(group.pair.tools) if group.pair.tools else None
        )
        for number, group in enumerate(groups)
    ]


def stored_round(
    folder: Path, groups: Sequence[PromptGroup], prompts: Sequence[Prompt], tokenizer: Any, end_ids: Sequence[int],
    *, longest: int,
) -> Round:  # fmt: skip
    """Write the rows and tables of groups as those of a round, unless they are there, and return them.

    Args:
        prompts: of the groups, with token ids.
        end_ids: tokens that end a response.
        longest: tokens of a prompt and a response together; groups with a longer one are left out, and the log says so.

    Raises:
        RunError: if no group is left.
    """
    samples, tables = folder / "samples.parquet", folder / "oracle.parquet"
    if samples.exists() and tables.exists():
        return Round(read_rows(samples, Response), read_answers(tables))
    rows: list[Response] = []
    answers: list[Answer] = []
    for group, prompt in zip(groups, prompts, strict=True):
        ids = [_response_ids(prompt, text, tokenizer, end_ids) for text in group.responses]
        most = len(prompt.token_ids) + max(map(len, ids))
        if most > longest:
            logger.warning(
                "%s: left out, its longest response and the prompt have %d tokens of %d",
                group.pair.where,
                most,
                longest,
            )
            continue
        rows += [
            Response(prompt.id, prompt.text, number, prompt.token_ids, tokens, text, True, None)
            for number, (text, tokens) in enumerate(zip(group.responses, ids, strict=True))
        ]
        answers.append(Answer(prompt.id, _table(group)))
    if not rows:
        raise RunError(
            f"no row of data.pairs fits the context of {longest} tokens: shorten them, or choose another policy"
        )
    write_answers(tables, [(0, "", "", answer) for answer in answers])
    write_rows(samples, rows, Response)
    return Round(rows, answers)


def _table(group: PromptGroup) -> np.ndarray[Any, np.dtype[np.float64]]:
    count = len(group.responses)
    total, times = np.zeros((count, count)), np.zeros((count, count))
    for label in group.labels:
        won = 0.5 if label.strength == 0 else float(label.strength > 0)
        total[label.first, label.second] += won
        total[label.second, label.first] += 1.0 - won
        times[label.first, label.second] += 1
        times[label.second, label.first] += 1
    table = np.where(times > 0, total / np.maximum(times, 1), np.nan)
    np.fill_diagonal(table, 0.5)
    return table


def _response_ids(prompt: Prompt, text: str, tokenizer: Any, end_ids: Sequence[int]) -> tuple[int, ...]:
    """Return a response's tokens as the policy would have drawn them: up to its end token."""
    messages = as_messages(prompt.content)
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": text}], tools=prompt.tools, tokenize=True, return_dict=False
    )
    start = len(prompt.token_ids)
    # The template's own rendering, unless it renders earlier turns in another way than the prompt of a policy.
    if tuple(whole[:start]) == tuple(prompt.token_ids):
        answer = list(whole[start:])
    else:
        answer = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # What templates put behind the end token, a line break say, no policy draws.
    end = next((place for place, token in enumerate(answer) if token in end_ids), len(answer))
    return (*answer[:end], end_ids[0] if end == len(answer) else answer[end])
