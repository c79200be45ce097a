"""``paragone watch``: the live progress of a run, from the files that it writes, in the terminal and in a page."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paragone_training.errors import RunError
from paragone_training.run_sender import RunSender, run_name
from paragone_training.watching import Progress, progress_of

__all__ = ["watch"]

_STYLES = {"running": "bold green", "done": "bold green", "stopped": "bold red", "silent": "bold yellow"}
_UNITS = ((1, "a second"), (60, "a minute"), (3_600, "an hour"))
_GONE_S = 10.0
_MEANINGS = {
    "running": "",
    "done": "",
    "stopped": "no process runs it here: go on with --resume, or look at its log",
    "silent": "nothing was written for ten minutes",
}


def watch(
    run: Annotated[
        Path, typer.Argument(help="Folder of a `paragone train` run, or the output of `paragone annotate`.")
    ],
    *,
    every_s: Annotated[float, typer.Option(help="Look so often, in seconds.", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print how far it is, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print that as one JSON object, and end.")] = False,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Show it in the page of the service there too; once for each replica."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key of the service.", envvar="PARAGONE_API_KEY", show_envvar=True)
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the page calls it; the folder's name unless given.")] = None,
    wait_s: Annotated[
        float,
        typer.Option(help="Wait so many seconds for a run that is about to begin; not with --once or --json.", min=0),
    ] = 300.0,
) -> None:
    """Show how far a run is: stage, loss, agreement, win rate, rate and time left. Ends when the run does.

    Only files are read, so a run can be watched from anywhere that sees its folder. Ends with 1 if the run was stopped.
    """
    called = run_name(run) if name is None else name
    try:
        senders = [RunSender(one, called, api_key=api_key) for one in url or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    progress = _begun(run, every_s, 0 if once or as_json else wait_s)
    if as_json or once:
        for sender in senders:
            sender.send(progress)
    if as_json:
        numbers = {label: value if math.isfinite(value) else None for label, value in progress.numbers.items()}
        typer.echo(json.dumps({**asdict(progress), "numbers": numbers}, allow_nan=False))
    elif once:
        Console().print(_shown(run, progress))
    else:
        progress = _follow(run, progress, every_s, senders)
    if progress.state == "stopped":
        raise typer.Exit(1)


def _begun(run: Path, every_s: float, wait_s: float) -> Progress:
    """Return how far a run is, once it has written something.

    Raises:
        RunError: if it has not within that time.
    """
    deadline, said = time.monotonic() + wait_s, False
    while True:
        try:
            return progress_of(run)
        except RunError:
            if time.monotonic() >= deadline:
                raise
        if not said:
            typer.echo(f"waiting for {run}: there is no run yet", err=True)
            said = True
        time.sleep(every_s)


def _follow(run: Path, progress: Progress, every_s: float, senders: Sequence[RunSender]) -> Progress:
    """Show a run until it ends, and return how it ended.

    Raises:
        RunError: if its folder is gone, or cannot be read for some time.
    """
    read = time.monotonic()

    def shown() -> Group:
        return _shown(run, progress, [sender.problem for sender in senders if sender.problem])

    with Live(shown(), refresh_per_second=4) as live:
        with contextlib.ExitStack() as stack:
            for sender in senders:
                stack.enter_context(sender).tell(progress)
            while progress.state in ("running", "silent"):
                time.sleep(every_s)
                try:
                    progress = progress_of(run)
                except RunError:
                    if time.monotonic() - read > _GONE_S:
                        raise
                    continue  # a file is being replaced
                read = time.monotonic()
                for sender in senders:
                    sender.tell(progress)
                live.update(shown())
        live.update(shown())  # whether the last report came through
    return progress


def _shown(run: Path, progress: Progress, problems: Sequence[str] = ()) -> Group:
    title = Text.assemble((str(run), "bold"), "  ", (progress.state, _STYLES[progress.state]), f"  {progress.stage}")
    parts: list[Text | Padding | Table] = [title]
    if meaning := _MEANINGS[progress.state]:
        parts.append(Text(meaning, style="yellow"))
    if progress.total:
        # By itself a bar does not end its line.
        parts.append(Padding(ProgressBar(total=progress.total, completed=progress.done, width=60), 0))
    parts.append(Text(_pace(progress), style="dim"))
    if progress.numbers:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in progress.numbers.items():
            # A share of 1.000 must not read like a count.
            table.add_row(Text(name, style="dim"), f"{value:,}" if isinstance(value, int) else f"{value:#,.4g}")
        parts.append(table)
    parts += [Text(line, style="dim") for line in progress.lines]
    parts += [Text(f"the page is not told, and this goes on: {problem}", style="yellow") for problem in problems]
    return Group(*parts)


def _pace(progress: Progress) -> str:
    """Return done, rate and time left in words.

    >>> _pace(Progress("model", "running", "", "steps", 20, 120, 0.5, 200))
    '20 of 120 steps, 30.0 a minute, 0:03:20 left'
    """
    words = [f"{progress.done:,.4g}{f' of {progress.total:,.0f}' if progress.total else ''} {progress.unit}"]
    if progress.rate:
        times, unit = next((pair for pair in _UNITS if pair[0] * progress.rate >= 1), _UNITS[-1])
        words.append(f"{times * progress.rate:,.1f} {unit}")
    if progress.left_s is not None and progress.state == "running":
        minutes, seconds = divmod(round(progress.left_s), 60)
        words.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(words)
