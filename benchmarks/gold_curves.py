"""Proxy against gold: what a policy wins by its oracle and by what the oracle learnt from, by its distance in KL.

    python benchmarks/gold_curves.py --data FOLDER [--work runs/gold] [--iterations 5] [--prompts 48]    # ten minutes

Gold is a program: a sentence of about fifteen different words that ends in a full stop. The proxy is a small
Bradley-Terry model, trained on labels drawn from gold's probabilities on responses of the initial policy, then hosted
by `paragone serve`. SPPO and INPO train builtin:mini-policy against the proxy by the real loop. Held-out prompts, 95 %
intervals over prompts. Writes gold.json, a table, and gold.png where matplotlib is installed (no dependency).

Source of the question: Gao, Schulman, Hilton (arXiv 2210.10760), for best-of-n and PPO.
"""

import argparse
import json
import logging
import re
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from texts import add_data, corpus

from paragone_evaluation.readers import read_prompts
from paragone_models import load_model
from paragone_training.policy.evaluate import win_rate
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import Answer, Response, read_json_file, read_rows, stream
from paragone_training.policy.run_prompts import render
from paragone_training.policy.sampling.drawing import Decoding, sample
from paragone_training.policy.train_policy import train_policy
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import train_model
from paragone_training.settings import parse

TOKENS = 48
LABELLED = 6  # responses to a prompt that the proxy learns from
METHODS = {
    "sppo": {"loss": {"eta": 20.0}, "reference": {"policy": "previous"}},
    "inpo": {"loss": {"eta": 0.1, "tau": 0.02}, "reference": {"policy": "initial"}},
}


def gold(text: str) -> float:
    """Return the score of a response, in logits."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return -4.0
    repeated = 1.0 - len(set(words)) / len(words)
    ended = float(text.rstrip().endswith("."))
    return 3.0 * min(len(words), 15) / 15 - 6.0 * repeated - 0.2 * max(len(words) - 15, 0) + ended


def preferred(first: str, second: str) -> float:
    """Return gold's probability that ``first`` is preferred."""
    return float(1.0 / (1.0 + np.exp(gold(second) - gold(first))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--work", type=Path, default=Path("runs/gold"))
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    began, work = time.monotonic(), arguments.work
    prompts = str(corpus(arguments.data, "policy_prompts"))
    work.mkdir(parents=True, exist_ok=True)
    texts, held_out = answers_of_the_initial_policy(prompts, arguments.prompts)
    proxy, sample = train_proxy(work, texts), first_prompts(prompts, work, arguments.prompts)
    found = {"agreement": agreement(proxy, held_out), "gold": [], "settings": METHODS, "curves": {}}
    print(f"proxy: sides with gold on {found['agreement']:.3f} of held-out pairs; {time.monotonic() - began:.0f} s")
    for method, settings in METHODS.items():
        run = train_policy(recipe(method, settings, proxy, sample, arguments), work / method, resume=True).parents[2]
        found["curves"][method] = curve(run, arguments.iterations)
        print(table(method, found["curves"][method]), f"\n{time.monotonic() - began:.0f} s", flush=True)
    (work / "gold.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(found["curves"], work / "gold.png")


def answers_of_the_initial_policy(path, count):
    """Return responses by prompt: of prompts that are trained on, and of held-out ones."""
    policy = load_policy("builtin:mini-policy")
    found = []
    for split in ("train", "test"):
        prompts = render(read_prompts([path], split=split)[:count], policy.tokenizer, longest=400)
        each = [prompt for prompt in prompts for _ in range(LABELLED)]
        streams = [stream("labelled", prompt.id, number) for prompt in prompts for number in range(LABELLED)]
        rows = sample(policy, each, streams, Decoding(max_new_tokens=TOKENS))
        texts = [policy.tokenizer.decode(list(row.token_ids), skip_special_tokens=True) for row in rows]
        found.append({
            prompt.text: texts[place * LABELLED : (place + 1) * LABELLED] for place, prompt in enumerate(prompts)
        })  # fmt: skip
    return found


def train_proxy(work, answers):
    """Return the folder of a reward model that learnt from labels drawn from gold's probabilities."""
    folder, chance = work / "proxy", np.random.default_rng(0)
    rows = [
        {"prompt": prompt, "first": texts[one], "second": texts[two], "split": "train", "group": prompt,
         "strength": 1 if chance.random() < preferred(texts[one], texts[two]) else -1}
        for prompt, texts in answers.items() for one in range(LABELLED) for two in range(one)
        if texts[one] != texts[two]
    ]  # fmt: skip
    pairs = work / "labels.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not folder.exists():
        tables = {
            "model": {"kind": "bradley-terry", "max_length": 256},
            "backbone": {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128},
            "tokenizer": {"vocabulary_size": 1000},
            "data": {"train": [str(pairs)]},
            "training": {"epochs": 8, "learning_rate": 2e-3, "batch_responses": 24},
        }
        train_model(parse(Recipe, tables), folder)
    return folder


def agreement(proxy, answers):
    """Return the share of held-out pairs where proxy and gold prefer the same response."""
    model, same = load_model(proxy, device="cpu"), []
    for prompt, texts in answers.items():
        table = model.score(prompt, texts).probabilities
        for one in range(LABELLED):
            same += [(table[one, two] > 0.5) == (gold(texts[one]) > gold(texts[two])) for two in range(one)]
    return float(np.mean(same))


def first_prompts(path, folder, count):
    """Return a file with the first prompts of each split."""
    rows = [{"id": prompt.id, "prompt": prompt.content, "split": split}
            for split in ("train", "test") for prompt in read_prompts([path], split=split)[:count]]  # fmt: skip
    target = folder / "prompts.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def recipe(method, settings, proxy, path, arguments):
    return parse(PolicyRecipe, {
        "method": method,
        "policy": {"source": "builtin:mini-policy"},
        "data": {"prompts": [str(path)]},
        "oracle": {"serve": str(proxy)},
        "sampling": {"responses": 4, "max_new_tokens": TOKENS, "batch": 64, "unfinished": "keep"},
        "training": {"iterations": arguments.iterations, "pairs_per_step": 16, "pairs_per_pass": 16,
                     "learning_rate": 1e-3, "epochs": 1},
        "evaluation": {"prompts": [str(path)], "responses": 2},
        **settings,
    })  # fmt: skip


def curve(run, iterations):
    """Return one row per iterate: KL to the initial policy, win rate by proxy and by gold, with intervals."""
    initial = by_prompt(run / "evaluation-00" / "samples.parquet")
    rows = []
    for iteration in range(1, iterations + 1):
        found = read_json_file(run / f"iteration-{iteration:02d}" / "metrics.json")["evaluation"]
        mine = by_prompt(run / f"evaluation-{iteration:02d}" / "samples.parquet")
        answers = []
        for prompt_id, texts in mine.items():
            both = [*texts, *initial[prompt_id]]
            answers.append(Answer(prompt_id, np.array([[preferred(one, two) for two in both] for one in both]), None))
        lengths = {
            prompt_id: (
                float(np.mean([len(text) for text in texts])),
                float(np.mean(list(map(len, initial[prompt_id])))),
            )
            for prompt_id, texts in mine.items()
        }
        by_gold = win_rate(answers, lengths, responses=2, rule="mean-probability")
        rows.append({
            "iteration": iteration, "kl": found["kl_to_initial"], "kl_error": found["kl_error"],
            "proxy": found["oracle"]["win_rate"], "proxy_interval": found["oracle"]["interval"],
            "gold": by_gold["win_rate"], "gold_interval": by_gold["interval"],
            "characters": found["iterate"]["characters"],
            "words": float(np.mean([len(re.findall(r"\w+", text)) for texts in mine.values() for text in texts])),
        })  # fmt: skip
    return rows


def by_prompt(path):
    found = {}
    for row in read_rows(path, Response):
        found.setdefault(row.prompt_id, []).append(row.text)
    return found


def table(method, rows):
    lines = ["| | iteration | KL, nats | win rate, proxy | win rate, gold | words |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{row[name]:.3f} [{row[f'{name}_interval'][0]:.3f}, {row[f'{name}_interval'][1]:.3f}]"
                 for name in ("proxy", "gold")]  # fmt: skip
        name = method if row["iteration"] == 1 else ""
        lines.append(f"| {name} | {row['iteration']} | {row['kl']:.1f} | {' | '.join(cells)} | {row['words']:.1f} |")
    return "\n".join(lines)


def plot(curves, path):
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (method, rows) in zip(axes, curves.items(), strict=True):
        distance = [0.0, *(row["kl"] for row in rows)]
        for name, colour in (("proxy", "tab:blue"), ("gold", "tab:orange")):
            middle = [0.5, *(row[name] for row in rows)]
            ends = [[0.0, *(abs(row[name] - row[f"{name}_interval"][side]) for row in rows)] for side in (0, 1)]
            axis.errorbar(distance, middle, yerr=ends, marker="o", capsize=3, linewidth=1, label=name, color=colour)
            for row in rows:  # the distance may shrink again, so the order has to be told
                where = (row["kl"], row[name])
                axis.annotate(str(row["iteration"]), where, (5, 5), textcoords="offset points", fontsize=9)
        axis.axhline(0.5, color="grey", linewidth=0.8)
        axis.set_title(method.upper())
        axis.set_xlabel("KL to the initial policy, nats a response")
    axes[0].set_ylabel("win rate against the initial policy")
    axes[0].legend(loc="upper left")
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
