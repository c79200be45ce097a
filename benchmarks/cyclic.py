"""Cyclic preferences: a scalar model cannot exceed (n - 1) / n, a general preference model can reach all of them.

    python benchmarks/cyclic.py                                     # synthetic cycles of 3, 4 and 5 responses
    python benchmarks/cyclic.py --lengths 3 --seeds 2               # less of it
    python benchmarks/cyclic.py --people 8 --data FOLDER --lexical 100 --epochs 80      # cycles in people's votes
    python benchmarks/cyclic.py --ratings ultrafeedback.jsonl --criteria honesty truthfulness helpfulness
    python benchmarks/cyclic.py --ratings FOLDER/convincing_ratings.jsonl \\
        --criteria convincingness convincingness verbosity --limit 8

As in the paper, models are trained and tested on the same preferences: the question is what they can express. Decoders
are tiny, from random weights, and trained from text to preference with the code that trains every model here; with
--lexical they first learn to tell words and length, without any label. One step is one epoch. A row is the mean over
seeds, and the least and the largest.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from cycles import (
    Cycle,
    cycle_pairs,
    cycles_from_ratings,
    disjoint_cycles,
    human_cycles,
    scalar_ceiling,
    synthetic_cycles,
    vector_floor,
)
from texts import add_data, corpus

from paragone_evaluation.readers import read_pairs, read_ratings
from paragone_models.text.reader import TextReader
from paragone_training.data import group_pairs, read_groups
from paragone_training.preference.agreement import Summary, judge
from paragone_training.preference.card import Rows
from paragone_training.preference.objective import Objective
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import fit
from paragone_training.settings import parse

MODELS: dict[str, dict[str, object]] = {
    "bradley-terry": {"kind": "bradley-terry"},
    "general preference, d = 2": {"kind": "general-preference", "dimension": 2, "normalise": False},
    "general preference, d = 4": {"kind": "general-preference", "dimension": 4, "normalise": False},
    "general preference, d = 4, gate": {
        "kind": "general-preference",
        "dimension": 4,
        "gate": True,
        "normalise": False,
    },
    "hybrid, d = 1 + 2": {"kind": "hybrid", "dimension": 3, "normalise": False},
    "general preference, d = 2, L2": {"kind": "general-preference", "dimension": 2},
    "general preference, d = 4, L2": {"kind": "general-preference", "dimension": 4},
    "hybrid, d = 1 + 2, L2": {"kind": "hybrid", "dimension": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[3, 4, 5], help="responses of a synthetic cycle")
    parser.add_argument("--prompts", type=int, default=4, help="synthetic cycles")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lexical", type=int, default=0, help="steps of a start without labels")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--people", type=int, help="so many disjoint cycles from people's votes in place of synthetic")
    add_data(parser, otherwise="needed by --people alone")
    parser.add_argument("--ratings", type=Path, help="rows rated by several criteria in place of synthetic cycles")
    parser.add_argument("--criteria", nargs="+", default=["honesty", "truthfulness", "helpfulness"])
    parser.add_argument("--limit", type=int, help="only the first so many cycles of --ratings")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    if arguments.ratings:
        found = cycles_from_ratings(read_ratings(arguments.ratings), arguments.criteria)
        print(f"{arguments.ratings.name}: {len(found)} disjoint cycles of {' > '.join(arguments.criteria)}")
        sets = [found[: arguments.limit]]
    elif arguments.people:
        sets = [votes(corpus(arguments.data, "convincing_pairs"), arguments.people)]
    else:
        sets = [synthetic_cycles(arguments.prompts, length=length) for length in arguments.lengths]
    for cycles in sets:
        if not cycles:
            parser.error("there is no cycle to train on")
        settings = {
            "epochs": arguments.epochs,
            "learning_rate": arguments.learning_rate,
            "lexical": arguments.lexical,
        }
        compare(cycles, arguments.models, arguments.seeds, settings)


def votes(path: Path, number: int) -> list[Cycle]:
    """Return the first cycles in people's votes that share no response."""
    people = human_cycles(read_pairs(path))
    print(
        f"people's votes: {len(people.cycles)} of {people.triangles} closed triangles are cyclic ({people.share:.1%}), "
        f"{people.certain} of them without a weak preference; some of them are noise, at five votes a pair"
    )
    return disjoint_cycles(people.cycles)[:number]


def compare(cycles: Sequence[Cycle], models: Iterable[str], seeds: int, settings: dict[str, Any]) -> None:
    """Train every model on the cycles with every seed, and print a table."""
    length = len(cycles[0].responses)
    longest = max(len(cycle.prompt) + len(text) for cycle in cycles for text in cycle.responses)
    print(f"\n{len(cycles)} cycles of {length}: a scalar reaches {scalar_ceiling(length):.3f} at most")
    print("| model | accuracy | loss in nats | least loss possible |\n|---|---|---|---|", flush=True)
    for name in models:
        results = [train(name, cycles, seed, longest, **settings) for seed in range(seeds)]
        accuracy = spread([result.accuracy for result in results], 3)
        loss = spread([result.negative_log_likelihood for result in results], 5)
        print(f"| {name} | {accuracy} | {loss} | {least_loss(name, length)} |", flush=True)


def train(
    name: str, cycles: Sequence[Cycle], seed: int, longest: int, *, epochs: int, learning_rate: float, lexical: int
) -> Summary:
    """Train one model and return what it says about the same preferences."""
    pairs = cycle_pairs(cycles)
    start = {"lexical": {"steps": lexical, "coordinates": 16}} if lexical else {}
    # A token is a character at least. Words and length are told from the mean.
    model = {**MODELS[name], "max_length": 64 + longest, "pooling": "mean" if lexical else "last"}
    recipe = parse(
        Recipe,
        {
            **start,
            "model": model,
            "backbone": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64},
            "tokenizer": {"vocabulary_size": 400},
            "data": {"train": ["in memory"]},
            "training": {
                "epochs": epochs,
                "learning_rate": learning_rate,
                "batch_responses": max(2, sum(len(cycle.responses) for cycle in cycles)),
                "schedule": "cosine",
                "log_steps": epochs,
                "seed": seed,
            },
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        model = fit(recipe, Rows(pairs), Path(folder)).model
    groups = group_pairs(pairs)
    readings = read_groups(groups, TextReader(model.tokenizer, model.spec))
    objective = Objective(model.spec.kind, model.spec.temperature)
    return judge(model.network, objective, groups, readings, budget=64, pad_id=model.pad_id).summary()


def least_loss(name: str, length: int) -> str:
    """Return the least loss of a cycle; vectors and rewards without normalisation have no bound but 0."""
    if name == "bradley-terry":
        return "0.69315"  # -log sigmoid is convex, and the differences sum to 0
    return f"{vector_floor(length):.5f}" if name.endswith("L2") else "0"


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean and range in words."""
    return f"{statistics.fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


if __name__ == "__main__":
    main()
