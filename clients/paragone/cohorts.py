"""Build the request of one member of a cohort: a pure function that both clients share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from paragone.batches import PromptLike, ResponseLike, prompt_hash
from paragone.connection import RetryPolicy
from paragone.exceptions import exception_for
from paragone.wire import CohortRequest, CohortReturn, OnMissing, Shaping, Signal, Truncation, error_detail

__all__ = ["COHORTS", "DEFAULT_DEADLINE_S", "MemberRequest", "member_request"]

COHORTS = "/v1/cohorts"
DEFAULT_DEADLINE_S = 600.0
_SLACK_S = 30.0
"""How much longer than its group a request may take, so that the answer says how the group ended."""


@dataclass(frozen=True, slots=True)
class MemberRequest:
    """One HTTP request of a member.

    Attributes:
        prompt_hash: by which an address is chosen: siblings meet at one replica.
        longest_s: how long its answer may take.
    """

    body: bytes
    prompt_hash: str
    longest_s: float

    def policy(self, usual: RetryPolicy) -> RetryPolicy:
        """Return how long it is waited for: for its group, unless the caller named a time of his own."""
        return usual if usual.named else replace(usual, timeout_s=max(usual.timeout_s, self.longest_s))


def member_request(
    prompt: PromptLike,
    response: ResponseLike,
    *,
    group: str,
    slot: int,
    size: int,
    attempt: int,
    references: Sequence[ResponseLike] | None,
    deadline_s: float,
    signal: Signal | None,
    shaping: Shaping | Mapping[str, float] | None,
    on_missing: OnMissing,
    return_: Sequence[CohortReturn],
    model: str | None,
    truncation: Truncation,
) -> MemberRequest:
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
        "signal": (signal, None),
        "shaping": (shaping, None),
        "on_missing": (on_missing, "fail"),
        "truncation": (truncation, "prompt"),
        "return": (list(return_), []),
    }
    fields |= {name: value for name, (value, default) in optional.items() if value != default}
    try:
        request = CohortRequest.model_validate(fields)
    except ValidationError as error:
        # Refused before anything is sent, and with the error that the service would answer.
        raise exception_for(error_detail(error)) from None
    body = request.model_dump_json(exclude_unset=True, by_alias=True).encode()
    return MemberRequest(body, prompt_hash(request.prompt), deadline_s + _SLACK_S)
