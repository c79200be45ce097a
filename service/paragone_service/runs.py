"""The runs that this server was told of, for its page to show: the latest report of each, in memory.

Runs of one owner (a tenant, or all who have none) have names of their own. Left out: a Redis that replicas share.
Whoever watches a run can tell each replica, and a report is of no use a minute later.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from pydantic_core import from_json, to_json

from paragone.codes import ErrorCode
from paragone.wire import RunAnswer, RunReport, RunSummary
from paragone_service.http.errors import ServiceError, printable

__all__ = ["Runs"]

logger = logging.getLogger("paragone.service")

_KEEP_S = 86_400.0
_MOST_RUNS = 32
_MOST_BYTES = 8_000_000
_LARGE = ("numbers", "lines", "series")
"""Fields that a list of runs leaves out."""


class _Kept(NamedTuple):
    summary: dict[str, object]
    # As JSON: as objects of Python they would take ten times the memory.
    rest: bytes
    first: float
    heard: float


class Runs:
    """Keep the latest report of each run.

    Args:
        keep_s: how long a run is kept that nothing is heard of.
        most_runs, most_bytes: of one owner; the run with the oldest news makes room.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        keep_s: float = _KEEP_S,
        most_runs: int = _MOST_RUNS,
        most_bytes: int = _MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keep_s = keep_s
        self._most_runs = most_runs
        self._most_bytes = most_bytes
        self._clock = clock
        self._owners: dict[str | None, dict[str, _Kept]] = {}

    def put(self, owner: str | None, report: RunReport) -> RunSummary:
        """Keep a report in place of the earlier one of its name, and return what a list says of it."""
        runs, now = self._of(owner), self._clock()
        earlier = runs.pop(report.name, None)
        rest = to_json(report.model_dump(include=set(_LARGE)))
        first = now if earlier is None else earlier.first
        kept = _Kept(report.model_dump(exclude=set(_LARGE)), rest, first, now)
        # What was put last stands last, so the first one has the oldest news.
        while runs and (
            len(runs) >= self._most_runs
            or len(rest) + sum(len(other.rest) for other in runs.values()) > self._most_bytes
        ):
            del runs[next(iter(runs))]
            logger.info(
                "a watched run is forgotten, for want of room: of one owner %d are kept, in %d bytes",
                self._most_runs,
                self._most_bytes,
            )
        runs[report.name] = kept
        return self._summary(kept)

    def listed(self, owner: str | None) -> list[RunSummary]:
        """Return the runs of an owner, the newest first."""
        # By the latest news two runs that go on at once would change places all the time.
        return [self._summary(kept) for kept in sorted(self._of(owner).values(), key=lambda kept: -kept.first)]

    def named(self, owner: str | None, name: str) -> RunAnswer:
        """Return all that was told of a run.

        Raises:
            ServiceError: ``not_found``.
        """
        kept = self._of(owner).get(name)
        if kept is None:
            raise ServiceError(
                ErrorCode.NOT_FOUND,
                f"this server knows no run {printable(name)} (any more): paragone watch RUN --url URL tells it of one",
            )
        return RunAnswer(**self._summary(kept).model_dump(), **from_json(kept.rest))

    def _of(self, owner: str | None) -> dict[str, _Kept]:
        """Return the runs of an owner that are not too old, by name."""
        runs = self._owners.setdefault(owner, {})
        for name in [name for name, kept in runs.items() if self._clock() - kept.heard > self._keep_s]:
            del runs[name]
        return runs

    def _summary(self, kept: _Kept) -> RunSummary:
        # A clock that was set back must not make news come from the future.
        since_s = max(0.0, self._clock() - kept.heard)
        return RunSummary.model_validate({**kept.summary, "heard": kept.heard, "since_s": since_s})
