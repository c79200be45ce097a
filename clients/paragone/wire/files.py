"""What a data file holds, as a server read it; the file itself is not kept."""

from typing import Annotated, Any

from pydantic import Field

from paragone.wire.answers import AnswerModel, Count, Finite, Probability
from paragone.wire.conversations import RequestModel, Text

__all__ = ["FileAnswer", "FileLabel", "FileLeftOut", "FileQuery", "FileRating", "FileRow"]

_MOST_ROWS = 500


class FileQuery(RequestModel):
    """How a file is read, and which of its rows are answered; the body is the file."""

    name: Annotated[Text, Field(min_length=1, max_length=512)] = Field(
        description="The file's name: its ending says what holds the rows, as `pairs.jsonl.gz` or `test.parquet`."
    )
    layout: Annotated[Text, Field(max_length=64)] = Field(
        default="auto", description="Layout of the rows; `auto` tells it by what the columns hold."
    )
    offset: Annotated[int, Field(ge=0, le=2**53)] = Field(
        default=0, description="How many of the rows that can be read come before the first one that is answered."
    )
    limit: Annotated[int, Field(ge=0, le=_MOST_ROWS)] = Field(default=50, description="Rows that are answered at most.")


class FileLeftOut(AnswerModel):
    """Rows that are not read, for one reason."""

    reason: str = Field(description="Why, in the words of the reader.")
    rows: Count = Field(description="How many. [count]")
    lines: list[int | str] = Field(description="Where the first of them are.")


class FileLabel(AnswerModel):
    """What people said of two of a row's responses."""

    first: Count = Field(description="Index of the response whose win is measured.")
    second: Count = Field(description="Index of the other one.")
    strength: Finite = Field(description="−3 … 3, positive where the first was preferred, 0 for a tie.")


class FileRow(AnswerModel):
    """One row, whatever the file's layout."""

    line: Count = Field(description="Where it begins in the file, from 1.")
    id: str = Field(description="Its id, or its line where the file has none.")
    prompt: list[dict[str, Any]] = Field(description="Messages.")
    responses: list[Any] = Field(description="Texts, messages or lists of messages; none in a file of prompts.")
    labels: list[FileLabel] = Field(description="Comparisons of two responses; none where nobody compared.")
    ratings: list[dict[str, Finite]] = Field(description="By attribute, for each response; none where nobody rated.")
    tools: list[dict[str, Any]] = Field(description="Tools that were on offer.")


class FileRating(AnswerModel):
    """The ratings of one attribute."""

    count: Count = Field(description="Responses that were rated by it. [count]")
    mean: Finite = Field(description="Their mean.")
    least: Finite = Field(description="The lowest.")
    most: Finite = Field(description="The highest.")


class FileAnswer(AnswerModel):
    """What a file holds, and some of its rows."""

    name: str = Field(description="The file's name; characters but letters, digits, `.`, `_`, `-` are replaced.")
    layout: str = Field(description="The rows' layout: its name, `unjudged`, or `prompts`.")
    why: str = Field(description="What tells the layout, and what its strengths are.")
    count: Count = Field(description="Rows of the file. [count]")
    read: Count = Field(description="Rows that were read. [count]")
    left_out: list[FileLeftOut] = Field(description="The others, by reason.")
    prompts: Count = Field(description="Distinct prompts. [count]")
    responses: Count = Field(description="Distinct responses, by prompt. [count]")
    pairs: Count = Field(description="Comparisons of two responses. [count]")
    decided: Count = Field(description="Those that are no ties. [count]")
    ties: Count = Field(description="Ties. [count]")
    duplicates: Count = Field(description="Comparisons that say what another one said already. [count]")
    contradictions: Count = Field(description="Pairs of responses that were judged both ways. [count]")
    identical: Count = Field(description="Rows that compare a text with itself; they are left out. [count]")
    first_preferred: Probability | None = Field(description="Share of decided pairs; null where there is none.")
    longer_preferred: Probability | None = Field(
        description="Share of the pairs whose lengths differ; null where there is none."
    )
    rated: Count = Field(description="Responses that were rated. [count]")
    ratings: dict[str, FileRating] = Field(description="By attribute.")
    splits: dict[str, Count] = Field(description="Rows by split; `none` for those without one. [count]")
    offset: Count = Field(description="Rows that were read before the first of `rows`. [count]")
    not_shown: Count = Field(
        description="Rows that were asked for and would take `rows` over 16 MB: ask again from the first one. [count]"
    )
    rows: list[FileRow] = Field(description="The rows that were asked for, in the file's order.")
