"""Cross-validate a recipe by question: each of the 13 questions is held out in turn, rows of both splits are used.

    python benchmarks/cross_validate.py training/recipes/mini-bradley-terry.toml --data FOLDER --work runs/cv

With --head, what is cross-validated is `paragone train head` of the recipe: each fold chooses its own penalties.
Every fold trains its own tokenizer, teacher and network without a word of the held-out question. Folds are resumable:
one JSON file each in --work; a fold whose file is there is not run again. Prints a table, writes --work/summary.json.
Intervals are bootstrap percentiles over questions (whole questions are redrawn).
"""

import argparse
import hashlib
import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from texts import add_data, corpora

from paragone_evaluation.readers import read_pairs, read_ratings
from paragone_models.files.loading import load_backbone
from paragone_training.preference.card import Rows
from paragone_training.preference.head_fit import fit_to_rows
from paragone_training.preference.recipe import load_recipe
from paragone_training.preference.train_model import fit

RESAMPLES = 10_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    add_data(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the folds' results")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--head", action="store_true", help="fit heads to the recipe's frozen backbone")
    parser.add_argument("--questions", help="comma-separated numbers of questions; all unless given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    recipe = load_recipe(arguments.recipe, arguments.set, data=corpora(arguments.data))
    rows = read_pairs(*recipe.data.train)
    questions = sorted({pair.question for pair in rows})
    numbers = arguments.questions.split(",") if arguments.questions else range(len(questions))
    arguments.work.mkdir(parents=True, exist_ok=True)
    key = recipe_key(recipe)
    fold_of = head_fold(recipe) if arguments.head else run_fold
    folds = []
    for number in map(int, numbers):
        path = arguments.work / f"fold-{number:02d}.json"
        if not path.is_file() or json.loads(path.read_text())["recipe"] != key:
            path.write_text(json.dumps({"recipe": key, **fold_of(recipe, rows, questions[number], arguments.work)}))
        folds.append(json.loads(path.read_text()))
    summary = summarise(folds)
    (arguments.work / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(summary)


def recipe_key(recipe):
    """A fold counts for the recipe that it was run with, wherever that writes to."""
    settled = recipe.model_dump(mode="json") | {"output": None}
    settled["training"] = settled["training"] | {"log_steps": None}
    settled["data"] = settled["data"] | {"train": [Path(name).name for name in recipe.data.train]}
    return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:16]


def run_fold(recipe, rows, question, work):
    started, cpu = time.monotonic(), time.process_time()
    scratch = work / f"scratch-{question}"
    shutil.rmtree(scratch, ignore_errors=True)
    judged = fit(recipe, split_rows(rows, question), scratch).judged
    shutil.rmtree(scratch, ignore_errors=True)
    return result_of(judged, question, started, cpu)


def head_fold(recipe):
    """Return what fits one fold's head; the backbone is loaded once, and its states are kept in the recipe's folder."""
    backbone = load_backbone(recipe.backbone.source, revision=recipe.backbone.revision, dtype=recipe.head.dtype)
    ratings = read_ratings(*recipe.data.ratings) if recipe.data.ratings else []

    def run(recipe, rows, question, work):
        started, cpu = time.monotonic(), time.process_time()
        rated = [rating for rating in ratings if rating.group.partition("_")[0] != question]
        split = replace(split_rows(rows, question), ratings=rated)
        outcome = fit_to_rows(recipe, split, Path(recipe.head.states or work / "states"), backbone)
        return result_of(outcome.after.judged, question, started, cpu)

    return run


def split_rows(rows, question):
    train = [replace(pair, split="train") for pair in rows if pair.question != question]
    return Rows(train, held_out_pairs=[pair for pair in rows if pair.question == question and pair.strength])


def result_of(judged, question, started, cpu):
    result = {
        "question": question,
        "right": judged.right.tolist(),
        "length_right": judged.length_right.tolist(),
        "matched": judged.matched.tolist(),
        "logit": judged.logit.tolist(),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
    }
    logging.info("%s: %.4f, longer %.4f", question, np.mean(judged.right), np.mean(judged.length_right))
    return result


def summarise(folds):
    """Pooled means with intervals; ``gain`` is accuracy minus that of preferring the longer response."""
    draws = np.random.default_rng(0).integers(0, len(folds), (RESAMPLES, len(folds)))
    pairs = np.array([len(fold["right"]) for fold in folds])
    right = np.array([np.sum(fold["right"]) for fold in folds])
    longer = np.array([np.sum(fold["length_right"]) for fold in folds])
    matched = np.array([np.sum(fold["matched"]) for fold in folds])
    matched_right = np.array([np.dot(fold["right"], fold["matched"]) for fold in folds])
    loss = np.array([np.logaddexp(0, -np.array(fold["logit"])).sum() for fold in folds])

    def pooled(top, bottom):
        redrawn = top[draws].sum(axis=1) / bottom[draws].sum(axis=1)
        low, high = np.percentile(redrawn, [2.5, 97.5])
        return {"mean": top.sum() / bottom.sum(), "low": low, "high": high}

    return {
        "pairs": int(pairs.sum()),
        "matched_pairs": int(matched.sum()),
        "accuracy": pooled(right, pairs),
        "length_accuracy": pooled(longer, pairs),
        "gain": pooled(right - longer, pairs),
        "matched_accuracy": pooled(matched_right, matched),
        "negative_log_likelihood": pooled(loss, pairs),
        "cpu_seconds": sum(fold["cpu_seconds"] for fold in folds),
        "questions": [
            {
                "question": fold["question"],
                "pairs": len(fold["right"]),
                "accuracy": float(np.mean(fold["right"])),
                "length_accuracy": float(np.mean(fold["length_right"])),
            }
            for fold in folds
        ],
    }


def show(summary):
    print(f"{'question':<90} pairs  model  longer   gain")
    for row in summary["questions"]:
        gain = row["accuracy"] - row["length_accuracy"]
        name, numbers = row["question"], f"{row['accuracy']:.3f}   {row['length_accuracy']:.3f}"
        print(f"{name:<90} {row['pairs']:5d}  {numbers}  {gain:+.3f}")
    for name in ("accuracy", "length_accuracy", "gain", "matched_accuracy", "negative_log_likelihood"):
        value = summary[name]
        print(f"{name:<24} {value['mean']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]")
    print(
        f"{summary['pairs']} pairs, {summary['matched_pairs']} length-matched; {summary['cpu_seconds']:.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
