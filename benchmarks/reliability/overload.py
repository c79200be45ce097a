"""What an overloaded server still does: goodput at five times its capacity, how fast it refuses, who waits for whom.

A real ``paragone serve`` with default flags on loopback, and clients that give up after five seconds. In turns, in one
run: the capacity (a few connections that ask without a pause), then five times as much

* open: requests leave at a fixed rate, each on a connection of its own, whatever happens to the others, with the
  deadline named in a header or not;
* closed: five times as many connections as the server could serve within the deadline; one that was refused comes back
  after the ``Retry-After``;

and last a small question by itself, and beside 300 connections that ask for one item at a time.

    python benchmarks/reliability/overload.py [--model SOURCE] [--seconds 15] [--only open,closed,fair]

Goodput is the rate of answers within the deadline, over the capacity. No text comes twice: the cache answers nothing.
Wanted: goodput of at least 0.9, refusals within 20 ms (p99, by the server's own clock: the clients share its cores),
a small question at most 5 times slower. The last numbers are in docs/reliability.md.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
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


@dataclasses.dataclass
class Answer:
    """What became of one request.

    Attributes:
        status: of HTTP; 0 if nothing came within the deadline.
        seconds: from the first byte sent to the last one received.
        server_s: what the server says it took.
        retry_after_s: of a refusal.
    """

    status: int
    seconds: float
    server_s: float = math.nan
    retry_after_s: float = 0.0


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

    async def _ask(self, body: bytes, named: bool) -> Answer:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        deadline = f"x-deadline-s: {DEADLINE_S:g}\r\n" if named else ""
        head = f"POST /v1/rewards HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{deadline}"
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
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() < end:
            answer = await connection.ask(next(asked), named=named)
            if time.perf_counter() < end:
                answers.append(answer)
            if answer.retry_after_s:
                await asyncio.sleep(min(answer.retry_after_s, max(0.0, end - time.perf_counter())))
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return answers


async def open_loop(port: int, asked: Iterator[bytes], rate: float, seconds: float, *, named: bool) -> list[Answer]:
    """Return the answers to requests that leave at a rate, whatever becomes of them."""
    idle: list[Connection] = []

    async def client(body: bytes) -> Answer:
        connection = idle.pop() if idle else Connection(port)
        answer = await connection.ask(body, named=named)
        idle.append(connection)
        return answer

    tasks = []
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(client(next(asked))))
    answers = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return list(answers)


def report(name: str, answers: list[Answer], seconds: float, capacity: float) -> None:
    good = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 503]
    late = len(answers) - len(good) - len(refused)
    line = f"{name}: {len(answers) / seconds:.0f} requests/s, goodput {len(good) / seconds / capacity:.2f}"
    if good:
        times = [answer.seconds for answer in good]
        line += f", answers p50 {percentile(times, 0.5):.2f} s p99 {percentile(times, 0.99):.2f} s"
    line += f"; {len(refused)} refused"
    if refused:
        ours, clients = ([1e3 * value for value in values] for values in zip(
            *((answer.server_s, answer.seconds) for answer in refused), strict=True
        ))  # fmt: skip
        line += (
            f" (server p50 {percentile(ours, 0.5):.1f} ms p99 {percentile(ours, 0.99):.1f} ms, client p99 "
            f"{percentile(clients, 0.99):.0f} ms, Retry-After {min(answer.retry_after_s for answer in refused):.0f} to "
            f"{max(answer.retry_after_s for answer in refused):.0f} s)"
        )
    print(f"{line}; {late} late", flush=True)


async def fairness(port: int, arguments: argparse.Namespace) -> None:
    """Print how much slower a small question is beside 300 single items in flight."""
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
    served = sum(answer.status == 200 for answer in answers)
    slower = statistics.median(beside) / statistics.median(alone)
    print(
        f"a small question: {1e3 * statistics.median(alone):.1f} ms alone, beside {IN_FLIGHT} single items in flight "
        f"{1e3 * statistics.median(beside):.1f} ms (p90 {1e3 * percentile(beside, 0.9):.0f} ms), {slower:.1f} times as "
        f"slow; they get {served / arguments.seconds:.0f} answers/s, {len(answers) - served} were refused or late, "
        f"p99 {percentile([answer.seconds for answer in answers], 0.99):.2f} s",
        flush=True,
    )


async def measure(port: int, arguments: argparse.Namespace) -> None:
    asked = bodies(ITEMS, arguments.characters)
    await closed(port, asked, CONNECTIONS, WARM_S, named=False)
    answers = await closed(port, asked, CONNECTIONS, arguments.seconds, named=False)
    capacity = sum(answer.status == 200 for answer in answers) / arguments.seconds
    print(f"capacity: {capacity:.1f} requests/s of {ITEMS} items, {arguments.characters} characters each", flush=True)
    crowd = math.ceil(OVERLOAD * DEADLINE_S * capacity)
    runs: dict[str, Callable[[bool], Awaitable[list[Answer]]]] = {
        "open": lambda named: open_loop(port, asked, OVERLOAD * capacity, arguments.seconds, named=named),
        "closed": lambda named: closed(port, asked, min(crowd, arguments.most), arguments.seconds, named=named),
    }
    for name, run in runs.items():
        if name not in arguments.only:
            continue
        for named in (True, False):
            answers = await run(named)
            label = f"{name} loop, deadline {'named' if named else 'not named'}"
            report(label, answers, arguments.seconds, capacity)
            await asyncio.sleep(DEADLINE_S)
    if "fair" in arguments.only:
        await fairness(port, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:mini-bradley-terry")
    parser.add_argument("--seconds", type=float, default=15, help="of each part")
    parser.add_argument("--characters", type=int, default=400, help="of an item")
    parser.add_argument("--most", type=int, default=2_000, help="connections of the closed loop")
    parser.add_argument("--only", default="open,closed,fair", help="parts to run")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    arguments = parser.parse_args()
    flags = ["--model", f"bench={arguments.model}", "--log-level", "warning"]
    with contextlib.nullcontext(arguments.port) if arguments.port else server(*flags) as port:
        asyncio.run(measure(port, arguments))


if __name__ == "__main__":
    main()
