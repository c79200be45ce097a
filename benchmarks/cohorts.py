"""What single-item requests of cohorts cost beside the same groups as tournaments, and how late an answer leaves.

A random decoder. Groups of 8 new responses, once as tournaments (--groups-a-request of them in a request, four requests
in flight), once as 2,000 cohort members in flight at once, shuffled, each on a connection of its own. Both in one run,
in turns. Then groups one by one: seven members wait, the eighth is sent; its time without reading, queue and forward
is what the group adds. The clients run on the same cores.

    python benchmarks/cohorts.py [--groups 250] [--repetitions 3] [--hidden 512] [--layers 8] [--redis URL]

Expected: 0.8 of the tournaments' rate or more, no error, 5 ms or less (median).
"""

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_setup import make_model, percentile, server, text

SIZE = 8
IN_FLIGHT = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=250)
    parser.add_argument("--groups-a-request", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--alone", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--redis")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        size = make_model(
            Path(folder) / "model", hidden=arguments.hidden, layers=arguments.layers, vocabulary=8000, max_length=2048
        )
        print(f"{size / 1e6:.1f}M parameters, {arguments.threads} threads, groups of {SIZE}", flush=True)
        flags = ["--model", f"bench={folder}/model", "--device", "cpu", "--log-level", "warning"]
        if arguments.redis:
            flags += ["--redis-url", arguments.redis]
        with server(*flags, threads=arguments.threads) as port:
            asyncio.run(compare(port, arguments))


async def compare(port: int, arguments: argparse.Namespace) -> None:
    generator = random.Random(7)  # noqa: S311
    await tournaments(port, groups(generator, 8), 8)
    ratios = []
    print(f"{'':>4} {'tournaments/s':>14} {'cohorts/s':>10} {'ratio':>6}  responses a second")
    for repetition in range(arguments.repetitions):
        batched = await tournaments(port, groups(generator, arguments.groups), arguments.groups_a_request)
        single = await cohorts(port, groups(generator, arguments.groups), f"r{repetition}", generator)
        count = arguments.groups * SIZE
        ratios.append(batched / single)
        print(f"{repetition:>4} {count / batched:>14.0f} {count / single:>10.0f} {ratios[-1]:>6.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")
    late = [await added_ms(port, group, f"a{place}") for place, group in enumerate(groups(generator, arguments.alone))]
    own, others = zip(*late, strict=True)
    print(f"the last member's time beside reading, queue and forward: median {statistics.median(own):.2f} ms, ", end="")
    print(f"p90 {percentile(list(own), 0.9):.2f} ms; the others' answers come {statistics.median(others):.2f} ms later")


def groups(generator: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": text(generator, 300), "responses": [text(generator, 400) for _ in range(SIZE)]} for _ in range(count)
    ]


async def tournaments(port: int, asked: Sequence[dict[str, Any]], at_once: int) -> float:
    """Return the seconds that the groups take as tournaments."""
    bodies = [
        json.dumps({"groups": asked[start : start + at_once], "deadline_s": 600}).encode()
        for start in range(0, len(asked), at_once)
    ]
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask(body: bytes) -> None:
        async with places:
            await post(port, "/v1/tournaments", body)

    started = time.perf_counter()
    await asyncio.gather(*map(ask, bodies))
    return time.perf_counter() - started


async def cohorts(port: int, asked: Sequence[dict[str, Any]], run: str, generator: random.Random) -> float:
    """Return the seconds that the groups take as members of cohorts, all in flight."""
    bodies = [body for place, group in enumerate(asked) for body in members(group, f"{run}-{place}")]
    generator.shuffle(bodies)
    started = time.perf_counter()
    await asyncio.gather(*(post(port, "/v1/cohorts", body) for body in bodies))
    return time.perf_counter() - started


def members(group: dict[str, Any], name: str) -> list[bytes]:
    shared = {"group": name, "size": SIZE, "prompt": group["prompt"]}
    return [
        json.dumps({**shared, "slot": slot, "response": response}).encode()
        for slot, response in enumerate(group["responses"])
    ]


async def added_ms(port: int, group: dict[str, Any], name: str) -> tuple[float, float]:
    """Return the last member's time beside its own scoring, and how much later the other answers come."""
    *first, last = members(group, name)

    async def ask(body: bytes) -> tuple[float, dict[str, str]]:
        headers = await post(port, "/v1/cohorts", body)
        return time.perf_counter(), headers

    waiting = [asyncio.create_task(ask(body)) for body in first]
    await asyncio.sleep(0.5)
    came, headers = await ask(last)
    others = [(await one)[0] for one in waiting]
    spent = sum(float(headers[f"x-{phase}-ms"]) for phase in ("tokenize", "queue", "inference"))
    return float(headers["x-total-ms"]) - spent, 1e3 * (max(others) - came)


async def post(port: int, path: str, body: bytes) -> dict[str, str]:
    """Send a request on a connection of its own and return its answer's headers.

    A real HTTP client would take more of the two cores than what is measured.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer = await reader.readexactly(int(headers["content-length"]))
        if " 200 " not in lines[0]:
            raise RuntimeError(answer.decode())
        return headers
    finally:
        writer.close()


if __name__ == "__main__":
    main()
