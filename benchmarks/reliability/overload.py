"""What an overloaded server still does: goodput at five times its capacity, how fast it refuses, who waits for whom.

A real ``paragone serve`` with default flags on loopback, and clients that give up after five seconds. Where there are
two cores the server has one to itself, and the clients, in this process, the other. A round is the capacity (a few
connections that ask without a pause), then five times as much

* open: requests leave at a fixed rate, each on a connection of its own, whatever happens to the others, with the
  deadline named in a header or not;
* closed: five times as many connections as the server could serve within the deadline; one that was refused comes back
  after the ``Retry-After``;

and last a small question by itself, and beside 300 connections that ask for one item at a time.

    python benchmarks/reliability/overload.py [--model SOURCE] [--seconds 8] [--rounds 3] [--only open,closed,fair]

Goodput is the rate of answers within the deadline, over the capacity of the same round; answers to what was asked in
the part's time and that come after it do not count. By processor time it is the same of all answers and of the seconds
that the server computed for them, which a busy machine changes less. "Others" is how much of the server's core somebody
else had: with more than a little, only the latter says something of the server. No text comes twice: the cache answers
nothing. A refusal's time by the server's clock counts from the last byte of the head, which is no later than
that of the body. Each line of a round is printed, and the medians of all rounds at the end.
Wanted: goodput of at least 0.9, refusals within 20 ms (p99, by the server's clock), a small question at most 5 times
slower. The last numbers are in docs/reliability.md. Three rounds of 8 s take about 3 minutes.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # serving_setup lies beside this folder
from serving_setup import percentile, server, text

DEADLINE_S = 5.0
OVERLOAD = 5
ITEMS = 16
IN_FLIGHT = 300
WARM_S = 3.0
CONNECTIONS = 6
"""Of the clients that measure the capacity: enough for the device never to wait."""

Figures = dict[str, float]
"""What one part of a round measured, by the name of the figure."""


@dataclasses.dataclass
class Answer:
    """What became of one request.

    Attributes:
        status: of HTTP; 0 if nothing came within the deadline.
        seconds: from the first byte sent to the last one received.
        server_s: what the server says it took.
        retry_after_s: of a refusal.
        in_time: whether it came before the end of the part that it belongs to.
    """

    status: int
    seconds: float
    server_s: float = math.nan
    retry_after_s: float = 0.0
    in_time: bool = True


class Connection:
    """One keep-alive connection, opened when it is needed; HTTP by hand, since clients must cost little here."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes, *, named: bool = False) -> Answer:
        """Return what becomes of a request; a client that has waited for too long closes its connection."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await self._ask(body, named)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            self.close()
            return Answer(0, time.perf_counter() - started)
        return dataclasses.replace(answer, seconds=time.perf_counter() - started)

    async def open(self) -> None:
        """Open the connection, unless it is open."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def _ask(self, body: bytes, named: bool) -> Answer:
        await self.open()
        assert self._reader is not None
        assert self._writer is not None
        deadline = f"x-deadline-s: {DEADLINE_S:g}\r\n" if named else ""
        head = f"POST /v1/rewards HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{deadline}"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answer(
            int(status.split()[1]),
            0.0,
            float(headers["x-total-ms"]) / 1e3,
            float(headers.get("retry-after", "0")),
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def bodies(items: int, characters: int) -> Iterator[bytes]:
    """Yield requests for rewards, all of them different."""
    generator = random.Random(items * characters)
    story = text(generator, 50 * characters)
    for number in itertools.count():
        asked = []
        for place in range(items):
            start = generator.randrange(len(story) - characters)
            prompt = f"{items} {characters} {number} {place} {story[start : start + characters // 2]}"
            asked.append({"prompt": prompt, "response": story[start + characters // 2 : start + characters]})
        yield json.dumps({"items": asked}).encode()


async def closed(port: int, asked: Iterator[bytes], connections: int, seconds: float, *, named: bool) -> list[Answer]:
    """Return the answers of so many connections that ask for so long without a pause, but after a refusal."""
    answers: list[Answer] = []
    # Connections and first bodies are made before the time runs: it is not that of this process.
    opened = [(Connection(port), next(asked)) for _ in range(connections)]
    for connection, _ in opened:
        await connection.open()
    end = time.perf_counter() + seconds

    async def client(connection: Connection, body: bytes) -> None:
        while time.perf_counter() < end:
            answer = await connection.ask(body, named=named)
            body = next(asked)
            answers.append(dataclasses.replace(answer, in_time=time.perf_counter() < end))
            if answer.retry_after_s:
                await asyncio.sleep(min(answer.retry_after_s, max(0.0, end - time.perf_counter())))
        connection.close()

    await asyncio.gather(*itertools.starmap(client, opened))
    return answers


async def open_loop(port: int, asked: Iterator[bytes], rate: float, seconds: float, *, named: bool) -> list[Answer]:
    """Return the answers to requests that leave at a rate, whatever becomes of them."""
    idle: list[Connection] = []

    async def client(body: bytes) -> Answer:
        connection = idle.pop() if idle else Connection(port)
        answer = await connection.ask(body, named=named)
        idle.append(connection)
        return dataclasses.replace(answer, in_time=time.perf_counter() < started + seconds)

    tasks = []
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(client(next(asked))))
    answers = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return list(answers)


def figures_of(answers: Sequence[Answer], took: Figures, capacity: Figures, seconds: float) -> Figures:
    """Return the figures of a part at five times the capacity."""
    good = [answer.seconds for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 503]
    in_time = sum(answer.status == 200 and answer.in_time for answer in answers)
    figures = {
        "requests/s": len(answers) / seconds,
        "goodput": in_time / seconds / capacity["requests/s"],
        "by processor time": len(good) / took["server s"] / capacity["by processor time"],
        "answer p50 s": percentile(good, 0.5) if good else math.nan,
        "answer p99 s": percentile(good, 0.99) if good else math.nan,
        "late": float(len(answers) - len(good) - len(refused)),
        "refused": float(len(refused)),
    }
    if refused:
        figures["refusal p50 ms"] = 1e3 * percentile([answer.server_s for answer in refused], 0.5)
        figures["refusal p99 ms"] = 1e3 * percentile([answer.server_s for answer in refused], 0.99)
        figures["refusal seen p99 ms"] = 1e3 * percentile([answer.seconds for answer in refused], 0.99)
        figures["longest Retry-After s"] = max(answer.retry_after_s for answer in refused)
    return figures


class Core:
    """The server's core: how much of it the server has, and how much somebody else.

    Args:
        number: of the core; None where it has none to itself, and nothing is known.
    """

    def __init__(self, number: int | None) -> None:
        self._number = number
        children = Path("/proc/self/task").glob("*/children") if number is not None else ()
        self._server = [int(pid) for file in children for pid in file.read_text().split()]
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        """Return the time, the server's processor time and the core's idle time, in seconds."""
        if self._number is None:
            return (math.nan,) * 3
        ticks = os.sysconf("SC_CLK_TCK")
        pids = list(self._server)
        for pid in pids:  # and processes of it
            pids += [
                int(child)
                for file in Path(f"/proc/{pid}/task").glob("*/children")
                for child in file.read_text().split()
            ]
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        cores = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        idle = next(sum(map(int, line[4:6])) for line in cores if line[0] == f"cpu{self._number}")
        return time.perf_counter(), sum(int(stat[11]) + int(stat[12]) for stat in stats) / ticks, idle / ticks

    def since(self) -> Figures:
        """Return what happened since this was asked last."""
        before, self._before = self._before, self._now()
        seconds, server_s, idle_s = (after - earlier for after, earlier in zip(self._before, before, strict=True))
        return {"server s": server_s, "others": max(0.0, 1 - (server_s + idle_s) / seconds)}


async def fairness(port: int, arguments: argparse.Namespace) -> Figures:
    """Return how much slower a small question is beside 300 single items in flight."""
    small, single = bodies(1, 60), bodies(1, arguments.characters)
    connection = Connection(port)

    async def questions(count: int) -> list[float]:
        times = []
        for _ in range(count):
            answer = await connection.ask(next(small))
            times.append(answer.seconds if answer.status == 200 else DEADLINE_S)
            await asyncio.sleep(0.05)
        return times

    alone = await questions(40)
    crowd = asyncio.create_task(closed(port, single, IN_FLIGHT, arguments.seconds, named=False))
    await asyncio.sleep(min(WARM_S, arguments.seconds / 3))
    beside: list[float] = []
    while not crowd.done():
        beside += await questions(1)
    answers = await crowd
    connection.close()
    served = [answer.seconds for answer in answers if answer.status == 200 and answer.in_time]
    return {
        "alone p50 ms": 1e3 * statistics.median(alone),
        "beside p50 ms": 1e3 * statistics.median(beside),
        "beside p90 ms": 1e3 * percentile(beside, 0.9),
        "times as slow": statistics.median(beside) / statistics.median(alone),
        "crowd answers/s": len(served) / arguments.seconds,
        "crowd refused or late": float(sum(answer.status != 200 for answer in answers)),
        "crowd p99 s": percentile(served, 0.99) if served else math.nan,
    }


async def capacity_of(port: int, asked: Iterator[bytes], core: "Core", seconds: float) -> Figures:
    """Return how many requests a second the server answers if no more than it can do is asked of it."""
    core.since()
    answers = await closed(port, asked, CONNECTIONS, seconds, named=False)
    took = core.since()
    served = [answer for answer in answers if answer.status == 200]
    if not served:
        raise RuntimeError(f"the server answers nothing; statuses: {sorted({answer.status for answer in answers})}")
    rate = sum(answer.in_time for answer in served) / seconds
    return {"requests/s": rate, "items/s": rate * ITEMS, "by processor time": len(served) / took["server s"], **took}


async def measure(port: int, core: Core, arguments: argparse.Namespace) -> None:
    asked = bodies(ITEMS, arguments.characters)
    await capacity_of(port, asked, core, WARM_S)
    rounds: dict[str, list[Figures]] = {}

    def keep(part: str, figures: Figures) -> None:
        rounds.setdefault(part, []).append(figures)
        print(f"{part}: {_line(figures)}", flush=True)

    for _ in range(arguments.rounds):
        if {"open", "closed"} & arguments.only:
            capacity = await capacity_of(port, asked, core, arguments.seconds)
            keep("capacity", capacity)
            rate = OVERLOAD * capacity["requests/s"]
            crowd = min(math.ceil(rate * DEADLINE_S), arguments.most)
            loops: dict[str, Callable[..., Awaitable[list[Answer]]]] = {
                "open": functools.partial(open_loop, port, asked, rate, arguments.seconds),
                "closed": functools.partial(closed, port, asked, crowd, arguments.seconds),
            }
            for name, named in itertools.product(sorted(arguments.only & loops.keys(), reverse=True), (True, False)):
                core.since()
                answers = await loops[name](named=named)
                took = core.since()
                figures = figures_of(answers, took, capacity, arguments.seconds)
                keep(f"{name} loop, deadline {'named' if named else 'not named'}", {**figures, **took})
                await asyncio.sleep(DEADLINE_S)  # nothing of this part is left for the next one
        if "fair" in arguments.only:
            keep("fair", await fairness(port, arguments))
            await asyncio.sleep(1.0)
    print(f"\nmedians of {arguments.rounds} rounds")
    for part, measured in rounds.items():
        names = list(dict.fromkeys(name for one in measured for name in one))
        print(
            f"{part}: {_line({name: statistics.median(one.get(name, math.nan) for one in measured) for name in names})}"
        )


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:mini-bradley-terry")
    parser.add_argument("--seconds", type=float, default=8, help="of each part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=400, help="of an item")
    parser.add_argument("--most", type=int, default=2_000, help="connections of the closed loop")
    parser.add_argument("--only", default="open,closed,fair", help="parts to run")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    arguments = parser.parse_args()
    arguments.only = set(arguments.only.split(","))
    flags = ["--model", f"bench={arguments.model}", "--log-level", "warning"]
    cores = sorted(os.sched_getaffinity(0))
    alone = {cores[-1]} if len(cores) > 1 else None
    with contextlib.nullcontext(arguments.port) if arguments.port else server(*flags, cores=alone) as port:
        if alone is not None:
            os.sched_setaffinity(0, set(cores) - alone)
        asyncio.run(measure(port, Core(None if arguments.port or alone is None else cores[-1]), arguments))


if __name__ == "__main__":
    main()
