"""Layouts of rows that nobody judged yet: a prompt with one response or several. ``paragone annotate`` reads them.

| a row | responses |
|---|---|
| a prompt and ``responses`` (``completions``, ``generations``, ``candidates``, ``outputs``) | the list |
| a prompt, ``first`` and ``second`` | both |
| a prompt and ``response`` (``completion``, ``answer``, ``output``, ``generation``) | the one |
| ``messages`` or ``conversations`` that end with the assistant | the last message |

The prompt stands in any of the columns in which files of pairs have it.
"""

from typing import Any

from paragone_evaluation.readers.layouts.conversations import column_prompt
from paragone_evaluation.readers.layouts.fields import (
    as_prompt,
    as_response,
    check_ending,
    common_of,
    is_response,
    optional_text,
    responses_of,
    sides_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout
from paragone_evaluation.readers.layouts.messages import are_messages
from paragone_evaluation.readers.rows import BadRowError, Content, DataRow, Fields

__all__ = ["NAME", "UNJUDGED"]

NAME = "unjudged"
_SEVERAL = ("responses", "completions", "generations", "candidates", "outputs")
_ONE = ("response", "completion", "answer", "output", "generation")
_TALKS = ("messages", "conversations", "conversation")


def _prompt(row: Fields) -> Content:
    before = column_prompt(row)
    if before is None:
        raise BadRowError("there is no prompt: the row has no prompt, instruction, messages or conversations")
    return check_ending(as_prompt(before, "prompt"), "prompt")


def _made(row: Fields, line: int, prompt: Content, responses: Any) -> DataRow:
    return DataRow(line, prompt, tuple(responses), subset=optional_text(row, "subset"), **common_of(row))


def _named(row: Fields, names: tuple[str, ...]) -> str | None:
    for name in names:
        if row.get(name) is not None:
            return name
    return None


def _several(row: Fields, line: int) -> DataRow:
    return _made(row, line, _prompt(row), responses_of(row, _named(row, _SEVERAL) or "responses", at_least=1))


def _fits_several(row: Fields) -> bool:
    value = row.get(_named(row, _SEVERAL) or "")
    return isinstance(value, list) and bool(value) and all(map(is_response, value)) and not are_messages(value)


def _two(row: Fields, line: int) -> DataRow:
    return _made(row, line, _prompt(row), sides_of(row, "first", "second"))


def _one(row: Fields, line: int) -> DataRow:
    return _made(row, line, _prompt(row), sides_of(row, _named(row, _ONE) or "response"))


def _fits_one(row: Fields) -> bool:
    return is_response(row.get(_named(row, _ONE) or ""))


def _talk(row: Fields, line: int) -> DataRow:
    turns = column_prompt(row) or []
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise BadRowError("there is no response, and no conversation that ends with the assistant's message")
    prompt = check_ending(as_prompt(turns[:-1], "messages"), "messages")
    return _made(row, line, prompt, (as_response(turns[-1:], "messages"),))


def _fits_talk(row: Fields) -> bool:
    return any(are_messages(row.get(name)) for name in _TALKS)


UNJUDGED = (
    FileLayout(NAME, ("prompt", "responses"), _several, _fits_several, _prompt, schema="several responses"),
    FileLayout(
        NAME, ("prompt", "first", "second"), _two,
        lambda row: is_response(row.get("first")) and is_response(row.get("second")), _prompt,
        schema="first and second",
    ),
    FileLayout(NAME, ("prompt", "response"), _one, _fits_one, _prompt, schema="one response"),
    FileLayout(NAME, ("messages", "conversations"), _talk, _fits_talk, schema="a conversation with its answer"),
)  # fmt: skip
"""What ``FilePass`` reads besides the judged layouts where it is told that rows need no judgement."""
