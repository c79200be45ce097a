"""The routes that compare, preferences and tournaments, and what all scoring routes share."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from paragone.wire import (
    HandlePair,
    Pair,
    PreferencesAnswer,
    PreferencesRequest,
    TournamentsAnswer,
    TournamentsRequest,
    Usage,
)
from paragone.wire import (
    Response as Said,
)
from paragone_service.http.bodies import check_groups, read_batch
from paragone_service.http.openapi_document import scoring_document
from paragone_service.http.timings import timings_of
from paragone_service.registry import Registry
from paragone_service.scoring import answers
from paragone_service.scoring.oracle import Oracle
from paragone_service.scoring.request import Asked, Call, Named

__all__ = ["answer", "call_of", "scoring_routes"]


def scoring_routes(registry: Registry, workers: Executor) -> APIRouter:
    """Return the routes that compare.

    Args:
        registry: the hosted models.
        workers: threads for tournaments, whose arithmetic takes long enough to hold up other requests.
    """
    router = APIRouter(tags=["scoring"])
    _add_preferences(router, registry)
    _add_tournaments(router, registry, workers)
    return router


def _add_preferences(router: APIRouter, registry: Registry) -> None:
    @router.post("/v1/preferences", **scoring_document(PreferencesRequest, PreferencesAnswer))
    async def preferences(request: Request) -> Response:
        """Answer how probable it is that the first response is preferred to the second, for each pair.

        A response seen before, whatever it is compared with now, is answered from the cache.
        `P(first, second) + P(second, first)` is exactly 1 from the same representations.
        """
        batch = await read_batch(request, PreferencesRequest, "pairs")
        wanted = batch.request
        oracle = registry.find(wanted.model)
        oracle.check_preferences()
        call = call_of(request, wanted, "pairs")
        asked = [_asked(pair) for pair in wanted.pairs]
        wanted.pairs.clear()  # they may wait for long, and their texts need not
        represented = await oracle.represent(asked, call)
        rows = answers.preferences(represented, oracle.model.comparator, call)
        return answer(oracle, PreferencesAnswer, represented.usage, preferences=batch.place(rows))


def _add_tournaments(router: APIRouter, registry: Registry, workers: Executor) -> None:
    @router.post("/v1/tournaments", **scoring_document(TournamentsRequest, TournamentsAnswer))
    async def tournaments(request: Request) -> Response:
        """Answer everything that follows from the K×K preferences among K responses to one prompt.

        K responses cost K forward passes, and none if they were seen before.
        """
        batch = await read_batch(request, TournamentsRequest, "groups")
        wanted = batch.request
        oracle = registry.find(wanted.model)
        oracle.check_preferences()
        check_groups(wanted.groups)
        call = call_of(request, wanted, "groups")
        asked = [
            Asked(group.prompt, group.tools, [*group.responses, *(group.references or ())]) for group in wanted.groups
        ]
        sizes = [(len(group.responses), len(group.references or ())) for group in wanted.groups]
        wanted.groups.clear()  # as above
        represented = await oracle.represent(asked, call)

        def summarise() -> Response:
            rows = answers.tournaments(
                represented,
                sizes,
                oracle.model.comparator,
                call,
                with_matrix="matrix" in wanted.return_,
            )
            return answer(oracle, TournamentsAnswer, represented.usage, tournaments=batch.place(rows))

        return await asyncio.get_running_loop().run_in_executor(workers, summarise)


def _asked(pair: Pair | HandlePair) -> Asked:
    if isinstance(pair, Pair):
        return Asked(pair.prompt, pair.tools, (pair.first, pair.second))
    sides = (_response(pair.first, pair.first_id), _response(pair.second, pair.second_id))
    return Asked(pair.prompt, pair.tools, sides, named=True)


def _response(full: Said | None, id: str | None) -> Said | Named:
    if full is not None:
        return full
    assert id is not None  # the wire type sees to it
    return Named(id)


def call_of(request: Request, wanted: Any, where: Literal["pairs", "items", "groups"]) -> Call:
    """Return how a request wants to be answered."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    # Who asks: the key, and the address it comes from, since many share one key.
    client = (request.headers.get("authorization"), request.client.host if request.client else None)
    report = wanted.on_error == "report"
    ids = "ids" in getattr(wanted, "return_", ())
    return Call(where, wanted.truncation, report, gone, timings_of(request.scope), ids=ids, client=client)


def answer(oracle: Oracle, wire: type[BaseModel], usage: Usage, **rows: Sequence[BaseModel]) -> Response:
    """Return an answer of the wire contract as a response; fields that were not set are left out."""
    model = oracle.model
    body = wire(
        model=oracle.name,
        identity=model.identity,
        fingerprint=model.fingerprint,
        calibrated=model.calibrated,
        usage=usage,
        **rows,
    )
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")
