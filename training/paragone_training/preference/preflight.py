"""What is checked before a run's first step: that it can learn, and that it is the run whose checkpoints are there.

A run that learns nothing ends with a model all the same, and one that goes on from another run's checkpoint is neither
of the two. Both are refused while nothing is lost.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState

from paragone_evaluation.readers import Pair, Rating
from paragone_models.files.hashes import weights_hash
from paragone_models.files.sources import resolve
from paragone_models.kinds import KINDS
from paragone_training.data import PromptGroup, batches_of_epoch
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.recipe import Recipe
from paragone_training.trainer import warmup_steps

__all__ = ["RunDescription", "check_learnable", "optimiser_steps"]

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"
# What a run may be resumed with although it differs: it changes no step that was taken.
_FREE = {
    "training.checkpoints",
    "training.epochs",
    "training.gradient_checkpointing",
    "training.log_steps",
    "training.save_steps",
}
_UNCOMPARED = {"data", "output"}  # rows are compared, and not where they lie


def check_learnable(recipe: Recipe, groups: Sequence[PromptGroup]) -> None:
    """Refuse a run at whose end the model would be the one it began with.

    Args:
        groups: of the training rows.

    Raises:
        DataError: if no pair is decided, no response is rated, all have one rating, or a teacher's probabilities are
            none.
        RecipeError: if the warm-up is longer than the run.
    """
    kind, attributes = KINDS[recipe.model.kind], recipe.model.attributes
    if kind.learns_pairs and not any(label.strength for group in groups for label in group.labels):
        raise DataError(
            f"data.train has nothing to learn from: none of the pairs has two different responses of which one is "
            f"preferred ({', '.join(Path(name).name for name in recipe.data.train)})"
        )
    if recipe.loss.distils and {abs(label.strength) for group in groups for label in group.labels} == {1.0}:
        raise DataError(
            "loss.name 'distil' learns a teacher's probabilities, and every strength is 1, which says only who won: "
            "ask the teacher by `paragone annotate --answers tables` (or preferences), or take 'regular'"
        )
    for number, name in enumerate(attributes):
        values = {row[number] for group in groups for row in group.ratings if not math.isnan(row[number])}
        if len(values) < 2:
            found = f"is {values.pop():g} in every row" if values else "is in no row"
            raise DataError(
                f"data.ratings has nothing to learn {name} from: it {found}. Take it out of model.attributes"
            )
    warmup_steps(recipe.training.warmup_steps, steps=optimiser_steps(recipe, groups))


def optimiser_steps(recipe: Recipe, groups: Sequence[PromptGroup]) -> int:
    """Return the optimiser steps of a run, on this number of processes."""
    training = recipe.training
    batches = batches_of_epoch([len(group.responses) for group in groups], training.batch_responses)
    an_epoch = math.ceil(batches / int(PartialState().num_processes))
    return training.epochs * math.ceil(an_epoch / training.accumulation)


@dataclass(frozen=True)
class RunDescription:
    """What a run is, by dotted names: its settings, and what its rows and the model it starts from contain."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, pairs: Sequence[Pair], ratings: Sequence[Rating]) -> Self:
        """Return the description of a run that is trained on these pairs and ratings."""
        values: dict[str, Any] = {}
        for section, settings in recipe.model_dump(mode="json").items():
            if section in _UNCOMPARED:
                continue
            if isinstance(settings, dict):
                values |= {f"{section}.{key}": value for key, value in settings.items()}
            else:
                values[section] = settings
        values["data.pairs"], values["data.ratings"] = _digest(pairs), _digest(ratings)
        if source := recipe.model.start or recipe.backbone.source:
            revision = None if recipe.model.start else recipe.backbone.revision
            values["weights of the start"] = weights_hash([resolve(source, revision)])
        return cls(values)

    def check_same(self, work: Path) -> None:
        """Refuse to go on from the checkpoints of another run.

        Raises:
            RecipeError: if the folder holds another run; every difference is named.
        """
        path = work / _RUN_FILE
        if path.is_file():
            _compare(json.loads(path.read_bytes()), self.values, work)
        elif any(work.glob("checkpoint-*")):
            raise RecipeError(
                f"{work} has checkpoints and no {_RUN_FILE}: nothing says of which run. Choose another --output"
            )

    def write(self, work: Path) -> None:
        """Write the description into the folder of checkpoints; the main process alone does."""
        if PartialState().is_main_process:
            # Whole or not at all: another process may be reading it.
            fresh = work / f"{_RUN_FILE}.new"
            fresh.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            fresh.replace(work / _RUN_FILE)


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], work: Path) -> None:
    differing = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    told = [f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in differing]
    if other := [words for name, words in zip(differing, told, strict=True) if name not in _FREE]:
        raise RecipeError(
            f"{work} holds another run: {'; '.join(other)}. Resume with what it began with, or choose another --output"
        )
    for words in told:
        logger.warning("resumed with another setting: %s", words)


def _digest(rows: Iterable[Any]) -> str:
    # Where a row stands is left out: a file may be moved between two halves of a run.
    total, count = hashlib.sha256(), 0
    for row in rows:
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "where"}
        total.update(json.dumps(values, sort_keys=True, default=str).encode())
        count += 1
    return f"{count} rows, sha256 {total.hexdigest()[:16]}"
