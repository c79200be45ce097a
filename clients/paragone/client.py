"""The client that waits for its answers; ``paragone.async_client`` has the same methods for coroutines."""

import os
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from paragone.addresses import DEFAULT_URL, Addresses
from paragone.batches import (
    PREFERENCES,
    REWARDS,
    TOKENS,
    TOURNAMENTS,
    AnswerT,
    GroupLike,
    ItemLike,
    PairLike,
    Part,
    PromptLike,
    ReferencesLike,
    RequestOptions,
    ResponseLike,
    Route,
    merge_answers,
    parts_of,
    read_json,
)
from paragone.connection import CONNECTIONS, DEFAULT_MAX_BYTES, Connection
from paragone.exceptions import ParagoneError, UnknownIdError, checked
from paragone.ids import IdMemory
from paragone.single import (
    COHORTS,
    DEFAULT_DEADLINE_S,
    REFERENCES,
    SingleRequest,
    deletion,
    member_request,
    references_request,
)
from paragone.tracing import request_span
from paragone.transport import Attempts, send
from paragone.wire import (
    Aggregation,
    CohortAnswer,
    CohortReturn,
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
    Shaping,
    Signal,
    TokensAnswer,
    Tournament,
    TournamentReturn,
    TournamentsAnswer,
    Truncation,
)

__all__ = ["Client"]


def _never() -> bool:
    return False


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
        self._connection = Connection.made(
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
        self._memory_size = remembered_ids
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._open()

    def _open(self) -> None:
        """Begin with nothing open and nothing known."""
        connection = self._connection
        self._http = httpx2.Client(
            transport=self._transport,
            trust_env=connection.trust_env,
            mounts=connection.direct or None,
            # The threads that ask are the bound. One of the pool's would let a replica that hangs keep all of it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
        )
        self._addresses = Addresses(connection.urls, self._clock)
        # Shared by all threads that use this client, so that a text which one has sent the others send by its id.
        self._memory = IdMemory(self._memory_size)
        self._process = os.getpid()

    def _leave_parent(self) -> None:
        """Begin anew in a forked process: two that read from one connection get each other's answers."""
        if os.getpid() != self._process:
            # Kept and not closed: closing takes a lock that a thread of the parent may have held while it forked.
            self._inherited = self._http
            self._open()

    def __getstate__(self) -> dict[str, Any]:
        opened = {"_http", "_addresses", "_memory", "_process", "_inherited"}
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __repr__(self) -> str:
        return f"Client({self._connection!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._http.close()

    @property
    def timeout_s(self) -> float:
        """Seconds after which one HTTP request is given up, its retries included."""
        return self._connection.policy.timeout_s

    def prefer(
        self,
        prompt: PromptLike,
        first: ResponseLike,
        second: ResponseLike,
        *,
        model: str | None = None,
        truncation: Truncation = "prompt",
    ) -> float:
        """Return the probability that the first response is preferred to the second.

        Args:
            prompt: a text (one user message) or a list of messages.
            first: the response whose win is measured: a text, a message, or a list of messages.
            second: the response it is compared with.

        Raises:
            ParagoneError: if there is no answer.
        """
        answer = self.preferences([(prompt, first, second)], model=model, truncation=truncation)
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
        return self._ask(
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
        return self._ask(
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
        model: str | None = None,
        return_: Sequence[TournamentReturn] = (),
        signal: Signal | None = None,
        shaping: Shaping | Mapping[str, float] | None = None,
        truncation: Truncation = "prompt",
    ) -> Tournament:
        """Return what follows from the K×K preferences among the responses to one prompt.

        Args:
            prompt: a text (one user message) or a list of messages.
            references: if given, win rates are against these instead of the group.
            return_: what to add to the answer: ``matrix``, ``ids``.
            signal: one number per response, for a trainer: ``win_rate``, ``rank``, ``anchor`` (needs references),
                ``nash``, ``elimination``, ``acyclic`` or ``reward``.
            shaping: what the signal gains or loses by length and style (``paragone.wire.Shaping``).

        Raises:
            ParagoneError: if there is no answer, or only one without some response or reference.
        """
        group: dict[str, object] = {"prompt": prompt, "responses": responses}
        if references is not None:
            group["references"] = references
        answer = self.tournaments(
            [group], model=model, return_=return_, signal=signal, shaping=shaping, truncation=truncation
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
    ) -> TournamentsAnswer:
        """Return a tournament for each group of responses, in their order.

        Args:
            groups: ``(prompt, responses)`` tuples, dicts with these fields, or ``paragone.wire.Group``.
            return_: what to add to each answer: ``matrix``, ``ids``.
            signal: as for ``tournament``.
            shaping: as for ``tournament``.
            skew_weight, weights, aggregation: as for ``preferences``.
            comparisons: which pairs a model compares that reads both responses at once: ``all``, ``circular``,
                ``bracket`` or ``budget:N``; other models answer all in any case.

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
        )
        return self._ask(TOURNAMENTS, groups, options)

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
            deadline_s=deadline_s,
            signal=signal,
            shaping=shaping,
            skew_weight=skew_weight,
            on_missing=on_missing,
            return_=return_,
            model=model or self._connection.model,
            truncation=truncation,
        )
        return read_json(CohortAnswer, self._send(COHORTS, asked), f"the answer of {COHORTS}")

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
        own forward is all that it costs.

        Args:
            items: ``(prompt, responses)`` tuples or dicts with these fields; all are sent in one request.
            ttl_s: how long the set is kept; None: until it is deleted. [seconds]

        Raises:
            ParagoneError: if nothing is stored; ``item`` is the index of the item at fault.
        """
        asked = references_request(
            name, items, model=model or self._connection.model, ttl_s=ttl_s, truncation=truncation
        )
        return read_json(ReferenceSet, self._send(REFERENCES, asked), f"the answer of {REFERENCES}")

    def references(self) -> list[ReferenceSet]:
        """Return the stored reference sets, by name.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_json(ReferenceSetsAnswer, self._send(REFERENCES), "the list of references").references

    def delete_references(self, name: str) -> ReferenceSet:
        """Delete a reference set and return what it was.

        Raises:
            UnknownReferencesError: if there is none of that name.
            ParagoneError: if there is no answer.
        """
        path, asked = deletion(name)
        return read_json(ReferenceSet, self._send(path, asked), "the answer of a deletion")

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
        return self._ask(TOKENS, items, RequestOptions(model=model, truncation=truncation, on_error=on_error))

    def models(self) -> list[ModelInfo]:
        """Return the hosted models, the default one first.

        Raises:
            ParagoneError: if there is no answer.
        """
        return read_json(ModelsAnswer, self._send("/v1/models"), "the list of models").models

    def model(self, id: str) -> ModelInfo:
        """Return one hosted model.

        Raises:
            UnknownModelError: if no model of that name is hosted.
            ParagoneError: if there is no answer.
        """
        # An id is one segment of the path: a slash in it must not lead to another route.
        content = self._send(f"/v1/models/{urllib.parse.quote(id, safe='')}")
        return read_json(ModelInfo, content, "the model")

    def _ask(self, route: Route[AnswerT], batch: Iterable[object], options: RequestOptions) -> AnswerT:
        self._leave_parent()
        parts = parts_of(
            route,
            batch,
            options.with_default(self._connection.model),
            max_items=self._connection.max_items,
            max_bytes=self._connection.max_bytes,
            memory=self._memory,
        )
        # Nearly every call is one part: no thread is started for it.
        if len(parts) == 1:
            return self._ask_part(parts[0], _never)
        return merge_answers(parts, self._ask_parts(parts))

    def _ask_parts(self, parts: Sequence[Part[AnswerT]]) -> list[AnswerT]:
        """Return the answers to the parts, asked by a few threads; the first failure drops the parts that wait.

        The threads are daemons, so that an interrupted program need not wait for answers that nobody reads.
        """
        # Threads and not an event loop: the caller's thread may run one already, and a second one cannot start there.
        given_up = threading.Event()
        waiting = iter(list(enumerate(parts)))
        turn = threading.Lock()
        # Parts end in any order. Each answer travels with its place, and an error ends the wait at once.
        finished: queue.SimpleQueue[tuple[int, AnswerT | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while not given_up.is_set():
                with turn:  # an iterator is not safe to share
                    place, part = next(waiting, (-1, None))
                if part is None:
                    return
                try:
                    finished.put((place, self._ask_part(part, given_up.is_set)))
                except Exception as error:  # noqa: BLE001 (it is raised again where the answers are awaited)
                    finished.put((place, error))

        for _ in range(min(self._connection.concurrency, len(parts))):
            threading.Thread(target=work, name="paragone", daemon=True).start()
        answers: dict[int, AnswerT] = {}
        try:
            while len(answers) < len(parts):
                place, outcome = finished.get()
                if isinstance(outcome, Exception):
                    raise outcome
                answers[place] = outcome
        finally:
            given_up.set()  # also on Ctrl-C: the threads stop at their next part or try
        return [answers[place] for place in range(len(parts))]

    def _ask_part(self, part: Part[AnswerT], stopped: Callable[[], bool]) -> AnswerT:
        try:
            while True:  # at most three times: with ids, with those that are known, in full
                try:
                    return part.read(self._send(part.route.path, part, stopped))
                except UnknownIdError as error:
                    part = part.without_unknown_ids(error)
        except ParagoneError as error:
            # With the cause of the transport's error, and not the error itself, which is the same one.
            raise part.renumbered(error) from error.__cause__

    def _send(
        self, path: str, part: Part[Any] | SingleRequest | None = None, stopped: Callable[[], bool] = _never
    ) -> bytes:
        self._leave_parent()
        connection = self._connection
        question = connection.question(path)
        if part is not None:
            deletes = isinstance(part, SingleRequest) and part.deletes
            question = connection.question(path, part.body, part.prompt_hash, deletes=deletes)
        policy = part.policy(connection.policy) if isinstance(part, SingleRequest) else connection.policy
        attempts = Attempts(question, policy, self._addresses, self._clock)
        with request_span(f"{question.method} {path}"):
            return send(self._http, attempts, sleep=self._sleep, stopped=stopped)
