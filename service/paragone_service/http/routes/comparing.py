"""What the scoring routes answer for a model that reads both responses at once."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone.wire import (
    CohortRequest,
    Group,
    Item,
    ItemOfSteps,
    Pair,
    PairById,
    PreferencesAnswer,
    PreferencesRequest,
    RewardsAnswer,
    RewardsRequest,
    Signal,
    TournamentsAnswer,
    TournamentsRequest,
)
from paragone.wire.conversations import Referenced
from paragone_models.comparisons import most_comparisons, plan_named
from paragone_service.http.bodies import MAX_ITEMS, check_groups
from paragone_service.http.calls import answer
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.answers import preferences, rewards
from paragone_service.pairs.source import Duel, PairSource, check_unchanged
from paragone_service.pairs.tables import GroupTable, compare_groups, comparisons_of, tournaments
from paragone_service.references.owners import TextOwner, with_listed
from paragone_service.references.sets import ReferenceSets
from paragone_service.scoring import groups
from paragone_service.scoring.request import Call, Problems

__all__ = [
    "check_principles",
    "check_rationale",
    "checked_member",
    "compared_preferences",
    "compared_rewards",
    "compared_tournaments",
    "raise_first",
]

AnyReferenced = TypeVar("AnyReferenced", bound=Referenced)


async def compared_preferences(
    source: PairSource, body: PreferencesRequest, indices: Sequence[int], call: Call
) -> Response:
    """Answer a request for preferences."""
    _refuse_what_needs_representations(
        source, call, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
    )
    if not source.takes_principles:
        check_principles(source.name, body.pairs, indices, call.problems)
        check_rationale(source.name, body)
    duels = []
    for index, pair in zip(indices, body.pairs, strict=True):
        if index in call.problems.errors:
            continue
        if isinstance(pair, Pair):
            by = (pair.principle, pair.criteria or ())
            duels.append(Duel(index, pair.prompt, pair.tools, pair.first, pair.second, *by))
        else:
            call.problems.add(index, _no_ids(source))
    header = source.header
    compared = await source.compare(duels, call)
    rows = preferences([duel.item for duel in duels], compared, call.problems)
    return answer(check_unchanged(header, source), PreferencesAnswer, compared.usage, call.problems, preferences=rows)


async def compared_tournaments(
    source: PairSource,
    body: TournamentsRequest,
    indices: Sequence[int],
    call: Call,
    sets: ReferenceSets,
    workers: Executor,
) -> Response:
    """Answer a request for tournaments, having compared what its plan asks for."""
    _refuse_what_needs_representations(
        source, call, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
    )
    problems = call.problems
    if not source.takes_principles:
        check_principles(source.name, body.groups, indices, problems)
        check_rationale(source.name, body)
    check_groups(body.groups)
    _check_signal(source, body.signal)
    wanted = groups.Wanted(matrix="matrix" in body.return_, signal=body.signal, shaping=body.shaping)
    groups.check_signals(wanted, body.groups, indices, problems)
    asked = await _listed(source, body.groups, indices, call, sets)
    _check_number(sum(comparisons_of(group, body.comparisons) for group in asked))
    tables, sound = [], []
    for index, group in zip(indices, asked, strict=True):
        if index in problems.errors:
            continue
        try:
            plan = plan_named(body.comparisons, len(group.responses))
        except ValueError as error:
            problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, str(error)))
            continue
        tables.append(GroupTable(index, group, plan, body.fit))
        sound.append(group)
    sizes = await groups.sizes_of(sound, [0] * len(sound), workers, measured=body.shaping is not None)
    header = source.header
    usage = await compare_groups(source, tables, call, workers)
    check_unchanged(header, source)

    def summarise() -> Response:
        rows = tournaments(tables, sizes, problems, wanted)
        return answer(header, TournamentsAnswer, usage, problems, tournaments=rows)

    return await asyncio.get_running_loop().run_in_executor(workers, summarise)


async def checked_member(source: PairSource, body: CohortRequest, call: Call, sets: ReferenceSets) -> CohortRequest:
    """Return a request of a cohort's member, its references listed, if the model can answer it.

    Raises:
        ServiceError: if not.
    """
    _refuse_what_needs_representations(source, call, skew_weight=body.skew_weight)
    problems = call.problems
    if not source.takes_principles:
        check_principles(source.name, [body], [0], problems)
    _check_signal(source, body.signal)
    try:
        plan_named(body.comparisons, body.size)
    except ValueError as error:
        problems.add(0, ServiceError(ErrorCode.INVALID_REQUEST, str(error)))
    (listed,) = await _listed(source, [body], [0], call, sets)
    raise_first(problems)
    _check_number(most_comparisons(body.comparisons, body.size) + body.size * len(listed.listed))
    return listed


def raise_first(problems: Problems) -> None:
    """Refuse a request that has one item, for what is wrong with it.

    Raises:
        ServiceError: with that.
    """
    if problems.errors:
        raise ServiceError(problems.errors[0].code, problems.errors[0].message)


async def compared_rewards(
    source: PairSource, body: RewardsRequest, indices: Sequence[int], call: Call, sets: ReferenceSets
) -> Response:
    """Answer what each response is worth against its references: all that such a model has to say of one."""
    _refuse_what_needs_representations(
        source, call, skew_weight=body.skew_weight, weights=body.weights, aggregation=body.aggregation
    )
    if not source.takes_principles:
        check_principles(source.name, body.items, indices, call.problems)
    unknown = [name for name in body.return_ if name != "ids"]
    if unknown:
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE, f'model {source.name} has no {unknown[0]}: leave it out of "return"'
        )
    duels, counts, sound = [], [], []
    asked = await _listed(source, body.items, indices, call, sets)
    _check_number(sum(len(item.listed) for item in asked))
    for index, item in zip(indices, asked, strict=True):
        if isinstance(item, ItemOfSteps):
            problem = f"model {source.name} compares whole responses and scores no steps: send the response whole"
            call.problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, problem))
            continue
        if not item.references:
            problem = f"model {source.name} compares: give the item references to be compared with"
            call.problems.add(index, ServiceError(ErrorCode.REFERENCE_REQUIRED, problem))
        if index in call.problems.errors:
            continue
        duels += [
            Duel(index, item.prompt, item.tools, item.response, reference, item.principle) for reference in item.listed
        ]
        counts.append(len(item.listed))
        sound.append(index)
    header = source.header
    compared = await source.compare(duels, call)
    rows = rewards(sound, counts, compared, call.problems)
    return answer(check_unchanged(header, source), RewardsAnswer, compared.usage, call.problems, rewards=rows)


def check_principles(
    name: str,
    asked: Sequence[Pair | PairById | Group | Item | ItemOfSteps | CohortRequest],
    indices: Sequence[int],
    problems: Problems,
    *,
    takes_one: bool = False,
) -> None:
    """Add a problem for each item that names a principle or criteria, of a model that has no place for them.

    Args:
        takes_one: whether the model judges by one principle an item.

    Raises:
        ServiceError: ``invalid_request`` for the first of them, unless errors are reported.
    """
    for index, one in zip(indices, asked, strict=True):
        if isinstance(one, PairById):
            continue
        if isinstance(one, Pair | Group | CohortRequest) and one.criteria is not None:
            problem = f"model {name} asks nobody by several criteria: leave criteria out, or ask a judge"
        elif one.principle is not None and not takes_one:
            problem = f"model {name} judges by what it was trained on: leave principle out, or ask a judge"
        else:
            continue
        problems.add(index, ServiceError(ErrorCode.INVALID_REQUEST, problem))


def check_rationale(name: str, body: PreferencesRequest | TournamentsRequest) -> None:
    """Refuse a request that wants to know what was said, of a model that says nothing.

    Raises:
        ServiceError: ``return_unavailable``.
    """
    if "rationale" in body.return_:
        problem = f'model {name} gives numbers and no reasons: leave "rationale" out of "return", or ask a judge'
        raise ServiceError(ErrorCode.RETURN_UNAVAILABLE, problem)


def _refuse_what_needs_representations(source: PairSource, call: Call, **numbers: Any) -> None:
    """Refuse ids, and numbers that weigh parts of a representation."""
    if call.ids:
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE,
            f'model {source.name} keeps comparisons and no single responses: leave "ids" out of "return"',
        )
    for name, value in numbers.items():
        if value is not None:
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"model {source.name} compares both responses at once, and {name} is about the representation "
                "of one: leave it out",
            )


def _no_ids(source: PairSource) -> ServiceError:
    return ServiceError(
        ErrorCode.INVALID_REQUEST,
        f"model {source.name} reads both responses at once, and an id stands for the representation of one: send both "
        "in full",
    )


async def _listed(
    source: PairSource, asked: Sequence[AnyReferenced], indices: Sequence[int], call: Call, sets: ReferenceSets
) -> list[AnyReferenced]:
    """Return the items with their references as texts, whether they came so or a set has them.

    Raises:
        ServiceError: as ``ReferenceSets.find``.
    """
    stored = await sets.find(TextOwner(source), call.tenant, asked, indices, call.problems)
    return with_listed(asked, indices, stored)


def _check_signal(source: PairSource, signal: Signal | None) -> None:
    if signal == "reward":
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE,
            f"model {source.name} compares, and has no scalar for the signal reward: ask for another signal, win_rate "
            "for example",
        )


def _check_number(comparisons: int) -> None:
    if comparisons > MAX_ITEMS:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"{comparisons} comparisons in one request; the limit is {MAX_ITEMS}: send fewer or smaller groups, or ask "
            'for fewer "comparisons"',
        )
