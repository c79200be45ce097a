"""Peak memory of a real gradient step on the CPU against the plan that --dry-run prints; plans of Llama-3 shapes.

    python benchmarks/policy_memory.py [--size 7M] [--pairs 8] [--tokens 256] [--batching packed] [...]

Measured: the most resident memory of this process while the step runs (Linux), less what it held before the model came,
after one small step that loads what libraries load late.
"""

import argparse
import itertools
import random
import tempfile
from pathlib import Path

import torch
from training_setup import DECODERS, decoder, decoder_config

from paragone_training.policy.gradient import policy_trainer
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.plan import plan_memory
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import TrainingPair
from paragone_training.settings import parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(DECODERS), default="7M")
    parser.add_argument("--pairs", type=int, default=8, help="of a pass")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batching", choices=("packed", "padded"), default="packed")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step(decoder("7M"), recipe(1), 1, 16)
    made = recipe(arguments.pairs, batching=arguments.batching, gradient_checkpointing=arguments.gradient_checkpointing)
    plan = plan_memory(made, decoder_config(arguments.size), tokens=arguments.tokens, prompt=arguments.tokens // 4)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    step(decoder(arguments.size), made, arguments.pairs, arguments.tokens)
    measured = resident("VmHWM") - before
    print(
        f"{arguments.size}, {2 * arguments.pairs} sequences of {arguments.tokens} tokens, {arguments.batching}: "
        f"planned {plan.total / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB, ratio {plan.total / measured:.2f}"
    )
    for size, shards, batching in itertools.product(("1B", "8B"), (1, 8, 32), ("padded", "packed")):
        made = recipe(4, bf16=True, gradient_checkpointing=True, batching=batching)
        plan = plan_memory(made, decoder_config(size), tokens=2048, prompt=512, shards=shards)
        parts = ("weights", "gathered", "gradients", "optimiser", "activations", "logits")
        figures = ", ".join(f"{name} {getattr(plan, name) / 1e9:.1f}" for name in parts)
        print(
            f"{size}, {shards} process(es), 8 sequences of 2,048 tokens, prompts of 512, {batching}, GB: "
            f"{plan.total / 1e9:.1f} = {figures}"
        )


def recipe(pairs, **training):
    training = {"pairs_per_pass": pairs, "pairs_per_step": pairs, "log_steps": 1000, **training}
    return parse(PolicyRecipe, {
        "method": "inpo", "policy": {"source": "unused"}, "data": {"prompts": ["unused"]}, "oracle": {"url": "unused"},
        "loss": {"eta": 0.1, "tau": 0.03}, "training": training,
    })  # fmt: skip


def step(model, made, pairs, tokens):
    chance = random.Random(0)  # noqa: S311
    rows = []
    for _ in range(pairs):
        prompt, *answers = (
            tuple(chance.randrange(2, 4000) for _ in range(count))
            for count in (tokens // 4, tokens - tokens // 4, tokens - tokens // 4)
        )
        rows.append(TrainingPair(prompt, *answers, (0.8, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0)))
    method = method_of("inpo", eta=0.1, tau=0.03)
    with tempfile.TemporaryDirectory() as work:
        trainer = policy_trainer(
            model, rows, Path(work), method=method, training=made.training, raw=False, pad_id=0, seed=0
        )
        trainer.train()


def resident(name):
    """Return a line of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
