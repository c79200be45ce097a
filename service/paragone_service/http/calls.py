"""From a request of the web framework to a ``Call``, and from the rows of an answer to a response."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from paragone.wire import Truncation, Usage
from paragone_models.steps import Aggregation
from paragone_service.api_keys import ApiKey
from paragone_service.http.bodies import SCOPE_BODY_BYTES
from paragone_service.http.deadlines import SCOPE_DEADLINE
from paragone_service.http.middleware import SCOPE_KEY, SCOPE_SPENDING, SCOPE_TIMINGS
from paragone_service.http.overload import SCOPE_RESERVATION, client_of
from paragone_service.scoring.request import Call, Problems

__all__ = ["answer", "call_of", "client_gone", "tenant_of"]


def tenant_of(request: Request) -> str | None:
    """Return the tenant of a request's key; None where it has none, or the server has no keys."""
    key: ApiKey | None = request.scope.get(SCOPE_KEY)
    return key.tenant if key else None


async def client_gone(request: Request) -> None:
    """Return once the client of a request, whose body was read, has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def call_of(
    request: Request,
    truncation: Truncation,
    problems: Problems,
    *,
    deadline_s: float | None = None,
    ids: bool = False,
    rationales: bool = False,
    aggregation: Aggregation | None = None,
) -> Call:
    """Return how a request wants to be answered.

    Args:
        deadline_s: the deadline of its body, if that names one.
        ids: whether the answer names each response by an id.
        rationales: whether it says what a judge said.
        aggregation: of a process model's steps, if its body names one.
    """
    deadline = request.scope[SCOPE_DEADLINE]
    if deadline_s is not None:
        deadline.shorten(deadline_s)
    return Call(
        problems,
        truncation,
        functools.partial(client_gone, request),
        request.scope[SCOPE_TIMINGS],
        ids,
        client_of(request.scope),
        request.scope.get(SCOPE_BODY_BYTES, 0),
        deadline,
        tenant_of(request),
        spending=request.scope.get(SCOPE_SPENDING),
        reservation=request.scope.get(SCOPE_RESERVATION),
        rationales=rationales,
        aggregation=aggregation,
    )


def answer(
    header: Mapping[str, Any], wire: type[BaseModel], usage: Usage, problems: Problems, **rows: Sequence[BaseModel]
) -> Response:
    """Return an answer of the wire contract as a response, every problem in its item's place.

    Args:
        header: what it says of the model.
        rows: of the items without a problem, under the name that the answer's list has.
    """
    lists = {name: problems.place(sound) if problems.errors else sound for name, sound in rows.items()}
    body = wire(**header, usage=usage, **lists)
    # Fields that were not set are left out: what was not asked for is no null.
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")
