"""What pairs that wait cost the server in memory, sent as preferences, as tournaments of two, or as rated responses.

Pairs are really queued over HTTP, each with a prompt and two responses of its own, until the server's metrics say that
all wait. The server is the real one but for one thing: once it is warm, its engine holds the batch that it has until it
is told to go on. So nothing leaves the queue meanwhile, and no forward pass works in the memory that is measured. The
server's peak of resident memory is compared with what it had when it was warm. Then the clients leave, the engine goes
on, and the queue must empty.

    python benchmarks/queue_memory.py [--pairs 100000] [--characters 1500] [--pairs-a-request 2000] [--route ROUTE]

As a rated response a pair is the one with the other as its reference.

The model is a tiny random decoder, since only its tokenizer matters. Two cores, a hundred thousand pairs: about five
minutes, nearly all of it in the one thread that tokenizes.

Wanted: 100,000 pairs cost less than 1,000 MB. The last numbers are in docs/benchmarks.md.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

from serving_setup import free_port, make_model, text, wait_until_ready

from paragone_service.engine.contract import EncodeItem, Health
from paragone_service.engine.local import DeviceThread, LocalEngine

if TYPE_CHECKING:
    from torch import Tensor

POLL_S = 0.5
WARM_PAIRS = 12
WITHIN_S = 600


class HeldEngine:
    """The local engine, whose batches wait until it may go on.

    Args:
        engine: what runs them.
        go: set while it may.
    """

    name = "local"

    def __init__(self, engine: LocalEngine, go: Event) -> None:
        self.shares_prompts = engine.shares_prompts
        self._engine = engine
        self._go = go

    async def encode(self, items: Sequence[EncodeItem]) -> "Tensor":
        await asyncio.to_thread(self._go.wait)
        return await self._engine.encode(items)

    async def health(self) -> Health:
        return await self._engine.health()

    async def close(self) -> None:
        await self._engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=1_500)
    parser.add_argument("--pairs-a-request", type=int, default=2_000)
    parser.add_argument("--route", choices=["preferences", "tournaments", "rewards"], default="preferences")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", hidden=64, layers=1, vocabulary=8_000, max_length=4_096)
        config = Path(folder) / "config.toml"
        config.write_text(f'max_queue_tokens = 1000000000\n[models.bench]\nsource = "{folder}/model"\n')
        go = multiprocessing.get_context("spawn").Event()
        go.set()
        with held_server(config, go) as (port, process):
            measure(port, process, go, arguments)


@contextlib.contextmanager
def held_server(config: Path, go: Event) -> Iterator[tuple[int, int]]:
    """Run the server and yield its port and the id of its process once it is ready."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(config, port, go))
    process.start()
    assert process.pid is not None
    try:
        wait_until_ready(port, lambda: process.exitcode)
        yield port, process.pid
    finally:
        go.set()
        process.terminate()
        process.join(timeout=60)


def serve(config: Path, port: int, go: Event) -> None:
    """Do what ``paragone serve`` does, with engines that can be held."""
    from paragone_service.app import create_app
    from paragone_service.hosting import load_models
    from paragone_service.http.middleware import Drain
    from paragone_service.http.server import Server, configure
    from paragone_service.serve import keep_freed_memory
    from paragone_service.settings_sources import load_settings

    settings = load_settings({"port": port, "log_level": "warning"}, config)
    keep_freed_memory()
    models = load_models(settings)
    device = DeviceThread("cpu")
    engines = {name: HeldEngine(LocalEngine(model, device), go) for name, model in models.items()}
    drain = Drain()
    Server(configure(create_app(settings, models, engines=engines, drain=drain), settings), drain).run()
    device.close()


def measure(port: int, process: int, go: Event, arguments: argparse.Namespace) -> None:
    def send(first: int, count: int) -> http.client.HTTPConnection:
        return ask(port, arguments.route, pairs_from(first, count, arguments.characters))

    send(-WARM_PAIRS, WARM_PAIRS).getresponse().read()
    ready = memory_mb(process)
    print(f"ready: {ready['VmRSS']:.0f} MB", flush=True)
    go.clear()
    clients = [send(-WARM_PAIRS - 1, 1)]  # the batch that is held
    started = time.perf_counter()
    for first in range(0, arguments.pairs, arguments.pairs_a_request):
        stop = min(arguments.pairs, first + arguments.pairs_a_request)
        clients.append(send(first, stop - first))
        wait_for(port, 2 * stop)
        now, tokens = memory_mb(process), metric(port, "paragone_queue_tokens")
        peak, held = now["VmHWM"] - ready["VmRSS"], now["VmRSS"] - ready["VmRSS"]
        print(
            f"{stop} pairs wait, 3 × {arguments.characters} characters each, {tokens / 1e6:.1f}M tokens: peak "
            f"{peak:.0f} MB above ready, {held:.0f} MB now; {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    for connection in clients:
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    go.set()
    started = time.perf_counter()
    while metric(port, "paragone_queue_items") and time.perf_counter() - started < WITHIN_S:
        time.sleep(POLL_S)
    left = memory_mb(process)["VmRSS"] - ready["VmRSS"]
    print(f"clients left: the queue is empty after {time.perf_counter() - started:.1f} s, {left:.0f} MB above ready")


def pairs_from(first: int, count: int, characters: int) -> list[tuple[str, str, str]]:
    """Return prompts with two responses each; no text of them comes in another request."""
    generator = random.Random(first)  # noqa: S311
    story = text(generator, 100 * characters)

    def said(number: int) -> str:
        start = generator.randrange(len(story) - characters)
        return f"{number} {story[start : start + characters]}"[:characters]

    return [(said(n), said(-n), said(n + 1)) for n in range(first, first + count)]


def ask(port: int, route: str, pairs: Sequence[tuple[str, str, str]]) -> http.client.HTTPConnection:
    """Send a request and do not wait for its answer."""
    body: dict[str, list[dict[str, object]]] = {
        "preferences": {"pairs": [{"prompt": p, "first": a, "second": b} for p, a, b in pairs]},
        "tournaments": {"groups": [{"prompt": p, "responses": [a, b]} for p, a, b in pairs]},
        "rewards": {"items": [{"prompt": p, "response": a, "references": [b]} for p, a, b in pairs]},
    }[route]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
    headers = {"content-type": "application/json"}
    sending = threading.Thread(
        target=connection.request, args=("POST", f"/v1/{route}", json.dumps(body).encode(), headers)
    )
    sending.start()
    sending.join()
    return connection


def wait_for(port: int, responses: int) -> None:
    """Return when so many responses wait."""
    deadline = time.perf_counter() + WITHIN_S
    while time.perf_counter() < deadline:
        if metric(port, "paragone_queue_items") >= responses:
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"the server did not queue {responses} responses")


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def memory_mb(process: int) -> dict[str, float]:
    """Return the resident memory of a process, now and at its peak, in MB of 10⁶ bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(rows[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}


if __name__ == "__main__":
    main()
