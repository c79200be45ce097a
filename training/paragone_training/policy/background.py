"""What runs beside a run: an event loop in a thread, and processes that end with the run, also after a kill -9."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Background", "RunProcess", "free_port", "together"]

_Result = TypeVar("_Result")

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_GRACE_S = 20.0
_TAIL_CHARACTERS = 2000


class Background:
    """A running event loop in a thread; what is submitted and not done at the end is cancelled."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._running = set[asyncio.Task[Any]]()
        # A daemon, so that an error in the main thread ends the program and not only that thread.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Return what will hold the result of a coroutine that runs in the loop."""
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    def close(self, last: Coroutine[Any, Any, Any]) -> None:
        """Cancel what runs, run ``last``, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        asyncio.run_coroutine_threadsafe(last, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _tracked(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        # Only these are cancelled at the end; tasks that they have made are theirs to end.
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await work

    async def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Return the results of coroutines that run side by side; the first error ends the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # callers handle errors by their type
    return [task.result() for task in running]


def free_port() -> int:
    """Return a port of this host that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RunProcess:
    """A process that was started, in a group of its own with whatever it starts itself.

    Args:
        command: program and arguments; no shell is asked.
        log: file that takes what it prints, behind what is there.

    Raises:
        OSError: if the program cannot be started.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # The kernel stops the process with this one, also after a kill -9 (Linux; elsewhere it would stay behind).
        linux = sys.platform == "linux"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, or the recipe's
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A group of its own, so that whatever it starts can be ended with it.
                start_new_session=True,
                preexec_fn=_die_with_parent if linux else None,
            )

    @property
    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]

    def stop(self) -> None:
        """End the process and its children, and wait until its memory is free."""
        # Gently first: a server gives its GPU memory back in order.
        self._process.terminate()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Children that outlive it would keep the device's memory.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    # The run may have died between the fork and the call above: nobody would tell this process.
    if os.getppid() == 1:
        os._exit(1)
