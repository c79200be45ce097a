"""ExPO: from a weaker and a stronger model along the line between them and beyond, without training.

    theta = theta_A + alpha (theta_B - theta_A)

on every tensor, the head included. Source: Zheng et al. (arXiv 2404.16792), as used by HelpSteer2-Preference
(arXiv 2410.01257): from the regression model to scaled Bradley-Terry, alpha = 1.52.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from paragone_evaluation.readers import Pair
from paragone_models.errors import ModelLoadError
from paragone_models.files.identity import tokenizer_hash
from paragone_models.files.loading import load_model
from paragone_models.files.saving import save_model
from paragone_models.model import PreferenceModel
from paragone_training.data.batches import read_groups
from paragone_training.data.groups import group_pairs
from paragone_training.errors import RecipeError
from paragone_training.preference.agreement import Summary, judge, summarise
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings.student import reward_on_top

__all__ = ["Trial", "along", "extrapolate", "search"]

logger = logging.getLogger(__name__)

ALPHAS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
"""Tried first by ``auto``; then the neighbours of the best one, in steps of ``FINE``."""
FINE = 0.02
_SAME = ("pooling", "gate", "normalise", "special_tokens", "bos", "reasoning", "final_eos")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One alpha that was tried.

    Attributes:
        alpha: the factor.
        summary: agreement on the validation pairs.
    """

    alpha: float
    summary: Summary


def along(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """Return the weights at ``alpha`` on the line from the first to the second model.

    Args:
        first: alpha 0.
        second: alpha 1.
        alpha: anything; above 1 goes beyond the second.

    Returns:
        Tensors in the dtype of the second; what is no floating-point number is the second's.

    Raises:
        ValueError: if names or shapes differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"only one of the models has {', '.join(sorted(first.keys() ^ second.keys())[:4])}")
    made = {}
    for name, end in second.items():
        start = first[name]
        if start.shape != end.shape:
            raise ValueError(f"{name} has shape {tuple(start.shape)} in one model and {tuple(end.shape)} in the other")
        made[name] = (
            (start.float() + alpha * (end.float() - start.float())).to(end.dtype)
            if (end.is_floating_point())
            else end.clone()
        )
    return made


def search(judged: Callable[[float], Summary], *, log: Callable[[Trial], None] | None = None) -> list[Trial]:
    """Return every alpha that was tried, the best one first: by accuracy, then likelihood, then the smaller one.

    Args:
        judged: agreement on validation pairs at an alpha.
        log: told of every trial.
    """
    trials: dict[float, Trial] = {}

    def tried(alphas: Sequence[float]) -> list[Trial]:
        for alpha in alphas:
            if alpha not in trials:
                trials[alpha] = Trial(alpha, judged(alpha))
                if log:
                    log(trials[alpha])
        return sorted(trials.values(), key=_rank)

    best = tried(ALPHAS)[0].alpha
    near = [round(best + FINE * step, 4) for step in (-2, -1, 1, 2)]
    return tried([alpha for alpha in near if alpha >= 1])


def extrapolate(
    source: str, target: str, folder: Path, *, alpha: float | None, pairs: Sequence[Pair] = (), dtype: str = "float32"
) -> list[Trial]:
    """Write the model at ``alpha`` on the line from ``source`` to ``target``, and return what was tried.

    Args:
        source: model A; a regression model may lead to a helpsteer model of the same attributes: its reward is then its
            merged attributes.
        target: model B, of the same kind otherwise; its temperature is kept.
        folder: of the new model.
        alpha: factor, or None to search it on ``pairs``.
        pairs: validation pairs; with a given alpha they may be empty.
        dtype: storage type of the backbone.

    Returns:
        Trials, the best first; empty without pairs.

    Raises:
        RecipeError: if a model cannot be loaded, the two do not fit, there is nothing to search on, or the folder has
            a model in it.
        DataError: if a response does not fit the model.
    """
    if (folder / "paragone.json").exists():
        raise RecipeError(f"{folder} holds a model already: choose another --output")
    groups = group_pairs(pairs)
    if alpha is None and not groups:
        raise RecipeError("alpha auto is searched on decided validation pairs: give --data FILE, or --alpha 1.52")
    one, two = _loaded(source), _loaded(target)
    _check(one, two)
    if two.reader is None:
        raise RecipeError(f"{target} has no tokenizer files")
    begin, end = _begin(one, two), {name: tensor.clone() for name, tensor in two.network.state_dict().items()}
    network, reader = two.network, two.reader
    readings = read_groups(groups, reader)
    objective = Objective(two.kind, two.spec.temperature, weights=two.spec.weights)
    pad = reader.tokenizer.pad_token_id or 0

    def judged(factor: float) -> Summary:
        network.load_state_dict(_along(begin, end, factor))
        return summarise(judge(network, objective, groups, readings, budget=64, pad_id=pad))

    if alpha is None:
        trials = search(judged, log=_told)
        alpha = trials[0].alpha
    else:
        trials = [Trial(factor, judged(factor)) for factor in dict.fromkeys((alpha, 1.0))] if groups else []
    network.load_state_dict(_along(begin, end, alpha))
    spec = replace(two.spec, calibrated=False)
    card = _card(folder.name, one, two, alpha, trials, len(pairs))
    save_model(folder, network, spec, reader.tokenizer, card=card, dtype=getattr(torch, dtype))
    settled = {"from": one.identity, "to": two.identity, "alpha": alpha}
    (folder / "extrapolation.json").write_text(json.dumps(settled, indent=1) + "\n", encoding="utf-8")
    logger.info("saved %s at alpha %g", folder, alpha)
    return trials


def _rank(trial: Trial) -> tuple[float, float, float]:
    return -trial.summary.accuracy, trial.summary.negative_log_likelihood, trial.alpha


def _told(trial: Trial) -> None:
    logger.info(
        "alpha %g: accuracy %.4f, %.4f nats", trial.alpha, trial.summary.accuracy, trial.summary.negative_log_likelihood
    )


def _along(begin: State, end: State, alpha: float) -> dict[str, Tensor]:
    try:
        return along(begin, end, alpha)
    except ValueError as error:
        raise RecipeError(f"the two models do not fit: {error}") from error


def _loaded(source: str) -> PreferenceModel:
    try:
        return load_model(source, device="cpu", dtype="float32")
    except ModelLoadError as error:
        raise RecipeError(f"{source}: {error}") from error


def _check(one: PreferenceModel, two: PreferenceModel) -> None:
    kinds = (one.kind, two.kind)
    if one.kind != two.kind and kinds != ("regression", "helpsteer"):
        raise RecipeError(
            f"--from is a {one.kind} and --to a {two.kind} model: only regression to helpsteer may differ"
        )
    if one.spec.attributes != two.spec.attributes:
        raise RecipeError(
            f"--from rates {list(one.spec.attributes)}, --to {list(two.spec.attributes)}: they must agree"
        )
    if one.kind == two.kind and one.spec.dimension != two.spec.dimension:
        raise RecipeError(f"--from has dimension {one.spec.dimension}, --to {two.spec.dimension}: they must agree")
    if two.kind == "regression" and two.spec.weights is None:
        raise RecipeError("--to is a regression model without weights: it compares nothing")
    for name in _SAME:
        if getattr(one.spec, name) != getattr(two.spec, name):
            raise RecipeError(
                f"{name} is {getattr(one.spec, name)!r} in --from and {getattr(two.spec, name)!r} in --to"
            )
    hashes = [tokenizer_hash(model.reader.tokenizer, "") for model in (one, two) if model.reader]
    if len(set(hashes)) > 1:
        raise RecipeError("--from and --to read with different tokenizers: one must be trained from the other")


def _begin(one: PreferenceModel, two: PreferenceModel) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    if one.kind != two.kind:
        head = reward_on_top(one.network.head, one.spec, two.spec)
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return state


def _card(
    name: str, one: PreferenceModel, two: PreferenceModel, alpha: float, trials: Sequence[Trial], pairs: int
) -> str:
    lines = [
        f"# {name}",
        "",
        f"A `{two.kind}` model at alpha = {alpha:g} on the line from {one.name} (identity {one.identity[:12]}) to "
        f"{two.name} (identity {two.identity[:12]}): theta = theta_A + alpha (theta_B - theta_A), on every tensor. "
        f"Nothing was trained. The temperature, {two.spec.temperature:.4g}, is that of {two.name}.",
        "",
    ]
    if two.spec.demonstration:
        lines += ["**A demonstration.** It shows the software; do not rely on its judgement.", ""]
    if trials:
        lines += [
            f"On {trials[0].summary.pairs} decided of {pairs} validation pairs (a searched alpha was chosen on them):",
            "",
            "| alpha | agreement | nats |",
            "|---|---|---|",
        ]
        for trial in sorted(trials, key=lambda trial: trial.alpha):
            summary = trial.summary
            lines.append(f"| {trial.alpha:g} | {summary.accuracy:.4f} | {summary.negative_log_likelihood:.4f} |")
    return "\n".join([*lines, ""])
