"""The routes that score: preferences, rewards and tournaments, and what all routes with a list share."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from fastapi import APIRouter, Request
from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone.wire import (
    Item,
    ItemOfSteps,
    Pair,
    PairById,
    PreferencesAnswer,
    PreferencesRequest,
    RewardsAnswer,
    RewardsRequest,
    TournamentsAnswer,
    TournamentsRequest,
)
from paragone.wire import (
    Response as WireResponse,
)
from paragone.wire.conversations import Referenced
from paragone_models.comparator import Comparator
from paragone_models.steps import Aggregation
from paragone_service.http.bodies import check_groups, check_total, read_body
from paragone_service.http.calls import answer, call_of
from paragone_service.http.errors import ServiceError
from paragone_service.http.openapi_document import scoring_document
from paragone_service.http.routes.comparing import (
    check_principles,
    check_rationale,
    compared_preferences,
    compared_rewards,
    compared_tournaments,
)
from paragone_service.references.owners import VectorOwner, check_stored, with_references
from paragone_service.references.sets import ReferenceSets
from paragone_service.registry import Registry
from paragone_service.scoring import answers, groups
from paragone_service.scoring.comparing import compared
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, RequestItem, ResponseId, Steps

__all__ = ["scoring_routes"]


def scoring_routes(registry: Registry, sets: ReferenceSets, workers: Executor) -> APIRouter:
    """Return the routes.

    Args:
        sets: references that requests may name.
        workers: threads for tournaments and references, whose arithmetic takes long enough to hold up other requests.
    """
    router = APIRouter(tags=["scoring"])
    _add_preferences(router, registry)
    _add_tournaments(router, registry, sets, workers)
    _add_rewards(router, registry, sets, workers)
    return router


def _add_preferences(router: APIRouter, registry: Registry) -> None:
    @router.post("/v1/preferences", **scoring_document(PreferencesRequest, PreferencesAnswer))
    async def preferences(request: Request) -> Response:
        """Answer how probable it is that the first response is preferred to the second, for each pair.

        A response seen before, whatever it is compared with now, is answered from the cache.
        `P(first, second) + P(second, first)` is exactly 1 from the same representations.
        """
        body, indices, problems = await read_body(request, PreferencesRequest, "pairs")
        call = _call(request, body, problems)
        source = registry.pair_source(body.model)
        if source is not None:
            return await compared_preferences(source, body, indices, call)
        check_rationale(body.model or registry.default, body)
        model = registry.find(body.model)
        check_principles(model.name, body.pairs, indices, problems, takes_one=model.takes_principles)
        items = [_pair_item(index, pair) for index, pair in zip(indices, body.pairs, strict=True)]
        body.pairs.clear()  # they may wait for long, and their texts need not
        comparator, header = compared(
            model, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
        )
        model.check_preferences(comparator)
        represented = await model.represent(items, call)
        rows = answers.preferences(represented, comparator, problems)
        return answer(header, PreferencesAnswer, represented.usage, problems, preferences=rows)


def _call(request: Request, body: PreferencesRequest | RewardsRequest | TournamentsRequest, problems: Problems) -> Call:
    return call_of(
        request,
        body.truncation,
        problems,
        deadline_s=body.deadline_s,
        ids="ids" in body.return_,
        rationales="rationale" in body.return_,
        aggregation=body.aggregation,
    )


def _pair_item(index: int, pair: Pair | PairById) -> RequestItem:
    if isinstance(pair, Pair):
        return RequestItem(index, pair.prompt, pair.tools, (pair.first, pair.second), principle=pair.principle)
    sides = (_response(pair.first, pair.first_id), _response(pair.second, pair.second_id))
    return RequestItem(index, pair.prompt, pair.tools, sides, has_ids=True)


def _response(full: WireResponse | None, id: str | None) -> WireResponse | ResponseId:
    if full is not None:
        return full
    assert id is not None  # the wire type sees to it
    return ResponseId(id)


def _add_tournaments(router: APIRouter, registry: Registry, sets: ReferenceSets, workers: Executor) -> None:
    @router.post("/v1/tournaments", **scoring_document(TournamentsRequest, TournamentsAnswer))
    async def tournaments(request: Request) -> Response:
        """Answer everything that follows from the K×K preferences among K responses to one prompt.

        K responses cost K forward passes, and none if they were seen before. With `on_error: "report"` a response that
        cannot be scored does not vote: it is named in its group's `errors`, and the others have their answer.
        """
        body, indices, problems = await read_body(request, TournamentsRequest, "groups")
        call = _call(request, body, problems)
        source = registry.pair_source(body.model)
        if source is not None:
            return await compared_tournaments(source, body, indices, call, sets, workers)
        check_rationale(body.model or registry.default, body)
        model = registry.find(body.model)
        check_principles(model.name, body.groups, indices, problems, takes_one=model.takes_principles)
        comparator, header = compared(
            model, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
        )
        model.check_preferences(comparator)
        check_groups(body.groups)
        wanted = groups.Wanted(matrix="matrix" in body.return_, signal=body.signal, shaping=body.shaping)
        groups.check_kind(wanted.signal, model.name, comparator)
        groups.check_signals(wanted, body.groups, indices, problems)
        _check_sets(model, body.aggregation, body.groups)
        stored = await sets.find(VectorOwner(model), call.tenant, body.groups, indices, problems)
        check_stored(stored)
        items = [
            RequestItem(
                index,
                group.prompt,
                group.tools,
                [*group.responses, *group.listed],
                len(group.responses),
                principle=group.principle,
            )
            for index, group in zip(indices, body.groups, strict=True)
        ]
        own = [len(item.responses) for item in items]
        stored_counts = [len(stored[index].references) if index in stored else 0 for index in indices]
        sizes = await groups.sizes_of(body.groups, stored_counts, workers, measured=body.shaping is not None)
        body.groups.clear()  # as above
        represented = await model.represent(items, call)

        def summarise() -> Response:
            together = with_references(represented, own, stored)
            rows = groups.tournaments(together, sizes, comparator, problems, wanted)
            return answer(header, TournamentsAnswer, represented.usage, problems, tournaments=rows)

        return await asyncio.get_running_loop().run_in_executor(workers, summarise)


def _add_rewards(router: APIRouter, registry: Registry, sets: ReferenceSets, workers: Executor) -> None:
    @router.post("/v1/rewards", **scoring_document(RewardsRequest, RewardsAnswer))
    async def rewards(request: Request) -> Response:
        """Answer the reward and the predicted attributes of each response.

        Rewards of one prompt's responses can be compared; those of different prompts only where the model was trained
        so. The reward is null where the kind of model has no scalar; an item with `references` has a
        `reference_logit` in any case, from one comparison with the mean of their representations.
        """
        body, indices, problems = await read_body(request, RewardsRequest, "items")
        call = _call(request, body, problems)
        source = registry.pair_source(body.model)
        if source is not None:
            return await compared_rewards(source, body, indices, call, sets)
        model = registry.find(body.model)
        comparator, header = compared(
            model, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
        )
        _check_returned(model, comparator, body, indices, problems)
        check_principles(model.name, body.items, indices, problems, takes_one=model.takes_principles)
        _check_steps(model, body, indices, problems)
        _check_sets(model, body.aggregation, body.items)
        stored = await sets.find(VectorOwner(model), call.tenant, body.items, indices, problems)
        check_stored(stored)
        items = [
            RequestItem(index, item.prompt, item.tools, (_own(item), *item.listed), own=1, principle=item.principle)
            for index, item in zip(indices, body.items, strict=True)
        ]
        own = [len(item.responses) for item in items]
        references = [
            len(stored[index].references) if index in stored else len(item.listed)
            for index, item in zip(indices, body.items, strict=True)
        ]
        body.items.clear()  # as above
        with_scales = "gate_scales" in body.return_  # the gate reads the texts once more
        represented = await model.represent([*items] if with_scales else items, call)
        scales, usage = None, represented.usage
        if with_scales:
            gated = await model.gate_scales(items, call)
            scales, forward_tokens = gated.by_item, usage.forward_tokens + gated.forward_tokens
            usage = usage.model_copy(
                update={"forward_tokens": forward_tokens, "forward_prompts": gated.forward_prompts}
            )

        def rate() -> Response:
            together = with_references(represented, own, stored)
            rows = answers.rewards(together, references, comparator, problems, returned=body.return_, scales=scales)
            return answer(header, RewardsAnswer, usage, problems, rewards=rows)

        if not any(references):
            return rate()
        return await asyncio.get_running_loop().run_in_executor(workers, rate)  # item by item takes a while


def _check_sets(model: HostedModel, aggregation: Aggregation | None, asked: Sequence[Referenced]) -> None:
    """Refuse an aggregation beside stored references, which are kept as another one made them.

    Raises:
        ServiceError: ``invalid_request``.
    """
    own = model.model.spec.aggregation
    if aggregation not in (None, own) and any(one.reference_set is not None for one in asked):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"reference sets of model {model.name} are kept as the aggregation {own} makes them: list the references, "
            "or leave aggregation out",
        )


def _check_steps(model: HostedModel, body: RewardsRequest, indices: Sequence[int], problems: Problems) -> None:
    """Add a problem for each item of steps, where the model scores whole responses."""
    if model.model.spec.rules.has_steps:
        return
    for index, item in zip(indices, body.items, strict=True):
        if isinstance(item, ItemOfSteps):
            problem = f"model {model.name} is of kind {model.model.kind} and scores no steps: send the response whole"
            problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, problem))


def _own(item: Item | ItemOfSteps) -> WireResponse | Steps:
    return Steps(tuple(item.steps)) if isinstance(item, ItemOfSteps) else item.response


def _check_returned(
    model: HostedModel, comparator: Comparator, body: RewardsRequest, indices: Sequence[int], problems: Problems
) -> None:
    """Check, before anything is run, that model and items have what the request wants of them.

    Raises:
        ServiceError: ``return_unavailable`` or ``preferences_unavailable``, if the model has nothing to return;
            ``too_many_items``; ``invalid_request`` for the first item without references where blocks or
            a ``skew_weight`` need them, unless errors are reported.
    """
    if "gate_scales" in body.return_:
        model.check_gate()
    if "blocks" in body.return_ and not comparator.rules.has_vector:
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE,
            f"model {model.name} is of kind {comparator.kind} and has no 2-blocks: ask a general-preference or hybrid "
            'model, or leave "blocks" out of "return"',
        )
    if any(item.references for item in body.items):
        model.check_preferences(comparator)
        check_total(sum(1 + len(item.listed) for item in body.items))
    # Refused and not ignored: whoever asks for these expects a comparison, and a reward is none.
    comparing = "blocks" if "blocks" in body.return_ else "skew_weight" if body.skew_weight is not None else None
    if comparing is not None:
        for index, item in zip(indices, body.items, strict=True):
            if not item.references:
                verb = "compare" if comparing == "blocks" else "weighs how a model compares"
                problem = f"{comparing} {verb} a response with others: give the item references"
                problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, problem))
