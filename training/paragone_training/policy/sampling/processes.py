"""Processes that a run starts and that end with it, also after a kill -9: on a free port, with a log."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["RunProcess", "free_port"]

_DIE_WITH_PARENT = 1
_GRACE_S = 20.0
_TAIL_CHARACTERS = 2000


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
    if os.getppid() == 1:
        os._exit(1)
