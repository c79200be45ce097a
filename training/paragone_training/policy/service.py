"""A service of the run's own: ``paragone serve`` as a process on a free port, stopped with the run."""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from paragone import Client, ParagoneError
from paragone_training.policy.errors import RunError

__all__ = ["served"]

logger = logging.getLogger(__name__)

_START_S = 600.0
_DIE_WITH_PARENT = 1


@contextlib.contextmanager
def served(sources: Sequence[str], log: Path) -> Iterator[str]:
    """Yield the URL of a service that hosts models, and stop it at the end.

    Args:
        sources: as ``paragone serve --model`` takes them.
        log: file for what it prints.

    Raises:
        RunError: if it does not come up; the log's last lines are in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "paragone.cli", "serve", "--port", str(port), "--log-level", "warning"]
    for source in sources:
        command += ["--model", source]
    log.parent.mkdir(parents=True, exist_ok=True)
    # The kernel stops the service with this process, also after a kill -9 (Linux; elsewhere it would stay behind).
    linux = sys.platform == "linux"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent if linux else None,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        logger.info("the service of this run hosts %s at %s", ", ".join(sources), url)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RunError(f"the service of this run ended with code {process.returncode}:\n{tail}")
        with contextlib.suppress(ParagoneError), Client(url, retries=0, timeout_s=5) as client:
            client.models()
            return
        time.sleep(0.2)
    raise RunError(f"the service of this run was not ready after {_START_S:.0f} s; its log is {log}")
