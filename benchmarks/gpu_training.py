"""One GPU in ten minutes: a gradient step of a policy in full (1B) and with adapters (8B).

    python benchmarks/gpu_training.py [--pairs 8] [--tokens 1024] [--steps 5] [--json FILE]

Tokens a second, share of the matrix peak that this run measures, and peak memory. Needs torch >= 2.11 and transformers
>= 5.15 and nothing else: the log-probabilities and the loss are the project's, the loop around them and the adapters
are written out here, because a bare image has neither accelerate nor peft. Random weights, shapes of Llama 3. On a
machine without a GPU it runs the same steps with small models on the CPU, to show that the script works, and says that
the GPU rows are unmeasured.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from engine_setup import peak
from torch import Tensor, nn
from training_setup import decoder, now

from paragone_training.losses import inpo_loss
from paragone_training.policy.model.logprobs import ResponseLogprobs, Sequences, padded_sequences

RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="of a step, in one pass")
    parser.add_argument("--tokens", type=int, default=1024, help="of the longest sequence")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    name = torch.cuda.get_device_name() if gpu else "no GPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    pairs, tokens = (arguments.pairs, arguments.tokens) if gpu else (2, 128)
    rows = []
    for size, adapters in (("1B", False), ("8B", True)) if gpu else (("7M", False), ("7M", True)):
        rows.append(measure(size, device, adapters=adapters, pairs=pairs, tokens=tokens, steps=arguments.steps))
        if gpu:
            torch.cuda.empty_cache()
    if not gpu:
        print("\nno GPU here: the rows above are small models on this CPU, and the GPU rows are UNMEASURED")
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "rows": rows}, indent=2) + "\n")


def measure(size: str, device: torch.device, *, adapters: bool, pairs: int, tokens: int, steps: int) -> dict[str, Any]:
    """Print and return the numbers of one row."""
    gpu = device.type == "cuda"
    # In full: float32 weights under bfloat16 passes. With adapters: the frozen weights are bfloat16 themselves.
    model = decoder(size, dtype=torch.bfloat16 if adapters and gpu else torch.float32, device=device.type)
    weights = sum(weight.numel() for weight in model.parameters())
    if adapters:
        add_adapters(model)
    # transformers renames this on the way to version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    model.enable_input_require_grads()
    network = ResponseLogprobs(model.train(), chunk_tokens=1024)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, fused=gpu)
    sequences = made(pairs, tokens, device)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=gpu):
        frozen = network(sequences)
    times, losses = [], []
    for _ in range(steps + 1):
        began = now()
        losses.append(step(network, optimiser, sequences, frozen, device))
        times.append(now() - began)
    real, answered = int(sequences.attention_mask.sum()), int(sequences.answered.sum())
    seconds = statistics.median(times[1:])
    rate = peak(torch.bfloat16 if gpu else torch.float32, device)
    row = {
        "size": size,
        "weights": weights,
        "trained": sum(weight.numel() for weight in trained),
        "what": "adapters" if adapters else "in full",
        "tokens": real,
        "seconds": seconds,
        "tokens_per_s": real / seconds,
        "share_of_peak": operations(model, weights, real, answered, adapters=adapters) / seconds / rate,
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
        "losses": losses,
    }
    memory = f", {row['peak_bytes'] / 2**30:.1f} GiB at the peak" if gpu else ", memory unmeasured"
    print(
        f"{size} {row['what']}: {weights / 1e6:.0f}M weights, {row['trained'] / 1e6:.1f}M trained; {seconds:.3f} s a "
        f"step of {pairs} pairs, {row['tokens_per_s']:.0f} tokens/s, {row['share_of_peak']:.0%} of the matrix peak"
        f"{memory}; loss {losses[0]:.4f} to {losses[-1]:.4f}",
        flush=True,
    )
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    return row


def step(
    network: nn.Module, optimiser: torch.optim.Optimizer, sequences: Sequences, frozen: Tensor, device: torch.device
) -> float:
    """Take one gradient step of INPO and return its loss."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        chosen, rejected = network(sequences).chunk(2)
    base_chosen, base_rejected = frozen.chunk(2)
    preference = torch.full_like(chosen, 0.8)
    columns = (base_chosen, base_rejected)
    loss = inpo_loss(chosen, rejected, *columns, *columns, eta=0.1, tau=0.03, preference=preference).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def made(pairs: int, tokens: int, device: torch.device) -> Sequences:
    """Return pairs of random tokens: a shared prompt of a quarter, responses of half to all of the rest."""
    chance = random.Random(0)  # noqa: S311
    items = []
    for _ in range(pairs):
        prompt = [chance.randrange(2, 4000) for _ in range(tokens // 4)]
        for _ in range(2):
            longest = tokens - len(prompt)
            items.append((prompt, [chance.randrange(2, 4000) for _ in range(chance.randint(longest // 2, longest))]))
    return Sequences(*(tensor.to(device) for tensor in padded_sequences([*items[::2], *items[1::2]], 0)))


def operations(model: Any, weights: int, tokens: int, answered: int, *, adapters: bool) -> float:
    """Return what a step is worth: two operations a weight and token forward, twice that backward.

    Gradients of frozen weights are not taken, so adapters are worth two thirds. Attention, recomputed activations and
    padding are not counted: they are how it is done, not what.
    """
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    inner = weights - embeddings.numel() - (head.numel() if head is not embeddings else 0)
    return (4.0 if adapters else 6.0) * (inner * tokens + head.numel() * answered)


class Adapter(nn.Module):
    """A frozen linear layer and a trained product of low rank beside it (LoRA, arXiv 2106.09685)."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        where = {"device": frozen.weight.device, "dtype": torch.float32}
        self.down = nn.Parameter(torch.randn(RANK, frozen.in_features, **where) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, RANK, **where))

    def forward(self, hidden: Tensor) -> Tensor:
        low = nn.functional.linear(hidden.to(self.down.dtype), self.down)
        return self.frozen(hidden) + nn.functional.linear(low, self.up).to(hidden.dtype)


def add_adapters(model: Any) -> None:
    """Freeze a model and put adapters beside the linear layers of its decoder layers, in place."""
    model.requires_grad_(requires_grad=False)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        if module is not model.get_output_embeddings():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Adapter(module))


if __name__ == "__main__":
    main()
