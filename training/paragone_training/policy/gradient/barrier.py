"""Where the processes of a run wait for each other: in the store by which they found each other, not in a collective.

The main process samples for hours while the others wait. A collective would break off at its timeout, and on a GPU it
would keep the device busy that servers draw with. So collectives are for gradient steps, and here the others wait as
long as the main process takes; the main process, whose work between two barriers is the longest, waits for a limit.
"""

import contextlib
import itertools
import time
from types import TracebackType
from typing import Any, Self

from accelerate import PartialState
from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined] # torch's stubs lack the store
from torch.distributed.distributed_c10d import _get_default_store

from paragone_training.policy.errors import RunError

__all__ = ["Barrier"]

_BROKEN = "broken"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0


class Barrier:
    """Hold each process of the run until all have come; left with an error, it tells the others to stop.

    All processes make their barriers in the same order. One process alone never waits.

    Args:
        limit_s: how long the main process waits for the others.
    """

    _numbers = itertools.count()

    def __init__(self, *, limit_s: float) -> None:
        self._state, self._limit_s = PartialState(), limit_s
        self._passed = 0
        self._store: Any = None
        if self._state.num_processes > 1:
            # A connection of its own: the watchdogs of collectives use the other one.
            found: Any = _get_default_store()
            self._store = PrefixStore(f"paragone/{next(self._numbers)}", found.clone())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if error is None:
            # The store may live in the main process: it is the last that leaves.
            if self._state.is_main_process:
                self._until("left", self._state.num_processes - 1)
            else:
                self._store.add("left", 1)
            return
        with contextlib.suppress(DistError):
            if not self._store.check([_BROKEN]):
                self._store.set(_BROKEN, f"process {self._state.process_index}: {type(error).__name__}: {error}")

    def wait(self) -> None:
        """Return when every process has come here.

        Raises:
            RunError: if another process was stopped by an error, or the main one waited for longer than the limit.
        """
        if self._store is None:
            return
        name, self._passed = f"barrier-{self._passed}", self._passed + 1
        try:
            self._store.add(name, 1)
            self._until(name, self._state.num_processes)
        except DistError as error:
            raise RunError("the main process of the run is gone: see what it printed and resume") from error

    def _until(self, name: str, count: int) -> None:
        """Return when so many have come."""
        assert self._store is not None
        began, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            if self._store.check([_BROKEN]):
                raise RunError(f"another process of the run stopped: {self._store.get(_BROKEN).decode()}")
            if (here := self._store.add(name, 0)) >= count:
                return
            if self._state.is_main_process and time.monotonic() - began > self._limit_s:
                raise RunError(
                    f"{count - here} of {self._state.num_processes} processes did not come within {self._limit_s:g} s: "
                    "see what they printed and resume, or raise training.collective_timeout_s"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
