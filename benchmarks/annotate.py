"""How fast does ``paragone annotate`` go, against its route asked with bodies that are ready?

Two parts, each against one server process on one core, with the client on the others:

* cached: every response is in the server's cache; rows a second, and the memory of the command;
* cold: a model whose forward passes take the server's core; the share of the raw route's rate is that of the engine's
  time which is used.

    python benchmarks/annotate.py [--rows 200000] [--cold-rows 2000] [--rounds 3]

Rounds of both take turns, so that a busy machine slows both. Where it is too busy for rates, seconds of CPU tell what
free cores would do: a rate is bounded by whichever process needs most of them, the server, the command or its reader.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
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
        print(
            f"{'part':>7} {'round':>5} {'raw rows/s':>11} {'annotate':>9} {'share':>6} {'MB':>6} "
            f"{'raw srv':>9} {'srv µs':>9} {'client µs':>9} {'bound':>6}"
        )
        with server("--model", f"m={folder}/small", "--log-level", "warning", cores={cores[0]}) as port:
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
            rows = [group(texts, number) for number in range(arguments.rows)]
            compare("cached", folder, port, arguments.rounds, lambda _: rows, warm=True)
        os.sched_setaffinity(0, set(cores))
        with server("--model", f"m={folder}/large", "--log-level", "warning", cores={cores[0]}) as port:
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
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
    serving = server_process()
    shares = []
    for at in range(rounds):
        mine, others = rows_of(2 * at), rows_of(2 * at + 1)
        if warm:
            raw(port, mine[:400])
        file = folder / "rows.jsonl"
        with file.open("w") as lines:
            lines.writelines(f"{json.dumps(row)}\n" for row in mine)
        before = cpu_of(serving)
        rate = len(others) / raw(port, others)
        between = cpu_of(serving)
        seconds, client, memory = annotated(folder, file, port)
        after = cpu_of(serving)
        plain, asked = (1e6 * used / len(mine) for used in (between - before, after - between))
        bound = plain / max(asked, 1e6 * client / len(mine))
        shares.append((len(mine) / seconds / rate, bound))
        print(
            f"{part:>7} {at + 1:>5} {rate:>11.0f} {len(mine) / seconds:>9.0f} {shares[-1][0]:>6.2f} {memory:>6.0f} "
            f"{plain:>9.1f} {asked:>9.1f} {1e6 * client / len(mine):>9.1f} {bound:>6.2f}",
            flush=True,
        )
    medians = [statistics.median(share) for share in zip(*shares, strict=True)]
    print(f"{part:>7} median share {medians[0]:.2f}, by CPU {medians[1]:.2f}")


def server_process() -> int:
    """Return the process of the server that this one has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        if int(fields[1]) == os.getpid() and b"serve" in (stat.parent / "cmdline").read_bytes():
            return int(stat.parent.name)
    raise RuntimeError("no server was started")


def cpu_of(process: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def annotated(folder: Path, file: Path, port: int) -> tuple[float, float, float]:
    """Run the command and return its seconds and those of CPU, without its start, and its memory in MB."""
    empty = folder / "one.jsonl"
    empty.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"]}) + "\n")
    (start, idle, _), (seconds, cpu, memory) = (run(folder, one, port) for one in (empty, file))
    return seconds - start, cpu - idle, memory


def run(folder: Path, file: Path, port: int) -> tuple[float, float, float]:
    for old in folder.glob("out.jsonl*"):
        old.unlink()
    words = ["annotate", file, folder / "out.jsonl", "--url", f"http://127.0.0.1:{port}", "--answers", "preferences"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("paragone")), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    memory, own = 0.0, 0.0
    # Not ru_maxrss, which counts what this process had when it forked.
    while (used := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        with contextlib.suppress(OSError, TypeError):
            readers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            memory = max(memory, sum(peak_of(one) for one in (process.pid, *readers)))
            own = cpu_of(process.pid)
        time.sleep(0.05)
    assert used[1] == 0
    # What waits for answers bounds the rate, beside the server; the process that reads is one more.
    return time.perf_counter() - began, own, memory


def peak_of(process: int | str) -> float:
    """Return the most memory that a process has had, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


if __name__ == "__main__":
    main()
