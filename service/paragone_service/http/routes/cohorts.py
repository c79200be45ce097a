"""The route of cohorts: a group's members come one request at a time, and each is answered once all have come."""

import functools
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from paragone.wire import CohortAnswer, CohortRequest
from paragone_service.cohorts.by_texts import TextContest
from paragone_service.cohorts.by_vectors import VectorContest
from paragone_service.cohorts.contest import Contest
from paragone_service.cohorts.waiting import Cohorts, Outcome
from paragone_service.http.bodies import check_total, read_member
from paragone_service.http.calls import call_of
from paragone_service.http.openapi_document import cohort_document
from paragone_service.http.routes.comparing import check_principles, checked_member, raise_first
from paragone_service.references.owners import VectorOwner
from paragone_service.references.sets import ReferenceSets
from paragone_service.registry import Registry
from paragone_service.scoring import groups
from paragone_service.scoring.comparing import compared
from paragone_service.scoring.request import Call, Problems

__all__ = ["cohort_routes"]


def cohort_routes(registry: Registry, sets: ReferenceSets, cohorts: Cohorts, workers: Executor) -> APIRouter:
    """Return the route of cohorts.

    Args:
        workers: threads for the arithmetic of large groups, and for plans of comparisons.
    """
    router = APIRouter(tags=["scoring"])

    @router.post("/v1/cohorts", **cohort_document(CohortRequest, CohortAnswer))
    async def cohorts_(request: Request) -> Response:
        """Answer how one response does within its group, once every member of the group was sent.

        The forward runs when a member arrives, so that the last one waits for its own alone; a model that reads both
        responses at once compares when the group is whole. A repeat of a member joins it or is replayed; a client that
        leaves may come back for its answer.
        """
        body, refusal = await read_member(request)
        call = call_of(request, body.truncation, Problems("cohort", report=True))
        check_total(1 + len(body.listed))
        unfit = groups.check_signal(body.signal, body.size, 0 if body.references is None else 1)
        if unfit is not None:
            raise unfit
        source = registry.pair_source(body.model)
        contest: Contest
        if source is None:
            contest = await _of_vectors(body, call)
        else:
            body = await checked_member(source, body, call, sets)
            newest = functools.partial(registry.pair_source, body.model)
            contest = TextContest(source, newest, body, call, workers=workers)
        outcome = await cohorts.answer(contest, body, call, refusal=refusal)
        content = _answer(contest.header, body, outcome).model_dump_json(exclude_unset=True)
        return Response(content, media_type="application/json")

    async def _of_vectors(body: CohortRequest, call: Call) -> VectorContest:
        model = registry.find(body.model)
        comparator, header = compared(model, skew_weight=body.skew_weight)
        model.check_preferences(comparator)
        groups.check_kind(body.signal, model.name, comparator)
        check_principles(model.name, [body], [0], call.problems, takes_one=model.takes_principles)
        stored = await sets.find(VectorOwner(model), call.tenant, [body], [0], call.problems)
        raise_first(call.problems)
        return VectorContest(model, comparator, header, body, call, stored=stored.get(0), workers=workers)

    return router


def _answer(header: Mapping[str, Any], body: CohortRequest, outcome: Outcome) -> CohortAnswer:
    group, standing, place = outcome.group, outcome.standing, outcome.place
    # It has met nobody, and ½ would look as if it had.
    alone = standing.left_alone
    fields: dict[str, Any] = {
        **header,
        "win_rate": None if alone else float(standing.win_rates[place]),
        "rank": None if alone else standing.rank(place),
        "size": group.head.size,
        "present": len(group.members),
        "missing": group.missing,
        "unscored": list(standing.unscored),
        "usage": outcome.usage,
    }
    # Only fields that are set are sent.
    rewards = standing.tables.rewards
    if rewards is not None:
        fields["reward"] = float(rewards[place])
    if body.references is not None:
        fields["reference_win_rate"] = standing.reference_win_rate(place)
    if body.signal is not None:
        fields["signal"] = None if standing.signal is None else standing.signal[place]
    if "matrix_row" in body.return_:
        fields["matrix_row"] = standing.row(place, group.head.size)
    if standing.details:
        fields |= standing.details[place]
    return CohortAnswer(**fields)
