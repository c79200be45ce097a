"""What is scored: groups of responses to one prompt, as a policy makes them, of the user's texts or of English ones.

Without a file the texts are Python's own manual of its language, which every interpreter carries: real sentences, of
real lengths, nothing to download.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from gzip import open as open_gzip
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from paragone_models.errors import TextError
from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_service.bench import BenchError

__all__ = ["TextGroup", "from_file", "made_up", "readings"]


@dataclass(frozen=True)
class TextGroup:
    """Responses to one prompt, a single user message."""

    prompt: str
    responses: tuple[str, ...]


def made_up(tokenizer: Any, groups: int, *, responses: int, lengths: tuple[int, int], seed: int) -> list[TextGroup]:
    """Return groups whose prompts and responses are passages of English, of a uniform number of tokens.

    ``lengths`` are the fewest and the most tokens of a prompt, and of a response; the fast tokenizer counts them.
    """
    # Two seeds share no passage boundary, so a cache or a prompt store gains nothing from an earlier turn.
    text = " ".join(" ".join(topics[name] for name in sorted(topics)).split())  # without indentation and tables' gaps
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    draw = random.Random(seed)  # noqa: S311 - texts to measure with, no secrets

    def passage() -> str:
        size = draw.randint(*lengths)
        start = draw.randrange(max(1, len(offsets) - size))
        stop = min(start + size, len(offsets)) - 1
        # Cut between tokens, by characters: a passage has as many tokens as were drawn, give or take its ends.
        return text[offsets[start][0] : offsets[stop][1]].strip() or "-"

    return [TextGroup(passage(), tuple(passage() for _ in range(responses))) for _ in range(groups)]


def from_file(path: Path, groups: int) -> list[TextGroup]:
    """Return the first groups of a file (.jsonl or .jsonl.gz): rows with ``responses``, or pairs gathered by prompt.

    Pairs are ``first`` and ``second``, or ``chosen`` and ``rejected``. All fields are texts.

    Raises:
        BenchError: if the file cannot be read, a row lacks a field, or there are fewer groups than wanted.
    """
    # Dictionaries without values: sets that keep their order.
    by_prompt: dict[str, dict[str, None]] = {}
    try:
        with (open_gzip if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    prompt, texts = _row(json.loads(line), f"{path}:{number}")
                    by_prompt.setdefault(prompt, {}).update(dict.fromkeys(texts))
    except (OSError, ValueError) as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"cannot read {path}: {error}") from error
    complete = [TextGroup(prompt, tuple(texts)) for prompt, texts in by_prompt.items() if len(texts) > 1]
    # No group is used twice: the second time it would come from a cache.
    if len(complete) < groups:
        raise BenchError(f"{path} has {len(complete)} prompts with two responses or more; {groups} groups are wanted")
    return complete[:groups]


def readings(groups: Sequence[TextGroup], reader: TextReader) -> list[list[Reading]]:
    """Return what the model sees of every response of every group.

    Raises:
        BenchError: if the model refuses one.
    """
    read = iter(reader.read([conversation(group.prompt, text) for group in groups for text in group.responses]))
    return [[_readable(next(read)) for _ in group.responses] for group in groups]


def _readable(reading: Reading | TextError) -> Reading:
    if isinstance(reading, TextError):
        raise BenchError(f"the model refuses a text of the workload: {reading}; give shorter ones with --tokens")
    return reading


def _row(row: Any, where: str) -> tuple[str, list[str]]:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise BenchError(f"{where}: field 'prompt' must be text")
    for names in (("first", "second"), ("chosen", "rejected")):
        if all(isinstance(row.get(name), str) for name in names):
            return row["prompt"], [row[name] for name in names]
    texts = row.get("responses")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BenchError(f"{where}: give texts as 'responses', 'first' and 'second', or 'chosen' and 'rejected'")
    return row["prompt"], texts
