"""Tell a service how far a run is, for its page to show; the terminal goes on, whatever the service does."""

import math
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paragone import Client, ParagoneError
from paragone_training.watching import Progress

__all__ = ["RunSender", "run_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TIMEOUT_S = 5.0
_AGAIN_S = 10.0
"""Between two reports of a run that has no news, and between two tries to reach a service that is away."""
_MOST_NUMBERS, _MOST_SERIES, _LONGEST_NAME, _LONGEST_LINE, _LONGEST_WORD = 64, 24, 64, 500, 32


class RunSender:
    """Report a run to one service, in a thread of its own.

    Args:
        url: of the service.
        name: what the run is called there.

    Raises:
        ValueError: if the URL is none, the key cannot be sent, or a run cannot have that name.
    """

    def __init__(self, url: str, name: str, *, api_key: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be a run's name: letters, digits, '.', '_' and '-', 128 at most, and first a letter "
                "or a digit"
            )
        # No second try of one report: the next one is newer.
        self._client, self._name = Client(url, api_key=api_key, timeout_s=_TIMEOUT_S, retry_s=0), name
        self._changed = threading.Condition()
        self._latest: Progress | None = None
        self._news = self._ending = False
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="paragone-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what was not sent yet, once, and end."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(2 * _TIMEOUT_S)
        self._client.close()

    @property
    def problem(self) -> str | None:
        """Why the service was not reached last, None if it was."""
        return self._problem

    def send(self, progress: Progress) -> None:
        """Report now, outside of a ``with``.

        Raises:
            ParagoneError: if the service does not take it.
        """
        with self._client:
            self._client.report_run(_report(self._name, progress))

    def tell(self, progress: Progress) -> None:
        """Have a run's progress sent soon, in place of what was not sent yet."""
        with self._changed:
            if progress != self._latest:
                self._latest, self._news = progress, True
                # A service that is away is not asked at every change.
                if self._problem is None:
                    self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._ending and (self._problem is not None or not self._news):
                    self._changed.wait(_AGAIN_S)
                latest, ending, news, self._news = self._latest, self._ending, self._news, False
            if latest is not None and (news or not ending):
                self._send(latest)
            if ending:
                return

    def _send(self, progress: Progress) -> None:
        try:
            self._client.report_run(_report(self._name, progress))
            self._problem = None
        except ParagoneError as error:
            self._problem = str(error)
            with self._changed:
                self._news = True  # it was not told yet


def run_name(run: Path) -> str:
    """Return what a run is called in a service: the last part of its path, as far as a name may have its letters.

    >>> run_name(Path("runs/my judge"))
    'my-judge'
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name.removesuffix(".partial")).lstrip("._-")
    return name[:128] or "run"


def _report(name: str, progress: Progress) -> dict[str, Any]:
    """Return progress in the wire format: what is longer than that allows is cut, and what is no number left out."""
    return {
        "name": name,
        "kind": progress.kind,
        "state": progress.state,
        "stage": _cut(progress.stage, _LONGEST_LINE),
        "unit": _cut(progress.unit, _LONGEST_WORD),
        "done": progress.done,
        "total": progress.total,
        "rate": progress.rate,
        "left_s": progress.left_s,
        "numbers": {
            label: value for label, value in _named(progress.numbers, _MOST_NUMBERS).items() if math.isfinite(value)
        },
        "lines": [_cut(line, _LONGEST_LINE) for line in progress.lines],
        "series": {
            label: [list(point) for point in points] for label, points in _named(progress.series, _MOST_SERIES).items()
        },
    }


def _named(values: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {_cut(name, _LONGEST_NAME): value for name, value in list(values.items())[:most]}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
