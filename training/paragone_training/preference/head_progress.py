"""How far the fit of a head is, said in its folder for whoever watches."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from paragone_training.progress_file import append_progress

__all__ = ["HeadProgress"]

_EVERY_S = 1.0


class HeadProgress:
    """Write the stages of one fit to ``progress.jsonl``.

    Args:
        folder: of the head; None for a fit that nobody watches by itself.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._written = -_EVERY_S

    def begins(self, stage: str) -> None:
        """Say the first stage; whatever an earlier attempt said counts no more."""
        self._write(stage=stage, begins=True)

    def stage(self, stage: str) -> None:
        """Say what is done from now on."""
        self._write(stage=stage)

    def responses(self, done: int, total: int) -> None:
        """Say how many responses have their states; once a second is enough, and the last is always said."""
        now = time.monotonic()
        if done == total or now - self._written >= _EVERY_S:
            self._written = now
            self._write(stage="states of the responses", done=done, total=total)

    def ends(self, stage: str, numbers: Mapping[str, float] = MappingProxyType({})) -> None:
        """Say how it ended, and what was found."""
        self._write(stage=stage, ends=True, numbers=dict(numbers))

    def _write(self, **values: object) -> None:
        if self._folder is not None:
            append_progress(self._folder, values)
