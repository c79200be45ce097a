"""A judge as a model that compares: asked in both orders, its verdicts cached, paid for and made into log-odds.

The path of a request: a key for every showing (a comparison has two, one an order; with criteria, two for each) → cache
→ what it lacks is joined where another request or another replica asks for it, else asked for → log-odds, and what
failed as an error in its place. Showings that cannot be paid for any more are not asked for; those that are done stay
in the cache, and cost nothing when the request comes again.
"""

import asyncio
import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2
import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import ModelInfo, ModelLimits, Rationale, Response, Usage
from paragone_models.comparator import probability
from paragone_service.cache.keys import conversation_keys, namespace
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.tiers import Cache
from paragone_service.http.errors import ClientGoneError, ServiceError
from paragone_service.judge.ballots import Ballot, BallotCodec, ballot_key, counted, jeffreys, log_odds, pack
from paragone_service.judge.bill import Bill
from paragone_service.judge.chat import ChatAnswer, ChatError, ChatServer
from paragone_service.judge.flights import Flights
from paragone_service.judge.settings import JudgeSettings, Reading
from paragone_service.judge.texts import shown_texts
from paragone_service.judge.verdicts import Shown, VerdictError, load_format
from paragone_service.metrics import Metrics
from paragone_service.pairs.source import Compared, Detail, Duel
from paragone_service.scoring.request import Call, Problems

__all__ = ["HostedJudge"]

logger = logging.getLogger("paragone.service")

_NO_DEADLINE_S = 86_400.0
_TOP_LOGPROBS = 20
# What ends a request's asking: whatever is asked next would have the same end.
_FINAL = frozenset({ErrorCode.QUOTA_EXCEEDED, ErrorCode.JUDGE_FAILED, ErrorCode.JUDGE_UNAVAILABLE})
_REFUSED_PARAMETER = frozenset({400, 422})
_OUTCOMES = ("ok", *sorted(code for code in ErrorCode if code.startswith("judge_")))
_CANARY = Shown([{"role": "user", "content": "Say hello."}], "Say hello.", ("Hello!", "Seven."))
_ITEMS_BEFORE_A_BREAK = 256


class _Showing(NamedTuple):
    """What a judge is asked once: a duel's responses in an order, by a principle."""

    duel: Duel
    places: tuple[str, ...]
    principle: str | None


class _Aspect(NamedTuple):
    """One criterion of a duel, or its only one, and the keys of its showings; no keys for two equal responses."""

    name: str | None
    weight: float
    forward: bytes | None
    backward: bytes | None


@dataclass
class _Plan:
    aspects: dict[int, list[_Aspect]] = field(default_factory=dict)
    showings: dict[bytes, _Showing] = field(default_factory=dict)
    errors: dict[int, ServiceError] = field(default_factory=dict)


class HostedJudge:
    """Compare responses by asking a generative model on another server.

    Args:
        name: what it is called in requests.
        redis: where replicas share leases, or None.
        transport: what carries requests instead of the network.

    Attributes:
        header: what every answer says of the model.
        takes_principles: whether its format has a place for one.

    Raises:
        ValueError: if its key is nowhere to be found.
    """

    def __init__(
        self,
        name: str,
        settings: JudgeSettings,
        *,
        cache: Cache,
        metrics: Metrics,
        redis: RedisCache | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.settings = settings
        self.format = load_format(settings.format)
        self.takes_principles = self.format.takes_principle
        self.identity = settings.judge_identity(self.format)
        self.header: Mapping[str, Any] = self._header()
        self._chat = ChatServer(
            settings.url,
            api_key=settings.read_key(),
            timeout_s=settings.timeout_s,
            concurrency=settings.concurrency,
            patience_s=settings.patience_s,
            transport=transport,
            clock=clock,
        )
        self._cache = cache
        self._codec = BallotCodec()
        self._flights = Flights(cache, self._codec, redis, clock=clock)
        self._metrics = metrics
        self._clock = clock
        self._last_success = -math.inf
        self._reading: Reading | None = None
        self._finding_out = asyncio.Lock()
        metrics.watch_judge(name, _OUTCOMES)

    def start(self) -> None:
        """Nothing has to run between requests."""

    async def close(self) -> None:
        """End what is under way, and close the connections."""
        await self._flights.close()
        await self._chat.close()

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether it answered within the last seconds, or its server is reachable now."""
        if self._clock() - self._last_success <= within_s:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                return await self._chat.reachable()
        except TimeoutError:
            return False

    def described(self, limits: ModelLimits) -> ModelInfo:
        """Return what ``/v1/models`` says of it."""
        settings = self.settings
        thoughts = ["the thoughts of responses: reasoning is strip"] if settings.reasoning == "strip" else []
        return ModelInfo(
            id=self.name,
            kind="judge",
            cyclic=not self.format.shows_one,
            source=f"{settings.source} {settings.model}",
            identity=self.identity,
            fingerprint=self.header["fingerprint"],
            numerics={
                "format": self.format.name,
                "read": "grades" if self.format.shows_one else self._reading or settings.read,
                "symmetrise": settings.symmetrise,
                "votes": str(settings.votes),
            },
            limits=limits,
            temperature=settings.temperature,
            calibrated=False,
            attributes=[],
            dimension=None,
            domain=settings.principle,
            demonstration=False,
            engine="chat",
            pooling="none",
            special_tokens="escape",
            reasoning=settings.reasoning,
            not_shown=thoughts,
            judged_by=["principle", "criteria"] if self.takes_principles else [],
        )

    async def compare(self, duels: Sequence[Duel], call: Call) -> Compared:
        """Return the log-odds of each duel; what has no verdict has its error there, and no number.

        Raises:
            ServiceError: if the judge's server is away before anything is known of how it answers.
            ClientGoneError: if the client left meanwhile.
        """
        working = asyncio.ensure_future(self._compare(duels, call))
        leaving = [asyncio.ensure_future(call.gone())] if call.gone is not None else []
        try:
            await asyncio.wait([working, *leaving], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientGoneError
        finally:
            for task in (working, *leaving):
                task.cancel()
            await asyncio.gather(working, *leaving, return_exceptions=True)

    async def _compare(self, duels: Sequence[Duel], call: Call) -> Compared:
        # A tournament may compare in rounds, and its budget is the request's.
        bill = call.bills.setdefault(self.name, Bill(self.settings, call.spending))
        before = (bill.calls, bill.tokens, bill.cost)
        reading = await self._find_out(bill) if duels else "votes"
        space = namespace(hashlib.sha256(f"{self.identity} {reading}".encode()).hexdigest(), tenant=call.tenant)
        plan = await self._plan(duels, space, call.problems)
        keys = list(plan.showings)
        hits = await self._cache.get(keys, self._codec)
        known = {key: value for key, value in zip(keys, hits.values, strict=True) if value is not None}
        failed: dict[bytes, ServiceError] = {}
        fresh: set[bytes] = set()
        if hits.misses:
            missing = [key for key in keys if key not in known]
            fresh = await self._ask_all(missing, plan, known, failed, _Asking(reading, bill, call))
        results = _Results(plan, {key: self._codec.decode(value) for key, value in known.items()}, failed, fresh)
        usage = _usage(bill, *before)
        return self._answer(len(duels), results, "grades" if self.format.shows_one else reading, usage, call)

    # -- planning ------------------------------------------------------------------------------------------------------

    async def _plan(self, duels: Sequence[Duel], space: bytes, problems: Problems) -> _Plan:
        """Return what has to be known for each duel.

        Raises:
            ServiceError: ``invalid_request``, for a principle that the format has no place for, unless errors are
                reported.
        """
        plan = _Plan()
        digests = await _digests(duels)
        for number, duel in enumerate(duels):
            if number % _ITEMS_BEFORE_A_BREAK == _ITEMS_BEFORE_A_BREAK - 1:
                await asyncio.sleep(0)  # this is everybody's thread
            if (duel.principle or duel.criteria) and not self.format.takes_principle:
                plan.errors[number] = error = ServiceError(
                    ErrorCode.INVALID_REQUEST,
                    f"model {self.name} asks in the format {self.format.name}, which has no place for a principle: "
                    "leave principle and criteria out",
                )
                problems.add(duel.item, error)
                continue
            first, second = (digests[_talk(duel, response)] for response in (duel.first, duel.second))
            asked: list[tuple[str | None, float, str | None]] = [(None, 1.0, duel.principle)]
            if duel.criteria:
                asked = [(one.name, one.weight, one.text) for one in duel.criteria]
            plan.aspects[number] = [
                self._aspect(name, weight, _Showing(duel, (), principle), (first, second), space, plan)
                for name, weight, principle in asked
            ]
        return plan

    def _aspect(
        self, name: str | None, weight: float, bare: _Showing, digests: tuple[bytes, bytes], space: bytes, plan: _Plan
    ) -> _Aspect:
        first, second = digests
        one_order = self.settings.symmetrise == "none"
        # Symmetrised, a response is as good as itself whatever the judge says.
        if first == second and not one_order:
            return _Aspect(name, weight, None, None)
        orders: list[tuple[str, ...]] = [("first", "second"), ("second", "first")]
        if self.format.shows_one:
            orders = [("first",), ("second",)]
        by_place = {"first": first, "second": second}
        keys: list[bytes | None] = []
        for places in orders[:1] if one_order else orders:
            key = ballot_key(space, [by_place[place] for place in places], bare.principle)
            plan.showings.setdefault(key, bare._replace(places=places))
            keys.append(key)
        return _Aspect(name, weight, keys[0], None if one_order else keys[1])

    # -- asking --------------------------------------------------------------------------------------------------------

    async def _ask_all(
        self,
        missing: Sequence[bytes],
        plan: _Plan,
        known: dict[bytes, bytes],
        failed: dict[bytes, ServiceError],
        asking: "_Asking",
    ) -> set[bytes]:
        """Ask for what is missing, as many at a time as the judge may have; return what this request asked itself."""
        fresh: set[bytes] = set()
        waiting = iter(missing)
        ended: list[ServiceError] = []

        async def work() -> None:
            for key in waiting:
                if ended:
                    failed[key] = ended[0]
                    continue
                ask = functools.partial(self._ballot, plan.showings[key], asking)
                try:
                    known[key], own = await self._flights.value(key, ask, left_s=asking.left_s())
                    if own:
                        fresh.add(key)
                except ServiceError as error:
                    failed[key] = error
                    # A request that reports no errors is refused for the first: the rest would be paid for in vain.
                    if error.code in _FINAL or not asking.call.problems.report:
                        ended.append(error)

        workers = [asyncio.ensure_future(work()) for _ in range(min(len(missing), self.settings.concurrency))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return fresh

    async def _ballot(self, showing: _Showing, asking: "_Asking", left_s: Callable[[], float]) -> bytes:
        """Return the ballot of a showing, every vote of it asked for until it has a verdict.

        Raises:
            ServiceError: for the first vote that has none.
        """
        shown = shown_texts(
            showing.duel,
            showing.places,
            keep_reasoning=self.settings.reasoning == "keep",
            as_chat=any(message.conversation for message in self.format.messages),
        )
        messages = self.format.asked(shown, showing.principle or self.settings.principle)
        # Of a single token the server knows the whole distribution: a second vote would repeat it.
        alone = asking.reading == "logprobs" and self.format.verdict.direct
        votes = 1 if alone else self.settings.votes
        cast = await asyncio.gather(
            *(self._vote(number, messages, shown, asking, left_s) for number in range(votes)), return_exceptions=True
        )
        for vote in cast:
            if isinstance(vote, BaseException):
                raise vote
        ballots = [vote for vote in cast if not isinstance(vote, BaseException)]
        ballot = _together(ballots, "grades" if self.format.shows_one else asking.reading)
        if not self.format.shows_one:
            share = ballot.first / votes if asking.reading == "votes" else math.exp(ballot.first)
            self._metrics.judge_first_shown.labels(self.name).observe(share)
        return self._codec.encode(ballot)

    async def _vote(
        self,
        number: int,
        messages: Sequence[Mapping[str, Any]],
        shown: Shown,
        asking: "_Asking",
        left_s: Callable[[], float],
    ) -> tuple[float, float, str]:
        """Return what a vote gives the two responses, and what was said.

        Raises:
            ServiceError: with the reason of its last try, if it has no verdict.
        """
        failure: VerdictError | None = None
        for attempt in range(self.settings.tries):
            seed = number + attempt * self.settings.votes
            answer = await self._complete(self._body(messages, asking.reading, seed), asking.bill, left_s)
            try:
                read = self.format.log_shares if asking.reading == "logprobs" else self.format.votes
                first, second = read(answer, shown)
            except VerdictError as error:
                failure = error
                self._metrics.judge_calls.labels(self.name, error.code).inc()
                continue
            self._metrics.judge_calls.labels(self.name, "ok").inc()
            self._last_success = self._clock()
            return first, second, "\n\n".join(part for part in (answer.thoughts, answer.text) if part)
        assert failure is not None
        raise ServiceError(
            failure.code, f"model {self.name} gave no verdict in {self.settings.tries} tries; in the last one {failure}"
        )

    async def _complete(self, body: Mapping[str, Any], bill: Bill, left_s: Callable[[], float] | None) -> ChatAnswer:
        await bill.begin()
        started = self._clock()
        try:
            answer = await self._chat.complete(body, left_s=left_s)
        except ServiceError as error:
            if error.code in _OUTCOMES:
                self._metrics.judge_calls.labels(self.name, error.code).inc()
            raise
        self._metrics.judge_seconds.labels(self.name).observe(self._clock() - started)
        self._metrics.judge_tokens.labels(self.name, "prompt").inc(answer.prompt_tokens or 0)
        self._metrics.judge_tokens.labels(self.name, "completion").inc(answer.completion_tokens or 0)
        await bill.end(answer)
        return answer

    def _body(self, messages: Sequence[Mapping[str, Any]], reading: Reading, seed: int) -> dict[str, Any]:
        settings = self.settings
        body = {"model": settings.model, "messages": messages, **settings.sampling(self.format), **settings.extra}
        if reading == "logprobs":
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
            if self.format.verdict.direct:
                body |= {"temperature": 0.0, settings.limit_field: 1}
        if settings.seed is not None:
            body["seed"] = settings.seed + seed
        return body

    async def _find_out(self, bill: Bill) -> Reading:
        """Return how verdicts are read, having asked the server once whether it gives log-probabilities.

        Raises:
            ServiceError: if it is away, or its key is refused.
        """
        if self._reading is None:
            async with self._finding_out:
                if self._reading is None:
                    self._reading = await self._probe(bill)
                    logger.info("judge %s: its verdicts are read as %s", self.name, self._reading)
        return self._reading

    async def _probe(self, bill: Bill) -> Reading:
        if self.settings.read != "auto":
            return self.settings.read
        if not self.format.verdict.logprobs:
            return "votes"
        messages = self.format.asked(_CANARY, self.settings.principle)
        body = self._body(messages, "logprobs", 0) | {self.settings.limit_field: 1}
        try:
            answer = await self._complete(body, bill, None)
        except ChatError as error:
            if error.status in _REFUSED_PARAMETER:
                return "votes"
            raise
        return "logprobs" if answer.tokens and answer.tokens[0].alternatives else "votes"

    def _header(self) -> Mapping[str, Any]:
        settings = self.settings
        # How a server turns out to answer is no part of it: it must be known before the server was asked.
        said = json.dumps([self.identity, settings.temperature, settings.symmetrise])
        fingerprint = hashlib.sha256(said.encode()).hexdigest()[:16]
        return {"model": self.name, "identity": self.identity, "fingerprint": fingerprint, "calibrated": False}

    # -- answering -----------------------------------------------------------------------------------------------------

    def _answer(self, count: int, results: "_Results", kind: str, usage: Usage, call: Call) -> Compared:
        plan, ballots = results.plan, results.ballots
        logits = np.full(count, np.nan)
        errors, details = dict(plan.errors), {}
        for number, aspects in plan.aspects.items():
            error = results.error(aspects)
            if error is not None:
                errors[number] = error
                continue
            by_name = {aspect.name: self._log_odds(aspect, ballots, kind) for aspect in aspects}
            weight = math.fsum(aspect.weight for aspect in aspects)
            logits[number] = math.fsum(aspect.weight * by_name[aspect.name] for aspect in aspects) / weight
            details[number] = self._detail(aspects, by_name, ballots, kind, call)
            if results.fresh:
                self._count_orders(aspects, ballots, results.fresh)
        return Compared(logits, usage, errors, details)

    def _log_odds(self, aspect: _Aspect, ballots: Mapping[bytes, Ballot], kind: str) -> float:
        if aspect.forward is None:
            return 0.0
        backward = None if aspect.backward is None else ballots[aspect.backward]
        raw = log_odds(ballots[aspect.forward], backward, kind=kind, symmetrise=self.settings.symmetrise)
        return raw / self.settings.temperature

    def _detail(
        self,
        aspects: Sequence[_Aspect],
        by_name: Mapping[str | None, float],
        ballots: Mapping[bytes, Ballot],
        kind: str,
        call: Call,
    ) -> Detail:
        interval = self._interval(aspects[0], ballots) if kind == "votes" and len(aspects) == 1 else None
        said: list[Rationale] = []
        for aspect in aspects if call.rationales else ():
            for key, shown_first in ((aspect.forward, "first"), (aspect.backward, "second")):
                for text in ballots[key].rationales if key is not None else ():
                    one = Rationale(text=text, shown_first="first" if shown_first == "first" else "second")
                    if aspect.name is not None:
                        one.criterion = aspect.name
                    said.append(one)
        criteria = {name: logit for name, logit in by_name.items() if name is not None}
        return Detail(interval, criteria, said)

    def _interval(self, aspect: _Aspect, ballots: Mapping[bytes, Ballot]) -> tuple[float, float] | None:
        if aspect.forward is None:
            return None
        backward = None if aspect.backward is None else ballots[aspect.backward]
        low, high = jeffreys(*counted(ballots[aspect.forward], backward))
        if self.settings.temperature == 1.0:
            return low, high
        with np.errstate(divide="ignore"):  # 0 and 1 stay what they are
            ends = np.log([low, high]) - np.log1p([-low, -high])
        low, high = probability(ends / self.settings.temperature).tolist()
        return low, high

    def _count_orders(self, aspects: Sequence[_Aspect], ballots: Mapping[bytes, Ballot], fresh: set[bytes]) -> None:
        if self.format.shows_one:
            return
        for aspect in aspects:
            if aspect.forward is None or aspect.backward is None or not {aspect.forward, aspect.backward} & fresh:
                continue
            forward, backward = ballots[aspect.forward], ballots[aspect.backward]
            agree = (forward.first > forward.second) == (backward.second > backward.first)
            self._metrics.judge_orders.labels(self.name, "agree" if agree else "disagree").inc()


def _talk(duel: Duel, response: Response) -> tuple[int, int, int]:
    return id(duel.prompt), id(duel.tools), id(response)


async def _digests(duels: Sequence[Duel]) -> Mapping[tuple[int, int, int], bytes]:
    """Return a digest of each response with its prompt, by the objects: thousands of duels may share a prompt."""
    talks: dict[tuple[int, int], tuple[Duel, dict[int, Response]]] = {}
    for duel in duels:
        _, responses = talks.setdefault((id(duel.prompt), id(duel.tools)), (duel, {}))
        responses[id(duel.first)], responses[id(duel.second)] = duel.first, duel.second
    digests: dict[tuple[int, int, int], bytes] = {}
    for number, (duel, responses) in enumerate(talks.values(), start=1):
        keys = conversation_keys(b"", duel.prompt, duel.tools, list(responses.values()))
        digests |= {_talk(duel, one): key for one, key in zip(responses.values(), keys, strict=True)}
        if number % _ITEMS_BEFORE_A_BREAK == 0:
            await asyncio.sleep(0)  # hashing ten thousand pairs takes a while, on everybody's thread
    return digests


@dataclass(frozen=True)
class _Results:
    """What became of a request's showings.

    Attributes:
        failed: why a showing has no ballot, by its key.
        fresh: keys of those that this request asked for itself.
    """

    plan: _Plan
    ballots: Mapping[bytes, Ballot]
    failed: Mapping[bytes, ServiceError]
    fresh: set[bytes]

    def error(self, aspects: Sequence[_Aspect]) -> ServiceError | None:
        """Return why a duel has no answer, None if it has one."""
        keys = [key for aspect in aspects for key in (aspect.forward, aspect.backward) if key is not None]
        error = next((self.failed[key] for key in keys if key in self.failed), None)
        if error is None or error.code is not ErrorCode.QUOTA_EXCEEDED:
            return error
        done = f"{len(self.ballots)} of the request's {len(self.plan.showings)} showings are done"
        return ServiceError(error.code, f"{error.message}; {done}", retry_after_s=error.retry_after_s)


@dataclass(frozen=True)
class _Asking:
    """How a request's verdicts are read, who pays for them, and how long it has."""

    reading: Reading
    bill: Bill
    call: Call

    def left_s(self) -> float:
        """Return the seconds that the request has left."""
        return _NO_DEADLINE_S if self.call.deadline is None else self.call.deadline.left_s()


def _usage(bill: Bill, calls: int, tokens: int, cost: float | None) -> Usage:
    """Return what was spent since a bill stood so."""
    usage = Usage(
        forward_responses=0,
        forward_tokens=0,
        cached_responses=0,
        truncated=0,
        judge_calls=bill.calls - calls,
        judge_tokens=bill.tokens - tokens,
    )
    if bill.cost is not None and cost is not None:  # only fields that were set are sent
        usage.judge_cost = bill.cost - cost
    return usage


def _together(votes: Sequence[tuple[float, float, str]], kind: str) -> Ballot:
    """Return the ballot of several votes: the sum of votes, the mean of grades or of probabilities."""
    firsts, seconds, said = zip(*votes, strict=True)
    packed = pack(said)
    if kind == "votes":
        return Ballot(len(votes), math.fsum(firsts), math.fsum(seconds), packed)
    if kind == "grades":
        return Ballot(len(votes), math.fsum(firsts) / len(votes), 0.0, packed)
    return Ballot(len(votes), _log_mean(firsts), _log_mean(seconds), packed)


def _log_mean(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + math.log(math.fsum(math.exp(one - largest) for one in logs) / len(logs))
