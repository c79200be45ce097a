"""What compares representations as a request wants it: the model's comparator, or one with the request's numbers.

Weights of attributes and of a skew form are arithmetic on cached representations. Other numbers give other answers, so
the answer's fingerprint is that of the model with them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paragone.codes import ErrorCode
from paragone_models.comparator import Comparator
from paragone_models.steps import Aggregation
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["compared"]


def compared(
    hosted: HostedModel,
    *,
    skew_weight: float | None = None,
    weights: Mapping[str, float] | None = None,
    aggregation: Aggregation | None = None,
) -> tuple[Comparator, Mapping[str, Any]]:
    """Return what compares representations, and what an answer says of the model.

    Args:
        skew_weight: of a hybrid model, in place of its own; None leaves it.
        weights: of attributes by name, in place of the model's reward or weights; those not named are 0. None leaves
            them.
        aggregation: what makes one reward of the steps of a process model, in place of its own; None leaves it.

    Raises:
        ServiceError: ``invalid_request``, if the model has no such weight or attribute, or no steps.
    """
    model = hosted.model
    changes: dict[str, Any] = {}
    if skew_weight is not None:
        changes["skew_weight"] = _checked_skew_weight(hosted, skew_weight)
    if weights is not None:
        changes["weights"] = _in_order(hosted, weights)
    if aggregation is not None:
        changes["aggregation"] = _checked_aggregation(hosted, aggregation)
    changes = {name: value for name, value in changes.items() if value != getattr(model.spec, name)}
    if not changes:
        return model.comparator, hosted.header | _named(model.spec.aggregation)
    # A temperature was fitted to one game, and says nothing of another.
    spec = replace(model.spec, calibrated=False, **changes)
    fingerprint = spec.fingerprint(model.identity, model.provenance.numerics)
    header = {**hosted.header, "fingerprint": fingerprint, "calibrated": False} | _named(spec.aggregation)
    return replace(model.comparator, **changes), header


def _named(aggregation: Aggregation | None) -> dict[str, Any]:
    # Only fields that were set are sent: other models say nothing of it.
    return {} if aggregation is None else {"aggregation": aggregation}


def _checked_aggregation(hosted: HostedModel, aggregation: Aggregation) -> Aggregation:
    if not hosted.model.spec.rules.has_steps:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"model {hosted.name} is of kind {hosted.model.kind}, and aggregation makes one reward of the steps of a "
            "process model: leave it out",
        )
    return aggregation


def _checked_skew_weight(hosted: HostedModel, skew_weight: float) -> float:
    model = hosted.model
    if skew_weight != model.spec.skew_weight and not model.spec.rules.weighs_skew:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"model {hosted.name} is of kind {model.kind}, and skew_weight weighs the skew form of a hybrid model "
            "beside its reward: leave it out",
        )
    return skew_weight


def _in_order(hosted: HostedModel, weights: Mapping[str, float]) -> tuple[float, ...]:
    """Return the weights in the order of the model's attributes."""
    attributes = hosted.model.spec.attributes
    if not attributes:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"model {hosted.name} is of kind {hosted.model.kind} and rates no attributes: leave weights out",
        )
    # How many and not which: an error repeats nothing that a client made up.
    if unknown := len(set(weights) - set(attributes)):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"weights name {unknown} attributes that model {hosted.name} does not rate: it rates "
            f"{', '.join(attributes)}",
        )
    return tuple(float(weights.get(name, 0.0)) for name in attributes)
