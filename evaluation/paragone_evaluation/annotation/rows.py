"""The rows of the input, numbered, in chunks: the same chunks whenever the same files are read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.rows import DataRow, text_length

__all__ = ["Chunk", "NumberedRow", "Unread", "chunks_of"]


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A row, its number from 0 among all rows of the input, and its file where there are several."""

    number: int
    file: str | None
    row: DataRow


@dataclass(frozen=True, slots=True)
class Unread:
    """A row that cannot be read, or is of no use, and why."""

    number: int
    file: str | None
    line: int
    reason: str


@dataclass(slots=True)
class Chunk:
    """Rows that are asked about together, in their order.

    Attributes:
        responses: how many they have.
        characters: of their texts, prompts included.
    """

    rows: list[NumberedRow | Unread] = field(default_factory=list)
    responses: int = 0
    characters: int = 0

    def add(self, row: NumberedRow) -> None:
        """Take in a row."""
        self.rows.append(row)
        self.responses += len(row.row.responses)
        self.characters += text_length(row.row.prompt) + sum(map(text_length, row.row.responses))

    @property
    def last(self) -> int:
        """Number of the last row."""
        return self.rows[-1].number


def chunks_of(reading: FilePass, *, most_responses: int, most_characters: int) -> Iterator[Chunk]:
    """Yield the rows of a pass in chunks; a row that is larger than a chunk makes one of its own."""
    chunk, number = Chunk(), 0
    several = len(reading.parts) > 1

    def unread() -> Iterator[Unread]:
        nonlocal number
        for file, line, reason in reading.account.take():
            yield Unread(number, file if several else None, line, reason)
            number += 1

    account = reading.account
    for row in reading:
        # What was noted since the row before stood between the two.
        if account.bad or account.unused:
            chunk.rows += unread()
        chunk.add(NumberedRow(number, reading.part.name if several else None, row))
        number += 1
        if (
            chunk.responses >= most_responses
            or chunk.characters >= most_characters
            or len(chunk.rows) >= 4 * most_responses  # of a file of bad rows
        ):
            yield chunk
            chunk = Chunk()
    chunk.rows += unread()
    if chunk.rows:
        yield chunk
