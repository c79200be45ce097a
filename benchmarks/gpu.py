"""One GPU in ten minutes: is every attention path exact there, and how fast and how large is the packed pass?

    python benchmarks/gpu.py [--sizes 0.6B 8B] [--groups 8] [--repetitions 3] [--data FOLDER] [--json FILE]

Imports paragone_models alone; needs torch >= 2.11 and transformers >= 5.15, no web packages. On a machine without a GPU
it runs the same steps with a small model on the CPU, to show that the script works, and says that the GPU rows are
unmeasured.

Correctness: tiny Llama, Mistral (sliding window), Qwen3 and Gemma 2 (capped logits) in float32 and bfloat16, every way
there is to pack them, cold, in several passes, and from stored keys, against the same sequences run one by one. Speed:
workload R (groups of 8, 64 to 512 tokens each side) and packed sequences of 1,024 tokens, against padded transformers
and the matrix peak of the run; memory above the weights.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from engine_setup import (
    SHAPES,
    backbone_parameters,
    classifier,
    counted_packer,
    naive_tokens,
    padded,
    peak,
    seconds,
    workload,
)
from texts import add_data
from transformers import AutoConfig, AutoModel

from paragone_models.packing.backend import choose, ways
from paragone_models.packing.packer import Packer, PromptStore
from paragone_models.text.reader import EncodeItem

TINY = {
    "llama": {},
    "mistral": {"sliding_window": 100},
    "qwen3": {},
    "gemma2": {"sliding_window": 100, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 5.0},
}
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 5e-2}  # of the states' size; float32 products may run in TF32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SHAPES), default=None)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    add_data(parser, otherwise="the shipped set without it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    name = torch.cuda.get_device_name() if gpu else "no GPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    right = correctness(device, arguments.data)
    sizes = arguments.sizes or (["0.6B", "8B"] if gpu else ["1M"])
    groups = arguments.groups if gpu else min(arguments.groups, 2)
    rows = [speed(size, device, groups, arguments) for size in sizes]
    if not gpu:
        print("\nno GPU here: the rows above are a small model on this CPU, and the GPU rows are UNMEASURED")
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "correct": right, "speed": rows}, indent=2) + "\n")
    sys.exit(0 if right else 1)


def correctness(device: torch.device, data: Path | None) -> bool:
    """Print how far every way to pack is from one by one, and return whether all of them are near enough."""
    print("\nfamily    dtype     way      cold     passes   stored")
    right = True
    items = workload(2, data, lengths=(20, 150))
    for model_type, extra in TINY.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = tiny(model_type, extra, dtype, device)
            reference = one_by_one(model, items, device)
            for way, forward in ways(model):
                errors = []
                try:
                    for max_tokens, store in ((1 << 20, 0), (300, 0), (1 << 20, 1 << 28)):
                        packer = Packer(forward, device, 256, store=PromptStore(store), max_tokens=max_tokens)
                        states = packer.encode(items)
                        if store:
                            states = packer.encode(items)
                        errors.append(float((states - reference).norm() / reference.norm()))
                except (RuntimeError, NotImplementedError, TypeError) as error:
                    print(f"{model_type:9} {str(dtype)[6:]:9} {way:8} failed: {str(error).splitlines()[0]}")
                    right = False
                    continue
                near = max(errors) < TOLERANCE[dtype]
                right &= near
                figures = " ".join(f"{error:.1e} " for error in errors)
                print(f"{model_type:9} {str(dtype)[6:]:9} {way:8} {figures} {'right' if near else 'WRONG'}", flush=True)
    return right


def tiny(model_type: str, extra: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    config = AutoConfig.for_model(
        model_type, vocab_size=8192, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, **extra,
    )  # fmt: skip
    torch.manual_seed(0)
    implementation = "eager" if model_type == "gemma2" else "sdpa"
    model = AutoModel.from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model.to(device, dtype).eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def one_by_one(model: Any, items: list[EncodeItem], device: torch.device) -> torch.Tensor:
    states = []
    for item in items:
        ids = torch.tensor([list(item.token_ids)], device=device)
        states.append(model(input_ids=ids, use_cache=False).last_hidden_state[0, -1:].float())
    return torch.stack(states)


def speed(size: str, device: torch.device, groups: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return responses per second, shares of the peak and memory for one shape."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    model = classifier(size, dtype, device.type)
    backbone = model.base_model
    row: dict[str, Any] = {"size": size, "dtype": str(dtype), "parameters": backbone_parameters(backbone)}
    print(f"\n{size}: {row['parameters'] / 1e6:.0f}M parameters without embeddings, {dtype}")
    way = choose(backbone)
    if isinstance(way, str):
        print(f"not packed: {way}")
        return row | {"refused": way}
    budget = 16384 if gpu else 4096
    items = workload(groups, arguments.data)
    runs = {"R, cold and shared": items, "1k sequences, nothing shared": sequences(2 * budget // 1024)}
    row["peak"] = peak(dtype, device)
    print(f"way {way[0]}; matrix peak {row['peak'] / 1e12:.2f} Tflop/s")
    for name, work in runs.items():
        row[name] = timed(model, way, work, budget, arguments.repetitions, row["peak"], device)
    with_padding = statistics.median(
        seconds(lambda: padded(model, items), device) for _ in range(arguments.repetitions)
    )
    print(f"padded transformers, R, batch 16, input order: {len(items) / with_padding:.1f} responses/s")
    row["padded"] = len(items) / with_padding
    ratio = row["R, cold and shared"]["responses_per_s"] / row["padded"]
    print(f"packed : padded {ratio:.2f}; padded computes {naive_tokens(items)} tokens")
    return row


def sequences(count: int) -> list[EncodeItem]:
    ids = torch.randint(1000, (count, 1024), generator=torch.Generator().manual_seed(0)).tolist()
    return [EncodeItem(tokens, ((1023, 1024),), 0) for tokens in ids]


def timed(
    model: Any, way: Any, items: list[EncodeItem], budget: int, repetitions: int, peak_rate: float, device: torch.device
) -> dict[str, float]:
    counted_packer(*way, model.base_model, max_tokens=budget).encode(items[:8])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repetitions):
        packer = counted_packer(*way, model.base_model, max_tokens=budget)
        times.append(seconds(lambda packer=packer: packer.encode(items), device))
    median = statistics.median(times)
    result = {
        "responses_per_s": len(items) / median,
        "tokens_per_s": packer.counted.tokens / median,
        "share_of_peak": packer.counted.operations / median / peak_rate,
    }
    memory = ""
    if device.type == "cuda":
        result["bytes_above_weights"] = torch.cuda.max_memory_allocated() - before
        memory = f", {result['bytes_above_weights'] / 2**30:.2f} GiB above the weights"
    print(
        f"packed: {result['responses_per_s']:.1f} responses/s, {result['tokens_per_s']:.0f} computed tokens/s, "
        f"{result['share_of_peak']:.0%} of the peak{memory}",
        flush=True,
    )
    return result


if __name__ == "__main__":
    main()
