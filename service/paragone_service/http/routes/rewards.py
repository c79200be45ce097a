"""The route that rates single responses: rewards and attributes, a scalar against references, blocks, gate scales."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone.wire import RewardsAnswer, RewardsRequest, Usage
from paragone_models.text.reader import Reading
from paragone_service.http.bodies import check_total, read_batch
from paragone_service.http.errors import ServiceError
from paragone_service.http.openapi_document import scoring_document
from paragone_service.http.routes.scoring import answer, call_of
from paragone_service.registry import Registry
from paragone_service.scoring import answers
from paragone_service.scoring.oracle import Oracle
from paragone_service.scoring.request import Asked, Call, Represented, as_conversation, placed

__all__ = ["rewards_routes"]


def rewards_routes(registry: Registry, workers: Executor) -> APIRouter:
    """Return the route.

    Args:
        registry: the hosted models.
        workers: threads for items with references, whose arithmetic takes long enough to hold up other requests.
    """
    router = APIRouter(tags=["scoring"])

    @router.post("/v1/rewards", **scoring_document(RewardsRequest, RewardsAnswer))
    async def rewards(request: Request) -> Response:
        """Answer the reward and the predicted attributes of each response.

        Rewards of one prompt's responses can be compared; those of different prompts only where the model was trained
        so. The reward is null where the kind of model has no scalar; an item with `references` has a
        `reference_logit` in any case, from one comparison with the mean of their representations.
        """
        batch = await read_batch(request, RewardsRequest, "items")
        wanted = batch.request
        oracle = registry.find(wanted.model)
        call = call_of(request, wanted, "items")
        early = _check_returned(wanted, oracle, call)
        asked = [Asked(item.prompt, item.tools, (item.response, *(item.references or ()))) for item in wanted.items]
        references = [len(item.references or ()) for item in wanted.items]
        wanted.items.clear()  # they may wait for long, and their texts need not
        with_scales = "gate_scales" in wanted.return_  # the gate reads the texts once more
        represented = await oracle.represent([*asked] if with_scales else asked, call)
        for item, problem in early.items():
            represented.problems.setdefault(item, problem)
        scales, usage = None, represented.usage
        if with_scales:
            scales, usage = await _gate_scales(oracle, asked, represented, call)

        def rate() -> Response:
            rows = answers.rewards(
                represented, references, oracle.model.comparator, call, returned=wanted.return_, scales=scales
            )
            return answer(oracle, RewardsAnswer, usage, rewards=batch.place(rows))

        if not any(references):
            return rate()
        return await asyncio.get_running_loop().run_in_executor(workers, rate)  # item by item takes a while

    return router


def _check_returned(wanted: RewardsRequest, oracle: Oracle, call: Call) -> dict[int, ServiceError]:
    """Return the problems of items that lack what the request wants of them, before anything is run.

    Raises:
        ServiceError: ``return_unavailable`` or ``preferences_unavailable``, if the model has nothing to return;
            ``too_many_items``; ``invalid_request`` for the first item that wants blocks and has no references, unless
            the call reports errors.
    """
    if "gate_scales" in wanted.return_:
        oracle.check_gate()
    comparator = oracle.model.comparator
    if "blocks" in wanted.return_ and not comparator.rules.has_vector:
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE,
            f"model {oracle.name} is of kind {comparator.kind} and has no 2-blocks: ask a general-preference or hybrid "
            'model, or leave "blocks" out of "return"',
        )
    if any(item.references for item in wanted.items):
        oracle.check_preferences()
        check_total(sum(1 + len(item.references or ()) for item in wanted.items))
    problems: dict[int, ServiceError] = {}
    if "blocks" in wanted.return_:
        for index, item in enumerate(wanted.items):
            if not item.references:
                problem = ServiceError(
                    ErrorCode.INVALID_REQUEST, "blocks compare a response with others: give the item references"
                )
                if not call.report:
                    raise placed(problem, call, index)
                problems[index] = problem
    return problems


async def _gate_scales(
    oracle: Oracle, asked: Sequence[Asked], represented: Represented, call: Call
) -> tuple[dict[int, NDArray[np.float32]], Usage]:
    """Return the gate's weights of the 2-blocks for each item without a problem, by its index, [k] each.

    Each item is read with its own response, because a long one may cut the prompt that the gate reads. Problems found
    on the way are added to ``represented``.

    Returns:
        The weights, and the usage of ``represented`` with what they cost added.

    Raises:
        ServiceError: for the first item that has no weights, unless the call reports errors; for the whole request, if
            the queue is full.
        ClientGoneError: if the client left meanwhile.
    """
    wanted = [item for item in range(len(asked)) if item not in represented.problems]
    readings = await oracle.read([as_conversation(asked[item], asked[item].responses[0]) for item in wanted], call)
    told = await oracle.check_gate().scales([one for one in readings if isinstance(one, Reading)], call)
    outcomes = iter(told.scales)
    scales: dict[int, NDArray[np.float32]] = {}
    for item, reading in zip(wanted, readings, strict=True):
        outcome = (
            next(outcomes) if isinstance(reading, Reading) else ServiceError(ErrorCode(reading.code), str(reading))
        )
        if not isinstance(outcome, ServiceError):
            scales[item] = outcome
        elif call.report:
            represented.problems[item] = outcome
        else:
            raise placed(outcome, call, item)
    tokens = represented.usage.forward_tokens + told.forward_tokens
    cost = {"forward_tokens": tokens, "forward_prompts": told.forward_prompts}
    return scales, represented.usage.model_copy(update=cost)
