"""What do the checks at the door cost where everything is cached: keys and keyed seals on, beside off, in one run.

    python benchmarks/reliability/overhead.py [--seconds 0.5] [--rounds 30] [--pairs 256]

Two servers with one tiny model and a Redis each, HTTP on loopback. One wants a key of a file of a hundred, and keys the
seals of its values with a secret; the other wants none and has none. Both are warmed, then asked in turns. Each two
turns give a ratio of pairs a second: of the server's own processor time, which other work on the machine hardly
changes, and of the clock. In the first row the servers answer from their memory, as warm requests are answered. In the
second the one with keys also counts the requests of each key and minute, in Redis, as replicas do that share a quota.
In the third they keep no memory, so that every value comes from Redis and its seal is checked.

A seal cannot be turned off: what is compared is a keyed one with one that is not. Expected: a ratio of at least 0.97.
"""

import argparse
import contextlib
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz_texts import plain_text
from processes import Redis, Server, chat_tokenizer, ended, write_model

_KEYS = 100
_REQUESTS_PER_MINUTE = 1_000_000
_ROWS = (("from memory", True, False), ("from memory, with a quota", True, True), ("from Redis", False, False))
"""What is compared: its name, whether the servers keep a memory, whether the keys have a quota."""


@dataclass(frozen=True)
class Speed:
    """Requests a second: of the server's processor time, and of the clock."""

    cpu: float
    clock: float


def _cpu_s(server: Server) -> float:
    """Return the processor time of all threads of a server, in seconds."""
    spent = 0
    for file in Path(f"/proc/{server.pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            spent += int(file.read_text().split()[0])
    return spent / 1e9


class Asker:
    """One connection that asks the same bodies over and over."""

    def __init__(self, server: Server, bodies: Sequence[bytes], key: str | None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._server = server
        self._bodies = bodies
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def ask(self, turn: int) -> None:
        """Ask one body.

        Raises:
            RuntimeError: if it is refused.
        """
        self._connection.request("POST", "/v1/preferences", self._bodies[turn % len(self._bodies)], self._headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(content.decode())

    def speed(self, seconds: float) -> "Speed":
        """Ask for so many seconds."""
        started, before, turn = time.perf_counter(), _cpu_s(self._server), 0
        while time.perf_counter() - started < seconds:
            self.ask(turn)
            turn += 1
        return Speed(turn / (_cpu_s(self._server) - before), turn / (time.perf_counter() - started))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def bodies_of(pairs: int, *, seed: int = 0) -> list[bytes]:
    """Return four requests of so many pairs, over 64 prompts."""
    generator = random.Random(seed)
    questions = []
    for number in range(64):
        prompt, *responses = (f"{plain_text(generator)} {plain_text(generator)} {number}" for _ in range(5))
        questions += [{"prompt": prompt, "first": responses[a], "second": responses[3 - a]} for a in range(4)]
    return [json.dumps({"pairs": generator.choices(questions, k=pairs)}).encode() for _ in range(4)]


def new_keys(file: Path) -> str:
    """Write a file of keys, and return the last one."""
    paragone = str(Path(sys.executable).with_name("paragone"))
    lines, key = [], ""
    ran = subprocess.run([paragone, "key", "new", "tenant"], capture_output=True, text=True, check=True)
    for word in ran.stdout.split():
        if word.startswith("tenant:"):
            lines.append(word)
        elif len(word) > len(key) and ":" not in word:
            key = word
    others = [f"other-{number}:{lines[0].partition(':')[2][:-4]}{number:04x}" for number in range(_KEYS - 1)]
    file.write_text("\n".join([*others, *lines]) + "\n")
    return key


def compared(
    folder: Path, *, memory: bool, quotas: bool, rounds: int, seconds: float, pairs: int
) -> list[tuple[Speed, Speed]]:
    """Return the speeds with the checks and without, a pair for each round."""
    model = write_model(folder / "model", chat_tokenizer(), kind="general-preference")
    key, secret = new_keys(folder / "keys"), folder / "secret"
    secret.write_text("s" * 64)
    stores = [Redis(), Redis()]
    shared = ("--model", f"warm={model}", *(() if memory else ("--memory-cache-mb", "0")))
    checks = ["--redis-url", stores[0].url, "--api-key-file", str(folder / "keys"), "--cache-secret-file", str(secret)]
    with_checks = Server(*shared, *checks, *(["--requests-per-minute", str(_REQUESTS_PER_MINUTE)] if quotas else []))
    without = Server(*shared, "--redis-url", stores[1].url)
    bodies = bodies_of(pairs)
    with ended(*stores, with_checks, without):
        for process in (*stores, with_checks, without):
            process.start()
        with (
            contextlib.closing(Asker(with_checks, bodies, key)) as on,
            contextlib.closing(Asker(without, bodies, None)) as off,
        ):
            for asker in (on, off):
                for turn in range(2 * len(bodies)):
                    asker.ask(turn)
                    time.sleep(0.2)  # values are written to Redis after the reply
            speeds: list[tuple[Speed, Speed]] = []
            for number in range(rounds):
                # In turns, and each first in turn: what else the machine does meets both alike.
                first, second = (on, off) if number % 2 else (off, on)
                speed = {id(asker): asker.speed(seconds) for asker in (first, second)}
                speeds.append((speed[id(on)], speed[id(off)]))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each turn lasts")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=256, help="pairs in a request")
    arguments = parser.parse_args()
    print(f"{arguments.pairs} pairs a request, {arguments.rounds} rounds of {arguments.seconds:g} s")
    print(f"{'':<26} {'pairs/s without':>16} {'ratio, processor':>26} {'ratio, clock':>26}")
    for name, memory, quotas in _ROWS:
        with tempfile.TemporaryDirectory() as folder:
            speeds = compared(
                Path(folder),
                memory=memory,
                quotas=quotas,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                pairs=arguments.pairs,
            )
        rate = arguments.pairs * statistics.median(off.clock for _, off in speeds)
        ratios = ([on.cpu / off.cpu for on, off in speeds], [on.clock / off.clock for on, off in speeds])
        print(f"{name:<26} {rate:>16.0f} {_spread(ratios[0]):>26} {_spread(ratios[1]):>26}")


def _spread(ratios: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} … {high:.3f})"


if __name__ == "__main__":
    main()
