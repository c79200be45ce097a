"""A contest of representations: the forward runs when a member arrives; the rest is arithmetic that everybody does."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import CohortRequest, Unscored, Usage
from paragone_models.comparator import Comparator
from paragone_models.shaping import measure
from paragone_service.cache.keys import conversation_keys
from paragone_service.cohorts.contest import Once, Scored, Standing, refused
from paragone_service.cohorts.groups import Group, Member
from paragone_service.http.errors import ServiceError
from paragone_service.references.owners import Vectors
from paragone_service.references.sets import Stored
from paragone_service.scoring.groups import Tables
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Deadline, Problems, RequestItem, response_messages

__all__ = ["VectorContest", "vector_tables"]

_LARGE = 64 * 64
"""Comparisons of a group whose arithmetic holds up the event loop."""
# What is wrong with a member itself. It will be so again: the member does not vote, and nobody waits for it.
_OF_THE_MEMBER = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.EMPTY_PROMPT,
        ErrorCode.UNSUPPORTED_CONTENT,
        ErrorCode.RESPONSE_TOO_LONG,
        ErrorCode.CONVERSATION_TRUNCATED,
        ErrorCode.TOO_MANY_ITEMS,
        ErrorCode.NON_FINITE_SCORE,
    }
)


class VectorContest:
    """Compare members by a model that represents each of them.

    Args:
        comparator: what compares them, with the weights of the request.
        header: what the answer says of the model with these.
        stored: the references, if they are a set's.
        workers: threads for the arithmetic of large groups.
    """

    def __init__(
        self,
        model: HostedModel,
        comparator: Comparator,
        header: Mapping[str, Any],
        body: CohortRequest,
        call: Call,
        *,
        stored: Stored[Vectors] | None,
        workers: Executor,
    ) -> None:
        self.header = header
        self._model = model
        self._comparator = comparator
        self._body = body
        self._call = call
        self._stored = stored
        self._workers = workers

    def terms(self) -> Mapping[str, str]:
        """Return what all members must agree on, as the contract says."""
        body, comparator, model = self._body, self._comparator, self._model.model
        references = conversation_keys(b"", body.prompt, body.tools, body.listed)
        if self._stored is not None:
            references = [self._stored.version.encode()]
        aggregation = model.spec.aggregation
        described = [model.identity, comparator.temperature, comparator.weights]
        terms = {
            "model": json.dumps([*described, *([aggregation] if aggregation else [])]),
            "skew_weight": str(comparator.skew_weight),
            "list or set of references": hashlib.blake2b(b"".join(references), digest_size=16).hexdigest(),
        }
        return terms if body.principle is None else {**terms, "principle": body.principle}

    async def scored(self, digest: bytes, known: Member | None, limit_s: float) -> Scored:
        """Return the member and the representations of the references, as the contract says."""
        body, model = self._body, self._model
        responses = [] if known is not None else [body.response]
        references = list(body.listed)
        items = [
            RequestItem(number, body.prompt, body.tools, (response,), principle=body.principle)
            for number, response in enumerate([*responses, *references])
        ]
        problems = Problems("cohort", report=True)
        running = asyncio.timeout(limit_s)
        call = dataclasses.replace(self._call, problems=problems, gone=None, deadline=Deadline(limit_s, running))
        usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=0)
        vectors: Vectors = np.empty((0, model.model.comparator.dimension), dtype=np.float32)
        member = known
        if items:
            async with running:
                represented = await model.represent(items, call)
            for error in problems.errors.values():
                if error.code not in _OF_THE_MEMBER:
                    raise ServiceError(error.code, error.message, retry_after_s=error.retry_after_s)
            usage, vectors = represented.usage, represented.vectors
        if member is None:
            error_of_it = problems.errors.get(0)
            if error_of_it is not None:
                member = Member(digest, None, error=(error_of_it.code, error_of_it.message))
            else:
                dropped, shown = int(represented.dropped[0]), bool(represented.shown[0])
                measures = None if body.shaping is None else measure(response_messages(body.response))
                member = Member(digest, vectors[0].astype("<f4").tobytes(), dropped, shown, measures)
        else:
            usage = _with_known(usage, member)
        first = len(responses)
        bad = {number - first: error for number, error in problems.errors.items() if number >= first}
        sound = [first + place for place in range(len(references)) if place not in bad]
        unscored = [Unscored(reference=place, code=error.code, message=error.message) for place, error in bad.items()]
        return Scored(member, usage, vectors[sound], unscored)

    async def standing(self, group: Group, scored: Scored, once: Once) -> Standing:  # noqa: ARG002 (nothing is shared)
        """Return what the members of a settled group are to each other, as the contract says.

        Raises:
            ServiceError: ``non_finite_score``; of the first reference, if none could be scored.
        """
        references = scored.references if self._stored is None else self._stored.references
        assert references is not None
        if self._body.references is not None and not len(references):
            first = scored.unscored[0]
            raise ServiceError(ErrorCode(first.code), f"no reference can be scored; the first one: {first.message}")

        def work_out() -> Standing:
            slots, tables = vector_tables(group, self._comparator, references)
            unscored = [*refused(group), *scored.unscored]
            body = self._body
            return Standing.of(group, slots, tables, signal=body.signal, shaping=body.shaping, unscored=unscored)

        if group.head.size * (group.head.size + len(references)) <= _LARGE:
            return work_out()
        return await asyncio.get_running_loop().run_in_executor(self._workers, work_out)


def vector_tables(group: Group, comparator: Comparator, references: NDArray[np.float32]) -> tuple[list[int], Tables]:
    """Return the slots of the scored members and what is known of them.

    Args:
        references: representations of those that could be scored. [R, d]

    Raises:
        ServiceError: ``non_finite_score``, if the numbers are too large to compare.
    """
    contents = {slot: one.content for slot, one in sorted(group.members.items()) if one.content is not None}
    vectors = [np.frombuffer(content, dtype="<f4") for content in contents.values()]
    with np.errstate(all="ignore"):  # what is not finite is found below
        against = comparator.against(vectors, references) if len(references) else None
        tables = Tables(comparator.matrix(vectors), against, comparator.rewards(vectors))
    if not tables.finite:
        raise ServiceError(ErrorCode.NON_FINITE_SCORE, "the model's numbers are too large to compare")
    return list(contents), tables


def _with_known(usage: Usage, member: Member) -> Usage:
    counts = usage.model_dump(exclude_unset=True)
    counts["cached_responses"] += 1
    counts["truncated"] += member.dropped > 0
    if not member.shown:  # only fields that were set are sent
        counts["not_shown"] = counts.get("not_shown", 0) + 1
    return Usage(**counts)
