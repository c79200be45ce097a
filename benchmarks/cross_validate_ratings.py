"""Cross-validate the built-in models that rate: each of the 13 questions is held out in turn, through both stages.

    R=training/recipes
    python benchmarks/cross_validate_ratings.py $R/mini-regression.toml $R/mini-helpsteer.toml --data FOLDER \\
        --work runs/cv-ratings

Every fold trains its own tokenizer, teacher, regression and helpsteer model without a word of the held-out question;
rows of both splits are used. Folds are resumable: one JSON file each in --work; delete them after changing a recipe.
Prints a table, writes --work/summary.json. R2 is one minus the model's squared error over that of the constant, the
mean rating of the other questions. Intervals are bootstrap percentiles over questions (whole questions are redrawn).
"""

import argparse
import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from texts import add_data, corpora

from paragone_evaluation.readers import read_pairs, read_ratings
from paragone_models.files.saving import save_model
from paragone_training.preference.card import Rows
from paragone_training.preference.recipe import load_recipe
from paragone_training.preference.train_model import fit
from paragone_training.scratch.sections import TokenizerSection

RESAMPLES = 10_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regression", type=Path)
    parser.add_argument("helpsteer", type=Path)
    add_data(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the folds' results")
    parser.add_argument("--questions", help="comma-separated numbers of questions; all unless given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    data = corpora(arguments.data)
    first, second = (load_recipe(path, data=data) for path in (arguments.regression, arguments.helpsteer))
    first = first.model_copy(update={"tokenizer": TokenizerSection()})
    pairs = read_pairs(*first.data.train)
    ratings = read_ratings(*first.data.ratings)
    questions = sorted({pair.question for pair in pairs})
    numbers = arguments.questions.split(",") if arguments.questions else range(len(questions))
    arguments.work.mkdir(parents=True, exist_ok=True)
    folds = []
    for number in map(int, numbers):
        path = arguments.work / f"fold-{number:02d}.json"
        if not path.is_file():
            rows = held_out(pairs, ratings, questions[number])
            path.write_text(json.dumps(run_fold(first, second, rows, questions[number], arguments.work)))
        folds.append(json.loads(path.read_text()))
    summary = summarise(folds, first.model.attributes)
    (arguments.work / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(summary)


def held_out(pairs, ratings, question):
    return Rows(
        [pair for pair in pairs if pair.question != question],
        [rating for rating in ratings if rating.group.split("_")[0] != question],
        [pair for pair in pairs if pair.question == question and pair.strength],
        [rating for rating in ratings if rating.group.split("_")[0] == question],
    )


def run_fold(first, second, rows, question, work):
    cpu, scratch = time.process_time(), work / f"scratch-{question}"
    shutil.rmtree(scratch, ignore_errors=True)
    regression = fit(first, rows, scratch / "first")
    model = regression.model
    save_model(scratch / "start", model.network, model.spec, model.tokenizer)
    second = second.model_copy(update={"model": second.model.model_copy(update={"start": str(scratch / "start")})})
    helpsteer = fit(second, rows, scratch / "second")
    shutil.rmtree(scratch, ignore_errors=True)
    result = {
        "question": question,
        "constant": constant(rows, first.model.attributes),
        "rated": regression.after.errors.rated,
        "weights": regression.merging.weights,
        "length_right": regression.judged.length_right.tolist(),
        "matched": regression.judged.matched.tolist(),
        "cpu_seconds": time.process_time() - cpu,
    }
    for name, outcome in (("regression", regression), ("helpsteer", helpsteer)):
        judged = outcome.judged
        found = {"error": outcome.after.errors.error, "right": judged.right.tolist(), "logit": judged.logit.tolist()}
        result[name] = found
        logging.info("%s: %s, errors %s, accuracy %.4f", question, name, found["error"], np.mean(judged.right))
    return result


def constant(rows, attributes):
    """Errors of the other questions' mean rating on the held-out question."""
    errors = []
    for name in attributes:
        known, wanted = (
            np.array([rating.ratings[name] for rating in some if name in rating.ratings])
            for some in (rows.ratings, rows.held_out_ratings)
        )
        errors.append(float(np.sqrt(np.square(wanted - known.mean()).mean())))
    return errors


def summarise(folds, attributes):
    draws = np.random.default_rng(0).integers(0, len(folds), (RESAMPLES, len(folds)))

    def pooled(top, bottom, shape=lambda ratio: ratio):
        top, bottom = np.array(top, dtype=float), np.array(bottom, dtype=float)
        low, high = np.percentile(shape(top[draws].sum(axis=1) / bottom[draws].sum(axis=1)), [2.5, 97.5])
        return {"mean": float(shape(top.sum() / bottom.sum())), "low": float(low), "high": float(high)}

    pairs = [len(fold["matched"]) for fold in folds]
    longer = [sum(fold["length_right"]) for fold in folds]
    summary = {"pairs": sum(pairs), "length_accuracy": pooled(longer, pairs)}
    summary["matched_pairs"] = int(sum(map(sum, (fold["matched"] for fold in folds))))
    summary["cpu_seconds"] = sum(fold["cpu_seconds"] for fold in folds)
    for name in ("regression", "helpsteer"):
        right = [sum(fold[name]["right"]) for fold in folds]
        matched = [np.dot(fold[name]["right"], fold["matched"]) for fold in folds]
        nll = [np.logaddexp(0, -np.array(fold[name]["logit"])).sum() for fold in folds]
        found = {
            "accuracy": pooled(right, pairs),
            "gain": pooled(np.subtract(right, longer), pairs),
            "matched_accuracy": pooled(matched, [sum(fold["matched"]) for fold in folds]),
            "negative_log_likelihood": pooled(nll, pairs),
        }
        for number, attribute in enumerate(attributes):
            rated = [fold["rated"][number] for fold in folds]
            model, mean = (
                [count * error**2 for count, error in zip(rated, errors, strict=True)]
                for errors in (
                    [fold[name]["error"][number] for fold in folds],
                    [fold["constant"][number] for fold in folds],
                )
            )
            found[f"{attribute}_error"] = pooled(model, rated, np.sqrt)
            found[f"{attribute}_constant_error"] = pooled(mean, rated, np.sqrt)
            found[f"{attribute}_r2"] = pooled(model, mean, lambda ratio: 1 - ratio)
        summary[name] = found
    return summary


def show(summary):
    print(
        f"{summary['pairs']} pairs, {summary['matched_pairs']} length-matched; {summary['cpu_seconds']:.0f} CPU seconds"
    )
    rows = [("longer one: accuracy", summary["length_accuracy"])]
    for name in ("regression", "helpsteer"):
        rows += [(f"{name}: {measure.replace('_', ' ')}", value) for measure, value in summary[name].items()]
    for label, value in rows:
        print(f"{label:<42} {value['mean']:+.4f}  [{value['low']:+.4f}, {value['high']:+.4f}]")


if __name__ == "__main__":
    main()
