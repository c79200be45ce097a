"""A service of the run's own: ``paragone serve`` as a process on a free port, stopped with the run."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from paragone import Client, ParagoneError
from paragone_training.policy.errors import RunError
from paragone_training.policy.sampling.processes import RunProcess, free_port

__all__ = ["served"]

logger = logging.getLogger(__name__)

_START_S = 600.0


@contextlib.contextmanager
def served(sources: Sequence[str], log: Path) -> Iterator[str]:
    """Yield the URL of a service that hosts models, and stop it at the end.

    Args:
        sources: as ``paragone serve --model`` takes them.
        log: file for what it prints.

    Raises:
        RunError: if it does not come up; the log's last lines are in the message.
    """
    port = free_port()
    command = [sys.executable, "-m", "paragone.cli", "serve", "--port", str(port), "--log-level", "warning"]
    for source in sources:
        command += ["--model", source]
    process = RunProcess(command, log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        logger.info("the service of this run hosts %s at %s", ", ".join(sources), url)
        yield url
    finally:
        process.stop()


def _wait_until_ready(process: RunProcess, url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.ended is not None:
            raise RunError(f"the service of this run ended with code {process.ended}:\n{process.tail()}")
        with contextlib.suppress(ParagoneError), Client(url, retries=0, timeout_s=5) as client:
            client.models()
            return
        time.sleep(0.2)
    raise RunError(f"the service of this run was not ready after {_START_S:.0f} s; its log is {process.log}")
