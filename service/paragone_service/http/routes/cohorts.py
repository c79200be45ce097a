"""The route of cohorts: a group's members come one request at a time, and each is answered once all have come."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from paragone.wire import CohortAnswer, CohortRequest, Unscored
from paragone_service.cohorts.waiting import Cohorts, Outcome
from paragone_service.http.bodies import check_total, read_member
from paragone_service.http.calls import call_of
from paragone_service.http.errors import ServiceError
from paragone_service.http.openapi_document import cohort_document
from paragone_service.references.owners import VectorOwner
from paragone_service.references.sets import ReferenceSets
from paragone_service.registry import Registry
from paragone_service.scoring import groups
from paragone_service.scoring.comparing import compared
from paragone_service.scoring.request import Problems

__all__ = ["cohort_routes"]


def cohort_routes(registry: Registry, sets: ReferenceSets, cohorts: Cohorts) -> APIRouter:
    """Return the route of cohorts."""
    router = APIRouter(tags=["scoring"])

    @router.post("/v1/cohorts", **cohort_document(CohortRequest, CohortAnswer))
    async def cohorts_(request: Request) -> Response:
        """Answer how one response does within its group, once every member of the group was sent.

        The forward runs when a member arrives, so that the last one waits for its own alone. A repeat of a member
        joins it or is replayed; a client that leaves may come back for its answer.
        """
        body, refusal = await read_member(request)
        model = registry.find(body.model)
        comparator, header = compared(model, skew_weight=body.skew_weight)
        model.check_preferences(comparator)
        check_total(1 + len(body.listed))
        groups.check_kind(body.signal, model.name, comparator)
        unfit = groups.check_signal(body.signal, body.size, 0 if body.references is None else 1)
        if unfit is not None:
            raise unfit
        problems = Problems("cohort", report=True)
        call = call_of(request, body.truncation, problems)
        stored = await sets.find(VectorOwner(model), call.tenant, [body], [0], problems)
        if problems.errors:
            raise ServiceError(problems.errors[0].code, problems.errors[0].message)
        outcome = await cohorts.answer(model, comparator, body, call, stored=stored.get(0), refusal=refusal)
        content = _answer(header, body, outcome).model_dump_json(exclude_unset=True)
        return Response(content, media_type="application/json")

    return router


def _answer(header: Mapping[str, Any], body: CohortRequest, outcome: Outcome) -> CohortAnswer:
    group, standing, place = outcome.group, outcome.standing, outcome.place
    refused = [(slot, member.error) for slot, member in sorted(group.members.items()) if member.error is not None]
    unscored = [Unscored(slot=slot, code=code, message=message) for slot, (code, message) in refused]
    # It has met nobody, and ½ would look as if it had.
    alone = standing.left_alone
    fields: dict[str, Any] = {
        **header,
        "win_rate": None if alone else float(standing.win_rates[place]),
        "rank": None if alone else standing.rank(place),
        "size": group.head.size,
        "present": len(group.members),
        "missing": group.missing,
        "unscored": [*unscored, *outcome.bad_references],
        "usage": outcome.usage,
    }
    # Only fields that are set are sent.
    if standing.rewards is not None:
        fields["reward"] = float(standing.rewards[place])
    if body.references is not None:
        fields["reference_win_rate"] = standing.reference_win_rate(place)
    if body.signal is not None:
        fields["signal"] = None if standing.signal is None else standing.signal[place]
    if "matrix_row" in body.return_:
        fields["matrix_row"] = standing.row(place, group.head.size)
    return CohortAnswer(**fields)
