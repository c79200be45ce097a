"""The client that waits for its answers; ``paragone.async_client`` has the same methods for coroutines."""

import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from paragone.addresses import DEFAULT_URL
from paragone.batches import (
    PREFERENCES,
    REWARDS,
    TOKENS,
    TOURNAMENTS,
    CriteriaLike,
    GroupLike,
    ItemLike,
    PairLike,
    PromptLike,
    ReferencesLike,
    RequestOptions,
    ResponseLike,
    read_json,
)
from paragone.channel import Channel
from paragone.connection import DEFAULT_MAX_BYTES, Connection
from paragone.exceptions import checked
from paragone.single import (
    COHORTS,
    DEFAULT_DEADLINE_S,
    REFERENCES,
    RUNS,
    deletion,
    group_of,
    member_request,
    pair_of,
    references_request,
    run_request,
)
from paragone.wire import (
    Aggregation,
    CohortAnswer,
    CohortReturn,
    Fit,
    ModelInfo,
    ModelsAnswer,
    OnError,
    OnMissing,
    PreferenceReturn,
    PreferencesAnswer,
    ReferenceSet,
    ReferenceSetsAnswer,
    RewardReturn,
    RewardsAnswer,
    RunAnswer,
    RunReport,
    RunsAnswer,
    RunSummary,
    Shaping,
    Signal,
    TokensAnswer,
    Tournament,
    TournamentReturn,
    TournamentsAnswer,
    Truncation,
)

__all__ = ["Client"]


class Client:
    """Asks a Paragone service, and waits for the answer. Safe to share between threads, and to pickle.

    Every method takes ``model=``, the id of a hosted model; without it the client's, else the server's default is
    asked. ``truncation="prompt"`` cuts a prompt that is too long from the left, ``"error"`` refuses it.
    ``on_error="refuse"`` raises for the first bad item, ``"report"`` puts an ``ItemError`` in its place. All methods
    raise a ``paragone.ParagoneError`` when there is no answer, and never put a number in its place.

    Args:
        url: address of the service, or those of its replicas: a request that fails at one goes to the next. A path
            prefix is kept.
        model: id of the model to ask when a call names none.
        timeout_s: deadline of one HTTP request, its retries included, which the server is told. A batch that is split
            has one for each part. None: 300 s, and how long a request may queue is the server's to say.
        retry_s: how long after its first failure a request is tried again, for failed connections, 502, 503, 504 and
            429 with ``Retry-After``; 0: only at other addresses.
        retries: most tries after the first one; None: as many as there is time for.
        wait_s: the same as ``retry_s`` for connections that fail before the service has ever answered, because it is
            still starting or the address is wrong; None: ``retry_s``.
        max_items_per_request: larger batches are split; every response and reference counts.
        max_bytes_per_request: batches with more bytes of text are split.
        concurrency: most requests of one call in flight.
        remembered_ids: how many ids of long responses to remember, about 300 bytes each, so that ``prefer`` and
            ``preferences`` send such a text once; 0: none.
        transport: what carries the requests, if not the network (an ``httpx2`` transport). A client is pickled with
            it, and with its key, but without its connections and ids.
        clock: seconds since any fixed moment.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        retry_s: float = 120.0,
        retries: int | None = None,
        wait_s: float | None = None,
        max_items_per_request: int = 1_000,
        max_bytes_per_request: int = DEFAULT_MAX_BYTES,
        concurrency: int = 4,
        remembered_ids: int = 0,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        connection = Connection.made(
            url,
            api_key=api_key,
            model=model,
            timeout_s=timeout_s,
            retry_s=retry_s,
            retries=retries,
            wait_s=wait_s,
            max_items_per_request=max_items_per_request,
            max_bytes_per_request=max_bytes_per_request,
            concurrency=concurrency,
        )
        self._channel = Channel(
            connection, remembered_ids=remembered_ids, transport=transport, clock=clock, sleep=sleep
        )

    def __repr__(self) -> str:
        return f"Client({self._channel.connection!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._channel.close()

    @property
    def timeout_s(self) -> float:
        """Seconds after which one HTTP request is given up, its retries included."""
        return self._channel.connection.policy.timeout_s

    def prefer(
        self,
        prompt: PromptLike,
        first: ResponseLike,
        second: ResponseLike,
        *,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        model: str | None = None,
        truncation: Truncation = "prompt",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
    ) -> float:
        """Return the probability that the first response is preferred to the second.

        Args:
            prompt: a text (one user message) or a list of messages.
            first: the response whose win is measured: a text, a message, or a list of messages.
            second: the response it is compared with.
            principle: what to judge by, for a model that takes a principle; None: the model's own.
            criteria: several such principles, for a judge, each with a ``name``, a ``text`` and perhaps a ``weight``:
                the probability is by all of them together.
            skew_weight, weights, aggregation: as for ``preferences``.

        Raises:
            ParagoneError: if there is no answer.
        """
        answer = self.preferences(
            [pair_of(prompt, first, second, principle=principle, criteria=criteria)],
            model=model,
            truncation=truncation,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
        )
        # Nothing is reported in place here, but a server that did it all the same must not be read as a number.
        return checked(answer.preferences)[0].probability

    def preferences(
        self,
        pairs: Iterable[PairLike],
        *,
        model: str | None = None,
        return_: Sequence[PreferenceReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
    ) -> PreferencesAnswer:
        """Return how probable it is that the first of two responses is preferred, for each pair, in their order.

        Args:
            pairs: ``(prompt, first, second)`` tuples, dicts with these fields, or ``paragone.wire.Pair``; a response
                that an earlier answer gave an id may be named by it (``paragone.wire.PairById``).
            return_: what to add to each answer: ``ids``; ``rationale``, of a judge.
            skew_weight: how much the skew form of a hybrid model counts beside its reward; None: as the model says.
            weights: how much each named attribute counts in the reward, others nothing; None: as the model says.
            aggregation: what makes one reward of a process model's steps; None: as the model was loaded.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the pair at fault.
        """
        return self._channel.ask(
            PREFERENCES,
            pairs,
            RequestOptions(
                model=model,
                truncation=truncation,
                on_error=on_error,
                return_=return_,
                skew_weight=skew_weight,
                weights=weights,
                aggregation=aggregation,
            ),
        )

    def rewards(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        return_: Sequence[RewardReturn] = (),
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        skew_weight: float | None = None,
    ) -> RewardsAnswer:
        """Return the reward and the attributes of each response, in their order.

        Args:
            items: ``(prompt, response)`` tuples, dicts with these fields, or ``paragone.wire.Item``; a third field,
                ``references``, holds the response against other responses of the prompt. ``steps`` in place of the
                response are single steps (``paragone.wire.ItemOfSteps``).
            return_: what to add to each answer: ``representation``; ``blocks`` (needs references) and ``gate_scales``
                of general preference models; ``ids``.
            weights, aggregation: as for ``preferences``.
            skew_weight: as for ``preferences``, in ``reference_logit``; every item needs references.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the item at fault.
        """
        return self._channel.ask(
            REWARDS,
            items,
            RequestOptions(
                model=model,
                truncation=truncation,
                on_error=on_error,
                return_=return_,
                weights=weights,
                aggregation=aggregation,
                skew_weight=skew_weight,
            ),
        )

    def tournament(
        self,
        prompt: PromptLike,
        responses: Sequence[ResponseLike],
        *,
        references: ReferencesLike | None = None,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        truncation: Truncation = "prompt",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        comparisons: str = "all",
        fit: Fit = "bradley-terry",
    ) -> Tournament:
        """Return what follows from the K×K preferences among the responses to one prompt.

        Args:
            prompt: a text (one user message) or a list of messages.
            references: if given, win rates are against these instead of the group.
            principle, criteria: as for ``prefer``; with criteria the answer has win rates by each.
            return_: as for ``tournaments``.
            signal: one number per response, for a trainer: ``win_rate``, ``rank``, ``anchor`` (needs references),
                ``nash``, ``elimination``, ``acyclic`` or ``reward``.
            shaping: what the signal gains or loses by length and style (``paragone.wire.Shaping``).
            skew_weight, weights, aggregation: as for ``preferences``.
            comparisons, fit: as for ``tournaments``.

        Raises:
            ParagoneError: if there is no answer, or only one without some response or reference.
        """
        answer = self.tournaments(
            [group_of(prompt, responses, references=references, principle=principle, criteria=criteria)],
            model=model,
            return_=return_,
            signal=signal,
            shaping=shaping,
            truncation=truncation,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
            comparisons=comparisons,
            fit=fit,
        )
        return checked(answer.tournaments)[0]

    def tournaments(
        self,
        groups: Iterable[GroupLike],
        *,
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
        skew_weight: float | None = None,
        weights: Mapping[str, float] | None = None,
        aggregation: Aggregation | None = None,
        comparisons: str = "all",
        fit: Fit = "bradley-terry",
    ) -> TournamentsAnswer:
        """Return a tournament for each group of responses, in their order.

        Args:
            groups: ``(prompt, responses)`` tuples, dicts with these fields, or ``paragone.wire.Group``.
            return_: what to add to each answer: ``matrix``; ``ids``; ``rationale``, of a judge.
            signal: as for ``tournament``.
            shaping: as for ``tournament``.
            skew_weight, weights, aggregation: as for ``preferences``.
            comparisons: which pairs a model compares that reads both responses at once: ``all``, ``circular``,
                ``bracket`` or ``budget:N``; other models answer all in any case.
            fit: what infers the others: ``bradley-terry``, or ``general-preference`` for preferences in circles.

        Returns:
            With ``on_error="report"``, None in the place of each response that could not be scored, and why in the
            tournament's ``errors``; an ``ItemError`` for a group of which none could.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the group at fault, ``response`` or
                ``reference`` that of its text.
        """
        options = RequestOptions(
            model=model,
            truncation=truncation,
            on_error=on_error,
            return_=return_,
            signal=signal,
            shaping=shaping,
            skew_weight=skew_weight,
            weights=weights,
            aggregation=aggregation,
            comparisons=comparisons,
            fit=fit,
        )
        return self._channel.ask(TOURNAMENTS, groups, options)

    def cohort(
        self,
        prompt: PromptLike,
        response: ResponseLike,
        *,
        group: str,
        slot: int,
        size: int,
        attempt: int = 0,
        references: ReferencesLike | None = None,
        principle: str | None = None,
        criteria: CriteriaLike | None = None,
        comparisons: str = "all",
        deadline_s: float = DEFAULT_DEADLINE_S,
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        skew_weight: float | None = None,
        on_missing: OnMissing = "fail",
        return_: Sequence[CohortReturn] = (),
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> CohortAnswer:
        """Return how one response does within its group, once all members of the group were sent, by whomever.

        Args:
            prompt: a text (one user message) or a list of messages; the same for all members.
            response: the member's own: a text, a message, or a list of messages.
            group: the group's id, one for each occurrence of a prompt in each run.
            slot: which member this is, 0 … size−1. A repeat of it joins or is answered again.
            size: how many members the group has.
            attempt: a higher one begins the group anew and ends the earlier one.
            references: other responses to the prompt, for ``reference_win_rate``; the same for all members.
            principle, criteria: as for ``prefer``; the same for all members.
            comparisons: as for ``tournaments``; the same for all members.
            deadline_s: how long the group may take from its first member on. [seconds]
            signal: one number for a trainer, in ``signal`` of the answer; the same for all members.
            shaping: what the signal gains or loses by length and style; the same for all members.
            skew_weight: as for ``preferences``; the same for all members.
            on_missing: ``fail``: a group that is not whole then has no answers; ``score-present``: those that came are
                scored, and ``missing`` lists the others.
            return_: what to add to the answer: ``matrix_row``.

        Raises:
            DeadlineError: if members are missing at the deadline.
            TextError: if the response cannot be scored; the others are answered without it.
            RequestError: if it does not fit its group, or a higher attempt has begun.
            ParagoneError: if there is no answer.
        """
        asked = member_request(
            prompt,
            response,
            group=group,
            slot=slot,
            size=size,
            attempt=attempt,
            references=references,
            principle=principle,
            criteria=criteria,
            comparisons=comparisons,
            deadline_s=deadline_s,
            signal=signal,
            shaping=shaping,
            skew_weight=skew_weight,
            on_missing=on_missing,
            return_=return_,
            model=model or self._channel.connection.model,
            truncation=truncation,
        )
        return read_json(CohortAnswer, self._channel.send(COHORTS, asked), f"the answer of {COHORTS}")

    def add_references(
        self,
        name: str,
        items: Iterable[GroupLike],
        *,
        ttl_s: float | None = None,
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> ReferenceSet:
        """Store responses to prompts under a name, in place of what it had before, and return what is stored.

        Any method that takes references takes ``{"set": name}`` instead, for a prompt of the set: then the response's
        own forward is all that it costs, except of a model that reads both responses at once.

        Args:
            items: ``(prompt, responses)`` tuples or dicts with these fields; all are sent in one request.
            ttl_s: how long the set is kept; None: until it is deleted. [seconds]

        Raises:
            ParagoneError: if nothing is stored; ``item`` is the index of the item at fault.
        """
        asked = references_request(
            name, items, model=model or self._channel.connection.model, ttl_s=ttl_s, truncation=truncation
        )
        return read_json(ReferenceSet, self._channel.send(REFERENCES, asked), f"the answer of {REFERENCES}")

    def references(self) -> list[ReferenceSet]:
        """Return the stored reference sets, by name.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_json(ReferenceSetsAnswer, self._channel.send(REFERENCES), "the list of references").references

    def delete_references(self, name: str) -> ReferenceSet:
        """Delete a reference set and return what it was.

        Raises:
            UnknownReferencesError: if there is none of that name.
            ParagoneError: if there is no answer.
        """
        path, asked = deletion(name)
        return read_json(ReferenceSet, self._channel.send(path, asked), "the answer of a deletion")

    def report_run(self, report: RunReport | Mapping[str, Any]) -> RunSummary:
        """Tell the service how far a run is, for its page to show, and return what it keeps.

        Args:
            report: the fields of ``paragone.wire.RunReport``; its name's earlier report is replaced.

        Raises:
            ParagoneError: if nothing is kept.
        """
        return read_json(RunSummary, self._channel.send(RUNS, run_request(report)), f"the answer of {RUNS}")

    def runs(self) -> list[RunSummary]:
        """Return the runs that the service was told of, the newest first.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_json(RunsAnswer, self._channel.send(RUNS), "the list of runs").runs

    def run(self, name: str) -> RunAnswer:
        """Return all that the service was told of one run.

        Raises:
            UnknownRouteError: if it was told of none of that name, or has forgotten it.
            ParagoneError: if there is no answer.
        """
        return read_json(RunAnswer, self._channel.send(f"{RUNS}/{urllib.parse.quote(name, safe='')}"), "the run")

    def tokens(
        self,
        items: Iterable[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "prompt",
        on_error: OnError = "refuse",
    ) -> TokensAnswer:
        """Return what exactly the model sees of each conversation: text, tokens, read positions, what was cut.

        Args:
            items: ``(prompt, response)`` tuples, dicts with these fields, or ``paragone.wire.Item``.

        Raises:
            ParagoneError: if there is no answer; ``item`` is the index of the item at fault.
        """
        return self._channel.ask(TOKENS, items, RequestOptions(model=model, truncation=truncation, on_error=on_error))

    def models(self) -> list[ModelInfo]:
        """Return the hosted models, the default one first.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_json(ModelsAnswer, self._channel.send("/v1/models"), "the list of models").models

    def model(self, id: str) -> ModelInfo:
        """Return one hosted model.

        Raises:
            UnknownModelError: if no model of that name is hosted.
            ParagoneError: if there is no answer.
        """
        # An id is one segment of the path: a slash in it must not lead to another route.
        content = self._channel.send(f"/v1/models/{urllib.parse.quote(id, safe='')}")
        return read_json(ModelInfo, content, "the model")
