"""``paragone annotate``: the command, its progress and what it says in the end."""

import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from paragone import ErrorCode, ParagoneError
from paragone.addresses import DEFAULT_URL
from paragone.waiting import filtered, in_few_words
from paragone_evaluation.annotation.files import is_kept
from paragone_evaluation.annotation.kinds import KINDS
from paragone_evaluation.annotation.report import annotation_page
from paragone_evaluation.annotation.run import AnnotateSettings, Annotation, annotate_files
from paragone_evaluation.annotation.trainer_pairs import FORMATS, PairSettings, Which, dataset_info
from paragone_evaluation.eval_command import (
    ApiKey,
    Json,
    Layout,
    Map,
    WaitS,
    command_line,
    console_of,
    print_json,
    read_options,
)

__all__ = ["annotate"]

_EVERY_S = 10.0  # between two lines where nobody watches a bar


def annotate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="IN…", help="Files, globs, folders, or data sets of the Hub.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write: .jsonl (.gz, .zst, …) or .parquet.", show_default=False),
    ],
    *,
    url: Annotated[
        list[str] | None, typer.Option(help="Address of a service; several for replicas.", envvar="PARAGONE_URL")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Id of a hosted model; the server's default if omitted.")] = None,
    answers: Annotated[
        str,
        typer.Option(
            metavar="|".join(["auto", *KINDS]),
            help="auto: rewards where the model has them, else win-rates (tables with --pairs).",
        ),
    ] = "auto",
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="best-worst|all", help="Write pairs for DPO too: of each row the best and the worst, or all."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="Of --pairs: least log-odds between the two.")] = 0.0,
    pairs_format: Annotated[
        str, typer.Option(metavar="|".join(FORMATS), help="Of --pairs: the trainer that reads them.")
    ] = "trl",
    layout: Layout = "auto",
    split: Annotated[str | None, typer.Option(help="Rows of this split only, as test.")] = None,
    columns: Map = None,
    truncation: Annotated[
        str, typer.Option(metavar="prompt|error", help="Prompts that are too long are cut, or fail their rows.")
    ] = "prompt",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at most, for each URL.")] = 16,
    api_key: ApiKey = None,
    wait_s: WaitS = 0.0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page of what was answered, and what failed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a service about every row of data files: rewards, preferences, win rates or whole tables.

    Rows keep their order. What fails is in OUT.failures.jsonl, with the reason. After an interruption of any kind the
    same command goes on where it stopped. See docs/annotate.md.
    """
    if truncation not in ("prompt", "error"):
        raise typer.BadParameter(f"--truncation is {truncation!r}; it must be prompt or error")
    if pairs is None and (margin or pairs_format != "trl"):
        raise typer.BadParameter("--margin and --pairs-format are of --pairs: add --pairs best-worst")
    settings = AnnotateSettings(
        sources=files,
        urls=url or [DEFAULT_URL],
        answers=answers,
        model=model,
        api_key=api_key,
        wait_s=wait_s,
        options=read_options(layout, columns, "leave-out", None, 0.0, "all"),
        split=split,
        truncation=cast("Literal['prompt', 'error']", truncation),
        concurrency=concurrency,
        pairs=None if pairs is None else PairSettings(cast("Which", pairs), margin, pairs_format),
    )
    # Rows come and go by the million and hold no cycles: the collector would look through them for a fifth of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    bar = Console(stderr=True)
    try:
        with filtered(_is_news), in_few_words(), _progress(bar) as progress:
            made = annotate_files(settings, output, progress=progress)
    except (KeyboardInterrupt, ParagoneError):
        if is_kept(output):
            bar.print(
                f"what was answered is kept beside {output}: the same command goes on", soft_wrap=True, markup=False
            )
        raise
    if report is not None:
        report.write_text(annotation_page(made, command_line("annotate")), encoding="utf-8")
    if as_json:
        print_json(_values(made))
    else:
        _tell(made)


def _values(made: Annotation) -> dict[str, Any]:
    return {
        "output": str(made.output), "answers": made.answers, "model": made.info.id, "identity": made.info.identity,
        "counts": made.counts, "usage": made.usage, "pairs": made.pairs, "already": made.already,
        "failures_file": None if made.failed is None else str(made.failed),
        "pairs_file": None if made.pairs_file is None else str(made.pairs_file),
    }  # fmt: skip


def _is_news(record: logging.LogRecord) -> bool:
    # That the service asked to wait is the usual pace of a long run, and no failure.
    return f"({ErrorCode.OVERLOADED}," not in record.getMessage()


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int, int | None], None]]:
    """Show rows, rate and the time that is left: a bar on a terminal, a line now and then elsewhere."""
    began = last = time.monotonic()
    if not console.is_terminal:

        def line(done: int, before: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _EVERY_S:
                last = now
                sys.stderr.write(f"{_words(done, before, total, now - began)}\n")

        yield line
        return
    with Progress(
        BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), console=console, transient=True
    ) as shown:
        task = shown.add_task("", total=None)
        yield lambda done, before, total: shown.update(
            task, completed=done, total=total, description=_words(done, before, total, time.monotonic() - began)
        )


def _words(done: int, before: int, total: int | None, seconds: float) -> str:
    # Rows of an earlier run took none of this run's time.
    rate = (done - before) / max(seconds, 1e-9)
    left = f", {_time((total - done) / rate)} left" if total is not None and rate > 0 and total >= done else ""
    return f"{done:,}{f' of {total:,}' if total is not None else ''} rows, {rate:,.0f} rows/s{left}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _tell(made: Annotation) -> None:
    console = console_of()

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)

    counts, usage = made.counts, made.usage
    say(
        f"{made.output}: {counts['rows']:,} rows with {made.answers} of {made.info.id}"
        + (", finished by an earlier run" if made.already else "")
    )
    if made.failed is not None:
        say(
            f"{made.failed}: {counts['failed_rows']:,} rows without an answer, {counts['failures']:,} reasons", "yellow"
        )
    if usage.get("truncated"):
        say(f"{usage['truncated']:,} conversations were too long, and their prompts were cut", "yellow")
    if usage.get("not_shown"):
        say(f"{usage['not_shown']:,} conversations have words that the model's template leaves out", "yellow")
    if made.pairs is not None:
        say(f"{made.pairs_file}: {made.pairs['pairs']:,} pairs")
        for reason, count in made.pairs.items():
            if reason != "pairs":
                say(f"{count:,} pairs are not written: {reason}", "yellow")
        if made.pairs_format == "llama-factory" and made.pairs_file is not None:
            say(f"for dataset_info.json: {json.dumps(dataset_info(made.pairs_file))}", "dim")
    if made.info.demonstration:
        say(f"{made.info.id} is a demonstration, no judge to rely on", "dim")
