"""Rows: what every layout is translated into, and checked access to the fields of a file.

A row is a prompt with its K responses: two that people compared, several with comparisons between them, or responses
that people rated. The functions at the end return one field each; they raise ``BadRowError`` where it is wrong.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.containers import Fields

__all__ = ["STRONGEST", "BadRowError", "Content", "DataRow", "Label", "LeftOutError", "Pair", "Prompt", "Rating"]

Content = str | list[dict[str, Any]]
"""A prompt: text (one message of the user), or messages."""

STRONGEST = 3.0
"""Largest strength: the scale of HelpSteer2-Preference."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRowError(ValueError):
    """Say what is wrong with one row; whoever reads the file adds the line."""


class LeftOutError(ValueError):
    """Say why a row is of no use though nothing is wrong with it: nobody rated it, or both responses are one text."""


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement between two responses of a prompt, by their index.

    Attributes:
        strength: −3 … 3, positive where the first was preferred, 0 for a tie.
    """

    first: int
    second: int
    strength: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt and what people said.

    Attributes:
        prompt: text, or messages as JSON (see ``prompt_messages``).
        first: the response whose win is measured.
        strength: −3 … 3, positive where ``first`` was preferred, 0 for a tie.
        messages: True where ``prompt`` is JSON of messages.
        group: what the row belongs to, for resampling; the prompt unless the file says.
        reason: the annotator's.
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
        """What the row is about: both stances of one question share it."""
        # A prompt that stands in for a missing group may hold an underscore anywhere.
        return self.group if self.group == self.prompt else question_of(self.group)

    @property
    def prompt_messages(self) -> Content:
        """The prompt as the model's reader takes it."""
        return json.loads(self.prompt) if self.messages else self.prompt


@dataclass(frozen=True, slots=True)
class Rating:
    """One response to a prompt and what people rated.

    Attributes:
        prompt: text, or messages as JSON.
        ratings: by attribute; what nobody rated is not there.
        messages: True where ``prompt`` is JSON of messages.
        group: what the row belongs to; the prompt unless the file says.
        where: file and line.
    """

    prompt: str
    response: str
    ratings: Mapping[str, float]
    messages: bool = False
    id: str = ""
    split: str | None = None
    group: str = ""
    where: str = ""


@dataclass(frozen=True)
class Prompt:
    """One prompt for a policy.

    Attributes:
        id: unique in a run.
        token_ids: the policy's rendering, up to where its answer begins; empty as read.
    """

    id: str
    content: Content
    token_ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The content as one string: JSON where it is messages."""
        return _keyed(self.content)[0]


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a file, whatever its layout.

    Attributes:
        id: as in the file, or None.
        responses: K of them; none in a file of prompts.
        labels: judgements between the responses.
        graded: whether the labels' strengths are the file's own; otherwise they only say which one was preferred.
        ratings: by attribute, for each response, None where nobody rated it; empty where people compared. K
        right: how many of the responses, from the first, are right ones; None where people compared.
        group: what the row belongs to.
        subset: part of the file that has results of its own.
        tools: that were on offer.
        reason: the annotator's.
    """

    line: int
    prompt: Content
    responses: tuple[ResponseText, ...] = ()
    labels: tuple[Label, ...] = ()
    id: str | None = None
    graded: bool = False
    ratings: tuple[Mapping[str, float | None], ...] = ()
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

    def pairs(self, path: str | Path) -> list[Pair]:
        """Return a pair for each label.

        Raises:
            BadRowError: if a response is no text.
        """
        prompt, messages = _keyed(self.prompt)
        texts = self._texts()
        return [
            Pair(
                prompt, texts[label.first], texts[label.second], label.strength, messages=messages,
                id=self.name if len(texts) == 2 else f"{self.name}/{label.first}-{label.second}",
                split=self.split, group=self.group or prompt, reason=self.reason, where=f"{path}:{self.line}",
            )
            for label in self.labels
        ]  # fmt: skip

    def rated(self, path: str | Path) -> list[Rating]:
        """Return a rating for each response.

        Raises:
            BadRowError: if a response is no text.
        """
        prompt, messages = _keyed(self.prompt)
        texts = self._texts()
        return [
            Rating(
                prompt, text, rated_alone(ratings), messages=messages,
                id=self.name if len(texts) == 1 else f"{self.name}/{place}",
                split=self.split, group=self.group or prompt, where=f"{path}:{self.line}",
            )
            for place, (text, ratings) in enumerate(zip(texts, self.ratings, strict=True))
        ]  # fmt: skip

    def _texts(self) -> list[str]:
        if not all(isinstance(response, str) for response in self.responses):
            raise BadRowError("a response holds more than one message's text, such as tool calls: training reads texts")
        return [str(response) for response in self.responses]


def rated_alone(ratings: Mapping[str, float | None]) -> dict[str, float]:
    """Return the ratings that there are."""
    return {name: float(value) for name, value in ratings.items() if value is not None}


def question_of(group: str) -> str:
    """Return the part of a group's name before the first ``_``, or all of it where that is empty."""
    return group.partition("_")[0] or group


def value_of(row: Fields, name: str) -> Any:
    """Return a field that must be there."""
    if name not in row:
        raise BadRowError(f"field {name!r} is missing; the row has {', '.join(sorted(row)) or 'none'}")
    return row[name]


def optional_text(row: Fields, name: str) -> str | None:
    """Return a field that must be text where it is there, and None where it is empty."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {described(value)}")
    _check_encodable(value, name)
    return value or None


def identifier(row: Fields, name: str = "id") -> str | None:
    """Return the row's id as text, None where it has none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    # bool is an int to Python: ids True and 1 would be taken for each other.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"field {name!r} must be text or a whole number, not {described(value)}")
    _check_encodable(str(value), name)
    return str(value)


def split_name(split: str | None) -> str | None:
    """Return the name that we use for a split: files say ``val`` and ``validation`` for the same one."""
    return "validation" if split == "val" else split


def split_of(row: Fields) -> str | None:
    """Return the row's split, as ``split_name`` writes it."""
    return split_name(optional_text(row, "split"))


def tools_of(row: Fields) -> Sequence[Mapping[str, Any]] | None:
    """Return the row's tools."""
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRowError("field 'tools' must be a list of objects")
    return tools or None


def prompt_of(row: Fields, name: str = "prompt") -> Content:
    """Return the prompt: text, or messages; one message of the user is the same prompt as its text."""
    value = value_of(row, name)
    messages = messages_of(value, name)
    content = value if isinstance(value, str) else as_prompt(messages) if messages else None
    if content is None:
        raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {described(value)}")
    if isinstance(content, str) and not content.strip():
        raise BadRowError(f"field {name!r} is empty")
    _check_encodable(content, name)
    return content


def as_prompt(messages: list[dict[str, Any]]) -> Content:
    """Return messages as a prompt: the text of a lone message of the user, so that both forms are one prompt."""
    alone = messages[0] if len(messages) == 1 else {}
    # A name, say, is part of what a template renders: such a message is more than its text.
    plain = alone.get("role") == "user" and isinstance(alone.get("content"), str) and len(alone) == 2
    return alone["content"] if plain else messages


def response_of(value: Any, name: str) -> ResponseText:
    """Return a response: text, a message, or messages; a lone message of the assistant is the same as its text."""
    if isinstance(value, str):
        _check_encodable(value, name)
        return value
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {described(value)}")
    _check_encodable(messages, name)
    if len(messages) > 1:
        return tuple(messages)
    (message,) = messages
    plain = message["role"] == "assistant" and isinstance(message.get("content"), str) and len(message) == 2
    return str(message["content"]) if plain else message


def responses_of(row: Fields, name: str, *, at_least: int) -> list[ResponseText]:
    """Return a list of responses."""
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else described(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least} responses, not {kind}")
    return [response_of(response, f"{name}[{index}]") for index, response in enumerate(value)]


def messages_of(value: Any, name: str) -> list[dict[str, Any]] | None:
    """Return a list of messages, or None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        return None
    for message in value:
        _check_message(message, name)
    # Tables have a column for every key that some message has: null stands for a key that this one lacks.
    return [{key: part for key, part in message.items() if part is not None or key == "content"} for message in value]


def _check_message(message: Mapping[str, Any], name: str) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise BadRowError(
            f"field {name!r} must be text or messages, each with a role; a role is {described(role)}, and must be one "
            f"of {', '.join(_ROLES)}"
        )
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str | None) for part in content
    ):
        raise BadRowError(f"field {name!r} has a message whose content is neither text nor a list of parts")


def number_of(value: Any, name: str, *, low: float, high: float) -> float:
    """Return a number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError(f"field {name!r} must be a number from {low:g} to {high:g}, not {described(value)}")
    if not low <= value <= high:
        raise BadRowError(f"field {name!r} is {described(value)}; it must lie in {low:g} … {high:g}")
    return float(value)


def _keyed(prompt: Content) -> tuple[str, bool]:
    """Return a prompt as text, and whether that is JSON of messages."""
    return (prompt, False) if isinstance(prompt, str) else (json.dumps(prompt, ensure_ascii=False), True)


def _check_encodable(content: Any, name: str) -> None:
    # Models, caches and answers are written as UTF-8: what it cannot carry would fail hours later.
    try:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"field {name!r} holds a lone surrogate, which no UTF-8 can carry") from None
    except RecursionError:
        raise BadRowError(f"field {name!r} is nested too deeply") from None


def described(value: Any) -> str:
    """Return a value as messages show it: short ones as they are, others by their type."""
    if value is None:
        return "null"
    # Long texts are what the file holds, and that stays out of messages. JSON also has numbers of 4,000 digits.
    short = isinstance(value, bool | int | float | str) and len(shown := repr(value)) <= 24
    return shown if short else type(value).__name__
