"""One replica on one core against two on a core each: forward throughput through the scheduler, as a server has it.

Groups of 8 responses (workload R, shorter: 32 to 256 tokens) and a random Qwen3-shaped decoder. The replicas share
their weights and are threads of one process, as in ``paragone serve --devices cpu*2``; two processes with half of the
work each show what threads lose. All in turns, so that every side sees the same machine; medians of the repetitions.

    python benchmarks/devices.py [--size 30M|300M] [--groups 8] [--repetitions 5] [--data FOLDER]

Takes about 2 minutes for 30M on two cores in float32. Needs two cores with nothing else on them.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from engine_setup import backbone_parameters, classifier, workload
from texts import add_data

from paragone_models.model import PreferenceModel, Provenance
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem
from paragone_service.cache.tiers import Cache, Codec, MemoryCache
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.metrics import Metrics
from paragone_service.scoring.model_io import Replica, Resources, open_queue
from paragone_service.scoring.tickets import Job

LENGTHS = 32, 256
BUDGET = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="30M")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    add_data(parser, otherwise="the shipped set without it")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this process has one core: two replicas need two")
    torch.set_num_threads(1)
    model = made(arguments.size)
    items = workload(arguments.groups, arguments.data, lengths=LENGTHS)
    tokens = sum(len(item.token_ids) for item in items)
    print(f"{backbone_parameters(model.network.backbone) / 1e6:.1f}M parameters, {len(items)} responses")
    sides = {
        "one": [Side(model, name, core) for name, core in [("one", cores[0])]],
        "two": [Side(model, f"two:{number}", core) for number, core in enumerate(cores)],
        "two, not pinned": [Side(model, f"free:{number}", None) for number in range(2)],
    }
    numbers: dict[str, list[float]] = {name: [] for name in (*sides, "two processes")}
    half = arguments.groups // 2
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        shares = [(arguments.size, half, arguments.data, core) for core in cores]
        list(processes.map(in_process, shares))  # starts both
        for turn in range(arguments.repetitions + 1):
            for name, parts in sides.items():
                numbers[name].append(tokens / asyncio.run(seconds(parts, items)))
            done = list(processes.map(in_process, shares))
            numbers["two processes"].append(sum(count for count, _ in done) / max(took for _, took in done))
            if turn:
                print(", ".join(f"{name} {values[-1]:.0f}" for name, values in numbers.items()), flush=True)
    medians = {name: statistics.median(values[1:]) for name, values in numbers.items()}
    for name, value in medians.items():
        ratios = [one / base for one, base in zip(numbers[name][1:], numbers["one"][1:], strict=True)]
        print(f"{name:16} {value:8.0f} tokens/s, {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    for parts in sides.values():
        for part in parts:
            part.thread.close()
    if arguments.json:
        arguments.json.write_text(json.dumps({"size": arguments.size, "tokens_per_s": medians}, indent=2) + "\n")


class Side:
    """One replica on a thread of its own, pinned to a core."""

    def __init__(self, model: PreferenceModel, name: str, core: int | None) -> None:
        self.thread = DeviceThread(name, threads=1)
        if core is not None:
            self.thread.run_now(partial(os.sched_setaffinity, 0, {core}))
        self.model = self.thread.run_now(partial(model.replica, "cpu"))


async def seconds(parts: list[Side], items: list[EncodeItem]) -> float:
    """Return how long one queue takes for all items on these replicas."""
    metrics = Metrics()
    replicas = []
    for part in parts:
        part.thread.turn = asyncio.Lock()  # of this event loop
        engine = LocalEngine(part.model, part.thread)
        replicas.append(Replica(model=part.model, engine=engine, device=part.thread, max_batch_tokens=BUDGET))
    cache = Cache(MemoryCache(0), None, metrics)
    resources = Resources(replicas=replicas, cache=cache, metrics=metrics, max_queue_tokens=10**9)
    queue = open_queue(resources.head("m", PreferenceModel.represent, Codec(1), failure="not finite"), resources)
    queue.start()
    started = time.perf_counter()
    tickets = queue.submit([Job(None, item, 0) for item in items])
    outcomes = await asyncio.gather(*(ticket.outcome for ticket in tickets))
    took = time.perf_counter() - started
    assert all(isinstance(outcome, bytes) for outcome in outcomes)
    await queue.close()
    return took


def made(size: str) -> PreferenceModel:
    """Return a random model."""
    torch.manual_seed(0)
    backbone = classifier(size, torch.float32, "cpu").base_model
    spec = ModelSpec(kind="bradley-terry", dimension=1, max_length=1024)
    network = PreferenceNetwork(backbone, RepresentationHead(backbone.config.hidden_size, spec)).eval()
    network.requires_grad_(requires_grad=False)
    provenance = Provenance("m", "random", None, "0" * 64, {})
    model = PreferenceModel(network, spec, None, provenance, max_batch_tokens=BUDGET)
    assert np.isfinite(model.embed([[1, 2, 3]], [1]).numpy()).all()
    return model


_KEPT: dict[str, tuple[PreferenceModel, list[EncodeItem]]] = {}


def in_process(share: tuple[str, int, Path | None, int]) -> tuple[int, float]:
    """Return how many tokens a process of its own ran, and in how many seconds."""
    size, groups, data, core = share
    if size not in _KEPT:
        torch.set_num_threads(1)
        _KEPT[size] = made(size), workload(groups, data, seed=core, lengths=LENGTHS)
    os.sched_setaffinity(0, {core})
    model, items = _KEPT[size]
    started = time.perf_counter()
    for first in range(0, len(items), 16):
        model.represent(model.encode(items[first : first + 16]))
    return sum(len(item.token_ids) for item in items), time.perf_counter() - started


if __name__ == "__main__":
    main()
