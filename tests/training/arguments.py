"""Small made-up data and recipes for the tests of training."""

import json
from pathlib import Path
from typing import Any

from paragone_evaluation.readers import Pair
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import train_model
from paragone_training.settings import parse

GOOD = ["because studies show that it saves money", "since every school that tried it kept it", "for a clear reason"]
BAD = ["lol no", "whatever", "u are dumb"]


def pairs(prompts: int = 3, *, split: str | None = "train") -> list[Pair]:
    """Pairs where the reasoned answer wins; every answer meets every other, so groups have six responses."""
    rows = []
    for number in range(prompts):
        prompt = f"Should school {number} teach chess?"
        for good in GOOD:
            for index, bad in enumerate(BAD):
                first, second = (good, bad) if index % 2 else (bad, good)
                strength = (1.0 + index) * (1 if index % 2 else -1)
                rows.append(
                    Pair(
                        prompt,
                        f"{first} {number}",
                        f"{second} {number}",
                        strength,
                        split=split,
                        group=f"q{number}_yes",
                        file="pairs.jsonl",
                        line=number,
                    )
                )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "prompt": "p", "first": "a", "second": "b", "strength": 1, **changes}


def recipe(**sections: dict[str, Any]) -> Recipe:
    """A network that a test can train in a second."""
    tables: dict[str, Any] = {
        "model": {"kind": "bradley-terry", "max_length": 128},
        "backbone": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32},
        "tokenizer": {"vocabulary_size": 320},
        "data": {"train": ["pairs.jsonl"]},
        "training": {"epochs": 2, "learning_rate": 1e-2, "batch_responses": 6, "log_steps": 1},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return parse(Recipe, tables)


def small_run(folder: Path, *, epochs: int = 3) -> Path:
    """Train a model for a few steps, a line of progress for each, and return the folder of the run."""
    rows = [
        {"id": str(number), "group": one.group, "prompt": one.prompt, "first": one.first, "second": one.second,
         "strength": one.strength, "split": one.split}
        for number, one in enumerate([*pairs(2), *pairs(1, split="test")])
    ]  # fmt: skip
    training = {"epochs": epochs, "batch_responses": 6, "log_steps": 1}
    file = write(folder / "pairs.jsonl", rows)
    return train_model(recipe(data={"train": [str(file)]}, training=training), folder / "judge")
