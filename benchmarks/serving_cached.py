"""How fast are pairs answered whose responses are cached: pairs a second in batches, and the latency of one pair.

One server process on one core, one client process on another, HTTP on loopback, 1,500 characters a text.

    python benchmarks/serving_cached.py [--seconds 10] [--connections 3] [--redis-url URL]

Expected on two cores of a 2.x GHz x86 server: well over 20,000 pairs/s in batches of 256; p50 below 2 ms for one pair.
"""

import argparse
import http.client
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from serving_setup import make_model, percentile, server, text

CHARACTERS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each row is measured")
    parser.add_argument("--connections", type=int, default=3, help="concurrent clients of the batches")
    parser.add_argument("--texts", type=int, default=64, help="distinct texts")
    parser.add_argument("--port", type=int, help="measure a server that runs already, and warm it first")
    arguments = parser.parse_args()
    if arguments.port:
        report(arguments.port, arguments)
        return
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", hidden=64, layers=1, vocabulary=1000, max_length=2048)
        with server("--model", f"bench={folder}/model", "--log-level", "warning", cores={cores[0]}) as port:
            os.sched_setaffinity(0, {cores[-1]})
            report(port, arguments)


def report(port: int, arguments: argparse.Namespace) -> None:
    generator = random.Random(1)  # noqa: S311
    texts = [text(generator, CHARACTERS) for _ in range(arguments.texts)]
    print(f"{arguments.texts} texts of {CHARACTERS} characters, {arguments.seconds:g} s a row")
    print(f"{'batch':>6} {'connections':>11} {'pairs/s':>9} {'p50 ms':>8} {'p95 ms':>8}")
    for size, connections in ((256, arguments.connections), (256, 1), (32, 1), (1, 1)):
        bodies = [body(generator, texts, size) for _ in range(8)]
        for one in bodies:
            ask(http.client.HTTPConnection("127.0.0.1", port), one)
        latencies = measure(port, bodies, connections, arguments.seconds)
        rate = size * len(latencies) / arguments.seconds
        p50, p95 = (1e3 * percentile(latencies, share) for share in (0.5, 0.95))
        print(f"{size:>6} {connections:>11} {rate:>9.0f} {p50:>8.2f} {p95:>8.2f}")


def body(generator: random.Random, texts: list[str], size: int) -> bytes:
    # Every prompt has eight of the texts as responses, so that warming up stays short.
    half = len(texts) // 2
    pairs = []
    for _ in range(size):
        prompt = generator.randrange(8)
        first, second = (texts[half + (prompt + generator.randrange(8)) % half] for _ in range(2))
        pairs.append({"prompt": texts[prompt], "first": first, "second": second})
    return json.dumps({"pairs": pairs}).encode()


def measure(port: int, bodies: list[bytes], connections: int, seconds: float) -> list[float]:
    latencies: list[float] = []

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        turn = 0
        while time.perf_counter() < stop:
            started = time.perf_counter()
            ask(connection, bodies[turn % len(bodies)])
            latencies.append(time.perf_counter() - started)
            turn += 1

    stop = time.perf_counter() + seconds
    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def ask(connection: http.client.HTTPConnection, content: bytes) -> None:
    connection.request("POST", "/v1/preferences", content, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise RuntimeError(answer.decode())


if __name__ == "__main__":
    main()
