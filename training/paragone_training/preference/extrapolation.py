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
from paragone_models.files.loading import load_model
from paragone_models.files.saving import save_model
from paragone_models.kinds import KINDS
from paragone_models.model import PreferenceModel
from paragone_models.spec import ModelSpec
from paragone_models.text.template import tokenizer_hash
from paragone_training.data import group_pairs, read_groups
from paragone_training.errors import RecipeError
from paragone_training.preference.agreement import Summary, judge
from paragone_training.preference.backbone import reward_on_top
from paragone_training.preference.objective import Objective

__all__ = ["along", "extrapolate", "search"]

logger = logging.getLogger(__name__)

# Tried first by ``auto``; then the neighbours of the best one, in steps of ``_FINE``.
_ALPHAS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
_FINE = 0.02
# Kinds that may lead to another one, and what two models must have in common to read a conversation alike.
_STARTS = {kind.name: kind.starts_from for kind in KINDS.values() if kind.starts_from}
_SAME = ("pooling", "gate", "normalise", "special_tokens", "bos", "reasoning", "final_eos")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Trial:
    """One alpha that was tried, and the agreement on the validation pairs."""

    alpha: float
    summary: Summary


def along(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """Return the weights at ``alpha`` on the line from the first model, at 0, to the second, at 1, and beyond.

    Returns:
        Tensors in the dtype of the second; what is no floating-point number is the second's.

    Raises:
        ValueError: if names or shapes differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"only one of the models has {', '.join(sorted(first.keys() ^ second.keys())[:4])}")
    state = {}
    for name, end in second.items():
        start = first[name]
        if start.shape != end.shape:
            raise ValueError(f"{name} has shape {tuple(start.shape)} in one model and {tuple(end.shape)} in the other")
        # In float32 and cast once: a small difference of two bfloat16 weights would be lost.
        moved = (start.float() + alpha * (end.float() - start.float())).to(end.dtype)
        state[name] = moved if end.is_floating_point() else end.clone()
    return state


def search(judged: Callable[[float], Summary]) -> list[_Trial]:
    """Return every alpha that was tried, the best one first: by accuracy, then likelihood, then the smaller one.

    Args:
        judged: agreement on validation pairs at an alpha.
    """
    trials: dict[float, _Trial] = {}

    def ranked(alphas: Sequence[float]) -> list[_Trial]:
        for alpha in alphas:
            if alpha not in trials:
                summary = judged(alpha)
                trials[alpha] = _Trial(alpha, summary)
                nats = summary.negative_log_likelihood
                logger.info("alpha %g: accuracy %.4f, %.4f nats", alpha, summary.accuracy, nats)
        return sorted(trials.values(), key=_rank)

    # Coarse, then fine around the best: the curve is flat at its top, and a trial passes all pairs.
    best = ranked(_ALPHAS)[0].alpha
    near = [round(best + _FINE * step, 4) for step in (-2, -1, 1, 2)]
    return ranked([alpha for alpha in near if alpha >= 1])


def extrapolate(
    source: str, target: str, folder: Path, *, alpha: float | None, pairs: Sequence[Pair] = (), dtype: str = "float32"
) -> list[_Trial]:
    """Write the model at ``alpha`` on the line from ``source`` to ``target``; return what was tried, the best first.

    Args:
        source: model A, of the kind of B, or of the kind that B starts from: then its reward is its merged attributes.
        target: model B; its temperature is kept.
        alpha: factor, or None to search it on ``pairs``.
        pairs: validation pairs; with a given alpha they may be empty.

    Raises:
        RecipeError: if a model cannot be loaded, the two do not fit, there is nothing to search on, or the folder has
            a model in it.
        DataError: if a response does not fit the model.
    """
    if (folder / "paragone.json").exists():
        raise RecipeError(f"{folder} holds a model already: choose another --output")
    if alpha is None and not any(pair.strength for pair in pairs):
        raise RecipeError("alpha auto is searched on decided validation pairs: give --data FILE, or --alpha 1.52")
    first, second = _loaded(source), _loaded(target)
    groups = group_pairs(pairs, apart=second.spec.rules.reads_pairs)
    _check_kinds(first.spec, second.spec)
    _check_reading(first, second)
    # The new folder gets the tokenizer of B, and pairs are read by it.
    if second.reader is None:
        raise RecipeError(f"{target} has no tokenizer files")
    network, reader = second.network, second.reader
    # The network's own tensors are overwritten at every alpha: both ends are kept apart.
    begin, end = _begin(first, second), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    readings = read_groups(groups, reader)
    spec = second.spec
    objective = Objective(spec.kind, spec.temperature, weights=spec.weights, symmetrise=spec.symmetrise)

    def judged(factor: float) -> Summary:
        network.load_state_dict(_along(begin, end, factor))
        pad_id = reader.tokenizer.pad_token_id or 0
        return judge(network, objective, groups, readings, pad_id=pad_id).summary()

    if alpha is None:
        trials = search(judged)
        alpha = trials[0].alpha
    else:
        # B itself beside the alpha that was asked for: the card has something to compare with.
        trials = [_Trial(factor, judged(factor)) for factor in dict.fromkeys((alpha, 1.0))] if groups else []
    network.load_state_dict(_along(begin, end, alpha))
    # Scores stretch with alpha, so a temperature that was fitted for B is wrong for what lies beyond.
    spec = replace(second.spec, calibrated=False)
    card = _card(folder.name, first, second, alpha, trials, pairs=len(pairs))
    save_model(folder, network, spec, reader.tokenizer, card=card, dtype=getattr(torch, dtype))
    settled = {"from": first.identity, "to": second.identity, "alpha": alpha}
    (folder / "extrapolation.json").write_text(json.dumps(settled, indent=1) + "\n", encoding="utf-8")
    logger.info("saved %s at alpha %g", folder, alpha)
    return trials


def _rank(trial: _Trial) -> tuple[float, float, float]:
    return -trial.summary.accuracy, trial.summary.negative_log_likelihood, trial.alpha


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


def _check_kinds(first: ModelSpec, second: ModelSpec) -> None:
    """Refuse two models of which the second cannot have been trained from the first."""
    kind = KINDS[second.kind]
    if first.kind not in (kind.name, kind.starts_from):
        only = "; ".join(f"{start} to {name}" for name, start in _STARTS.items())
        raise RecipeError(f"--from is a {first.kind} and --to a {second.kind} model: only {only} may differ")
    if first.attributes != second.attributes:
        raise RecipeError(f"--from rates {list(first.attributes)}, --to {list(second.attributes)}: they must agree")
    if first.kind == second.kind and first.dimension != second.dimension:
        raise RecipeError(f"--from has dimension {first.dimension}, --to {second.dimension}: they must agree")
    if not kind.compares(second.weights):
        raise RecipeError(f"--to is a {second.kind} model without weights: it compares nothing")


def _check_reading(first: PreferenceModel, second: PreferenceModel) -> None:
    """Refuse two models that read a conversation differently."""
    for name in _SAME:
        values = [getattr(model.spec, name) for model in (first, second)]
        if values[0] != values[1]:
            raise RecipeError(f"{name} is {values[0]!r} in --from and {values[1]!r} in --to")
    # By contents and not by path: a model carries a copy of the tokenizer it was trained with.
    hashes = {tokenizer_hash(model.reader.tokenizer, "") for model in (first, second) if model.reader}
    if len(hashes) > 1:
        raise RecipeError("--from and --to read with different tokenizers: one must be trained from the other")


def _begin(first: PreferenceModel, second: PreferenceModel) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in first.network.state_dict().items()}
    if first.spec.kind != second.spec.kind:
        head = reward_on_top(first.network.head, first.spec, second.spec)
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return state


def _card(
    name: str, first: PreferenceModel, second: PreferenceModel, alpha: float, trials: Sequence[_Trial], *, pairs: int
) -> str:
    names = [f"{model.name} (identity {model.identity[:12]})" for model in (first, second)]
    lines = [
        f"# {name}",
        "",
        f"A `{second.spec.kind}` model at alpha = {alpha:g} on the line from {names[0]} to {names[1]}: theta = theta_A "
        "+ alpha (theta_B - theta_A), on every tensor. Nothing was trained. The temperature, "
        f"{second.spec.temperature:.4g}, is that of {second.name}.",
        "",
    ]
    if second.spec.demonstration:
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
