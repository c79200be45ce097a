"""Pair files: which of two responses to a prompt people preferred, and how strongly.

One row: ``{"id", "prompt", "first", "second", "strength"}`` and optionally ``split``, ``group``, ``votes``, ``reason``.
``strength`` is −3..3; positive means that ``first`` was preferred, 0 is a tie. ``prompt`` is text or messages. Other
people's columns are translated by ``layouts``.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone_evaluation.readers.layouts import PAIR_LAYOUTS, own_pairs, row_layout
from paragone_evaluation.readers.lines import field, read_lines, text_field
from paragone_training.errors import DataError

__all__ = ["STRONGEST", "Pair", "prompt_field", "read_pair_files", "read_pairs", "training_pairs"]

logger = logging.getLogger(__name__)

STRONGEST = 3.0
"""Largest strength: the scale of HelpSteer2-Preference."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt and what people said.

    Attributes:
        prompt: text, or messages as JSON (see ``prompt_messages``).
        first: the response whose win is measured.
        second: the other one.
        strength: −3..3, positive where ``first`` was preferred, 0 for a tie.
        messages: True where ``prompt`` is JSON of messages.
        id: of the row, or empty.
        split: ``train``, ``test`` or whatever the file says, or None.
        group: what the row belongs to, for resampling; the prompt unless the file says.
        reason: the annotator's, or None.
        where: file and line.
    """

    prompt: str
    first: str
    second: str
    strength: float
    messages: bool = False
    id: str = ""
    split: str | None = None
    group: str = ""
    reason: str | None = None
    where: str = ""

    @property
    def question(self) -> str:
        """The part of ``group`` before the first underscore: both stances of one question share it."""
        return self.group.partition("_")[0]

    @property
    def prompt_messages(self) -> str | list[dict[str, Any]]:
        """The prompt as the model's reader takes it."""
        return json.loads(self.prompt) if self.messages else self.prompt


def read_pairs(path: str | Path) -> list[Pair]:
    """Return the rows of a pair file.

    Args:
        path: a .jsonl or .jsonl.gz file, in any layout of ``layouts.PAIR_LAYOUTS``. Rows that annotators found invalid
            are left out and counted in the log.

    Raises:
        DataError: if it cannot be read, a row lacks a field, a strength is out of range, an id comes twice, the file
            mixes layouts, or it is empty. File and line are named.
    """
    pairs: list[Pair] = []
    seen: dict[str, str] = {}
    layout, invalid = "", 0
    for number, row in read_lines(path):
        where = f"{path}:{number}"
        layout = row_layout(row, where, layout, PAIR_LAYOUTS)
        before = len(pairs)
        for own in own_pairs(row, where, layout):
            pair = _pair(own, where)
            if pair.id and pair.id in seen:
                raise DataError(f"{pair.where}: id {pair.id!r} was already used in {seen[pair.id]}; ids must be unique")
            seen[pair.id] = pair.where
            pairs.append(pair)
        invalid += len(pairs) == before
    if not pairs:
        raise DataError(f"{path} has no rows" + (f" but {invalid} that annotators found invalid" if invalid else ""))
    if invalid:
        logger.info("%s: %d rows left out, in which annotators found neither response valid", path, invalid)
    return pairs


def read_pair_files(paths: Sequence[str | Path]) -> list[Pair]:
    """Return the rows of several pair files, in order.

    Args:
        paths: .jsonl or .jsonl.gz files.

    Raises:
        DataError: as ``read_pairs``.
    """
    return [pair for path in paths for pair in read_pairs(path)]


def training_pairs(pairs: Iterable[Pair], *, split: str, allow_test_rows: bool = False) -> list[Pair]:
    """Return the rows that may be trained on: those of the split, and those without one.

    Args:
        pairs: rows of training files.
        split: name of the split.
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or nothing is left.
    """
    chosen = [pair for pair in pairs if pair.split in (None, split)]
    forbidden = next((pair for pair in chosen if pair.split == "test"), None)
    if forbidden and not allow_test_rows:
        raise DataError(
            f"{forbidden.where}: this row is marked 'test' and would be trained on; choose another data.train_split, "
            "or force it with data.allow_test_rows = true"
        )
    if not chosen:
        raise DataError(f"no row is marked {split!r}: data.train_split names a split that the files do not have")
    if all(pair.strength == 0 for pair in chosen):
        span = f"{chosen[0].where} to {chosen[-1].where}"
        raise DataError(f"all {len(chosen)} rows are ties ({span}): there is no preference to learn from")
    return chosen


def prompt_field(row: Mapping[str, Any], where: str) -> tuple[str, bool]:
    """Return a row's prompt as text, and whether that is JSON of messages.

    Args:
        row: one object of a file.
        where: file and line, for the message.

    Raises:
        DataError: if it is missing, empty, or neither text nor messages.
    """
    prompt = field(row, "prompt", where)
    messages = isinstance(prompt, list)
    if messages:
        if not prompt or not all(isinstance(message, dict) and "role" in message for message in prompt):
            raise DataError(f"{where}: field 'prompt' must be text or a list of messages with a role")
        prompt = json.dumps(prompt, ensure_ascii=False)
    else:
        prompt = text_field(row, "prompt", where)
    if not prompt.strip():
        raise DataError(f"{where}: field 'prompt' is empty")
    return prompt, messages


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    prompt, messages = prompt_field(row, where)
    first, second = text_field(row, "first", where), text_field(row, "second", where)
    strength = field(row, "strength", where)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise DataError(f"{where}: field 'strength' must be a number, not {strength!r}")
    if abs(strength) > STRONGEST:
        raise DataError(f"{where}: strength is {strength}; it must lie between -3 and 3 (positive: first preferred)")
    return Pair(
        prompt,
        first,
        second,
        float(strength),
        messages=messages,
        id=str(row.get("id") or ""),
        split=row.get("split"),
        group=str(row.get("group") or prompt),
        reason=row.get("reason"),
        where=where,
    )
