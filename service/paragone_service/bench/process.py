"""A ``paragone serve`` of its own, on a free port, for the time of a measurement."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile
from typing import IO

import httpx2

from paragone_service.bench.load import LoadError

__all__ = ["served"]

_READY_S = 1800.0
_STOP_S = 30.0


@contextlib.contextmanager
def served(source: str, options: Sequence[str] = ()) -> Iterator[str]:
    """Yield the address of a server that hosts one model as ``bench``, and stop it afterwards.

    Args:
        source: of the model, as ``--model`` takes it.
        options: more of ``paragone serve``.

    Raises:
        LoadError: if the server ends before it is ready; its last words are in the message.
    """
    port = _free_port()
    command = [sys.executable, "-m", "paragone.cli", "serve", "--port", str(port), "--model", f"bench={source}"]
    with TemporaryFile() as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)  # noqa: S603 - our own command
        try:
            _wait(process, f"http://127.0.0.1:{port}/readyz", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            words = log.read().decode(errors="replace")[-2000:]
            raise LoadError(f"paragone serve ended with {process.returncode} before it was ready:\n{words}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(address, timeout=2.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise LoadError(f"paragone serve was not ready after {_READY_S:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
