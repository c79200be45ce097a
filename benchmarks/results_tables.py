"""Means and intervals of what benchmarks/results.py ran, as Markdown tables.

A number is the mean over seeds of the pooled value over all held-out rows. Its interval redraws questions and seeds,
both with replacement (10,000 times, the same draws for every variant): differences between two variants are paired.
"""

import numpy as np

RESAMPLES = 10_000


class Draws:
    """Redrawn questions and seeds, as counts."""

    def __init__(self, clusters, seeds):
        draw = np.random.default_rng(0)
        self.clusters = np.stack(
            [np.bincount(draw.integers(0, clusters, clusters), minlength=clusters) for _ in range(RESAMPLES)]
        )
        self.seeds = np.stack([np.bincount(draw.integers(0, seeds, seeds), minlength=seeds) for _ in range(RESAMPLES)])

    def ratio(self, top, bottom):
        """Return the mean over seeds of sum(top) / sum(bottom), redrawn; both are [seeds, clusters]."""
        each = (self.clusters @ top.T) / (self.clusters @ bottom.T)  # [B, seeds]
        return (each * self.seeds).sum(axis=1) / self.seeds.sum(axis=1)


def tables(found):
    made = {}
    if found["losses"]:
        made["losses"] = preferences(found["losses"], "regular, from scratch")
        made["ratings"] = rating_errors(found["losses"])
    if found["vectors"]:
        made["vectors"] = preferences(found["vectors"], "regular, from scratch")
    if found["answers"]:
        made["answers"] = answers(found["answers"])
    made["cost"] = cost(found)
    return made


def columns(seeds):
    """Return what one variant said, as sums [seeds, questions], from {seed: folds}."""
    names = sorted({name for fold in next(iter(seeds.values())) for name in fold["question"]})
    index = {name: number for number, name in enumerate(names)}
    sums = {name: np.zeros((len(seeds), len(names))) for name in SUMS}
    for row, folds in enumerate(seeds.values()):
        for fold in folds:
            where = np.array([index[name] for name in fold["question"]])
            logit, strength = np.array(fold["logit"]), np.array(fold["strength"])
            right = np.where(logit == 0, 0.5, logit > 0)
            matched, longer = np.array(fold["matched"]), np.array(fold["length_right"])
            strong = strength >= 2
            values = {
                "pairs": np.ones_like(logit), "right": right, "gain": right - longer, "matched": matched,
                "matched_right": matched * right, "strong": strong, "strong_right": strong * right,
                "loss": np.logaddexp(0, -logit),
            }  # fmt: skip
            for name, value in values.items():
                sums[name][row] += np.bincount(where, value, len(names))
    return sums


SUMS = ("pairs", "right", "gain", "matched", "matched_right", "strong", "strong_right", "loss")
RATIOS = {
    "accuracy": ("right", "pairs"),
    "gain over the longer one": ("gain", "pairs"),
    "lengths matched": ("matched_right", "matched"),
    "strong pairs": ("strong_right", "strong"),
}


def preferences(results, reference):
    sums = {variant: columns(seeds) for variant, seeds in results.items()}
    least = min(len(table["pairs"]) for table in sums.values())
    sums = {variant: {name: rows[:least] for name, rows in table.items()} for variant, table in sums.items()}
    draws = Draws(next(iter(sums.values()))["pairs"].shape[1], least)
    lines = [
        f"| model | {' | '.join(RATIOS)} | nats | accuracy minus {reference} |",
        "|" + "---|" * (len(RATIOS) + 3),
    ]
    base = draws.ratio(sums[reference]["right"], sums[reference]["pairs"])
    first = np.mean(pooled(sums[reference], "right", "pairs"))
    for variant, table in sums.items():
        cells = []
        for top, bottom in RATIOS.values():
            sign = "+" if top == "gain" else ""
            cells.append(cell(pooled(table, top, bottom), draws.ratio(table[top], table[bottom]), sign=sign))
        cells.append(f"{np.mean(pooled(table, 'loss', 'pairs')):.3f}")
        if variant == reference:
            cells.append("")
        else:
            right = pooled(table, "right", "pairs")
            redrawn = draws.ratio(table["right"], table["pairs"]) - base
            text = cell(right, redrawn, value=np.mean(right) - first, sign="+")
            low, high = np.percentile(redrawn, [2.5, 97.5])
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    pairs = int(next(iter(sums.values()))["pairs"][0].sum())
    matched = int(next(iter(sums.values()))["matched"][0].sum())
    lines += ["", f"{pairs:,} decided pairs, {matched:,} of matched length; seeds: {least}."]
    return "\n".join(lines)


def pooled(table, top, bottom):
    """Return one value per seed."""
    return table[top].sum(axis=1) / table[bottom].sum(axis=1)


def cell(seeds, redrawn, *, value=None, sign=""):
    low, high = np.percentile(redrawn, [2.5, 97.5])
    mean = np.mean(seeds) if value is None else value
    return f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def rating_errors(results):
    """Root mean squared errors of the attributes, before the preference stage and after it."""
    rows = []
    for variant, seeds in results.items():
        folds = [fold for folds in seeds.values() for fold in folds if "errors" in fold]
        if not folds:
            continue
        cells = []
        for name in folds[0]["errors"]:
            for part in ("constant", "errors_before", "errors"):
                values = [[fold[part][name] for fold in folds if part in fold] for folds in seeds.values()]
                each = [np.sqrt(np.mean(np.square(row))) for row in values if row]
                cells.append(f"{np.mean(each):.3f} ({min(each):.3f}–{max(each):.3f})" if each else "")
        rows.append(f"| {variant} | {' | '.join(cells)} |")
    names = list(next(fold for folds in results["regression"].values() for fold in folds)["errors"])
    head = " | ".join(f"{name}: constant | before | after" for name in names)
    return "\n".join([f"| model | {head} |", "|" + "---|" * (1 + 3 * len(names)), *rows])


def answers(results):
    lines = ["| picks | regret | picked a best one | Kendall τ | pair accuracy |", "|---|---|---|---|---|"]
    first = next(iter(results.values()))
    for who in ("random", "longest"):
        tau = group_cell(first, "longest_tau") if who == "longest" else ""
        row = f"| {who} | {group_cell(first, f'{who}_regret')} | {group_cell(first, f'{who}_top_one')} | {tau} | |"
        lines.append(row)
    for variant, seeds in results.items():
        right = [[np.mean(np.array(fold["logit"]) > 0) for fold in folds] for folds in seeds.values()]
        lines.append(
            f"| {variant} | {group_cell(seeds, 'model_regret')} | {group_cell(seeds, 'model_top_one')} | "
            f"{group_cell(seeds, 'model_tau')} | {np.mean(right):.4f} |"
        )
    groups = sum(len(fold["groups"]["model_regret"]) for fold in next(iter(first.values())))
    return "\n".join([*lines, "", f"{groups} groups; seeds: {len(first)}."])


def group_cell(seeds, name):
    """Mean over groups and seeds; the interval redraws groups, each with all its seeds, and seeds."""
    table = np.array(
        [[np.nan if v is None else v for fold in folds for v in fold["groups"][name]] for folds in seeds.values()],
        dtype=float,
    )
    known = np.isfinite(table)
    draws = Draws(table.shape[1], table.shape[0])
    redrawn = draws.ratio(np.where(known, table, 0), known.astype(float))
    return cell(np.nanmean(table, axis=1), redrawn)


def cost(found):
    """CPU seconds, by table."""
    lines = ["| table | models trained | CPU minutes |", "|---|---|---|"]
    for name, results in found.items():
        if not results:
            continue
        seconds = [fold["cpu_seconds"] for seeds in results.values() for folds in seeds.values() for fold in folds]
        lines.append(f"| {name} | {len(seconds)} | {sum(seconds) / 60:.0f} |")
    return "\n".join(lines)
