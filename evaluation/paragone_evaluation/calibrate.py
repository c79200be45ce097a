"""Fitting a temperature and storing it with the model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.asking import Answers, rates_alone
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import CalibrationError
from paragone_evaluation.judged import clustering, judged_pairs
from paragone_evaluation.measures.bootstrap import estimate
from paragone_evaluation.measures.calibration import fit_temperature
from paragone_evaluation.scorers import ModelCard
from paragone_evaluation.sections import probability_section
from paragone_evaluation.summary import Settings
from paragone_models import PreferenceModel
from paragone_models.files.formats import SPEC_FILE
from paragone_models.files.saving import save_model
from paragone_models.spec import ModelSpec

__all__ = ["calibration", "check_preferences", "own_folder", "store_temperature"]

_TEMPERATURE_RESAMPLES = 200


def check_preferences(data: EvaluationSet, card: ModelCard) -> None:
    """Refuse a model or a file that has no preferences.

    Args:
        data: what is calibrated on.
        card: of the model.

    Raises:
        CalibrationError: if there are none.
        EvaluationError: if nothing at all can be measured.
    """
    if not rates_alone(data, card):
        return
    if card.compares:
        raise CalibrationError(
            f"{data.path}: no two responses of a prompt differ in {data.rated!r}, so nothing is preferred: take "
            "another --attribute or file"
        )
    raise CalibrationError(
        f"{card.name} rates {', '.join(card.attributes)} and has no weights to merge them into a preference, so there "
        "is nothing that a temperature could divide: put weights into its paragone.json"
    )


def calibration(data: EvaluationSet, answers: Answers, settings: Settings) -> dict[str, Any]:
    """Return the best temperature with its interval, and NLL, Brier and ECE before and after.

    What stands under ``after`` was scaled by temperatures fitted on other clusters, so it is no flattery.

    Args:
        data: what is calibrated on.
        answers: of the model.
        settings: how measures are computed.

    Raises:
        CalibrationError: if no temperature is best, or there are no preferences.
        EvaluationError: if a setting is impossible, or people decided no pair that was answered.
    """
    check_preferences(data, answers.card)
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    judged = judged_pairs(data, answers, clusters)
    chances = probability_section(judged, clusters.resampler, bins=settings.bins, seed=settings.seed)
    if chances["after"] is None:
        raise CalibrationError(chances["no_temperature"])
    factors = []
    for counts in clusters.resampler.counts[:_TEMPERATURE_RESAMPLES].astype(np.float64):
        try:
            factors.append(fit_temperature(judged.logit, judged.outcome, weight=counts[judged.cluster]))
        except CalibrationError:
            factors.append(float("inf"))
    present = answers.card.temperature
    drawn = np.asarray(factors) * present
    # A resample without a best temperature counts as a very large one, so that the interval does not hide it.
    drawn[~np.isfinite(drawn)] = np.finfo(np.float64).max
    found = estimate(present * chances["temperature_factor"], drawn, clusters=clusters.count)
    return {
        "file": Path(data.path).name,
        "sha256": data.sha256,
        "split": data.split,
        "pairs": len(judged.logit),
        "cluster": clusters.by,
        "clusters": clusters.count,
        "bins": settings.bins,
        "temperature_before": present,
        "temperature": found,
        "before": {name: chances["before"][name] for name in ("nll", "brier", "ece")},
        "after": {name: chances["after"][name] for name in ("nll", "brier", "ece")},
        "notes": list(clusters.notes),
    }


def own_folder(source: str) -> Path | None:
    """Return the folder of a model that is stored in our own layout, or None for any other source.

    Args:
        source: as given to ``load_model``.
    """
    folder = Path(source).expanduser()
    return folder if (folder / SPEC_FILE).is_file() else None


def store_temperature(
    model: PreferenceModel, temperature: float, record: dict[str, Any], *, output: Path | None = None
) -> Path:
    """Store a fitted temperature with a model and return the folder that has it.

    A folder in our own layout is changed in place, unless ``output`` names another one; any other source is written to
    ``output`` as a folder of our own.

    Args:
        model: that was calibrated.
        temperature: what its logits are to be divided by.
        record: how it was fitted; goes to ``calibration.json`` beside the model.
        output: folder that gets the calibrated model.

    Raises:
        CalibrationError: if the source is no folder of our own and ``output`` is None, ``output`` holds another model,
            or the folder cannot be written.
    """
    source = own_folder(model.source)
    target = output or source
    if target is None:
        raise CalibrationError(
            f"{model.source} is no folder of this machine that could be changed: give --output FOLDER"
        )
    in_place = source is not None and target.resolve() == source.resolve()
    if not in_place and target.exists() and any(target.iterdir()):
        raise CalibrationError(f"{target} is not empty: give --output a new folder")
    try:
        if source is None:
            assert model.reader is not None
            spec = replace(model.spec, temperature=temperature, calibrated=True)
            save_model(target, model.network, spec, model.reader.tokenizer)
        else:
            if not in_place:
                shutil.copytree(source, target, dirs_exist_ok=True)
            spec = ModelSpec.from_json((target / SPEC_FILE).read_bytes())
            # The temperature holds for what the model read while it was fitted.
            spec = replace(spec, temperature=temperature, calibrated=True, bos=model.spec.bos)
        # Whole or not at all: a server may be reading the folder.
        fresh = target / f"{SPEC_FILE}.new"
        fresh.write_text(spec.to_json(), encoding="utf-8")
        fresh.replace(target / SPEC_FILE)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (target / "calibration.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"cannot write into {target}: {error.strerror or error}") from error
    return target
