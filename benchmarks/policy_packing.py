"""Gradient steps of a policy, packed against padded, in tokens a second of the pairs (both sequences, no padding).

    python benchmarks/policy_packing.py [--size 7M] [--prompt 24] [--response 160] [--prompts 64] [--all-pairs 0]

Made-up tokens; lengths are drawn between half and one and a half of what is asked for. One pair to a prompt, or with
--all-pairs K every pair of K responses. One epoch each, in turns, the first of each thrown away; timed from the
beginning of the first step to the end of the last. Frozen columns, log-probabilities without a gradient, are timed too.
"""

import argparse
import itertools
import random
import statistics
import tempfile
from pathlib import Path

import torch
import transformers
from training_setup import DECODERS, Watch, decoder, now

from paragone_training.policy.gradient import policy_trainer
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model.logprobs import frozen_logprobs, response_logprobs
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair

WAYS = ("padded", "packed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(DECODERS), default="7M")
    parser.add_argument("--prompt", type=int, default=24, help="tokens")
    parser.add_argument("--response", type=int, default=160, help="tokens")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--all-pairs", type=int, default=0, metavar="K", help="every pair of K responses to a prompt")
    parser.add_argument("--pairs-per-pass", type=int, default=8)
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    pairs = made(arguments)
    tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    items = sorted({(pair.prompt_ids, side) for pair in pairs for side in (pair.chosen_ids, pair.rejected_ids)})
    asked = sum(len(prompt) + len(response) for prompt, response in items)
    steps, columns = ({way: [] for way in WAYS} for _ in range(2))
    for number in range(arguments.repetitions + 1):
        for way in WAYS if number % 2 else WAYS[::-1]:
            steps[way].append(tokens / epoch(pairs, way, arguments))
            columns[way].append(asked / frozen(items, way, arguments))
        if number:
            told = ", ".join(f"{way} {steps[way][-1]:.0f} and {columns[way][-1]:.0f}" for way in WAYS)
            print(f"repetition {number}: tokens/s of steps and of frozen columns: {told}", flush=True)
    print(
        f"{arguments.size}, {len(pairs)} pairs of {arguments.prompts} prompts, {tokens} tokens; {arguments.threads} "
        f"thread(s), torch {torch.__version__}, transformers {transformers.__version__}"
    )
    for name, rates in (("gradient steps", steps), ("frozen columns", columns)):
        ratios = [mine / other for mine, other in zip(rates["packed"][1:], rates["padded"][1:], strict=True)]
        print(
            f"{name}: packed : padded {statistics.median(ratios):.2f} (median of {len(ratios)}, {min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )


def made(arguments):
    """Return the pairs."""
    chance = random.Random(0)  # noqa: S311

    def draw(mean):
        return tuple(chance.randrange(2, 4000) for _ in range(chance.randint(mean // 2, mean * 3 // 2)))

    pairs = []
    for _ in range(arguments.prompts):
        prompt = draw(arguments.prompt)
        answers = [draw(arguments.response) for _ in range(arguments.all_pairs or 2)]
        for won, lost in itertools.combinations(answers, 2):
            pairs.append(TrainingPair(prompt, won, lost, (0.8, 0.0, 0.0, -900.0, -900.0, -900.0, -900.0)))
    return pairs


def settings(way, arguments):
    return PolicyTrainingSection(
        pairs_per_step=arguments.pairs_per_step,
        pairs_per_pass=arguments.pairs_per_pass,
        batching=way,
        learning_rate=1e-6,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.gradient_checkpointing,
        log_steps=1000,
    )


def epoch(pairs, way, arguments):
    """Return the seconds of one epoch."""
    method, watch = method_of("inpo", eta=0.1, tau=0.03), Watch()
    model = decoder(arguments.size, device="cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as work:
        trainer = policy_trainer(
            model, pairs, Path(work), method=method, training=settings(way, arguments), raw=True, pad_id=0, seed=0
        )
        if trainer.network.packs != (way == "packed"):
            raise SystemExit("this model's passes are not packed; the log says why")
        trainer.add_callback(watch)
        trainer.train()
    return watch.seconds


def frozen(items, way, arguments):
    """Return the seconds of the log-probabilities of all responses."""
    model = decoder(arguments.size, device="cuda" if torch.cuda.is_available() else "cpu")
    network = response_logprobs(model, settings(way, arguments))
    began = now()
    frozen_logprobs(network, items, pad_id=0, batch=2 * arguments.pairs_per_pass, bf16=arguments.bf16)
    return now() - began


if __name__ == "__main__":
    main()
