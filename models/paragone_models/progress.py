"""How far a command is, on the standard error: a bar on a terminal, and elsewhere a line now and then.

Nothing is shown of what takes less than two seconds, and the bar is gone when the work is done.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Work", "shown_work"]

_PATIENCE_S = 2.0
_EVERY_S = 10.0


class Work:
    """What is being done, and how much of it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.done: int | None = None
        self.total: int | None = None

    def step(self, title: str) -> None:
        """Begin the next step, whose amount is not known."""
        self.title, self.done, self.total = title, None, None

    def at(self, done: int, total: int | None = None) -> None:
        """Be so far with the step."""
        self.done, self.total = done, total

    @property
    def count(self) -> str:
        """How much is done, in words; empty if that is not known."""
        if self.done is None:
            return ""
        return f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"


@contextmanager
def shown_work(title: str, *, console: Console | None = None) -> Iterator[Work]:
    """Show a piece of work for as long as the context lasts; yield what is told how far it is."""
    work, over = Work(title), threading.Event()
    console = console or Console(stderr=True)
    show = _bar if console.is_terminal else _lines
    # A thread of its own, because most of what takes long is one call that says nothing meanwhile.
    watching = threading.Thread(target=show, args=(work, over, console), name="progress", daemon=True)
    watching.start()
    try:
        yield work
    finally:
        over.set()
        watching.join()


def _bar(work: Work, over: threading.Event, console: Console) -> None:
    if over.wait(_PATIENCE_S):
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(work.title, total=None, count="")
        while not over.wait(0.1):
            # Two bars on one line would overwrite each other, and that of a download says more.
            if _of_libraries():
                progress.stop()
                continue
            progress.start()
            progress.update(task, description=work.title, completed=work.done or 0, total=work.total, count=work.count)


def _of_libraries() -> bool:
    """Return whether tqdm draws a bar, as huggingface_hub has it do of downloads."""
    tqdm = sys.modules.get("tqdm")
    return tqdm is not None and any(not bar.disable for bar in list(tqdm.tqdm._instances))  # noqa: SLF001


def _lines(work: Work, over: threading.Event, console: Console) -> None:
    began = time.monotonic()
    while not over.wait(_EVERY_S):
        count = f", {work.count}" if work.count else ""
        line = f"{work.title}{count}, {time.monotonic() - began:.0f} s so far"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
