"""How fast is each dialect, beside the native route on the same texts, and do 2,000 single-item requests end well?

One server process with ``builtin:mini-bradley-terry`` and no cache, one client process, HTTP on loopback. Texts are of
prompt and response, some 60 words together; every turn has new ones.

* in batches: 64 texts a request, 4 requests under way. A rate is divided by that of /v1/rewards in the same turn.
* one by one: 2,000 requests of one text each, all under way at once; divided by the batches of /v1/rewards.

Rates are texts a second, and texts a second of the server's processor time, which a busy machine disturbs less.

    python benchmarks/dialects.py [--turns 3] [--batches 8] [--singles 2000]

Takes about two minutes on two cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving_setup import server, text

SIZE = 64
UNDER_WAY = 4
MODEL = "mini-bradley-terry"

Pair = tuple[str, str]
Body = Callable[[Sequence[Pair]], dict[str, Any]]


def rendered(pair: Pair) -> str:
    """Return a pair in the model's own template, as a policy of its family writes it."""
    return f"<|user|>{pair[0]}<|end|><|assistant|>{pair[1]}<|end|>"


def native(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"items": [{"prompt": prompt, "response": response} for prompt, response in pairs]}


def openrlhf(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"query": list(map(rendered, pairs))}


def openrlhf_prompts(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {**openrlhf(pairs), "prompts": [f"<|user|>{prompt}<|end|><|assistant|>" for prompt, _ in pairs]}


def texts_in_input(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"model": MODEL, "input": list(map(rendered, pairs)), "use_activation": False}


def score(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"queries": [prompt for prompt, _ in pairs], "documents": [response for _, response in pairs]}


def one_prompt(pairs: Sequence[Pair]) -> list[Pair]:
    return [(pairs[0][0], response) for _, response in pairs]


def chat(pairs: Sequence[Pair]) -> dict[str, Any]:
    ((prompt, response),) = pairs
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}


def tensors(pairs: Sequence[Pair]) -> dict[str, Any]:
    texts = list(map(rendered, pairs))
    return {"inputs": [{"name": "sentences", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}]}


def documents(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"query": pairs[0][0], "documents": [response for _, response in pairs]}


def passages(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"query": {"text": pairs[0][0]}, "passages": [{"text": response} for _, response in pairs]}


BATCHES: dict[str, tuple[str, Body]] = {
    "native": ("/v1/rewards", native),
    "openrlhf, raw": ("/get_reward", openrlhf),
    "openrlhf, prompts": ("/get_reward", openrlhf_prompts),
    "vllm /classify": ("/classify", texts_in_input),
    "vllm /pooling": ("/pooling", texts_in_input),
    "vllm /v1/embeddings": ("/v1/embeddings", texts_in_input),
    "vllm /score": ("/score", score),
    "infinity /classify": ("/classify", lambda pairs: {**texts_in_input(pairs), "raw_scores": True}),
    "sglang /classify": ("/classify", lambda pairs: {"text": list(map(rendered, pairs))}),
    "huggingface /predict": ("/predict", lambda pairs: {"inputs": [[rendered(pair)] for pair in pairs]}),
    "kserve /infer, JSON": (f"/v2/models/{MODEL}/infer", tensors),
    "native, one prompt": ("/v1/rewards", lambda pairs: native(one_prompt(pairs))),
    "cohere /v2/rerank": ("/v2/rerank", documents),
    "nvidia /v1/ranking": ("/v1/ranking", passages),
}
# What asks for many responses to one prompt is divided by the native route that is asked the same.
ONE_PROMPT = ("cohere /v2/rerank", "nvidia /v1/ranking")
SINGLES: dict[str, tuple[str, Body]] = {
    "native": ("/v1/rewards", native),
    "openrlhf, lists of one": ("/get_reward", openrlhf_prompts),
    "verl": ("/classify", texts_in_input),
    "nvidia, chat": ("/v1/chat/completions", chat),
    "slime": ("/rm", lambda pairs: {"prompt": pairs[0][0], "response": pairs[0][1]}),
}


class Connection:
    """One connection that is kept: a small client costs the one core that both sides share less than a library."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, content: bytes) -> str:
        """Send a body and return what its answer failed by, empty if it did not."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length: ")[2].split("\r\n")[0])
        body = await reader.readexactly(length)
        return "" if int(answer.split()[1]) == 200 else body.decode()

    async def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


async def rate(port: int, path: str, bodies: Sequence[bytes], texts: int, under_way: int) -> tuple[float, float]:
    """Return texts a second, and a second of the server's processor time; every answer has to be 200."""
    waiting = iter(bodies)
    connections = [Connection(port) for _ in range(under_way)]
    failures: list[str] = []

    async def work(connection: Connection) -> None:
        failures.extend([await connection.ask(path, content) for content in waiting])

    started, cpu_before_s = time.perf_counter(), cpu_s()
    await asyncio.gather(*map(work, connections))
    seconds = time.perf_counter() - started
    await asyncio.gather(*(connection.close() for connection in connections))
    failed = [failure for failure in failures if failure]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(failures)} requests to {path} failed: {failed[0]}")
    return texts / seconds, texts / (cpu_s() - cpu_before_s)


def cpu_s() -> float:
    """Return the processor time of the server and its helpers: of all processes below this one."""
    below: dict[int, list[tuple[int, int]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            below.setdefault(int(fields[1]), []).append((int(stat.parent.name), int(fields[11]) + int(fields[12])))
    waiting, ticks = [os.getpid()], 0
    while waiting:
        for process, own in below.get(waiting.pop(), []):
            waiting.append(process)
            ticks += own
    return ticks / os.sysconf("SC_CLK_TCK")


def pairs_of(generator: random.Random, count: int) -> list[Pair]:
    return [(text(generator, 120), text(generator, generator.randrange(80, 320))) for _ in range(count)]


async def turn(port: int, generator: random.Random, batches: int, singles: int) -> dict[str, tuple[float, float]]:
    rates = {}
    # One set of texts a turn for all: nothing is cached, and each route is asked about the same.
    pairs = pairs_of(generator, batches * SIZE)
    for name, (path, body) in BATCHES.items():
        bodies = [json.dumps(body(pairs[start : start + SIZE])).encode() for start in range(0, len(pairs), SIZE)]
        rates[name] = await rate(port, path, bodies, len(pairs), UNDER_WAY)
    pairs = pairs_of(generator, singles)
    for name, (path, body) in SINGLES.items() if singles else ():
        bodies = [json.dumps(body([pair])).encode() for pair in pairs]
        rates[f"single: {name}"] = await rate(port, path, bodies, len(pairs), len(pairs))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="how often each route has its turn in batches")
    parser.add_argument("--batches", type=int, default=8, help=f"requests of {SIZE} texts a turn and route")
    parser.add_argument("--singles", type=int, default=2000, help="requests of one text, all at once")
    arguments = parser.parse_args()
    generator = random.Random(2)  # noqa: S311
    # The native route names no deadline, and would be refused where dialects wait for as long as their clients do.
    flags = ("--model", f"builtin:{MODEL}", "--memory-cache-mb", "0", "--log-level", "warning", "--max-wait-s", "120")
    with server(*flags, threads=1) as port:
        asyncio.run(turn(port, generator, 1, 32))  # warm
        # The many requests of one text take long: they have their turn once, the last.
        counts = [0] * (arguments.turns - 1) + [arguments.singles]
        turns = [asyncio.run(turn(port, generator, arguments.batches, singles)) for singles in counts]
    print(f"{'route':<32} {'texts/s':>8} {'ratio':>6} {'texts/CPU s':>12} {'ratio':>6}")
    for name in turns[-1]:
        columns, seen = [], [one for one in turns if name in one]
        base = "native, one prompt" if name in ONE_PROMPT else "native"
        for measure, width in ((0, 8), (1, 12)):
            median = statistics.median(one[name][measure] for one in seen)
            ratio = statistics.median(one[name][measure] / one[base][measure] for one in seen)
            columns.append(f"{median:>{width}.0f} {ratio:>6.2f}")
        print(f"{name:<32} {' '.join(columns)}")


if __name__ == "__main__":
    main()
