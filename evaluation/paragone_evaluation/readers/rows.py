"""Rows: what every layout is translated into, and what training and policies get of it.

A row is a prompt with its K responses: two that people compared, several with comparisons between them, or responses
that people rated.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paragone_evaluation.dataset import PromptText, ResponseText

__all__ = [
    "PROBABILITY",
    "STRONGEST",
    "WEAKEST",
    "BadRowError",
    "Content",
    "DataRow",
    "Fields",
    "Label",
    "LeftOutError",
    "Pair",
    "Prompt",
    "Rating",
    "Turns",
    "as_messages",
    "prompt_key",
    "prompt_name",
    "text_key",
    "text_length",
]

Fields = dict[str, Any]
"""A row as the file holds it: values by column."""

Content = str | list[dict[str, Any]]
"""A prompt: text (one message of the user), or messages."""

STRONGEST = 3.0
"""Largest strength: the scale of HelpSteer2-Preference."""

WEAKEST = 0.01
"""Strength of what was preferred by a margin of nothing: less than every strength that people give, and no tie."""


PROBABILITY = "probability by a model, p as 6p − 3"
"""What strengths are read from in files that a model judged."""


class BadRowError(ValueError):
    """Refuse a row, with what is wrong in it; the reader of the file adds the line."""


class LeftOutError(ValueError):
    """Leave out a row that is right and of no use: nobody rated it, or annotators found both responses invalid."""


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement between two responses of a prompt, by their index.

    Attributes:
        strength: −3 … 3, positive where the first was preferred, 0 for a tie.
        weight: how many votes it is made of, where that is known.
    """

    first: int
    second: int
    strength: float
    weight: float = 1.0


class Turns(str):
    """A response of messages, as JSON: a text that is no answer by itself, and a key wherever texts are keys."""

    __slots__ = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages."""
        return list(json.loads(self))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, and which of them people preferred.

    Attributes:
        prompt: text, or messages as JSON where ``messages`` says so (see ``prompt_messages``).
        first: the response whose win is measured; ``Turns`` where a response is more than one message's text.
        strength: −3 … 3, positive where ``first`` was preferred, 0 for a tie.
        group: what the row belongs to, for resampling; the prompt unless the file says.
        file, line: where it stands; no file for what a program made.
        tools: that were on offer, as JSON; empty where there were none.
        weight: as of a ``Label``.
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
    file: str = ""
    line: int = 0
    tools: str = ""
    weight: float = 1.0

    @property
    def where(self) -> str:
        """File and line, empty without a file."""
        # Made when it is asked for: a million such texts take more memory than the rest of the records.
        return _place(self.file, self.line)

    @property
    def question(self) -> str:
        """What the row is about: both stances of one question share it."""
        # A prompt that stands in for a missing group may hold an underscore anywhere.
        return self.group if self.group == self.prompt else _question_of(self.group)

    @property
    def prompt_messages(self) -> Content:
        """The prompt as the model's reader takes it."""
        # Text in the record, because prompts are keys of dictionaries all over, and lists cannot be.
        return json.loads(self.prompt) if self.messages else self.prompt


@dataclass(frozen=True, slots=True)
class Rating:
    """One response to a prompt and what people rated.

    Attributes:
        prompt, response, messages, group, file, line, tools: as in ``Pair``.
        ratings: by attribute; what nobody rated is not there.
    """

    prompt: str
    response: str
    ratings: Mapping[str, float]
    messages: bool = False
    id: str = ""
    split: str | None = None
    group: str = ""
    file: str = ""
    line: int = 0
    tools: str = ""

    @property
    def where(self) -> str:
        """File and line, empty without a file."""
        return _place(self.file, self.line)

    @property
    def question(self) -> str:
        """What the row is about, as of a ``Pair``."""
        return self.group if self.group == self.prompt else _question_of(self.group)


@dataclass(frozen=True)
class Prompt:
    """One prompt for a policy.

    Attributes:
        id: unique in a run.
        tools: that are on offer, as chat templates take them; None where there are none.
        token_ids: the policy's rendering, up to where its answer begins; empty as read.
    """

    id: str
    content: Content
    token_ids: tuple[int, ...] = ()
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content as one string: JSON where it is messages."""
        return _keyed(self.content)[0]


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a file, whatever its layout.

    Attributes:
        responses: K of them; none in a file of prompts.
        strength_of: what the labels' strengths are read from; empty where they only say which one was preferred.
        ratings: by attribute, for each response, None where nobody rated it; empty where people compared. K
        ranks: place of each response, the best one lowest; empty where there is no ranking. K
        aspects: the labels by what people compared, where that is several things; ``labels`` are those of the first.
        right: how many of the responses, from the first, are right ones; None where people compared.
        subset: part of the file that has results of its own.
    """

    line: int
    prompt: Content
    responses: tuple[ResponseText, ...] = ()
    labels: tuple[Label, ...] = ()
    id: str | None = None
    strength_of: str = ""
    ratings: tuple[Mapping[str, float | None], ...] = ()
    ranks: tuple[float, ...] = ()
    aspects: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    right: int | None = None
    split: str | None = None
    group: str | None = None
    subset: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The id, or the number of the line where the file has none."""
        return str(self.line) if self.id is None else self.id

    @property
    def graded(self) -> bool:
        """Whether the labels' strengths are the file's own."""
        return bool(self.strength_of)

    @property
    def question(self) -> str | None:
        """Name of what the row is about; None where the file names no group."""
        return _question_of(self.group) if self.group else None

    @property
    def given_ratings(self) -> list[dict[str, float]]:
        """The ratings of each response without those that nobody gave."""
        # Null and a missing name say the same: tables have a column for every attribute that some row rates.
        return [{name: value for name, value in each.items() if value is not None} for each in self.ratings]

    def judged(self, attribute: str | None, rankings: str) -> "DataRow":
        """Return the row with the labels that are asked for.

        Args:
            attribute: which of several aspects; the first one if None.
            rankings: ``all`` compares every two ranked responses, ``neighbours`` each with the next.

        Raises:
            BadRowError: if people did not compare by this attribute.
        """
        if self.aspects and attribute is not None:
            if attribute not in self.aspects:
                raise BadRowError(f"attribute is {attribute!r}; this file has {', '.join(self.aspects)}")
            return replace(self, labels=self.aspects[attribute])
        if self.ranks:
            return replace(self, labels=_ranked(self.ranks, neighbours=rankings == "neighbours"))
        return self

    def telling_labels(self) -> tuple[Label, ...]:
        """Return the labels without those between two equal texts, which say nothing about either."""
        # Samplers repeat themselves; the labels of such pairs are noise, and no model can tell the texts apart.
        return tuple(label for label in self.labels if self.responses[label.first] != self.responses[label.second])

    def pairs(self, path: str | Path) -> list[Pair]:
        """Return a pair for each label."""
        prompt, messages = _keyed(self.prompt)
        texts = self._texts()
        return [
            Pair(
                prompt, texts[label.first], texts[label.second], label.strength, messages=messages,
                # Unique without the file saying so: a group of K responses makes up to K(K − 1)/2 pairs.
                id=self.name if len(texts) == 2 else f"{self.name}/{label.first}-{label.second}",
                split=self.split, group=self.group or prompt, reason=self.reason, file=str(path), line=self.line,
                tools=self._tools(), weight=label.weight,
            )
            for label in self.labels
        ]  # fmt: skip

    def rated(self, path: str | Path) -> list[Rating]:
        """Return a rating for each response."""
        prompt, messages = _keyed(self.prompt)
        texts = self._texts()
        return [
            Rating(
                prompt, text, ratings, messages=messages,
                id=self.name if len(texts) == 1 else f"{self.name}/{place}",
                split=self.split, group=self.group or prompt, file=str(path), line=self.line, tools=self._tools(),
            )
            for place, (text, ratings) in enumerate(zip(texts, self.given_ratings, strict=True))
        ]  # fmt: skip

    def _texts(self) -> list[str]:
        return [_as_text(response) for response in self.responses]

    def _tools(self) -> str:
        return json.dumps(self.tools, ensure_ascii=False) if self.tools else ""


def _as_text(response: ResponseText) -> str:
    if isinstance(response, str):
        return response
    return Turns(json.dumps([response] if isinstance(response, Mapping) else response, ensure_ascii=False))


def _ranked(ranks: Sequence[float], *, neighbours: bool) -> tuple[Label, ...]:
    """Return the comparisons of a ranking: the difference of two places, at most ``STRONGEST``, is the strength."""
    places = range(len(ranks))
    order = sorted(places, key=lambda at: ranks[at])
    pairs = list(itertools.pairwise(order)) if neighbours else list(itertools.combinations(order, 2))
    return tuple(Label(better, worse, min(ranks[worse] - ranks[better], STRONGEST)) for better, worse in pairs)


def _question_of(group: str) -> str:
    """Return the part of a group's name before the first ``_``, or all of it where that is empty."""
    # Groups are called QUESTION_STANCE: both stances of a question would be counted as two independent questions.
    return group.partition("_")[0] or group


def _place(file: str, line: int) -> str:
    return f"{file}:{line}" if file else ""


def as_messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a prompt as messages: text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _keyed(prompt: Content) -> tuple[str, bool]:
    """Return a prompt as text, and whether that is JSON of messages."""
    return (prompt, False) if isinstance(prompt, str) else (json.dumps(prompt, ensure_ascii=False), True)


def text_length(response: ResponseText) -> int:
    """Return the characters of a response: its text, or the text contents of its messages."""
    if isinstance(response, str):
        return len(response)
    if not isinstance(response, Mapping):
        return sum(text_length(message) for message in response)
    content = response.get("content") or ""
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text") or "") for part in content if isinstance(part, Mapping))


def text_key(value: Any) -> str:
    """Return a prompt or a response as one text that equal ones share."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def prompt_key(prompt: PromptText, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Return a prompt as one text that equal ones share: the same text with other tools is another question."""
    return text_key(prompt) if not tools else f"{text_key(prompt)}\n{text_key(tools)}"


def prompt_name(prompt: PromptText, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the name of a prompt without a group, which is its own question."""
    # A hash: names go into reports, texts do not.
    return f"prompt {hashlib.sha256(prompt_key(prompt, tools).encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
