"""``paragone data``: what files hold, how they are read, and what is left out and why; files in our own layout.

Torch is imported only where a model is named, whose tokens are counted.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone.installing import pip_install
from paragone_evaluation.data_report import data_page, said_of, summary_rows
from paragone_evaluation.data_summary import Tokens, summarised
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.eval_command import (
    Attribute,
    BadRows,
    Files,
    Layout,
    Map,
    RankingsOption,
    command_line,
    console_of,
    read_options,
)
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.holdout import check_holdout
from paragone_evaluation.readers.rows import DataRow
from paragone_evaluation.readers.writing import RowWriter
from paragone_models.files.sources import completed
from paragone_models.progress import Work, shown_work

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
    holdout: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Of a file without a test split: count the prompts that a recipe with this data.holdout holds out.",
            show_default=False,
        ),
    ] = 0.0,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=completed, help="Count its tokens and show its text: builtin:NAME, a folder or a Hub id."
        ),
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the rows in our own layout: .jsonl (.gz, .zst, …) or .parquet."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page of the same, to keep or to pass on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what data files hold and how every command reads them.

    Layout, rows, prompts, pairs, ties, duplicates, contradictions, lengths, splits, what is left out and why, and the
    first row. Ends with 2 if a row cannot be read and --bad-rows is refuse.
    """
    options = replace(read_options(layout, columns, bad_rows, attribute, 0.0, rankings), holdout=holdout)
    reading = FilePass(*files, options=options, split=split)
    with ExitStack() as opened:
        work = opened.enter_context(shown_work(f"reading {', '.join(files)}"))
        reader = None if model is None else _reader(model)
        tokens = None if reader is None else Tokens(model or "", reader.limit, reader.tokens)
        writer = None if convert is None else opened.enter_context(RowWriter(convert))
        summary = summarised(reading, tokens=tokens, seen=_seen(work, writer, reading))
        if not reading.layouts:
            # Files of prompts have no layout; what is in them all the same is said as training a policy would read it.
            prompts = FilePass(*files, options=options, split=split, prompts=True)
            found = summarised(prompts, tokens=tokens, seen=_seen(work, writer, prompts))
            reading, summary = (prompts, found) if found["read"] else (reading, summary)
        reading.check(remedy="Mend the file, or see the rest with --bad-rows leave-out.")
        if not summary["read"]:
            reading.account.check(remedy="No row can be read: mend the file, or name its columns with --map.")
    if held_out := summary["held_out"]:
        check_holdout(holdout, held_out=held_out["prompts"], left=held_out["left"])
    if reader is not None and summary["first_row"]:
        summary["first_row"]["seen"] = reader.text(summary["first_row"])
    if report is not None:
        report.write_text(data_page(summary, command_line("data")), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
        return
    console = console_of()
    _print(summary, console)
    if writer is not None:
        console.print(f"wrote {writer.count:,} rows to {convert}", markup=False, highlight=False, soft_wrap=True)
    if report is not None:
        console.print(f"wrote {report}", markup=False, highlight=False, soft_wrap=True)


def _seen(work: Work, writer: RowWriter | None, reading: FilePass) -> Callable[[DataRow], None]:
    """Return what is done with each row beside counting: it is written, and shown how far reading is."""

    def seen(row: DataRow) -> None:
        work.at((work.done or 0) + 1)
        if writer is not None:
            writer.write(row, signed=reading.layout is None or reading.layout.signed)

    return seen


def _reader(model: str) -> "RowReader":
    try:
        from paragone_evaluation.local_model import load_row_reader
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"the tokens of a model need torch: {pip_install('models')}, or leave out --model ({error})"
        ) from error
    return load_row_reader(model)


def _print(summary: _Values, console: Console) -> None:
    for file in summary["files"]:
        console.print(f"[bold]{escape(file['name'])}[/bold]  layout {escape(file['layout'])}", soft_wrap=True)
        for reason in file["why"].split("; "):
            console.print(f"  [dim]{escape(reason)}[/dim]", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(max_width=66)
    for name, value, remark in summary_rows(summary):
        table.add_row(name, value, escape(remark))
    console.print(table)
    for left in summary["left_out"]:
        more = ", …" if left["rows"] > len(left["lines"]) else ""
        lines = f"line{'s' if left['rows'] > 1 else ''} {', '.join(map(str, left['lines']))}{more}"
        console.print(f"[yellow]left out[/yellow] {left['rows']} × {escape(left['reason'])} ({lines})", soft_wrap=True)
    if summary["first_row"]:
        _print_row(summary["first_row"], console)


def _print_row(row: _Values, console: Console) -> None:
    console.print(f"\n[bold]the first row[/bold] (line {row['line']}, id {escape(row['id'])})", soft_wrap=True)
    if seen := row.get("seen"):
        console.print("  [dim]its first response, as the model reads it[/dim]")
        console.print(_cut(seen), markup=False, highlight=False)
        return
    for message in row["prompt"]:
        _print_text(f"prompt, {message.get('role')}", message, console)
    for at, response in enumerate(row["responses"]):
        _print_text(f"response {at + 1}{said_of(row, at)}", response, console)


def _print_text(title: str, content: Any, console: Console) -> None:
    console.print(f"  [dim]{escape(title)}[/dim]")
    text = content.get("content") if isinstance(content, dict) and set(content) <= {"role", "content"} else content
    shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    for line in _cut(shown).splitlines() or [""]:
        console.print(f"    {line}", markup=False, highlight=False)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"
