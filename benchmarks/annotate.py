"""How fast does ``paragone annotate`` go, against its route asked with bodies that are ready?

Two parts, each against one server process on one core, with the client on another:

* cached: every response is in the server's cache; rows a second, and the memory of the command;
* cold: a model whose forward passes take the server's core; the share of the raw route's rate is that of the engine's
  time which is used.

    python benchmarks/annotate.py [--rows 200000] [--cold-rows 2000] [--rounds 3]

Rounds of both take turns, so that a busy machine slows both.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from serving_setup import make_model, server, text

SIZE = 256  # responses of a request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--cold-rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=500, help="of a prompt, and of a response")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    generator = random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "small", hidden=64, layers=1, vocabulary=1000, max_length=2048)
        make_model(folder / "large", hidden=256, layers=4, vocabulary=1000, max_length=2048)
        texts = [text(generator, arguments.characters) for _ in range(400)]
        print(f"{'part':>7} {'round':>5} {'raw rows/s':>11} {'annotate':>9} {'share':>6} {'MB':>6}")
        with server("--model", f"m={folder}/small", "--log-level", "warning", cores={cores[0]}) as port:
            os.sched_setaffinity(0, {cores[-1]})
            rows = [group(texts, number) for number in range(arguments.rows)]
            compare("cached", folder, port, arguments.rounds, lambda _: rows, warm=True)
        os.sched_setaffinity(0, set(cores))
        with server("--model", f"m={folder}/large", "--log-level", "warning", cores={cores[0]}) as port:
            os.sched_setaffinity(0, {cores[-1]})
            # Every round has texts of its own: nothing is in the cache.
            compare(
                "cold", folder, port, arguments.rounds,
                lambda at: [
                    {"prompt": f"{at} {number} {texts[number % 400]}", "responses": [texts[-1 - number % 400], "no"]}
                    for number in range(arguments.cold_rows)
                ],
            )  # fmt: skip


def group(texts: list[str], number: int) -> dict[str, object]:
    at = number % 200
    return {"prompt": texts[at], "responses": [texts[at + 1], texts[at + 100]]}


def pair(row: dict) -> dict[str, object]:
    first, second = row["responses"]
    return {"prompt": row["prompt"], "first": first, "second": second}


def compare(part: str, folder: Path, port: int, rounds: int, rows_of, *, warm: bool = False) -> None:
    shares = []
    for at in range(rounds):
        mine, others = rows_of(2 * at), rows_of(2 * at + 1)
        if warm:
            raw(port, mine[:400])
        file = folder / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in mine))
        rate = len(others) / raw(port, others)
        seconds, memory = annotated(folder, file, port)
        shares.append(len(mine) / seconds / rate)
        print(f"{part:>7} {at + 1:>5} {rate:>11.0f} {len(mine) / seconds:>9.0f} {shares[-1]:>6.2f} {memory:>6.0f}")
    print(f"{part:>7} median share {statistics.median(shares):.2f}")


def raw(port: int, rows: list[dict[str, object]], connections: int = 8) -> float:
    """Ask for all rows with bodies that are made before, and return the seconds."""
    step = SIZE // 2
    bodies = [
        json.dumps({"pairs": [pair(row) for row in rows[at : at + step]]}).encode() for at in range(0, len(rows), step)
    ]

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while bodies:
            body = bodies.pop()
            while True:
                connection.request("POST", "/v1/preferences", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    break
                time.sleep(float(answer.headers.get("retry-after", 1)))

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def annotated(folder: Path, file: Path, port: int) -> tuple[float, float]:
    """Run the command and return the seconds without its start, and its memory in MB."""
    out = folder / "out.jsonl"
    for old in folder.glob("out.jsonl*"):
        old.unlink()
    command = [
        str(Path(sys.executable).with_name("paragone")),
        "annotate",
        file,
        out,
        "--url",
        f"http://127.0.0.1:{port}",
    ]
    empty = folder / "one.jsonl"
    empty.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"]}) + "\n")
    began = time.perf_counter()
    subprocess.run([*command[:2], empty, folder / "out.jsonl.one.jsonl", *command[4:]], check=True, capture_output=True)
    start = time.perf_counter() - began
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)  # of this child alone: the server's memory is another matter
    assert status == 0
    return time.perf_counter() - began - start, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
