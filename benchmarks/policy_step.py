"""A training step of a policy, in tokens a second, against TRL's DPOTrainer with precompute_ref_log_probs=True.

    python benchmarks/policy_step.py --trl PYTHON [--size 7M] [--pairs 64] [--repetitions 5] [--data FOLDER]

PYTHON is an interpreter that has trl (a peer, never a dependency). Same pairs, token for token: TRL tokenises, ours
trains on what it made. Same initial weights, dtype, pairs a forward pass, passes a step, optimiser. Each side orders
and pads as it does by default. One epoch each, in turns, in two processes; the first epoch of each is thrown away.
Counted: tokens of the pairs (both sequences, no padding) over the time from the beginning of the first step to the end
of the last one; tokenising and the frozen columns are outside on both sides. Before that, the reference columns of both
must agree.

On a CPU TRL takes the logits of every position, prompt and padding too; where it has its Triton kernel, on a GPU, it
takes those of the responses alone, as ours does everywhere. --trl-compact makes it do so here too (a private switch of
TRL 1.16).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from texts import add_data, pair_rows
from training_setup import DECODERS, Watch, decoder

from paragone_models.files.sources import builtin_folder
from paragone_training.policy.gradient import policy_trainer
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model.logprobs import ResponseLogprobs, frozen_logprobs
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair

HERE = Path(__file__).parent
BETA = 0.1
AGREE = 1e-4  # relative; nats of a whole response in float32


@dataclass
class Peer:
    """TRL in its own process.

    Attributes:
        process: which answers every line with one epoch.
    """

    process: subprocess.Popen[str]

    def epoch(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"trl ended with {self.process.wait()}; its messages are above")
        return json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="interpreter that has trl")
    parser.add_argument("--size", choices=sorted(DECODERS), default="7M")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--pairs-per-pass", type=int, default=8)
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="mixed precision, both")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="both")
    parser.add_argument("--trl-compact", action="store_true", help="TRL leaves out the logits of prompts, see above")
    add_data(parser, otherwise="the shipped set without it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(folder, arguments)
        command = [arguments.trl, str(HERE / "policy_step_trl.py"), str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            report(arguments, *measure(folder, arguments, Peer(process)))
        finally:
            process.stdin.close()
            process.wait()


def prepare(folder, arguments):
    """Write settings, pairs and the initial weights."""
    rows = pair_rows(arguments.data)
    rows = [
        {"prompt": row["prompt"] + "\n", "chosen": row["first"], "rejected": row["second"]}
        for row in rows[:: len(rows) // arguments.pairs][: arguments.pairs]  # of all the questions there are
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = decoder(arguments.size)
    model.save_pretrained(folder / "model")
    transformers.AutoTokenizer.from_pretrained(builtin_folder("mini-policy")).save_pretrained(folder / "model")
    names = ("pairs_per_pass", "pairs_per_step", "threads", "bf16", "gradient_checkpointing", "trl_compact")
    settings = {name: getattr(arguments, name) for name in names} | {"beta": BETA, "learning_rate": 1e-6}
    (folder / "settings.json").write_text(json.dumps(settings))


def measure(folder, arguments, peer):
    """Return our and the peer's tokens per second, in turns, and the peer's version."""
    version = peer.epoch()["trl"]
    rows = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    pairs = frozen(folder, rows, arguments)
    tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    print(f"{len(pairs)} pairs, {tokens} tokens; the reference columns of both agree")
    ours_epoch(folder, pairs, arguments)
    ours, theirs = [], []
    for number in range(arguments.repetitions):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for side in order:
            seconds = peer.epoch()["seconds"] if side else ours_epoch(folder, pairs, arguments)
            (theirs if side else ours).append(tokens / seconds)
        print(f"repetition {number + 1}: ours {ours[-1]:.0f}, TRL {theirs[-1]:.0f} tokens/s", flush=True)
    return ours, theirs, version


def frozen(folder, rows, arguments):
    """Return TRL's pairs with our frozen columns, which must be TRL's own."""
    model = load(folder)
    items = [(row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    network = ResponseLogprobs(model, chunk_tokens=1024)
    found = frozen_logprobs(network, items, pad_id=0, batch=2 * arguments.pairs_per_pass)
    wanted = [row[name] for name in ("chosen", "rejected") for row in rows]
    furthest = max(abs(mine - other) / abs(other) for mine, other in zip(found, wanted, strict=True))
    if not arguments.bf16 and furthest > AGREE:
        raise SystemExit(f"reference columns differ by {furthest:.2g}: the two do not train on the same thing")
    won, lost = found[: len(rows)], found[len(rows) :]
    return [
        TrainingPair(
            tuple(row["prompt_ids"]),
            tuple(row["chosen_ids"]),
            tuple(row["rejected_ids"]),
            (1.0, 0.0, 0.0, won[place], lost[place], won[place], lost[place]),
        )
        for place, row in enumerate(rows)
    ]


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def ours_epoch(folder, pairs, arguments):
    """Return the seconds of one epoch of ours."""
    training = PolicyTrainingSection(
        pairs_per_step=arguments.pairs_per_step,
        pairs_per_pass=arguments.pairs_per_pass,
        learning_rate=1e-6,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.gradient_checkpointing,
        log_steps=1000,
    )
    method, watch = method_of("dpo", beta=BETA), Watch()
    trainer = policy_trainer(
        load(folder), pairs, folder / "ours", method=method, training=training, raw=True, pad_id=0, seed=0
    )
    trainer.add_callback(watch)
    trainer.train()
    return watch.seconds


def report(arguments, ours, theirs, version):
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} thread(s)"
    print(
        f"{device}; torch {torch.__version__}, transformers {transformers.__version__}, trl {version}, {arguments.size}"
    )
    print(f"ours {statistics.median(ours):.0f}, TRL {statistics.median(theirs):.0f} tokens/s (medians)")
    print(
        f"ours : TRL {statistics.median(ratios):.2f} (median of {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f})"
    )
    if arguments.json:
        row = {"device": device, "trl": version, "ours": ours, "theirs": theirs, "ratios": ratios}
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")
    sys.exit(0 if statistics.median(ratios) >= 1.0 else 1)


if __name__ == "__main__":
    main()
