"""The rows of the input, numbered and prepared, in chunks: the same chunks whenever the same files are read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from paragone_evaluation.annotation.kinds import AnswerKind
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.rows import DataRow, text_length

__all__ = ["Chunk", "Entry", "chunks_of"]

Fields = dict[str, Any]
_LABELS = {1: "first", 0: "tie", -1: "second"}


class Entry(NamedTuple):
    """A row: what is asked about it, and what is kept of it.

    Attributes:
        number: from 0, among all rows of the input.
        place: where it stands, as the output and its failures say.
        content: JSON of what the output has of it, besides the answer.
        questions: about it; a text in their place says why there are none.
        code: of the reason, where there is one.
    """

    number: int
    place: Fields
    content: bytes
    questions: list[Fields] | str
    code: str = ""


@dataclass(slots=True)
class Chunk:
    """Rows that are asked about together, in their order.

    Attributes:
        forwards: how much a model has to read or answer for them, in sequences.
        characters: of their texts, prompts included.
    """

    rows: list[Entry] = field(default_factory=list)
    forwards: int = 0
    characters: int = 0

    @property
    def last(self) -> int:
        """Number of the last row."""
        return self.rows[-1].number


def chunks_of(
    reading: FilePass,
    kind: AnswerKind,
    *,
    most_forwards: int,
    most_characters: int,
    behind: int = -1,
    in_pairs: bool = False,
) -> Iterator[Chunk]:
    """Yield the rows of a pass in chunks; a row that is larger than a chunk makes one of its own.

    Args:
        behind: chunks up to the row of this number are left out.
        in_pairs: K responses are read in K(K − 1) ordered pairs, and not one by one.
    """
    chunk, number = Chunk(), 0
    several, account = len(reading.parts) > 1, reading.account

    def unread() -> Iterator[Entry]:
        nonlocal number
        for file, line, reason in account.take():
            place = {"row": number, **({"file": file} if several else {}), "line": line}
            yield Entry(number, place, b"", reason, "unread")
            number += 1

    for row in reading:
        # What was noted since the row before stood between the two.
        if account.bad or account.unused:
            chunk.rows += unread()
        count = len(row.responses)
        chunk.forwards += count * (count - 1) if in_pairs else count
        chunk.characters += text_length(row.prompt) + sum(map(text_length, row.responses))
        chunk.rows.append(_entry(number, reading.part.name if several else None, row, kind))
        number += 1
        if (
            chunk.forwards >= most_forwards
            or chunk.characters >= most_characters
            or len(chunk.rows) >= 4 * most_forwards  # of a file of bad rows
        ):
            if chunk.last > behind:
                yield chunk
            chunk = Chunk()
    chunk.rows += unread()
    if chunk.rows and chunk.last > behind:
        yield chunk


def _entry(number: int, file: str | None, row: DataRow, kind: AnswerKind) -> Entry:
    place: Fields = {"row": number}
    if file is not None:
        place["file"] = file
    place["line"] = row.line
    if row.id is not None:
        place["id"] = row.id
    questions = kind.ask_of(row)
    if isinstance(questions, str):
        return Entry(number, place, b"", questions, "not_asked")
    try:
        return Entry(number, place, to_json(place | _own(row)), questions)
    except PydanticSerializationError:
        return Entry(number, place, b"", "the row holds what no JSON in UTF-8 can carry", "unread")


def _own(row: DataRow) -> Fields:
    """Return what is kept of a row: prompt and responses, and what people said of them."""
    fields: Fields = {}
    for name in ("split", "group", "subset"):
        if (value := getattr(row, name)) is not None:
            fields[name] = value
    fields["prompt"] = row.prompt
    if row.tools:
        fields["tools"] = list(row.tools)
    fields["responses"] = row.responses
    if row.labels:
        fields["comparisons"] = [
            {
                "first": label.first,
                "second": label.second,
                "label": _LABELS[(label.strength > 0) - (label.strength < 0)],
            }
            | ({"strength": label.strength} if row.graded else {})
            for label in row.labels
        ]
    if row.ratings:
        fields["ratings"] = row.given_ratings
    return fields
