"""What bfloat16 and batching change in the logits of a trained model, on held-out texts.

Scores the test pairs of the shipped set, or of the argument data in --data, with a built-in model: in float32 one
response at a time, which is the reference; then in float32 and bfloat16 in batches of several compositions. Says the
99th percentile of the change of a pair's logit, Kendall's tau of the rewards, and the largest change that batch
composition alone makes.

    python benchmarks/engine_accuracy.py [--model builtin:mini-bradley-terry] [--pairs 200] [--data FOLDER]

Takes about 3 minutes on two cores without fast bfloat16.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from texts import add_data, pair_rows

from paragone_models import load_model
from paragone_models.text.reader import conversation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:mini-bradley-terry")
    parser.add_argument("--pairs", type=int, default=200)
    add_data(parser, otherwise="the shipped set without it")
    arguments = parser.parse_args()
    rows = test_rows(arguments.data, arguments.pairs)
    exact = load_model(arguments.model, dtype="float32", device="cpu", prompt_cache_bytes=0)
    reference = rewards(exact, rows, order=None)
    print(f"{exact.name}, {len(rows)} test pairs, logits from {differences(reference).min():.2f} to "
          f"{differences(reference).max():.2f}")  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        model = load_model(arguments.model, dtype=dtype, device="cpu", prompt_cache_bytes=0)
        runs = [rewards(model, rows, order=None), *(rewards(model, rows, order=seed) for seed in range(3))]
        change = np.abs(differences(runs[1]) - differences(reference))
        spread = np.ptp([differences(run) for run in runs], axis=0)
        tau = kendalltau(runs[1].ravel(), reference.ravel()).statistic
        print(
            f"{dtype}: |change of a logit| 99th percentile {np.quantile(change, 0.99):.1e}, "
            f"largest {change.max():.1e}; tau {tau:.5f}; by batch composition at most {spread.max():.1e}",
            flush=True,
        )


def test_rows(data: Path | None, count: int) -> list[dict[str, str]]:
    rows = [row for row in pair_rows(data) if row["split"] == "test"]
    random.Random(0).shuffle(rows)  # noqa: S311
    return rows[:count]


def rewards(model, rows, *, order: int | None) -> np.ndarray:
    """Return the rewards of both responses of every row, one at a time or in shuffled batches of 32. [n, 2]"""
    readings = model.reader.read(
        [conversation(row["prompt"], row[side]) for row in rows for side in ("first", "second")]
    )
    items = [reading.item for reading in readings]
    ranks = list(range(len(items)))
    if order is not None:
        random.Random(order).shuffle(ranks)  # noqa: S311
    size = 1 if order is None else 32
    values = np.empty(len(items))
    for start in range(0, len(ranks), size):
        chosen = ranks[start : start + size]
        hidden = model.encode([items[rank] for rank in chosen])
        values[chosen] = model.comparator.rewards(model.represent(hidden).numpy())
    return values.reshape(-1, 2)


def differences(values: np.ndarray) -> np.ndarray:
    return values[:, 0] - values[:, 1]


if __name__ == "__main__":
    main()
