"""What files of data hold, counted in one pass: rows, prompts, pairs, duplicates, contradictions, lengths, splits.

Texts are counted by hash, so that a million rows take memory for their numbers and not for their words.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.files import SAME_RESPONSES, FilePass
from paragone_evaluation.readers.holdout import HELD_OUT
from paragone_evaluation.readers.rows import Content, DataRow, as_messages, text_key, text_length

__all__ = ["Tokens", "described_row", "summarised"]

_FIRST, _SECOND = 1, 2  # which of two responses was preferred, as bits of what was seen of a pair


@dataclass
class Tokens:
    """What a model's reader makes of the rows.

    Attributes:
        count: returns, for the responses of rows in order, their tokens with the prompt (None: refused) and how many
            tokens of the prompt were cut.
        limit: tokens of a conversation at most.
    """

    name: str
    limit: int
    count: Callable[[Sequence[DataRow]], list[tuple[int | None, int]]]


@dataclass
class _Counts:
    """Everything that is counted row by row."""

    prompts: set[int] = field(default_factory=set)
    responses: set[int] = field(default_factory=set)
    pairs: dict[int, int] = field(default_factory=dict)
    prompt_lengths: "array[int]" = field(default_factory=lambda: array("L"))
    response_lengths: "array[int]" = field(default_factory=lambda: array("L"))
    tokens: "array[int]" = field(default_factory=lambda: array("L"))
    splits: Counter[str | None] = field(default_factory=Counter)
    subsets: set[str] = field(default_factory=set)
    strengths: Counter[float] = field(default_factory=Counter)
    apart: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    totals: Counter[str] = field(default_factory=Counter)
    ratings: dict[str, list[float]] = field(default_factory=dict)

    def add(self, row: DataRow) -> None:
        """Count a row."""
        prompt = hash(text_key(row.prompt))
        responses = [hash((prompt, text_key(response))) for response in row.responses]
        self.splits[row.split] += 1
        # What a share holds out is counted as training counts it: by question, and people's ties are no measure.
        question = hash(row.question) if row.question else prompt
        if row.split != HELD_OUT:
            self.left.add(question)
        elif row.given_ratings or any(label.strength for label in row.labels):
            self.apart.add(question)
        if row.subset:
            self.subsets.add(row.subset)
        self.totals["conversations"] += not isinstance(row.prompt, str) and len(row.prompt) > 1
        self.totals["with tools"] += bool(row.tools)
        if prompt not in self.prompts:
            self.prompts.add(prompt)
            self.prompt_lengths.append(_prompt_length(row.prompt))
        lengths = [text_length(response) for response in row.responses]
        for response, length in zip(responses, lengths, strict=True):
            if response not in self.responses:
                self.responses.add(response)
                self.response_lengths.append(length)
        for label in row.labels:
            self._judge(responses[label.first], responses[label.second], label.strength)
            self.strengths[abs(label.strength)] += row.graded
            lead = (lengths[label.first] - lengths[label.second]) * label.strength
            self.totals["longer preferred"] += lead > 0
            self.totals["lengths differ"] += lead != 0
        for ratings in row.given_ratings:
            self.totals["rated"] += 1
            for name, value in ratings.items():
                _extend(self.ratings.setdefault(name, [0, 0.0, value, value]), value)

    def _judge(self, first: int, second: int, strength: float) -> None:
        self.totals["pairs"] += 1
        self.totals["ties"] += not strength
        if not strength:
            return
        self.totals["first preferred"] += strength > 0
        low, high = sorted((first, second))
        bit = _FIRST if (first == low) == (strength > 0) else _SECOND
        seen = self.pairs.get(key := hash((low, high)), 0)
        self.totals["duplicates"] += bool(seen & bit)
        self.pairs[key] = seen | bit


def summarised(
    reading: FilePass, *, tokens: Tokens | None = None, seen: Callable[[DataRow], None] | None = None
) -> dict[str, Any]:
    """Return what the files hold, as plain values; the rows are read here.

    Args:
        tokens: counts tokens, if a model is named.
        seen: is called with each row.
    """
    counts, files = _Counts(), dict[str, dict[str, Any]]()
    waiting: list[DataRow] = []
    first: DataRow | None = None
    for row in reading:
        name = reading.part.name
        if name not in files:
            layout = "prompts" if reading.layout is None else reading.layout.name
            files[name] = {"name": name, "layout": layout, "why": reading.why()}
        first = first or row
        counts.add(row)
        if seen is not None:
            seen(row)
        if tokens is not None:
            waiting.append(row)
            if len(waiting) == 64:
                _count_tokens(counts, tokens, waiting)
                waiting = []
    if tokens is not None and waiting:
        _count_tokens(counts, tokens, waiting)
    return {
        "files": list(files.values()),
        "rows": reading.account.count,
        "read": sum(counts.splits.values()),
        **_described(counts, reading),
        "tokens": None if tokens is None else _described_tokens(counts, tokens),
        "passed_over": reading.passed_over,
        "left_out": [
            {"reason": left.reason, "rows": left.count, "lines": list(left.lines)}
            for left in reading.account.left_out()
        ],
        "first_row": None if first is None else described_row(first),
    }


def _count_tokens(counts: _Counts, tokens: Tokens, rows: Sequence[DataRow]) -> None:
    for length, cut in tokens.count(rows):
        if length is None:
            counts.totals["too long"] += 1
        else:
            counts.tokens.append(length)
            counts.totals["prompts cut"] += cut > 0


def _described_tokens(counts: _Counts, tokens: Tokens) -> dict[str, Any]:
    return {
        "model": tokens.name,
        "limit": tokens.limit,
        "conversation": _spread(counts.tokens),
        "cut": counts.totals["prompts cut"],
        "refused": counts.totals["too long"],
    }


def _described(counts: _Counts, reading: FilePass) -> dict[str, Any]:
    totals, share = counts.totals, reading.options.holdout
    decided = totals["pairs"] - totals["ties"]
    both = sum(bits == _FIRST | _SECOND for bits in counts.pairs.values())
    same = sum(reason == SAME_RESPONSES for _, reason in reading.account.unused)
    return {
        "prompts": len(counts.prompts),
        "conversations": totals["conversations"],
        "with_tools": totals["with tools"],
        "responses": len(counts.responses),
        "pairs": totals["pairs"],
        "decided": decided,
        "ties": totals["ties"],
        "duplicates": totals["duplicates"],
        "contradictions": both,
        "identical": same,
        "strengths": {f"{value:g}": count for value, count in sorted(counts.strengths.items()) if count},
        "first_preferred": totals["first preferred"] / decided if decided else None,
        "longer_preferred": totals["longer preferred"] / totals["lengths differ"] if totals["lengths differ"] else None,
        "rated": totals["rated"],
        "ratings": {
            name: {"count": int(count), "mean": total / count, "least": least, "most": most}
            for name, (count, total, least, most) in sorted(counts.ratings.items())
        },
        "characters": {"prompt": _spread(counts.prompt_lengths), "response": _spread(counts.response_lengths)},
        "held_out": {"share": share, "prompts": len(counts.apart), "left": len(counts.left)} if share else None,
        "splits": {name or "none": count for name, count in counts.splits.items()},
        "subsets": len(counts.subsets),
    }


def _extend(values: list[float], value: float) -> None:
    """Take a value into count, sum, least and most."""
    values[0] += 1
    values[1] += value
    values[2] = min(values[2], value)
    values[3] = max(values[3], value)


def _spread(values: Sequence[int]) -> dict[str, int] | None:
    if not len(values):
        return None
    cut = np.percentile(np.asarray(values), [0, 50, 95, 100], method="nearest")
    return dict(zip(("least", "median", "most_of_95_percent", "most"), map(int, cut), strict=True))


def _prompt_length(prompt: Content) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(map(text_length, prompt))


def described_row(row: DataRow) -> dict[str, Any]:
    """Return a row as plain values: its prompt, responses, and what people said of them."""
    labels = [{"first": label.first, "second": label.second, "strength": label.strength} for label in row.labels]
    return {
        "line": row.line,
        "id": row.name,
        "prompt": as_messages(row.prompt),
        "responses": [_plain(response) for response in row.responses],
        "labels": labels,
        "ratings": row.given_ratings,
        "tools": [dict(tool) for tool in row.tools or ()],
    }


def _plain(response: ResponseText) -> Any:
    if isinstance(response, str):
        return response
    return dict(response) if isinstance(response, Mapping) else [dict(message) for message in response]
