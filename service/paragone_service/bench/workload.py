"""What is scored: groups of responses to one prompt, as a policy makes them, of the user's texts or of English ones.

Without a file the texts are Python's own manual of its language, which every interpreter carries: real sentences, of
real lengths, nothing to download.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from paragone.installing import pip_install
from paragone_models.errors import TextError
from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_service.bench import BenchError

__all__ = ["TextGroup", "from_file", "made_up", "readings"]


@dataclass(frozen=True)
class TextGroup:
    """Responses to one prompt: texts, or what a reader of files has for messages."""

    prompt: str | Sequence[Mapping[str, Any]]
    responses: tuple[Any, ...]
    tools: Sequence[Mapping[str, Any]] | None = None


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
    """Return the first groups of a file that ``paragone data`` reads: the distinct responses of each of its prompts.

    Raises:
        BenchError: if the file cannot be read, there are fewer groups than wanted, or the extra ``evaluation``, which
            has the readers of files, is not installed.
    """
    try:
        from paragone_evaluation.errors import DataError
        from paragone_evaluation.readers.files import FilePass
        from paragone_evaluation.readers.rows import text_key
    except ModuleNotFoundError as error:
        raise BenchError(
            f"--data reads files with the extra evaluation: {pip_install('evaluation')} ({error})"
        ) from error
    by_prompt: dict[tuple[str, str], TextGroup] = {}
    distinct: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        # Nobody needs to have judged the responses: speed is what is measured.
        rows = FilePass(path, unjudged=True)
        for row in rows:
            key = text_key(row.prompt), text_key(row.tools or [])
            by_prompt.setdefault(key, TextGroup(row.prompt, (), row.tools))
            distinct.setdefault(key, {}).update({text_key(response): response for response in row.responses})
        rows.check(remedy="Mend the file.")
    except DataError as error:
        raise BenchError(str(error)) from error
    complete = [
        replace(group, responses=tuple(distinct[key].values()))
        for key, group in by_prompt.items()
        if len(distinct[key]) > 1
    ]
    # No group is used twice: the second time it would come from a cache.
    if len(complete) < groups:
        raise BenchError(f"{path} has {len(complete)} prompts with two responses or more; {groups} groups are wanted")
    return complete[:groups]


def readings(groups: Sequence[TextGroup], reader: TextReader) -> list[list[Reading]]:
    """Return what the model sees of every response of every group.

    Raises:
        BenchError: if the model refuses one.
    """
    read = iter(
        reader.read([conversation(group.prompt, text, group.tools) for group in groups for text in group.responses])
    )
    return [[_readable(next(read)) for _ in group.responses] for group in groups]


def _readable(reading: Reading | TextError) -> Reading:
    if isinstance(reading, TextError):
        raise BenchError(f"the model refuses a text of the workload: {reading}; give shorter ones with --tokens")
    return reading
