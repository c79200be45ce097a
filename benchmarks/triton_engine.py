"""What Triton costs over the engine of this process, and what a second Triton brings.

A random decoder is exported for Triton, which runs from the wheel of nvidia-pytriton, each server pinned to a core of
its own. Batches of workload R (groups of 8 responses, prompts and responses of 64 to 512 tokens), new ones each turn,
so that no side has keys and values of a prompt; both sides in turns, medians. With two servers the batches are those of
a service with several on their way.

    python benchmarks/triton_engine.py [--size 30M] [--turns 7] [--dtype float32] [--json FILE]

Takes about 4 minutes on two cores, which must have nothing else to do.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from engine_setup import RESPONSES, SHAPES, classifier, workload

sys.path.append(str(Path(__file__).parent / "reliability"))
from triton_server import Triton

from paragone_models import load_model
from paragone_models.files.sources import tokenizer_folder
from paragone_models.files.triton_export import export_triton
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.engine.triton import open_triton

BATCH_TOKENS = 16_384
GROUPS = 30  # more than a batch holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="30M")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        numbers = asyncio.run(measured(arguments, Path(scratch)))
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


async def measured(arguments, scratch: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    folder = scratch / "model"
    model = classifier(arguments.size, torch.float32, "cpu")
    model.save_pretrained(folder)
    for path in tokenizer_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    repository = scratch / "repository"
    export_triton(str(folder), repository, name="judge", dtype=arguments.dtype)
    away = load_model(folder, name="judge", elsewhere=True)
    cores = sorted(os.sched_getaffinity(0))
    with (
        Triton(repository, "judge", cores=cores[:1], log=scratch / "one.log") as one,
        Triton(repository, "judge", cores=cores[-1:], log=scratch / "two.log") as two,
    ):
        numbers = await overhead(folder, away, two, arguments)
        numbers |= await scaling(away, one, two, arguments)
    return numbers


def batch(seed: int) -> list:
    """Return a batch of about 16k tokens, a prompt counted once."""
    items, tokens = [], 0
    groups = workload(GROUPS, None, seed=seed)
    for start in range(0, len(groups), RESPONSES):
        group = groups[start : start + RESPONSES]
        tokens += group[0].prompt_length + sum(len(item.token_ids) - item.prompt_length for item in group)
        if tokens > BATCH_TOKENS:
            return items
        items += group
    raise AssertionError(f"{GROUPS} groups have {tokens} tokens")


async def overhead(folder, away, server, arguments) -> dict[str, float]:
    """Time the same batches here and there; both run on one core, and never at once."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    thread = DeviceThread("cpu")
    local = LocalEngine(load_model(folder, device="cpu", dtype=arguments.dtype), thread)
    remote = open_triton(away, [server.url])
    pick = random.Random(0)  # noqa: S311
    times = {name: {"here": [], "triton": []} for name in ("batch", "one")}
    for turn in range(arguments.turns):
        items = batch(turn)
        for name, calls in {"batch": [items], "one": [[item] for item in pick.sample(items, 20)]}.items():
            for call in calls:
                for side, engine in (("here", local), ("triton", remote)):
                    started = time.perf_counter()
                    await engine.encode(call)
                    # The first turn makes products of new shapes, which oneDNN prepares.
                    if turn:
                        times[name][side].append(time.perf_counter() - started)
    await remote.close()
    thread.close()
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    ratios = [there / here for here, there in zip(*times["batch"].values(), strict=True)]
    extra = [1e3 * (there - here) for here, there in zip(*times["one"].values(), strict=True)]
    numbers = {
        "batch_here_s": statistics.median(times["batch"]["here"]),
        "batch_triton_s": statistics.median(times["batch"]["triton"]),
        "batch_ratio": statistics.median(ratios),
        "one_here_ms": 1e3 * statistics.median(times["one"]["here"]),
        "one_extra_ms": statistics.median(extra),
    }
    print(
        f"a batch of 16k tokens: {numbers['batch_here_s']:.2f} s here, {numbers['batch_triton_s']:.2f} s on Triton, "
        f"{numbers['batch_ratio']:.3f} times as long"
    )
    print(
        f"one response: {numbers['one_here_ms']:.1f} ms here, {numbers['one_extra_ms']:+.1f} ms on Triton", flush=True
    )
    return numbers


async def scaling(away, one, two, arguments) -> dict[str, float]:
    """Return the tokens a second of one server and of two, in turns."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(arguments.turns):
        for servers in ([one], [one, two]):
            engine = open_triton(away, [server.url for server in servers])
            batches = [batch(100 + 10 * turn + number) for number in range(2 * len(servers))]
            started = time.perf_counter()
            await asyncio.gather(*map(engine.encode, batches))
            tokens = sum(len(item.token_ids) for items in batches for item in items)
            if turn:
                speeds[len(servers)].append(tokens / (time.perf_counter() - started))
            await engine.close()
    numbers = {f"tokens_per_s_{count}": statistics.median(values) for count, values in speeds.items()}
    numbers["speedup"] = numbers["tokens_per_s_2"] / numbers["tokens_per_s_1"]
    print(
        f"one server {numbers['tokens_per_s_1']:,.0f} tokens/s, two {numbers['tokens_per_s_2']:,.0f}: "
        f"{numbers['speedup']:.2f} times",
        flush=True,
    )
    return numbers


if __name__ == "__main__":
    main()
