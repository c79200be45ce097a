"""The local engine against padded transformers on workload R, cold and with siblings that arrive apart.

Groups of 8 responses, prompts and responses of 64 to 512 tokens of text, a random Qwen3-shaped decoder, or with --model
a pretrained one (a folder or an id) with its own tokenizer and a random reward head. Everything
in one process and in turns, so that both sides see the same machine; medians of the repetitions. The share of the peak
counts the operations that were computed (attention over visible pairs; of the last layer only what is read), divided by
what a large matrix product in the same dtype reaches between the turns.

    python benchmarks/engine.py [--size 30M|300M | --model SOURCE] [--groups 6] [--repetitions 5] [--dtype auto] \\
        [--threads 2] [--data FOLDER]

Takes about 3 minutes for 30M on two cores without fast bfloat16; give --groups 2 --repetitions 3 for 300M.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

import torch
from engine_setup import (
    SHAPES,
    backbone_parameters,
    classifier,
    counted_packer,
    naive_tokens,
    padded,
    peak,
    pretrained_classifier,
    seconds,
    workload,
)  # fmt: skip
from texts import add_data
from transformers import AutoTokenizer

from paragone_models.machine import automatic_dtype, bfloat16_speedup
from paragone_models.packing.backend import choose

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="30M")
    parser.add_argument("--model", help="a pretrained decoder in place of --size")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-tokens", type=int, default=4096)
    add_data(parser, otherwise="the shipped set without it")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    speedup = bfloat16_speedup()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype != "auto" else None
    dtype = dtype or automatic_dtype(CPU, parameters=10**9, demonstration=False)
    if arguments.model:
        model = pretrained_classifier(arguments.model, dtype)
        items = workload(arguments.groups, arguments.data, reader=AutoTokenizer.from_pretrained(arguments.model))
    else:
        model, items = classifier(arguments.size, dtype, "cpu"), workload(arguments.groups, arguments.data)
    backbone = model.base_model
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"bfloat16 products are {speedup:.2f} times as fast as float32 ones here; running in {dtype}")
    print(f"{backbone_parameters(backbone) / 1e6:.1f}M parameters without embeddings, {len(items)} responses")
    numbers = measure(model, items, arguments.repetitions, arguments.max_tokens, dtype)
    numbers |= {
        "size": arguments.model or arguments.size,
        "dtype": str(dtype),
        "threads": arguments.threads,
        "bfloat16": speedup,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


def measure(model, items, repetitions: int, max_tokens: int, dtype: torch.dtype) -> dict[str, object]:
    way = choose(model.base_model)
    assert not isinstance(way, str), way
    agreement(model, way, items[:8], max_tokens)
    times: dict[str, list[float]] = {"padded": [], "packed": [], "apart": []}
    shares, peaks = [], []
    for turn in range(repetitions):
        before = peak(dtype, CPU)
        packer = counted_packer(*way, model.base_model, max_tokens=max_tokens)
        times["packed"].append(seconds(lambda packer=packer: packer.encode(items), CPU))
        peaks.append(max(before, peak(dtype, CPU)))
        shares.append(packer.counted.operations / times["packed"][-1] / peaks[-1])
        times["padded"].append(seconds(lambda: padded(model, items), CPU))
        store = counted_packer(*way, model.base_model, max_tokens=max_tokens, prompt_bytes=256 << 20)
        order = [item for rank in range(8) for item in items[rank::8]]  # siblings far from each other
        times["apart"].append(seconds(lambda store=store, order=order: [store.encode([item]) for item in order], CPU))
        print(
            f"turn {turn + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items()), flush=True
        )
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [slow / fast for slow, fast in zip(times["padded"], times["packed"], strict=True)]
    print(f"padded transformers, batch 16, input order: {len(items) / medians['padded']:.2f} responses/s")
    print(f"packed ({way[0]}), cold:                    {len(items) / medians['packed']:.2f} responses/s")
    print(f"one response a call, siblings apart:       {len(items) / medians['apart']:.2f} responses/s")
    print(f"packed : padded {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"peak {statistics.median(peaks) / 1e9:.0f} Gflop/s, share of it {statistics.median(shares):.0%}")
    tokens, naive = packer.counted.tokens, naive_tokens(items)
    print(f"tokens computed: packed {tokens}, padded {naive} ({naive / tokens:.2f} times as many)")
    return {
        "responses_per_s": {name: len(items) / value for name, value in medians.items()},
        "ratio": statistics.median(ratios), "share": statistics.median(shares), "peak": statistics.median(peaks),
        "tokens": tokens, "naive_tokens": naive, "way": way[0],
    }  # fmt: skip


def agreement(model, way, items, max_tokens: int) -> None:
    """Stop if the two sides do not compute the same."""
    hidden = counted_packer(*way, model.base_model, max_tokens=max_tokens).encode(items)
    ours = torch.nn.functional.linear(hidden[:, 0], model.score.weight.float())[:, 0]
    error = float((ours - padded(model, items)).abs().max())
    print(f"largest difference of a score to padded transformers: {error:.1e}")
    assert error < (1e-4 if model.dtype == torch.float32 else 0.1)


if __name__ == "__main__":
    main()
