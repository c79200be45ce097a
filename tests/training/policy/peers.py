"""Starting the peer server of peer.py: its command line, and running ones for tests."""

import contextlib
import os
import sys
import time
from pathlib import Path

import httpx2

from paragone_training.policy.oracle import RunProcess, free_port

ROOT = Path(__file__).parents[3]


def peer_command(model: str = "{model}", port: str = "{port}") -> list[str]:
    """Return what starts a peer; the template of ``servers.command`` unless told."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = ["env", f"PYTHONPATH={path}", "OMP_NUM_THREADS=1"]
    return [*environment, sys.executable, "-m", "tests.training.policy.peer", model, port]


@contextlib.contextmanager
def peers(models, log: Path):
    """Yield the addresses and the processes of running peers."""
    ports = [free_port() for _ in models]
    started = [
        RunProcess(peer_command(str(model), str(port)), log / f"{port}.log")
        for model, port in zip(models, ports, strict=True)
    ]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for url, process in zip(urls, started, strict=True):
            wait_until_well(url, process)
        yield urls, started
    finally:
        for process in started:
            process.stop()


def wait_until_well(url: str, process: RunProcess, *, within_s: float = 120.0) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        assert process.ended is None, process.tail()
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(process.tail())


def misbehave(url: str, **mood) -> None:
    httpx2.post(f"{url}/misbehave", json=mood).raise_for_status()


def seen(url: str) -> list:
    """Return prompts and seeds of the completions that a peer was asked for."""
    return httpx2.get(f"{url}/requests", timeout=30).json()["seen"]
