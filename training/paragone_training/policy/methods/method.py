"""What a policy method is, what its loss gets, and the checks that all losses share. torch only.

B pairs. The conventions of all losses in this folder:

Every ``…_logprob`` is a log-probability of a whole response: the SUM over its tokens, in nats, [B]. Whatever is not the
policy in training (reference, current, base) is frozen: its columns carry no gradient. Values are float32, or float64
where ``chosen_logprob`` is float64. A loss is one number per pair, in squared nats (DPO's in nats), [B]. D f stands for
f(chosen) - f(rejected), h for the step.

Losses are raw, as published, and so start in the ten thousands at the published settings. For logs and plots they are
multiplied by a constant (``…_scale``, a setting's ``scale``) that keeps the minimiser and makes them start at ≤ ¼.

A new method is one file beside this one, with a class that is a ``Method``, and its line in ``registry.py``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from paragone_training import games
from paragone_training.policy.targets import Ties

__all__ = [
    "Fit",
    "Float64s",
    "Method",
    "Needs",
    "PairTargets",
    "Step",
    "check_range",
    "check_vectors",
    "describe",
    "divergence",
    "knob",
    "no_own_targets",
    "numbers",
    "one_step",
    "same_shape",
    "working",
]

Float64s = NDArray[np.float64]


class PairTargets(NamedTuple):
    """What a loss is told about B pairs.

    Attributes:
        preference: target probability that chosen is preferred. [B]
        chosen: mean win rate or score of chosen; 0 for methods of labelled pairs. [B]
        base_chosen: log-probability of chosen under the step's base. [B]
        reference_chosen: log-probability of chosen under the reference. [B]
    """

    preference: Tensor
    chosen: Tensor
    rejected: Tensor
    base_chosen: Tensor
    base_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    def drift(self) -> Float64s:
        """Return how much further the base prefers chosen to rejected than the reference does, in nats. [B]."""
        # In float64: two sums of hundreds of nats that differ by little.
        won = numbers(self.base_chosen) - numbers(self.reference_chosen)
        return won - (numbers(self.base_rejected) - numbers(self.reference_rejected))


class Step(NamedTuple):
    """One training step of an iteration: a policy comes out.

    Attributes:
        round: number of the sampling round whose pairs it is trained on, from 1.
        sampler: which policy the round is drawn from: ``current`` (pi_t) or ``previous-step``.
        base: what it starts from: ``current``, ``previous-step``, or ``memory`` (the first step of the last iteration).
    """

    round: int
    sampler: str
    base: str


def one_step(_method: object, iteration: int) -> tuple[Step, ...]:  # noqa: ARG001 - all iterations are alike
    """Return the one step of a method that samples from its iterate, and trains it on these pairs."""
    return (Step(1, "current", "current"),)


def no_own_targets(_method: object, table: Float64s, *, include_self: bool) -> Float64s:  # noqa: ARG001
    """Return zeros, for methods that are trained on the labels of pairs alone. [K]."""
    return np.zeros(len(table))


@dataclass(frozen=True)
class Needs:
    """What a method can use of the targets and the reference; a recipe that has something else is refused.

    Attributes:
        pairs: it is trained on labelled pairs; else on a number of each response (``Method.own_targets``).
        ties: the first is what a recipe has unless it says something.
    """

    pairs: bool = True
    labels: tuple[str, ...] = ("soft", "sampled", "hard")
    ties: tuple[Ties, ...] = ("keep", "drop")
    references: tuple[str, ...] = ("initial", "previous", "every-n")


class Fit(Protocol):
    """The loss of a training step, and what is known of it before the first gradient."""

    @property
    def per_response(self) -> bool:
        """Whether each response has a goal of its own; else a pair has one for the difference of its two."""

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        """Return the raw loss of each pair from its log-probabilities under the policy in training. [B]."""

    def scale(self, largest_target: float) -> float:
        """Return what the raw loss is multiplied by for logs; the largest absolute target is of the pairs' numbers."""

    def start(self, targets: PairTargets) -> Float64s:
        """Return the raw loss of each pair where the policy still is the step's base, in closed form. [B]."""

    def goal(self, targets: PairTargets) -> Float64s:
        """Return the log-ratios that the loss asks for, in nats. [2B] if ``per_response``, else [B]."""

    def slope(self, start: float) -> float:
        """Return how fast the loss changes with a log-ratio, per nat, where it is ``start``."""


class Method(Protocol):
    """One method with its numbers, which are the fields of the dataclass that it is."""

    name: ClassVar[str]
    needs: ClassVar[Needs]

    @property
    def fit(self) -> Fit:
        """The loss of each of its steps."""

    def steps(self, iteration: int) -> tuple[Step, ...]:
        """Return the training steps of an iteration, from 1."""

    def own_targets(self, table: Float64s, *, include_self: bool) -> Float64s:
        """Return the number of each response that it is trained on; zeros where pairs are. [K] of [K, K]."""

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:
        """Return what to tell the user where these numbers cannot converge, with the limit and the remedy, or None.

        Args:
            omega: rotation, measured or known, in radians per nat of step; NaN (nothing measured) gives None.
            cyclic: whether some a beats b beats c beats a; without any, a method with no KL has a best response to
                arrive at.

        Raises:
            ValueError: if omega is negative.
        """

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, Float64s | None]:
        """Return the next policy in a game that can be enumerated, and what the method remembers beside it.

        Args:
            policy: the policy that is played. [n]
            memory: the second of the last call's answers; None at the start. [n]

        Raises:
            ValueError: if the method solves no game of preferences, or an argument is none.
        """


def knob(text: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field for a number of a method, with its meaning for the table of settings."""
    return dataclasses.field(default=default, metadata={"help": text})


def describe(method: Method) -> str:
    """Return the method with its numbers in words: ``inpo: eta 0.005, tau 0.0017``."""
    fields = dataclasses.fields(method)  # type: ignore[arg-type] # a Protocol cannot say that it is a dataclass
    values = ", ".join(f"{field.name} {getattr(method, field.name):g}" for field in fields)
    return f"{method.name}: {values}"


def divergence(omega: float, name: str, *, dynamics: games.Dynamics, step: float, tau: float) -> str | None:
    """Return the beginning of a warning: how fast errors grow near the equilibrium; None where they do not.

    Args:
        omega: rotation; NaN gives None.
        dynamics: the update in exact games that it behaves like.

    Raises:
        ValueError: if omega is negative or not finite.
    """
    if math.isnan(omega):
        return None
    # Local and for exact updates: an estimate of what the neural iterates will do.
    radius = games.spectral_radius(omega, method=dynamics, step=step, tau=tau)
    if omega == 0 or radius < 1.0:
        return None
    return (
        f"with rotation omega = {omega:.4g} the last iterate of {name} does not converge: an error grows by "
        f"{radius:.4g} an iteration; "
    )


def numbers(column: Tensor) -> Float64s:
    """Return a column as float64 on the CPU."""
    return np.asarray(column.double().cpu().numpy())


def same_shape(first: ArrayLike, second: ArrayLike) -> tuple[Float64s, Float64s]:
    """Return two arrays as float64.

    Raises:
        ValueError: if the shapes differ: nothing is broadcast.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {left.shape} and {right.shape}; they must be equal, nothing is broadcast")
    return left, right


def working(chosen_logprob: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the dtype that losses compute in, on the device of the first.

    float64 where ``chosen_logprob`` is, else float32: a frozen column that was stored wider decides nothing.
    """
    # Halves have eight bits of mantissa, and log-probabilities of responses are hundreds of nats.
    dtype = torch.float64 if chosen_logprob.dtype == torch.float64 else torch.float32
    # Others follow the first, so that no promotion rule of torch decides the dtype of a loss.
    first = chosen_logprob.to(dtype)
    return (first, *(other.to(first) for other in others))


def check_vectors(**tensors: Tensor) -> None:
    """Refuse tensors that are not all [B] with one B: nothing is ever broadcast.

    Raises:
        ValueError: if shapes differ or are not [B].
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {listed}; they must be equal, nothing is broadcast")
    # A matrix of log-probabilities per token would pass every formula below, and mean something else.
    if any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"one number per response is needed, of shape [B], the sum over its tokens: {listed}")


def check_range(name: str, values: Tensor, lowest: float, highest: float) -> None:
    """Refuse values outside [lowest, highest], and NaN.

    Raises:
        ValueError: if a value lies outside or is NaN.
    """
    # Asked this way round, because every comparison with NaN is false.
    if not bool(((values >= lowest) & (values <= highest)).all()):
        raise ValueError(
            f"{name} must lie in [{lowest:g}, {highest:g}], and a value outside or NaN was given: "
            "leave missing comparisons out"
        )
