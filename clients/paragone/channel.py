"""How the client that waits reaches a service: its connections, the threads of a large batch, and what a fork leaves.

``paragone.client`` says what is asked; ``paragone.async_client`` has both for coroutines.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx2

from paragone.addresses import Addresses
from paragone.batches import AnswerT, Part, RequestOptions, Route, merge_answers, parts_of
from paragone.connection import CONNECTIONS, Connection
from paragone.exceptions import ParagoneError, UnknownIdError
from paragone.ids import IdMemory
from paragone.single import SingleRequest
from paragone.tracing import request_span
from paragone.transport import Attempts, send

__all__ = ["Channel"]


def _never() -> bool:
    return False


class Channel:
    """Carry requests to a service. Safe to share between threads, and to pickle.

    Args:
        remembered_ids: how many ids of long responses to remember.
        transport: what carries the requests, if not the network.
        clock: seconds since any fixed moment.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        remembered_ids: int,
        transport: httpx2.BaseTransport | None,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self.connection = connection
        self._memory_size = remembered_ids
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._open()

    def _open(self) -> None:
        """Begin with nothing open and nothing known."""
        connection = self.connection
        self._http = httpx2.Client(
            transport=self._transport,
            trust_env=connection.trust_env,
            mounts=connection.direct or None,
            # The threads that ask are the bound. One of the pool's would let a replica that hangs keep all of it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
        )
        self._addresses = Addresses(connection.urls, self._clock)
        # Shared by all threads that use this client, so that a text which one has sent the others send by its id.
        self.memory = IdMemory(self._memory_size)
        self._process = os.getpid()

    def _leave_parent(self) -> None:
        """Begin anew in a forked process: two that read from one connection get each other's answers."""
        if os.getpid() != self._process:
            # Kept and not closed: closing takes a lock that a thread of the parent may have held while it forked.
            self._inherited = self._http
            self._open()

    def __getstate__(self) -> dict[str, Any]:
        opened = {"_http", "_addresses", "memory", "_process", "_inherited"}
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, route: Route[AnswerT], batch: Iterable[object], options: RequestOptions) -> AnswerT:
        """Return the answer to a batch, in as many requests as it takes.

        Raises:
            ParagoneError: if there is no answer.
        """
        self._leave_parent()
        parts = parts_of(
            route,
            batch,
            options.with_default(self.connection.model),
            max_items=self.connection.max_items,
            max_bytes=self.connection.max_bytes,
            memory=self.memory,
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

        for _ in range(min(self.connection.concurrency, len(parts))):
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
                    return part.read(self.send(part.route.path, part, stopped))
                except UnknownIdError as error:
                    part = part.without_unknown_ids(error)
        except ParagoneError as error:
            # With the cause of the transport's error, and not the error itself, which is the same one.
            raise part.renumbered(error) from error.__cause__

    def send(
        self, path: str, part: Part[Any] | SingleRequest | None = None, stopped: Callable[[], bool] = _never
    ) -> bytes:
        """Return the body of one request's answer.

        Raises:
            ParagoneError: if there is none.
        """
        self._leave_parent()
        connection = self.connection
        question = connection.question(path)
        if part is not None:
            deletes = isinstance(part, SingleRequest) and part.deletes
            question = connection.question(path, part.body, part.prompt_hash, deletes=deletes)
        policy = part.policy(connection.policy) if isinstance(part, SingleRequest) else connection.policy
        attempts = Attempts(question, policy, self._addresses, self._clock)
        with request_span(f"{question.method} {path}"):
            return send(self._http, attempts, sleep=self._sleep, stopped=stopped)
