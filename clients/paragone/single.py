"""Build what is asked singly: a pair, a group, a cohort's member, a reference set, a run. Pure, for both clients."""

import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from paragone.batches import CriteriaLike, GroupLike, PromptLike, ReferencesLike, ResponseLike, prompt_hash
from paragone.connection import RetryPolicy
from paragone.exceptions import RequestError, exception_for
from paragone.wire import (
    CohortRequest,
    CohortReturn,
    OnMissing,
    ReferencesRequest,
    RunReport,
    Shaping,
    Signal,
    Truncation,
    error_detail,
)

__all__ = [
    "COHORTS",
    "DEFAULT_DEADLINE_S",
    "REFERENCES",
    "RUNS",
    "SingleRequest",
    "deletion",
    "group_of",
    "member_request",
    "pair_of",
    "references_request",
    "run_request",
]

COHORTS = "/v1/cohorts"
REFERENCES = "/v1/references"
RUNS = "/v1/runs"
DEFAULT_DEADLINE_S = 600.0
WireT = TypeVar("WireT", bound=BaseModel)
_SLACK_S = 30.0
"""How much longer than its group a request may take, so that the answer says how the group ended."""


@dataclass(frozen=True, slots=True)
class SingleRequest:
    """One HTTP request.

    Attributes:
        body: None for one that has none.
        prompt_hash: by which an address is chosen: siblings meet at one replica; None: any.
        group_s: how long its answer may take that waits for a group; None for one that does not wait for others.
        deletes: whether it is a DELETE.
    """

    body: bytes | None
    prompt_hash: str | None = None
    group_s: float | None = None
    deletes: bool = False

    def policy(self, usual: RetryPolicy) -> RetryPolicy:
        """Return how long it is waited for: for its group, unless the caller named a time of his own."""
        if usual.named or self.group_s is None:
            return usual
        return replace(usual, timeout_s=max(usual.timeout_s, self.group_s + _SLACK_S))


def pair_of(
    prompt: PromptLike,
    first: ResponseLike,
    second: ResponseLike,
    *,
    principle: str | None,
    criteria: CriteriaLike | None,
) -> dict[str, Any]:
    """Return one pair as ``/v1/preferences`` has it."""
    return {"prompt": prompt, "first": first, "second": second, **_given(principle=principle, criteria=criteria)}


def group_of(
    prompt: PromptLike,
    responses: Sequence[ResponseLike],
    *,
    references: ReferencesLike | None,
    principle: str | None,
    criteria: CriteriaLike | None,
) -> dict[str, Any]:
    """Return one group as ``/v1/tournaments`` has it."""
    more = _given(references=references, principle=principle, criteria=criteria)
    return {"prompt": prompt, "responses": responses, **more}


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def member_request(
    prompt: PromptLike,
    response: ResponseLike,
    *,
    group: str,
    slot: int,
    size: int,
    attempt: int,
    references: ReferencesLike | None,
    principle: str | None,
    criteria: CriteriaLike | None,
    comparisons: str,
    deadline_s: float,
    signal: Signal | None,
    shaping: Shaping | Mapping[str, float] | None,
    skew_weight: float | None,
    on_missing: OnMissing,
    return_: Sequence[CohortReturn],
    model: str | None,
    truncation: Truncation,
) -> SingleRequest:
    """Return the request of one member.

    Raises:
        RequestError: if something is not in the wire format.
    """
    fields: dict[str, Any] = {
        "group": group,
        "slot": slot,
        "size": size,
        "prompt": prompt,
        "response": response,
        "deadline_s": deadline_s,
    }
    # What is a default is not sent: an older server need not know a field that nobody uses.
    optional: dict[str, tuple[Any, Any]] = {
        "model": (model, None),
        "attempt": (attempt, 0),
        "references": (references, None),
        "principle": (principle, None),
        "criteria": (criteria, None),
        "comparisons": (comparisons, "all"),
        "signal": (signal, None),
        "shaping": (shaping, None),
        "skew_weight": (skew_weight, None),
        "on_missing": (on_missing, "fail"),
        "truncation": (truncation, "prompt"),
        "return": (list(return_), []),
    }
    fields |= {name: value for name, (value, default) in optional.items() if value != default}
    request = _validated(CohortRequest, fields)
    return SingleRequest(_written(request), prompt_hash(request.prompt), deadline_s)


def references_request(
    name: str,
    items: Iterable[GroupLike],
    *,
    model: str | None,
    ttl_s: float | None,
    truncation: Truncation,
) -> SingleRequest:
    """Return the request that stores a reference set.

    Raises:
        RequestError: if something is not in the wire format.
    """
    shaped: list[object] = []
    for place, item in enumerate(items):
        if isinstance(item, tuple | list):
            if len(item) != 2:
                raise RequestError(f"items[{place}]: a tuple of {len(item)} is not (prompt, responses)", item=place)
            shaped.append({"prompt": item[0], "responses": item[1]})
        else:
            shaped.append(item)
    optional: dict[str, tuple[Any, Any]] = {
        "model": (model, None),
        "ttl_s": (ttl_s, None),
        "truncation": (truncation, "prompt"),
    }
    fields = {name: value for name, (value, default) in optional.items() if value != default}
    return SingleRequest(_written(_validated(ReferencesRequest, {"name": name, "items": shaped, **fields})))


def deletion(name: str) -> tuple[str, SingleRequest]:
    """Return path and request that delete a reference set."""
    return f"{REFERENCES}/{urllib.parse.quote(name, safe='')}", SingleRequest(None, deletes=True)


def run_request(report: RunReport | Mapping[str, Any]) -> SingleRequest:
    """Return the request that tells a service how far a run is.

    Raises:
        RequestError: if something is not in the wire format.
    """
    fields = report.model_dump() if isinstance(report, RunReport) else dict(report)
    return SingleRequest(_written(_validated(RunReport, fields)))


def _validated(wire: type[WireT], fields: dict[str, Any]) -> WireT:
    try:
        return wire.model_validate(fields)
    except ValidationError as error:
        # Refused before anything is sent, and with the error that the service would answer.
        raise exception_for(error_detail(error)) from None


def _written(request: BaseModel) -> bytes:
    return request.model_dump_json(exclude_unset=True, by_alias=True).encode()
