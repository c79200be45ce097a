"""The temperature that fits a file best, with its interval, and the probabilities before and after it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.asking import Answers, only_ratings
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import CalibrationError
from paragone_evaluation.measures.calibration import fit_temperature
from paragone_evaluation.pair_results import clustering, judged_pairs, probability_section
from paragone_evaluation.report.words import counted
from paragone_evaluation.results import MeasureSettings
from paragone_evaluation.scorers import ModelCard

__all__ = ["check_preferences", "fitted_temperature"]

_RESAMPLES = 200  # each one solves an equation over all pairs
_LEAST_PAIRS = 20
_BEYOND = 1e30  # no end of an interval that temperatures were found for


def check_preferences(data: EvaluationSet, card: ModelCard) -> None:
    """Refuse a model or a file that has no preferences.

    Raises:
        CalibrationError: if there are none.
        EvaluationError: if nothing at all can be measured.
    """
    if not only_ratings(data, card):
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


def fitted_temperature(data: EvaluationSet, answers: Answers, settings: MeasureSettings) -> dict[str, Any]:
    """Return the best temperature with its interval, and NLL, Brier and ECE before and after.

    ``after`` is None where the fit on some of the clusters has no best temperature; a note says so.

    Raises:
        CalibrationError: if no temperature is best, or there are too few pairs to tell.
        EvaluationError: if a setting is impossible, or people decided no pair that was answered.
    """
    clusters = clustering(data, settings.cluster, resamples=settings.resamples, seed=settings.seed)
    judged = judged_pairs(data, answers, clusters)
    if len(judged.logit) < _LEAST_PAIRS:
        raise CalibrationError(
            f"{data.path} has {counted(len(judged.logit), 'pair')} that people judged and the model answered: a "
            f"temperature fitted on fewer than {_LEAST_PAIRS} is chance, and some 500 make it narrow. Use more pairs"
        )
    # Its "after" is scaled by temperatures that were fitted on other clusters: an honest forecast for new pairs.
    probabilities = probability_section(judged, clusters.resampler, bins=settings.bins, seed=settings.seed)
    if "temperature_factor" not in probabilities:
        raise CalibrationError(probabilities["no_temperature"])
    notes = list(clusters.notes)
    if "no_cross_fit" in probabilities:
        notes.append(
            f"The temperature is fitted on all pairs; what it is worth on new ones is not known, for "
            f"{probabilities['no_cross_fit']}"
        )
    factors = []
    # Whole clusters again: resampling pairs would call the temperature far more certain than it is.
    for counts in clusters.resampler.counts[:_RESAMPLES].astype(np.float64):
        try:
            factors.append(fit_temperature(judged.logit, judged.outcome, weight=counts[judged.cluster]))
        except CalibrationError as error:
            factors.append(error.limit)
    after = probabilities["after"]
    present = answers.card.temperature  # logits are divided by it already, so what is fitted is a factor of it
    resampled = np.asarray(factors) * present
    # A resample without a best temperature counts as where it would go, 0 or a very large one, so that the interval
    # does not hide it.
    resampled[~np.isfinite(resampled)] = np.finfo(np.float64).max
    temperature = clusters.resampler.estimate(present * probabilities["temperature_factor"], resampled)
    if temperature.high > _BEYOND:
        temperature = replace(temperature, high=math.inf)
        notes.append(
            f"The interval has no upper end: on some resamples of the {clusters.by}s the model is wrong at least as "
            "often as right. More pairs would tell"
        )
    return {
        "file": Path(data.path).name,
        "sha256": data.sha256,
        "split": data.split,
        "pairs": len(judged.logit),
        "cluster": clusters.by,
        "clusters": clusters.count,
        "bins": settings.bins,
        "temperature_before": present,
        "temperature": temperature,
        "before": {name: probabilities["before"][name] for name in ("nll", "brier", "ece")},
        "after": after and {name: after[name] for name in ("nll", "brier", "ece")},
        "notes": notes,
    }
