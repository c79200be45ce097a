"""Load a model in this process, ask it, and store a fitted temperature with it.

It and ``verification.reference`` are the modules of this package that need torch (``pip install 'paragone[models]'``);
the commands import them only where a model is to be loaded.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone_evaluation.errors import CalibrationError, EvaluationError
from paragone_evaluation.readers.rows import DataRow
from paragone_evaluation.scorers import (
    ModelCard,
    PairAnswer,
    PairQuestion,
    RatingAnswer,
    Refusal,
    ResponseQuestion,
)
from paragone_models import PreferenceModel, load_model
from paragone_models.errors import PreferencesUnavailableError, TextError
from paragone_models.files.families.own import SPEC_FILE
from paragone_models.files.saving import save_model
from paragone_models.files.weight_bars import hide_weight_bars
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import conversation

__all__ = ["LocalScorer", "RowReader", "load_row_reader", "load_scorer", "store_temperature"]


_READING = ("bos", "special_tokens", "reasoning", "max_length", "weights")
_SPEC_FIELDS = ("temperature", "calibrated", "attributes", "domain", "demonstration")


class LocalScorer:
    """Asks a model in this process; every response goes through it once.

    Raises:
        EvaluationError: if the model has no tokenizer.
    """

    # A few batches: enough to fill the device, and little to ask again after an interruption.
    questions_per_call = 256

    def __init__(self, model: PreferenceModel) -> None:
        if model.reader is None:
            raise EvaluationError(
                f"{model.provenance.source} has no tokenizer files: it cannot read the texts of an evaluation"
            )
        self.model = model
        self.reader = model.reader
        # By prompt and response: a response occurs in many pairs, and its representation in none of them differs.
        self._known: dict[tuple[str, str], NDArray[np.float32] | Refusal] = {}
        spec, provenance = model.spec, model.provenance
        self.card = ModelCard.of_kind(
            model.kind,
            spec.weights,
            name=model.name,
            source=provenance.source,
            where="this process",
            identity=model.identity,
            fingerprint=model.fingerprint,
            pairwise=False,
            revision=provenance.revision,
            numerics=provenance.numerics,
            **{name: getattr(spec, name) for name in _SPEC_FIELDS},
        )

    def rate(self, items: Sequence[ResponseQuestion]) -> list[RatingAnswer | Refusal]:
        """Return a reward for each response, or why there is none."""
        ratings: list[RatingAnswer | Refusal] = []
        for representation in self._represent(items):
            if isinstance(representation, Refusal):
                ratings.append(representation)
                continue
            rewards = self.model.comparator.rewards(representation[None])
            if rewards is None and self.card.compares:
                raise PreferencesUnavailableError(f"a {self.card.kind} model has no rewards: compare instead")
            values = self.model.comparator.attribute_values(representation)
            reward = None if rewards is None else float(rewards[0])
            ratings.append(RatingAnswer(reward, dict(zip(self.card.attributes, map(float, values), strict=True))))
        return ratings

    def compare(self, pairs: Sequence[PairQuestion]) -> list[PairAnswer | Refusal]:
        """Return the log-odds of each pair, or why there are none."""
        # Both sides in one list, side by side: all of them go through the model in as few passes as fit.
        sides = [
            ResponseQuestion(pair.prompt, pair.tools, text) for pair in pairs for text in (pair.first, pair.second)
        ]
        represented = self._represent(sides)
        comparisons: list[PairAnswer | Refusal] = []
        for first, second in zip(represented[::2], represented[1::2], strict=True):
            if isinstance(first, Refusal):
                comparisons.append(first)
            elif isinstance(second, Refusal):
                comparisons.append(second)
            else:
                comparisons.append(PairAnswer(float(self.model.comparator.logit(first, second))))
        return comparisons

    def _represent(self, items: Sequence[ResponseQuestion]) -> list[NDArray[np.float32] | Refusal]:
        # By repr: messages are dictionaries, which cannot be keys.
        keys = [(repr((item.prompt, item.tools)), repr(item.response)) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        readings = self.reader.read([conversation(item.prompt, item.response, item.tools) for item in new.values()])
        # What the model cannot read is refused alone; the rest of the batch goes on.
        readable = []
        for key, reading in zip(new, readings, strict=True):
            if isinstance(reading, TextError):
                self._known[key] = Refusal(reading.code, reading.message)
            else:
                readable.append((key, reading.item))
        if readable:
            values = self.model.represent(self.model.encode([item for _, item in readable])).cpu().numpy()
            if not np.isfinite(values).all():
                raise EvaluationError(f"{self.card.source} computed NaN or infinity: check the weights and the dtype")
            self._known.update({key: row for (key, _), row in zip(readable, values, strict=True)})
        return [self._known[key] for key in keys]


class RowReader:
    """Reads rows of data files as a model reads them.

    Raises:
        EvaluationError: if the model has no tokenizer.
    """

    def __init__(self, model: PreferenceModel) -> None:
        self._reader = LocalScorer(model).reader
        self.limit = model.spec.max_length

    def tokens(self, rows: Sequence[DataRow]) -> list[tuple[int | None, int]]:
        """Return, for each response, the tokens of its conversation (None: refused), and how many were cut."""
        talks = [conversation(row.prompt, response, row.tools) for row in rows for response in row.responses]
        read = self._reader.read(talks)
        return [(None, 0) if isinstance(one, TextError) else (len(one.token_ids), one.dropped_tokens) for one in read]

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the text of a described row's first response, or why it is refused; nothing without a response."""
        if not row["responses"]:
            return ""
        (read,) = self._reader.read([conversation(row["prompt"], row["responses"][0], row["tools"])])
        return f"refused: {read}" if isinstance(read, TextError) else read.text


def load_row_reader(source: str) -> RowReader:
    """Return what reads rows as a model does; its weights are loaded on the CPU.

    Raises:
        ModelError: if it cannot be loaded.
    """
    return RowReader(load_scorer(source, device="cpu").model)


def load_scorer(source: str, **options: Any) -> LocalScorer:
    """Return the scorer of a model that is loaded here.

    Args:
        source: ``builtin:NAME``, a folder or a Hugging Face id.
        **options: of ``paragone_models.load_model``.

    Raises:
        ModelError: if the model cannot be loaded.
        EvaluationError: if the model has no tokenizer.
    """
    hide_weight_bars()  # one bar is enough, and it is ours
    return LocalScorer(load_model(source, **options))


def _own_folder(source: str) -> Path | None:
    """Return the folder of a model that is stored in our own layout, or None for any other source."""
    folder = Path(source).expanduser()
    return folder if (folder / SPEC_FILE).is_file() else None


def store_temperature(
    model: PreferenceModel, temperature: float, record: dict[str, Any], *, output: Path | None = None
) -> Path:
    """Store a fitted temperature with a model and return the folder that has it.

    A folder in our own layout is changed in place, unless ``output`` names another one; any other source is written to
    ``output`` as a folder of our own.

    Args:
        record: how the temperature was fitted; goes to ``calibration.json`` beside the model.

    Raises:
        CalibrationError: if the source is no folder of our own and ``output`` is None, ``output`` holds another model,
            or the folder cannot be written.
    """
    source = _own_folder(model.provenance.source)
    target = output or source
    if target is None:
        raise CalibrationError(
            f"{model.provenance.source} is no folder of this machine that could be changed: give --output FOLDER"
        )
    # A foreign checkpoint has no place for a temperature, and a cached one of the Hub is not ours to change.
    in_place = source is not None and target.resolve() == source.resolve()
    if not in_place and target.exists() and any(target.iterdir()):
        raise CalibrationError(f"{target} is not empty: give --output a new folder")
    try:
        if source is None:
            assert model.reader is not None  # a model without one cannot have been calibrated
            spec = replace(model.spec, temperature=temperature, calibrated=True)
            save_model(target, model.network, spec, model.reader.tokenizer)
        else:
            if not in_place:
                shutil.copytree(source, target, dirs_exist_ok=True)
            spec = ModelSpec.from_json((target / SPEC_FILE).read_bytes())
            # The temperature holds for what the model read while it was fitted, so those rules go with it.
            rules = {name: getattr(model.spec, name) for name in _READING}
            spec = replace(spec, temperature=temperature, calibrated=True, **rules)
        # Whole or not at all: a server may be reading the folder.
        fresh = target / f"{SPEC_FILE}.new"
        fresh.write_text(spec.to_json(), encoding="utf-8")
        fresh.replace(target / SPEC_FILE)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (target / "calibration.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"cannot write into {target}: {error.strerror or error}") from error
    return target
