"""A contest of texts, for a model that reads both responses at once: compared once the group is settled.

One process compares, whichever has the group's lease; what was answered is kept with the group, and all others read it.
A member of whom every comparison failed does not vote, and is named; another gap between two members is inferred.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from pydantic import TypeAdapter

from paragone.codes import ErrorCode
from paragone.wire import CohortRequest, Response, Unscored, Usage
from paragone.wire import Group as WireGroup
from paragone_models.comparisons import plan_named
from paragone_models.shaping import measure
from paragone_service.cache.keys import conversation_keys
from paragone_service.cohorts.contest import Once, Scored, Standing, refused
from paragone_service.cohorts.groups import Group, Member
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import PairSource
from paragone_service.pairs.tables import GroupTable, compare_groups, filled_tables, voters_of
from paragone_service.scoring.groups import GroupSize, Voters
from paragone_service.scoring.request import Call, Deadline, Problems, response_messages

__all__ = ["TextContest"]

_RESPONSE: TypeAdapter[Response] = TypeAdapter(Response)
_NOTHING = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=0)
# What is wrong with two texts, or with what was said of them: the comparison has failed. All else passes, and then the
# group is compared when a member is sent again.
_OF_THE_TEXTS = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.EMPTY_PROMPT,
        ErrorCode.UNSUPPORTED_CONTENT,
        ErrorCode.RESPONSE_TOO_LONG,
        ErrorCode.CONVERSATION_TRUNCATED,
        ErrorCode.NON_FINITE_SCORE,
        ErrorCode.JUDGE_UNPARSED,
        ErrorCode.JUDGE_UNFINISHED,
        ErrorCode.JUDGE_REFUSED,
    }
)


class TextContest:
    """Compare members by a model that reads both responses at once.

    Args:
        source: the model.
        newest: finds what answers to its name when the group is whole.
        body: the member's request, its references listed.
        workers: threads for plans and fits.
    """

    def __init__(
        self,
        source: PairSource,
        newest: Callable[[], PairSource | None],
        body: CohortRequest,
        call: Call,
        *,
        workers: Executor,
    ) -> None:
        self.header = source.header
        self._newest = newest
        self._body = body
        self._call = call
        self._workers = workers

    def terms(self) -> Mapping[str, str]:
        """Return what all members must agree on, as the contract says."""
        body = self._body
        references = conversation_keys(b"", body.prompt, body.tools, body.listed)
        terms = {
            "model": json.dumps([self.header["identity"], self.header["fingerprint"]]),
            "list or set of references": hashlib.blake2b(b"".join(references), digest_size=16).hexdigest(),
            "plan of comparisons": body.comparisons,
        }
        if body.principle is not None:
            terms["principle"] = body.principle
        if body.criteria is not None:
            terms["list of criteria"] = json.dumps([criterion.model_dump() for criterion in body.criteria])
        return terms

    async def scored(self, digest: bytes, known: Member | None, limit_s: float) -> Scored:  # noqa: ARG002 (nothing runs)
        """Return the member as its text, which costs nothing yet."""
        if known is not None:
            return Scored(known, _NOTHING)
        response = self._body.response
        measures = None if self._body.shaping is None else measure(response_messages(response))
        return Scored(Member(digest, _RESPONSE.dump_json(response, exclude_none=True), measures=measures), _NOTHING)

    async def standing(self, group: Group, scored: Scored, once: Once) -> Standing:  # noqa: ARG002 (texts are the group's)
        """Return what the members of a settled group are to each other, as the contract says.

        Raises:
            ServiceError: if comparing them was refused as a whole (overload, a budget, a model that was exchanged); of
                the first comparison, if all of them failed.
        """
        contents = {slot: one.content for slot, one in sorted(group.members.items()) if one.content is not None}
        wire = WireGroup(
            prompt=self._body.prompt,
            tools=self._body.tools,
            responses=[_RESPONSE.validate_json(content) for content in contents.values()],
            references=self._body.listed or None,
            principle=self._body.principle,
            criteria=self._body.criteria,
        )
        spent = _NOTHING

        async def compare(limit_s: float) -> bytes:
            nonlocal spent
            table = GroupTable(0, wire, plan_named(self._body.comparisons, len(wire.responses)))
            spent = await self._compared(table, limit_s)
            return table.to_bytes()

        table = GroupTable(0, wire, plan_named(self._body.comparisons, len(wire.responses)))
        table.fill_from(await once(compare))
        work_out = functools.partial(self._standing, group, list(contents), table, spent)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work_out)

    async def _compared(self, table: GroupTable, limit_s: float) -> Usage:
        """Compare what the plan asks for, and return what it cost.

        Raises:
            ServiceError: if a comparison failed for a reason that passes.
        """
        source = self._newest()
        if source is None or source.header != self.header:
            raise _exchanged(self.header)
        running = asyncio.timeout(limit_s)
        deadline = Deadline(limit_s, running)
        problems = Problems("cohort", report=True)
        # Comparing belongs to the group, and not to the request that happens to have begun it.
        call = dataclasses.replace(self._call, problems=problems, gone=None, deadline=deadline, bills={})
        try:
            async with running:
                usage = await compare_groups(source, [table], call, self._workers)
        except TimeoutError:
            raise deadline.error() from None
        if source.header != self.header:
            raise _exchanged(self.header)
        for _, error in sorted(table.errors.items()):
            if error.code not in _OF_THE_TEXTS:
                raise ServiceError(error.code, error.message, retry_after_s=error.retry_after_s)
        return usage

    def _standing(self, group: Group, slots: Sequence[int], table: GroupTable, usage: Usage) -> Standing:
        voters = voters_of(table, GroupSize(len(slots), len(self._body.listed)))
        whole = voters.unscored()
        if whole is not None:
            raise ServiceError(whole.code, whole.message)
        filled, tables = filled_tables(table.logits, voters)
        blurred = bool(filled.inferred.any())
        by_criterion = {
            name: filled_tables(logits, voters)[1].matrix.mean(axis=1) for name, logits in table.by_criterion.items()
        }
        details: list[dict[str, Any]] = []
        for row, place in enumerate(voters.own):
            more: dict[str, Any] = {"compared": [slots[other] for other in _others(place, table.compared)]}
            failed = [pair for pair in table.errors if place in pair and all(one in voters.own for one in pair)]
            if failed:
                more["failed"] = [
                    _unscored(table.errors[pair], slot=slots[sum(pair) - place]) for pair in sorted(failed)
                ]
            abstained = [slots[other] for other in _others(place, sorted(table.abstained)) if other < len(slots)]
            if abstained:
                more["abstained"] = abstained
            if blurred:
                more["interval"] = (float(filled.intervals[row, 0]), float(filled.intervals[row, 1]))
            if by_criterion:
                more["criteria"] = {name: float(rates[row]) for name, rates in by_criterion.items()}
            details.append(more)
        refusals = {slots[place]: _alone(error) for place, error in voters.errors.items() if place < len(slots)}
        return Standing.of(
            group,
            [slots[place] for place in voters.own],
            tables,
            signal=self._body.signal,
            shaping=self._body.shaping,
            unscored=[*refused(group), *_silent(voters, slots)],
            refusals=refusals,
            details=details,
            usage=usage,
        )


def _others(place: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    return sorted(sum(pair) - place for pair in pairs if place in pair)


def _silent(voters: Voters, slots: Sequence[int]) -> list[Unscored]:
    """Return the members and references that turned out to have no comparison that counts."""
    found = []
    for place, error in sorted(voters.errors.items()):
        own = place < len(slots)
        named = {"slot": slots[place]} if own else {"reference": place - len(slots)}
        found.append(_unscored(error, **named))
    return found


def _unscored(error: ServiceError, **named: int) -> Unscored:
    return Unscored(**named, code=error.code, message=error.message)


def _alone(error: ServiceError) -> ServiceError:
    """Return an error that is a whole request's."""
    return ServiceError(error.code, error.message)


def _exchanged(header: Mapping[str, Any]) -> ServiceError:
    return ServiceError(
        ErrorCode.COHORT_CONFLICT,
        f"model {header['model']} was exchanged while the group waited: begin anew with a higher attempt",
    )
