"""What pairs that wait cost the server in memory.

Pairs are really queued over HTTP, a few thousand a request, each with a prompt and two responses of its own, until the
server's metrics say that all wait (but for the few that its device is at). Then its peak of resident memory is compared
with what it had when it was ready and had answered a few batches: the weights, the libraries, the memory that a forward
pass works in. Keys and values of prompts, which have a budget of their own, are not kept. The clients leave, and the
queue must empty.

    python benchmarks/queue_memory.py [--pairs 100000] [--characters 1500] [--pairs-a-request 2000]

A random decoder of about 30M parameters, which is slow enough that hardly anything leaves the queue meanwhile. Reading
a hundred thousand pairs takes many minutes: tokenizing is one thread.

Wanted: 100,000 pairs cost less than 1,000 MB. Not shown yet: in 85 s on busy cores it got to 6,000 pairs, with a peak
of 223 MB above ready; 40 responses ran meanwhile, and what their forward passes took is in it.
"""

import argparse
import http.client
import json
import random
import socket
import tempfile
import threading
import time
from pathlib import Path

from serving_setup import make_model, server, text

POLL_S = 0.5
WARM_PAIRS = 12
RAN = "paragone_batch_size_sum"
WITHIN_S = 3_600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=1_500)
    parser.add_argument("--pairs-a-request", type=int, default=2_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", hidden=512, layers=8, vocabulary=8_000, max_length=4_096)
        config = Path(folder) / "config.toml"
        config.write_text(
            f'max_queue_tokens = 1000000000\n[models.bench]\nsource = "{folder}/model"\nprompt_cache_mb = 0\n'
        )
        with server("--config", str(config), "--log-level", "warning") as port:
            measure(port, arguments)


def measure(port: int, arguments: argparse.Namespace) -> None:
    ask(port, pairs_from(-WARM_PAIRS, WARM_PAIRS, arguments.characters)).getresponse().read()
    ready, warm = memory_mb(port), metric(port, RAN)
    print(f"ready: {ready['VmRSS']:.0f} MB", flush=True)
    clients = []
    started = time.perf_counter()
    for first in range(0, arguments.pairs, arguments.pairs_a_request):
        stop = min(arguments.pairs, first + arguments.pairs_a_request)
        clients.append(ask(port, pairs_from(first, stop - first, arguments.characters)))
        ran = wait_for(port, 2 * stop, warm)
        now, tokens = memory_mb(port), metric(port, "paragone_queue_tokens")
        peak, held = now["VmHWM"] - ready["VmRSS"], now["VmRSS"] - ready["VmRSS"]
        print(
            f"{stop} pairs, 3 × {arguments.characters} characters each, {tokens / 1e6:.1f}M tokens: peak {peak:.0f} MB "
            f"above ready, {held:.0f} MB now; {time.perf_counter() - started:.0f} s, {ran:.0f} responses ran meanwhile",
            flush=True,
        )
    for connection in clients:
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    started = time.perf_counter()
    while metric(port, "paragone_queue_items") and time.perf_counter() - started < WITHIN_S:
        time.sleep(POLL_S)
    left = memory_mb(port)["VmRSS"] - ready["VmRSS"]
    print(f"clients left: the queue is empty after {time.perf_counter() - started:.1f} s, {left:.0f} MB above ready")


def pairs_from(first: int, count: int, characters: int) -> bytes:
    """Return a request; no text of it comes in another."""
    generator = random.Random(first)  # noqa: S311
    story = text(generator, 100 * characters)

    def said(number: int) -> str:
        start = generator.randrange(len(story) - characters)
        return f"{number} {story[start : start + characters]}"[:characters]

    pairs = [{"prompt": said(n), "first": said(-n), "second": said(n + 1)} for n in range(first, first + count)]
    return json.dumps({"pairs": pairs}).encode()


def ask(port: int, body: bytes) -> http.client.HTTPConnection:
    """Send a request and do not wait for its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
    sending = threading.Thread(
        target=connection.request, args=("POST", "/v1/preferences", body, {"content-type": "application/json"})
    )
    sending.start()
    sending.join()
    return connection


def wait_for(port: int, responses: int, warm: float) -> float:
    """Wait until so many responses wait or ran, not counting those that warmed it, and return how many ran."""
    deadline = time.perf_counter() + WITHIN_S
    while time.perf_counter() < deadline:
        ran = metric(port, RAN) - warm
        if metric(port, "paragone_queue_items") + ran >= 0.99 * responses:
            return ran
        time.sleep(POLL_S)
    raise TimeoutError("the server did not queue the pairs")


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def memory_mb(port: int) -> dict[str, float]:
    """Return the resident memory of the process that listens on a port, now and at its peak, in MB of 10⁶ bytes."""
    status = Path(f"/proc/{listener(port)}/status").read_text()
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(rows[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}


def listener(port: int) -> int:
    """Return the id of the process that serves a port: the child whose command line names it."""
    me = Path("/proc/self").resolve().name
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if parent == me and str(port).encode() in command:
            return int(process.name)
    raise LookupError(f"no child of this process serves port {port}")


if __name__ == "__main__":
    main()
