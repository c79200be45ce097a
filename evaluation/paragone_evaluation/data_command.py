"""``paragone data``: what files hold, how they are read, and what is left out and why; files in our own layout.

Torch is imported only where a model is named, whose tokens are counted.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone_evaluation.data_summary import Tokens, summarised
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.eval_command import (
    Attribute,
    BadRows,
    Files,
    Layout,
    Map,
    RankingsOption,
    console_of,
    read_options,
)
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.writing import RowWriter

if TYPE_CHECKING:
    from paragone_evaluation.local_model import RowReader

__all__ = ["data"]

_Values = dict[str, Any]
_SHOWN = 1200  # characters of a text of the first row


def data(
    files: Files,
    *,
    layout: Layout = "auto",
    split: Annotated[str | None, typer.Option(help="Rows of this split only, as test.")] = None,
    columns: Map = None,
    bad_rows: BadRows = "leave-out",
    attribute: Attribute = None,
    rankings: RankingsOption = "all",
    model: Annotated[
        str | None, typer.Option(help="Count its tokens and show its text: builtin:NAME, a folder or a Hub id.")
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the rows in our own layout: .jsonl (.gz, .zst, …) or .parquet."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what data files hold and how every command reads them.

    Layout, rows, prompts, pairs, ties, duplicates, contradictions, lengths, splits, what is left out and why, and the
    first row. Ends with 2 if a row cannot be read and --bad-rows is refuse.
    """
    options = read_options(layout, columns, bad_rows, attribute, 0.0, rankings)
    reading = FilePass(*files, options=options, split=split)
    with ExitStack() as opened:
        reader = None if model is None else _reader(model)
        tokens = None if reader is None else Tokens(model or "", reader.limit, reader.tokens)
        writer = None if convert is None else opened.enter_context(RowWriter(convert))
        summary = summarised(reading, tokens=tokens, seen=None if writer is None else _writes(writer, reading))
        if not reading.layouts:
            # Files of prompts have no layout; what is in them all the same is said as training a policy would read it.
            prompts = FilePass(*files, options=options, split=split, prompts=True)
            found = summarised(prompts, tokens=tokens, seen=None if writer is None else _writes(writer, prompts))
            reading, summary = (prompts, found) if found["read"] else (reading, summary)
        reading.check(remedy="Mend the file, or see the rest with --bad-rows leave-out.")
        if not summary["read"]:
            reading.account.check(remedy="No row can be read: mend the file, or name its columns with --map.")
    if reader is not None and summary["first_row"]:
        summary["first_row"]["seen"] = reader.text(summary["first_row"])
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
        return
    console = console_of()
    _print(summary, console)
    if writer is not None:
        console.print(f"wrote {writer.count:,} rows to {convert}", markup=False, highlight=False, soft_wrap=True)


def _writes(writer: RowWriter, reading: FilePass) -> Any:
    return lambda row: writer.write(row, signed=reading.layout is None or reading.layout.signed)


def _reader(model: str) -> "RowReader":
    try:
        from paragone_evaluation.local_model import load_row_reader
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"the tokens of a model need torch: pip install 'paragone[models]', or leave out --model ({error})"
        ) from error
    return load_row_reader(model)


def _print(summary: _Values, console: Console) -> None:
    for file in summary["files"]:
        console.print(f"[bold]{escape(file['name'])}[/bold]  layout {escape(file['layout'])}", soft_wrap=True)
        console.print(f"  [dim]{escape(file['why'])}[/dim]", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(max_width=66)
    for name, value, remark in _rows(summary):
        table.add_row(name, value, escape(remark))
    console.print(table)
    for left in summary["left_out"]:
        more = ", …" if left["rows"] > len(left["lines"]) else ""
        lines = f"line{'s' if left['rows'] > 1 else ''} {', '.join(map(str, left['lines']))}{more}"
        console.print(f"[yellow]left out[/yellow] {left['rows']} × {escape(left['reason'])} ({lines})", soft_wrap=True)
    if summary["first_row"]:
        _print_row(summary["first_row"], console)


def _rows(summary: _Values) -> list[tuple[str, str, str]]:
    """Return names, numbers and remarks of the table."""
    read, rows = summary["read"], summary["rows"]
    lost = rows - read - summary["passed_over"]
    left = [f"{lost:,} left out"] * bool(lost) + [f"{summary['passed_over']:,} of other splits"] * bool(
        summary["passed_over"]
    )
    splits = ", ".join(f"{name} {count:,}" for name, count in sorted(summary["splits"].items()))
    lines = [("rows", f"{rows:,}", ", ".join(left)), ("splits", f"{len(summary['splits'])}", splits)]
    if summary["subsets"]:
        lines.append(("subsets", f"{summary['subsets']:,}", ""))
    talks = [f"{summary['conversations']:,} rows with several messages"] * bool(summary["conversations"])
    tools = [f"{summary['with_tools']:,} with tools"] * bool(summary["with_tools"])
    lines += [
        ("prompts", f"{summary['prompts']:,}", ", ".join(talks + tools)),
        ("responses", f"{summary['responses']:,}", "distinct, by prompt"),
    ]
    if summary["pairs"]:
        lines += _pair_rows(summary)
    for name, rating in summary["ratings"].items():
        span = f"{rating['least']:g} to {rating['most']:g}, mean {rating['mean']:.2f}"
        lines.append((f"ratings of {name}", f"{rating['count']:,}", span))
    for name in ("prompt", "response"):
        if spread := summary["characters"][name]:
            lines.append((f"characters of a {name}", f"{spread['median']:,}", f"median; {_span(spread)}"))
    if tokens := summary["tokens"]:
        if spread := tokens["conversation"]:
            lines.append(("tokens of a conversation", f"{spread['median']:,}", f"median; {_span(spread)}"))
        limit = f"of a limit of {tokens['limit']:,} tokens ({tokens['model']})"
        lines.append(("prompts cut", f"{tokens['cut']:,}", limit))
        lines.append(("responses refused", f"{tokens['refused']:,}", "they do not fit"))
    return lines


def _pair_rows(summary: _Values) -> list[tuple[str, str, str]]:
    shares = [
        f"{words} in {summary[name]:.0%}"
        for name, words in (("first_preferred", "the first is preferred"), ("longer_preferred", "the longer one"))
        if summary[name] is not None
    ]
    strengths = ", ".join(f"{value}: {count:,}" for value, count in summary["strengths"].items())
    return [
        ("pairs", f"{summary['pairs']:,}", f"{summary['decided']:,} decided: {', '.join(shares)}" if shares else ""),
        ("strengths", f"{len(summary['strengths'])}", strengths or "people said which one, and not how strongly"),
        ("ties", f"{summary['ties']:,}", ""),
        ("duplicates", f"{summary['duplicates']:,}", "the same two responses, judged the same way again"),
        ("contradictions", f"{summary['contradictions']:,}", "the same two responses, judged both ways"),
        ("identical", f"{summary['identical']:,}", "rows whose two responses are one text"),
    ]


def _span(spread: _Values) -> str:
    return f"{spread['least']:,} to {spread['most']:,}, 95 % up to {spread['most_of_95_percent']:,}"


def _print_row(row: _Values, console: Console) -> None:
    console.print(f"\n[bold]the first row[/bold] (line {row['line']}, id {escape(row['id'])})", soft_wrap=True)
    if seen := row.get("seen"):
        console.print("  [dim]its first response, as the model reads it[/dim]")
        console.print(_cut(seen), markup=False, highlight=False)
        return
    for message in row["prompt"]:
        _print_text(f"prompt, {message.get('role')}", message, console)
    for at, response in enumerate(row["responses"]):
        _print_text(f"response {at + 1}{_said_of(row, at)}", response, console)


def _said_of(row: _Values, at: int) -> str:
    if row["ratings"]:
        return ": " + ", ".join(f"{name} {value:g}" for name, value in row["ratings"][at].items())
    won = [label for label in row["labels"] if at == (label["first"] if label["strength"] > 0 else label["second"])]
    tied = any(not label["strength"] and at in (label["first"], label["second"]) for label in row["labels"])
    beaten = len([label for label in won if label["strength"]])
    return f", preferred to {beaten} other" * bool(beaten) or ", a tie" * tied


def _print_text(title: str, content: Any, console: Console) -> None:
    console.print(f"  [dim]{escape(title)}[/dim]")
    text = content.get("content") if isinstance(content, dict) and set(content) <= {"role", "content"} else content
    shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    for line in _cut(shown).splitlines() or [""]:
        console.print(f"    {line}", markup=False, highlight=False)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"
