"""What a judge on another server costs this one: memory with many pairs in flight, and pairs a second from the cache.

The judge is a scripted chat server in a process of its own, which answers after a while, so that nothing of a model is
measured. The server is the real one. First it is asked for pairs that all wait for the judge at once, and its peak of
resident memory is compared with what it had before; then for pairs whose verdicts it knows.

    python benchmarks/judge.py [--flight 256] [--characters 8000] [--batch 256] [--seconds 10] [--redis-url URL]

Wanted: 256 pairs in flight hold at most 300 MB; at least 5,000 cached pairs a second. The last numbers are in
docs/judges.md.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

from serving_setup import free_port, server, text

ANSWER = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {
                        "token": "A",
                        "logprob": -0.3,
                        "top_logprobs": [{"token": chr(65 + n), "logprob": -0.3 - n} for n in range(20)],
                    }
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 500, "completion_tokens": 1},
}


def chat_server(port: int, delay_s: float) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def complete(request: Request) -> JSONResponse:
        await request.body()
        await asyncio.sleep(delay_s)
        return JSONResponse(ANSWER)

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flight", type=int, default=256, help="pairs that wait for the judge at once")
    parser.add_argument("--characters", type=int, default=8000, help="of each prompt and response")
    parser.add_argument("--batch", type=int, default=256, help="cached pairs a request")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long cached pairs are asked for")
    parser.add_argument("--redis-url", help="a Redis behind the memory cache")
    arguments = parser.parse_args()
    port = free_port()
    judge = multiprocessing.get_context("spawn").Process(target=chat_server, args=(port, 5.0), daemon=True)
    judge.start()
    try:
        wait_for(port)
        model = f"judge=judge:http://127.0.0.1:{port}/v1,model=m,concurrency={2 * arguments.flight},read=logprobs"
        flags = ["--model", model, "--log-level", "warning"]
        if arguments.redis_url:
            flags += ["--redis-url", arguments.redis_url]
        cores = sorted(os.sched_getaffinity(0))
        with server(*flags, cores={cores[0]}) as own:
            os.sched_setaffinity(0, {cores[-1]})
            report(own, arguments)
    finally:
        judge.terminate()
        judge.join()


def report(port: int, arguments: argparse.Namespace) -> None:
    generator = random.Random(1)  # noqa: S311
    ask(port, pairs(generator, 1, arguments.characters))
    before = resident_mb(port)
    started = time.perf_counter()
    ask(port, pairs(generator, arguments.flight, arguments.characters))
    took_s = time.perf_counter() - started
    print(
        f"{arguments.flight} pairs of 3 × {arguments.characters} characters in flight, {took_s:.1f} s: peak "
        f"{peak_mb(port):.0f} MB, {peak_mb(port) - before:.0f} MB more than before"
    )
    body = pairs(generator, arguments.batch, 1500)
    ask(port, body)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    count, started, used_s = 0, time.perf_counter(), cpu_s(port)
    while time.perf_counter() - started < arguments.seconds:
        ask(port, body, connection)
        count += arguments.batch
    rate = count / (time.perf_counter() - started)
    per_cpu_s = count / (cpu_s(port) - used_s)
    print(
        f"cached pairs of 3 × 1500 characters, {arguments.batch} a request, one connection: {rate:.0f} pairs/s, "
        f"{per_cpu_s:.0f} for each second of the server's CPU time"
    )


def pairs(generator: random.Random, count: int, characters: int) -> bytes:
    one = [{name: text(generator, characters) for name in ("prompt", "first", "second")} for _ in range(count)]
    return json.dumps({"model": "judge", "pairs": one}).encode()


def ask(port: int, body: bytes, connection: http.client.HTTPConnection | None = None) -> None:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/preferences", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {content[:500]!r}")


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            http.client.HTTPConnection("127.0.0.1", port).request("GET", "/")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the scripted judge did not start")


def process(port: int) -> Path:
    """Return the server's folder in /proc; it is whoever was told the port."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if b"serve" in command and str(port).encode() in command:
            return folder
    raise SystemExit("no server listens on the port")


def memory(port: int, field: str) -> float:
    """Return a field of the server's status in MB."""
    lines = (process(port) / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def cpu_s(port: int) -> float:
    """Return the CPU time that the server has used, in seconds."""
    fields = (process(port) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(port: int) -> float:
    return memory(port, "VmRSS")


def peak_mb(port: int) -> float:
    return memory(port, "VmHWM")


if __name__ == "__main__":
    main()
