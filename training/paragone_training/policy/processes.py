"""The processes of a run: they wait for each other, share work out, and one that stops tells the others.

They meet in the store by which they found each other, not in a collective. The main process may sample for hours while
the others wait. A collective would break off at its timeout, and on a GPU it would keep the device busy that servers
draw with.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from accelerate import PartialState
from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined] # torch's stubs lack the store
from torch.distributed.distributed_c10d import _get_default_store

from paragone_training.errors import RunError

__all__ = ["Processes"]

_BROKEN = "broken"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0


class Processes:
    """All processes of a run, as one of them sees them; left with an error, it tells the others to stop.

    Every process calls ``wait`` and ``shared`` in the same order. The others wait as long as the main process takes;
    the main process waits for a limit. One process alone never waits.

    Args:
        limit_s: how long the main process waits for the others while nothing of theirs comes.
    """

    _numbers = itertools.count()

    def __init__(self, *, limit_s: float) -> None:
        self._state, self._limit_s = PartialState(), limit_s
        self._waits, self._shares = itertools.count(), itertools.count()
        self._store: Any = None
        if self._state.num_processes > 1:
            # A connection of its own: the watchdogs of collectives use the other one.
            store: Any = _get_default_store()
            self._store = PrefixStore(f"paragone/{next(self._numbers)}", store.clone())

    @property
    def main(self) -> bool:
        """Whether this is the first process."""
        return bool(self._state.is_main_process)

    @property
    def place(self) -> tuple[int, int]:
        """The number of this process, from 0, and how many there are."""
        return self._state.process_index, self._state.num_processes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if error is None:
            # The store may live in the main process: it is the last that leaves.
            if self.main:
                others = self._state.num_processes - 1
                self._until(lambda: others - int(self._store.add("left", 0)), self._processes)
            else:
                self._store.add("left", 1)
            return
        # The main process may be gone with the store; the others see that by themselves.
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
        # Numbers, since a store never forgets: a name that was used twice would let everyone through.
        name, count = f"barrier-{next(self._waits)}", self._state.num_processes
        with _main_process_there():
            self._store.add(name, 1)
            self._until(lambda: count - int(self._store.add(name, 0)), self._processes)

    def shared(self, items: Sequence[Any] = ()) -> Iterator[Any]:
        """Return those of the main process's items that are this process's: each goes to whoever is free first.

        Args:
            items: of the main process, plain JSON; others hand in nothing, and wait here for them.

        Raises:
            RunError: if another process was stopped by an error.
        """
        if self._store is None:
            return iter(items)
        name = f"shared-{next(self._shares)}"
        with _main_process_there():
            if self.main:
                self._store.set(name, json.dumps(items))
            else:
                self._until(lambda: not self._store.check([name]), self._processes)
                items = json.loads(self._store.get(name))
        return self._taken(items, f"{name}-taken")

    def until(self, missing: Callable[[], int], what: str) -> None:
        """Return when nothing is missing that other processes make; for the main process.

        Raises:
            RunError: if another process was stopped by an error, or nothing came for longer than the limit.
        """
        with _main_process_there():
            self._until(missing, lambda count: f"{count} {what}")

    def _taken(self, items: Sequence[Any], counter: str) -> Iterator[Any]:
        while True:
            with _main_process_there():
                self._check()
                place = int(self._store.add(counter, 1)) - 1
            if place >= len(items):
                return
            yield items[place]

    def _processes(self, missing: int) -> str:
        return f"{missing} of {self._state.num_processes} processes"

    def _check(self) -> None:
        if self._store is not None and self._store.check([_BROKEN]):
            raise RunError(f"another process of the run stopped: {self._store.get(_BROKEN).decode()}")

    def _until(self, missing: Callable[[], int], what: Callable[[int], str]) -> None:
        """Return when nothing is missing; the main process waits for the limit after the last that came."""
        began, pause_s, before = time.monotonic(), _FIRST_PAUSE_S, -1
        while True:
            # Before the count, since a process that stopped will never come.
            self._check()
            if (count := int(missing())) <= 0:
                return
            if count != before:
                began, before = time.monotonic(), count
            if self.main and time.monotonic() - began > self._limit_s:
                raise RunError(
                    f"{what(count)} did not come within {self._limit_s:g} s: see what they printed and resume, or "
                    "raise training.collective_timeout_s"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@contextlib.contextmanager
def _main_process_there() -> Iterator[None]:
    """Say in one line that the main process is gone, where the store went with it."""
    try:
        yield
    except DistError as error:
        raise RunError("the main process of the run is gone: see what it printed and resume") from error
