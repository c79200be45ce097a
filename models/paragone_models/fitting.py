"""Fit a head to frozen hidden states: features and labels in, a linear head out. Pure: nothing is read or written.

Features are standardised, so that one penalty suits all of them; means and deviations are folded into the head's
weights and biases in the end, and serving knows nothing of them. Every penalty is chosen by cross-validation over
questions: responses to one question are never on both sides. What comes out carries its cross-validated answers, so
that nobody has to believe the fit on what it was fitted to.

A reward is a logistic regression on differences of features, a rating a ridge regression; both are convex. A general
preference vector is not. It begins as its own scalar: block one is (r, 1), whose skew form is a difference of rewards,
and everything else begins near 0 and is held there by a penalty of its own. So a strong penalty gives the scalar back,
and what the blocks add has to pay on questions that they were not fitted to.

Shapes: n responses, P pairs, H hidden size, A attributes, d length of a representation, k 2-blocks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from paragone_models.merging import Merging, fit_merging
from paragone_models.spec import ModelSpec

__all__ = ["PENALTIES", "Choices", "FitError", "FittedHead", "States", "fit_head"]

Floats = NDArray[np.float64]

PENALTIES = tuple(10.0 ** (step / 2) for step in range(4, -7, -1))
"""Tried from strong to weak: 100 … 0.001."""

_BLOCK_PENALTIES = PENALTIES[1:8]
_PRECISE, _ROUGH = 1e-9, 1e-5
# A vector's loss is flat near its minimum, and what the last steps change no question sees.
_VECTOR, _VECTOR_STEPS = 1e-4, 150
# Weaker penalties are not tried once two of them in a row were worse by this share.
_WORSE, _TRIES = 1.01, 2
# Of the parts that a vector adds to its scalar: at 0 they would stay there, because their gradient is 0.
_SPREAD = 0.1
# Nats a pair within which a vector counts as its scalar.
_EQUAL = 2e-3


class FitError(ValueError):
    """Refuse data that no head can be fitted to, or a head that is worse than a simpler one."""


@dataclass(frozen=True)
class States:
    """Frozen hidden states of distinct responses.

    Attributes:
        response: at the response's read. [n, H]
        question: what each response belongs to; whole questions are held out. [n]
        prompt: at the gate's read, for a head with a gate; the same for all responses to a prompt. [n, H]
    """

    response: NDArray[np.float32]
    question: NDArray[np.int64]
    prompt: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Choices:
    """People's choices between two responses of one prompt.

        loss = weight * (-target log sigmoid(z - lead) - (1 - target) log sigmoid(lead - z)),  z the logit of the first

    Attributes:
        pairs: rows of ``States``; the first's win is measured. [P, 2]
        target: probability that the first is preferred; ½ is a tie. [P]
        lead: logits by which the first must lead; negative where the second must. [P]
        weight: how much each pair counts. [P]
    """

    pairs: NDArray[np.int64]
    target: Floats
    lead: Floats
    weight: Floats

    def losses(self, logits: Floats) -> Floats:
        """Return one loss per pair, in nats. [P]."""
        lead = logits - self.lead
        return self.weight * (np.logaddexp(0.0, lead) - self.target * lead)

    def swapped(self, flip: NDArray[np.bool_]) -> "Choices":
        """Return the same choices with some pairs the other way round. [P]."""
        return Choices(
            np.where(flip[:, None], self.pairs[:, ::-1], self.pairs),
            np.where(flip, 1 - self.target, self.target),
            np.where(flip, -self.lead, self.lead),
            self.weight,
        )

    def among(self, chosen: NDArray[np.bool_]) -> "Choices":
        """Return the pairs of some responses, chosen by row. [n]."""
        keep = chosen[self.pairs[:, 0]]
        return Choices(self.pairs[keep], self.target[keep], self.lead[keep], self.weight[keep])


@dataclass(frozen=True)
class FittedHead:
    """A head, and what it says where it was not fitted.

    Attributes:
        tensors: by the names of ``RepresentationHead``, standardisation folded in, float32.
        spec: with fitted weights and temperature, where attributes are merged.
        penalties: chosen, by the name of the part.
        logits: cross-validated log-odds of the choices, each from folds without its question; None without any. [P]
        scalar: the same of the reward alone, for a kind with a vector; None elsewhere. [P]
        ratings: cross-validated ratings of all responses; None for a kind that does not rate. [n, A]
        merging: how the attributes merge, for a kind that only rates, or None.
    """

    tensors: dict[str, Tensor]
    spec: ModelSpec
    penalties: dict[str, float]
    logits: Floats | None = None
    scalar: Floats | None = None
    ratings: Floats | None = None
    merging: Merging | None = None


def fit_head(
    spec: ModelSpec,
    states: States,
    choices: Choices | None = None,
    ratings: Floats | None = None,
    *,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    seed: int = 0,
) -> FittedHead:
    """Return a head of the spec's kind, its penalties chosen by cross-validation.

    Args:
        choices: for every kind but those that only rate, which are merged by them.
        ratings: NaN where nobody rated; for kinds that rate. [n, A]
        penalties: tried for rewards and ratings, times half the squared norm of the weights of standardised features;
            of one, nothing is chosen.
        folds: parts that the questions are dealt into.
        seed: of dealing and of where vectors begin.

    Raises:
        FitError: if there is nothing to learn from, there are fewer than two questions, states are not finite, or a
            vector is worse than its own scalar on questions that it was not fitted to.
    """
    _check(spec, states, choices, ratings)
    features = _Standard.of(states.response)
    held_out = _deal(states.question, folds, seed)
    fit = _Fit(spec, features, held_out, tuple(penalties), {}, seed)
    ordered, sign = _oriented(choices)
    fitted = _fitted(fit, states, ordered, ratings)
    return replace(
        fitted,
        logits=None if fitted.logits is None else fitted.logits * sign,
        scalar=None if fitted.scalar is None else fitted.scalar * sign,
    )


def _fitted(fit: "_Fit", states: States, choices: Choices | None, ratings: Floats | None) -> FittedHead:
    spec = fit.spec
    if spec.rules.has_attributes:
        assert ratings is not None
        return _rating_head(fit, choices, ratings)
    assert choices is not None
    return _comparing_head(fit, states, choices)


def _oriented(choices: Choices | None) -> tuple[Choices | None, Floats]:
    """Return the preferred response of every pair first, and the sign that its logit has in the pair as it was.

    So a fit does not depend on the order within pairs: a vector's fit, which is not convex, would end elsewhere.
    """
    if choices is None:
        return None, np.zeros(0)
    tie = (choices.target == 0.5) & (choices.pairs[:, 0] > choices.pairs[:, 1])
    flip = (choices.target < 0.5) | tie
    return choices.swapped(flip), np.where(flip, -1.0, 1.0)


def _comparing_head(fit: "_Fit", states: States, choices: Choices) -> FittedHead:
    """Return a head that compares and does not rate: a reward, a vector, or both."""
    spec, features = fit.spec, fit.features
    reward, scalar = _reward(fit, choices)
    if not spec.rules.has_vector:
        weight, bias = features.folded(reward[None] * spec.temperature)
        tensors = {"value_head.weight": weight, "value_head.bias": bias}
        return FittedHead(tensors, spec, fit.penalties, logits=scalar)
    gate = _Standard.of(states.prompt) if states.prompt is not None and spec.gate != "none" else None
    return _vector_head(fit, choices, reward, scalar, gate)


def _check(spec: ModelSpec, states: States, choices: Choices | None, ratings: Floats | None) -> None:
    for name, array in (("response", states.response), ("prompt", states.prompt)):
        if array is not None and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise FitError(f"the {name} state of response {row} has NaN or infinity in it: check the backbone's dtype")
    if spec.gate != "none" and states.prompt is None:
        raise ValueError("a gate reads the prompt's state: give States.prompt")
    if spec.rules.has_attributes and (ratings is None or np.isnan(ratings).all(axis=0).any()):
        raise FitError(f"an attribute of {', '.join(spec.attributes)} has no rating: there is nothing to fit it to")
    if spec.rules.learns_pairs and (choices is None or not len(choices.pairs)):
        raise FitError(f"there are no pairs, and a {spec.kind} head learns from them")


def _deal(question: NDArray[np.int64], folds: int, seed: int) -> list[NDArray[np.bool_]]:
    """Return which responses each fold holds out; whole questions, folds of nearly one size."""
    names, sizes = np.unique(question, return_counts=True)
    if len(names) < 2:
        raise FitError(
            f"all {len(question)} responses belong to one question, so no penalty can be chosen by cross-validation: "
            "give rows of more prompts, or name their groups"
        )
    totals = np.zeros(min(folds, len(names)))
    fold_of = {}
    order = np.random.default_rng(seed).permutation(len(names))
    for index in sorted(order, key=lambda index: -sizes[index]):
        fold_of[names[index]] = int(totals.argmin())
        totals[fold_of[names[index]]] += sizes[index]
    place = np.array([fold_of[name] for name in question])
    return [place == fold for fold in range(len(totals))]


@dataclass(frozen=True)
class _Standard:
    """Features with mean 0 and deviation 1, and what was taken off."""

    values: Floats
    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, states: NDArray[np.float32]) -> "_Standard":
        values = states.astype(np.float64)
        mean, scale = values.mean(axis=0), values.std(axis=0)
        # A constant feature says nothing; what rounding leaves of it must not be blown up.
        scale[scale <= 1e-6 * np.abs(mean)] = np.inf
        scale[scale == 0] = np.inf
        return cls((values - mean) / scale, mean, scale)

    def folded(self, rows: Floats, bias: Floats | float = 0.0) -> tuple[Tensor, Tensor]:
        """Return weight and bias that give the same from the states as they are: W (x - m) / s + b."""
        weight = rows / self.scale
        return torch.from_numpy(weight).float(), torch.from_numpy(bias - weight @ self.mean).float()


@dataclass(frozen=True)
class _Fit:
    """What every part of one fit shares; chosen penalties are written down."""

    spec: ModelSpec
    features: _Standard
    held_out: list[NDArray[np.bool_]]
    grid: tuple[float, ...]
    penalties: dict[str, float]
    seed: int


def _minimum(
    loss: Callable[[Floats], tuple[float, Floats]], start: Floats, tolerance: float, *, steps: int = 1000
) -> Floats:
    # L-BFGS stops at a change of the loss, or at a gradient; the first would stop it on long flat slopes.
    options = {"maxiter": steps, "maxfun": 2 * steps, "gtol": tolerance, "ftol": tolerance / 100}
    result: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return result


def _reward_weights(
    values: Floats, choices: Choices, penalty: float, start: Floats, prior: Floats, *, tolerance: float
) -> Floats:
    """Return the weights of a reward in logits: a penalised logistic regression on differences of features, [H].

    minimise  mean_p loss_p(w . (x_first - x_second)) + penalty / 2 * |w - prior|^2
    """
    first, second = choices.pairs.T

    def loss(weights: Floats) -> tuple[float, Floats]:
        rewards = values @ weights
        lead = rewards[first] - rewards[second] - choices.lead
        slope = choices.weight * (_sigmoid(lead) - choices.target) / len(first)
        # Pairs are added up by response first: there are many more of them.
        by_response = np.bincount(first, slope, len(values)) - np.bincount(second, slope, len(values))
        away = weights - prior
        total = choices.losses(rewards[first] - rewards[second]).mean() + penalty / 2 * away @ away
        return float(total), values.T @ by_response + penalty * away

    return _minimum(loss, start, tolerance)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def _cross_validated(
    fit: _Fit, choices: Choices, grid: Sequence[float], answers: Callable[[int, Choices, float], Floats]
) -> tuple[float, Floats]:
    """Return the best penalty and its cross-validated logits, [P].

    Args:
        answers: from a fold's number, its training pairs and a penalty to the logits of all pairs. [P]
    """
    of_fold = [(choices.among(~fold), fold[choices.pairs[:, 0]]) for fold in fit.held_out]
    best, best_loss, best_logits, worse = grid[0], math.inf, np.zeros(len(choices.pairs)), 0
    for penalty in grid:
        logits = np.zeros(len(choices.pairs))
        for number, (inside, out) in enumerate(of_fold):
            if len(inside.pairs) and out.any():
                logits[out] = answers(number, inside, penalty)[out]
        loss = float(choices.losses(logits).mean())
        if loss < best_loss:
            best, best_loss, best_logits = penalty, loss, logits
        worse = worse + 1 if loss > _WORSE * best_loss else 0
        # Weak penalties are the slow ones: the problem is flat there.
        if worse == _TRIES:
            break
    return best, best_logits


def _reward(fit: _Fit, choices: Choices, priors: Sequence[Floats] | None = None) -> tuple[Floats, Floats]:
    """Return the weights of a reward in logits, [H], and its cross-validated logits, [P].

    Args:
        priors: what the weights are held near, of each fold and then of all rows; 0 unless given.
    """
    values = fit.features.values
    priors = priors or [np.zeros(values.shape[1])] * (len(fit.held_out) + 1)
    points = list(priors)

    def answers(fold: int, inside: Choices, penalty: float) -> Floats:
        # Each fit begins where the one of a stronger penalty ended.
        points[fold] = _reward_weights(values, inside, penalty, points[fold], priors[fold], tolerance=_ROUGH)
        rewards = values @ points[fold]
        return np.asarray(rewards[choices.pairs[:, 0]] - rewards[choices.pairs[:, 1]])

    best, logits = _cross_validated(fit, choices, fit.grid, answers)
    fit.penalties["reward"] = best
    return _reward_weights(values, choices, best, priors[-1], priors[-1], tolerance=_PRECISE), logits


def _vector_head(fit: _Fit, choices: Choices, reward: Floats, scalar: Floats, gate: _Standard | None) -> FittedHead:
    """Return a head with a general preference vector, begun from its scalar and held near it."""
    shape, near = _Vector(fit.spec, fit.features, gate), fit.penalties["reward"]
    nothing = np.zeros_like(reward)
    scalars: dict[int, Floats] = {}

    def answers(fold: int, inside: Choices, penalty: float) -> Floats:
        if fold not in scalars:
            scalars[fold] = _reward_weights(fit.features.values, inside, near, reward, nothing, tolerance=_ROUGH)
        # Always from the scalar: where a strong penalty ended, the blocks are 0, and would stay it.
        point = shape.fitted(shape.start(scalars[fold], fit.seed), inside, (near, penalty))
        return shape.logits(point, choices.pairs)

    grid = _BLOCK_PENALTIES if len(fit.grid) > 1 else fit.grid
    best, logits = _cross_validated(fit, choices, grid, answers)
    fit.penalties["blocks"] = best
    _refuse_worse(fit.spec, choices, logits, scalar, fit.held_out)
    point = shape.fitted(shape.start(reward, fit.seed), choices, (near, best))
    return FittedHead(shape.tensors(point), fit.spec, fit.penalties, logits=logits, scalar=scalar)


def _refuse_worse(
    spec: ModelSpec, choices: Choices, logits: Floats, scalar: Floats, held_out: Sequence[NDArray[np.bool_]]
) -> None:
    """Refuse a vector that loses to its scalar by more than the folds differ among themselves."""
    worse = choices.losses(logits) - choices.losses(scalar)
    by_fold = [worse[fold[choices.pairs[:, 0]]] for fold in held_out]
    means = np.array([values.mean() for values in by_fold if len(values)])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0
    if means.mean() > max(error, _EQUAL):
        raise FitError(
            f"on questions that it was not fitted to, a {spec.kind} head of dimension {spec.dimension} loses "
            f"{choices.losses(logits).mean():.4f} nats a pair, and its own scalar {choices.losses(scalar).mean():.4f}: "
            "nothing is saved. Fit a bradley-terry head, or give pairs of more prompts"
        )


class _Vector:
    """A head with 2-blocks as a function of its parameters, in the unit in which one penalty suits all of them.

    Each row of u = A x + a is a number of about the size of a logit's root; the head's own numbers are scaled from it:
    block one is (r, 1), so that without the rest the logit is a difference of rewards. That 1 is no parameter: were it
    free, it would grow, and the penalised weights beside it could shrink at no cost.
    """

    def __init__(self, spec: ModelSpec, features: _Standard, gate: _Standard | None) -> None:
        self._spec, self._features, self._gate = spec, features, gate
        self._blocks, self._rows = spec.blocks, spec.dimension
        self._values = torch.from_numpy(features.values)
        self._prompts = None if gate is None else torch.from_numpy(gate.values)
        # A gate that says nothing gives every block a k-th.
        share = spec.temperature * (self._blocks if gate is not None else 1)
        scale, base = np.full(self._rows, math.sqrt(share)), np.zeros(self._rows)
        if spec.rules.has_reward:
            scale[0] = spec.temperature
            if spec.normalise:  # a vector of length 0 has no direction to be normalised to
                scale[1:] = 1.0
                base[2::2] = 1.0
        else:
            base[1] = 1.0
            if spec.normalise:
                scale[:2] = share, 1.0
        self._scale, self._base = torch.from_numpy(scale), torch.from_numpy(base)

    def start(self, reward: Floats, seed: int) -> Floats:
        """Return the parameters of a scalar, with a little chance where a gradient would be 0."""
        draw = np.random.default_rng(seed)
        weights = draw.normal(0.0, _SPREAD / math.sqrt(len(reward)), (self._rows, len(reward)))
        weights[0] = reward
        gate = 0 if self._gate is None else self._blocks * (len(reward) + 1)
        return np.concatenate([weights.ravel(), np.zeros(self._rows + gate)])

    def _split(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width, rows = self._values.shape[1], self._rows
        sizes = (
            [rows * width, rows, 0, 0]
            if self._gate is None
            else [rows * width, rows, self._blocks * width, self._blocks]
        )
        weights, bias, gate, gate_bias = torch.split(point, sizes)
        return weights.view(rows, width), bias, gate.view(-1, width), gate_bias

    def _represented(self, point: Tensor) -> Tensor:
        """Return representations, as ``RepresentationHead`` makes them, float64. [n, d]."""
        weights, bias, gate, gate_bias = self._split(point)
        raw = (self._values @ weights.T + bias + self._base) * self._scale
        scalar, vector = raw[:, : self._rows - 2 * self._blocks], raw[:, self._rows - 2 * self._blocks :]
        if self._spec.normalise:
            vector = normalize(vector, dim=-1, eps=1e-12)
        if self._prompts is not None:
            root = 0.5 * torch.log_softmax(self._prompts @ gate.T + gate_bias, dim=-1)
            vector = vector * torch.exp(root).repeat_interleave(2, dim=-1)
        return torch.cat([scalar, vector], dim=-1)

    def _logits(self, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
        values = self._represented(point)
        return self._spec.rules.logit(values[first], values[second], temperature=self._spec.temperature)

    def logits(self, point: Floats, pairs: NDArray[np.int64]) -> Floats:
        """Return log-odds. [P]."""
        with torch.no_grad():
            first, second = torch.from_numpy(np.ascontiguousarray(pairs.T))
            result: Floats = self._logits(torch.from_numpy(point), first, second).numpy()
        return result

    def fitted(self, point: Floats, choices: Choices, penalties: tuple[float, float]) -> Floats:
        """Return the parameters of a minimum near a point.

        Args:
            penalties: of the scalar's weights, and of everything that is added to it.
        """
        first, second = torch.from_numpy(np.ascontiguousarray(choices.pairs.T))
        target, lead, weight = map(torch.from_numpy, (choices.target, choices.lead, choices.weight))
        held = torch.full((len(point),), penalties[1], dtype=torch.float64)
        held[: self._values.shape[1]] = penalties[0]

        def loss(at: Floats) -> tuple[float, Floats]:
            parameters = torch.from_numpy(at.copy()).requires_grad_()
            ahead = self._logits(parameters, first, second) - lead
            each = -target * logsigmoid(ahead) - (1 - target) * logsigmoid(-ahead)
            total = (weight * each).mean() + (held * parameters.square()).sum() / 2
            (slope,) = torch.autograd.grad(total, parameters)
            return float(total.detach()), slope.numpy()

        return _minimum(loss, point, _VECTOR, steps=_VECTOR_STEPS)

    def tensors(self, point: Floats) -> dict[str, Tensor]:
        """Return the head's tensors, by their names."""
        weights, bias, gate, gate_bias = (part.numpy() for part in self._split(torch.from_numpy(point)))
        scale, base = self._scale.numpy(), self._base.numpy()
        value, offset = self._features.folded(scale[:, None] * weights, scale * (bias + base))
        tensors = {"value_head.weight": value, "value_head.bias": offset}
        if self._gate is not None:
            tensors["prompt_head.weight"], tensors["prompt_head.bias"] = self._gate.folded(gate, gate_bias)
        return tensors


def _ridge(fit: _Fit, ratings: Floats, name: str) -> tuple[Floats, float, Floats, list[Floats]]:
    """Return weights [H] and intercept of one attribute, cross-validated ratings [n], and each fold's weights."""
    values, rated = fit.features.values, ~np.isnan(ratings)
    predicted = np.zeros((len(fit.grid), len(values)))
    of_fold: list[list[Floats]] = [[] for _ in fit.grid]
    for fold in fit.held_out:
        inside = rated & ~fold
        if not inside.any():
            raise FitError(f"only one fold of questions has ratings of {name}: give ratings of more prompts")
        for number, penalty in enumerate(fit.grid):
            weights, intercept = _ridge_weights(values[inside], ratings[inside], penalty)
            of_fold[number].append(weights)
            predicted[number, fold] = values[fold] @ weights + intercept
    errors = [np.square(row[rated] - ratings[rated]).mean() for row in predicted]
    best = int(np.argmin(errors))
    fit.penalties[name] = fit.grid[best]
    weights, intercept = _ridge_weights(values[rated], ratings[rated], fit.grid[best])
    return weights, intercept, predicted[best], of_fold[best]


def _ridge_weights(values: Floats, ratings: Floats, penalty: float) -> tuple[Floats, float]:
    """Return weights and intercept of a ridge regression.

    minimise  mean_i (w . x_i + c - rating_i)^2 / 2 + penalty / 2 * |w|^2
    """
    mean, level = values.mean(axis=0), ratings.mean()
    centred, count = values - mean, len(values)
    right = ratings - level
    # The smaller of the two systems: there may be far fewer ratings than features.
    if count < values.shape[1]:
        dual = centred @ centred.T / count + penalty * np.eye(count)
        weights = centred.T @ np.linalg.solve(dual, right) / count
    else:
        normal = centred.T @ centred / count + penalty * np.eye(values.shape[1])
        weights = np.linalg.solve(normal, centred.T @ right / count)
    return weights, float(level - mean @ weights)


def _rating_head(fit: _Fit, choices: Choices | None, ratings: Floats) -> FittedHead:
    """Return a head that rates, with merged attributes or a reward of its own above them."""
    spec, fits = (
        fit.spec,
        [_ridge(fit, column, name) for column, name in zip(ratings.T, fit.spec.attributes, strict=True)],
    )
    rows, intercepts = np.stack([one[0] for one in fits]), np.array([one[1] for one in fits])
    predicted = np.stack([one[2] for one in fits], axis=1)
    # Weights are fitted to ratings of questions that no rating was fitted to: on its own questions a head is too sure.
    merging = None if choices is None else _merging(choices, predicted)
    if spec.rules.merges_attributes:
        if merging is not None:
            spec = replace(spec, weights=merging.weights, temperature=merging.temperature)
        weight, bias = fit.features.folded(rows, intercepts)
        tensors = {"value_head.weight": weight, "value_head.bias": bias}
        logits = None if merging is None or choices is None else _merged(merging, predicted, choices)
        return FittedHead(tensors, spec, fit.penalties, logits=logits, ratings=predicted, merging=merging)
    assert choices is not None
    # The reward is held near the merged ratings, so that it says something else only where pairs do.
    merged = np.zeros(len(fits)) if merging is None else np.array(merging.weights) / merging.temperature
    priors = [merged @ np.stack([one[3][fold] for one in fits]) for fold in range(len(fit.held_out))]
    reward, logits = _reward(fit, choices, [*priors, merged @ rows])
    weight, bias = fit.features.folded(
        np.concatenate([reward[None] * spec.temperature, rows]), np.concatenate([[0.0], intercepts])
    )
    tensors = {"value_head.weight": weight, "value_head.bias": bias}
    return FittedHead(tensors, spec, fit.penalties, logits=logits, ratings=predicted)


def _merging(choices: Choices, predicted: Floats) -> Merging | None:
    decided = choices.target != 0.5
    first, second = choices.pairs[decided].T
    return fit_merging(np.sign(choices.target[decided] - 0.5)[:, None] * (predicted[first] - predicted[second]))


def _merged(merging: Merging, predicted: Floats, choices: Choices) -> Floats:
    merged = predicted @ np.array(merging.weights) / merging.temperature
    return np.asarray(merged[choices.pairs[:, 0]] - merged[choices.pairs[:, 1]])
