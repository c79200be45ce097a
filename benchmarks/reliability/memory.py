"""How much memory a server holds while it is asked for minutes: after four at most 1.3 times what it had after one.

    python benchmarks/reliability/memory.py [--seconds 240] [--every 60]

A server with default flags and a tiny model is asked by six threads as fast as it answers: texts of all lengths, half
of them new, so that the memory cache fills, and one request in fifty of 200 items. Everything stays on 127.0.0.1.

Expected: the last row is at most 1.3 times the first one. What the memory cache holds is counted in bytes and bounded
by --memory-cache-mb (512), and stands beside.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from fuzz_texts import plain_text
from processes import Server, chat_tokenizer, write_model

from paragone import Client

_WORKERS = 6
_LIMIT = 1.3


def rss_mb(server: Server) -> float:
    """Return the memory that a server holds now, in MB (10⁶ bytes)."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def ask(client: Client, generator: random.Random, over: threading.Event, counts: list[int], place: int) -> None:
    """Ask until it is over, and count requests."""
    while not over.is_set():
        items = 200 if generator.random() < 0.02 else generator.randrange(1, 8)
        texts = [plain_text(generator) * generator.choice((1, 1, 2, 8)) for _ in range(items)]
        new = generator.random() < 0.5
        ends = [generator.random() if new else generator.randrange(100) for _ in texts]
        # A tiny model refuses long responses: their errors stand in their places.
        client.rewards(
            [(text, f"{text[:300]} {end}") for text, end in zip(texts, ends, strict=True)], on_error="report"
        )
        counts[place] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_model(folder / "model", chat_tokenizer(), kind="bradley-terry")
        with Server("--model", f"m={model}", "--device", "cpu") as server, Client(server.url) as client:
            rows = [rss_mb(server)]
            print(f"at the start: {rows[0]:.0f} MB")
            over, counts = threading.Event(), [0] * _WORKERS
            with contextlib.ExitStack() as threads:
                threads.callback(over.set)
                for place in range(_WORKERS):
                    work = (client, random.Random(place), over, counts, place)
                    thread = threading.Thread(target=ask, args=work)
                    thread.start()
                    threads.callback(thread.join)
                threads.callback(over.set)
                began = time.monotonic()
                while time.monotonic() - began < arguments.seconds:
                    time.sleep(arguments.every)
                    if threading.active_count() <= _WORKERS:
                        raise RuntimeError("a thread that asks has ended: see above")
                    rows.append(rss_mb(server))
                    cached = server.metrics().get("paragone_cache_memory_bytes", 0.0) / 1e6
                    seconds = time.monotonic() - began
                    print(
                        f"{seconds:>6.0f} s {sum(counts):>8} requests {rows[-1]:>8.0f} MB, memory cache {cached:.1f} MB"
                    )
    ratio = rows[-1] / rows[1]
    print(f"the last over the first minute: {ratio:.3f}, at most {_LIMIT} is wanted")
    sys.exit(ratio > _LIMIT)


if __name__ == "__main__":
    main()
