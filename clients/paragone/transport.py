"""One HTTP request with retries: where it goes, when it is tried again, how long to wait, what failed.

Tried again: connections that fail, 502, 503, 504, and a 429 that says ``Retry-After``. All routes are pure questions,
so asking twice changes nothing. Where there are several addresses, the others are tried at once, also after a 500 or a
silence; only when all have failed does the request wait. Waits have full jitter (uniform between 0 and a bound that
doubles), never end before the server's ``Retry-After``, and never go past the retry time or the deadline. Every retry
is logged at WARNING.

Where there are several addresses, a try is watched while it waits, so that a process that hangs is left after seconds
and one that computes for minutes is not.
"""

import asyncio
import contextvars
import email.utils
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2
from pydantic import ValidationError

from paragone.addresses import LIFE_TIMEOUT_S, PROBE_TIMEOUT_S, Addresses, Doubt
from paragone.codes import ErrorCode
from paragone.connection import Question, RetryPolicy
from paragone.exceptions import (
    AnswerError,
    DeadlineError,
    ParagoneError,
    ServerError,
    UnavailableError,
    VersionError,
    exception_class,
    exception_for,
)
from paragone.tracing import inject
from paragone.versions import VERSION_HEADER, incompatibility, minor_difference
from paragone.wire import ErrorBody

__all__ = [
    "Attempts",
    "Try",
    "send",
    "send_async",
]

logger = logging.getLogger("paragone")

_CONNECT_TIMEOUT_S = 10.0
_LOOK_S = 0.5
"""How often a request that waits looks whether its address has been found to hang."""
_SHORTEST_DEADLINE_S, _LONGEST_DEADLINE_S = 0.001, 86_400.0
"""What the service takes as a deadline."""
# What a proxy answers while the service behind it restarts, and what the service answers while it is busy.
_RETRIED_STATUS = frozenset({502, 503, 504})
# A group whose deadline has passed stays as it is: asked again, the server says the same.
_FINAL = frozenset({ErrorCode.COHORT_INCOMPLETE})
# What a server says that is well and has too much to do: whoever is told so waits for its turn.
_BUSY = frozenset({ErrorCode.OVERLOADED, ErrorCode.TOO_MANY_CONNECTIONS, ErrorCode.QUOTA_EXCEEDED})
RETRIED = "try %d failed, the next one in %.2f s (%.0f s left): %s"
"""What is logged of a try after which the client waits."""
_NOBODY_THERE = " (nothing has answered there yet. Is a server running at this address? paragone serve starts one)"
# A read error is a connection that broke under the request: safe to repeat, because every request is a pure question.
_RETRIED_FAILURES = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.ReadError,
    httpx2.WriteError,
    httpx2.CloseError,
    httpx2.RemoteProtocolError,
)


class _SilentError(httpx2.ReadTimeout):
    """A server that neither answers a request nor says that it lives."""


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a question: the address, and how long it may take.

    Attributes:
        named: whether the server is told how long it may take.
        probe: whether this is the question after the health of an address that failed before.
    """

    question: Question
    url: str
    timeout_s: float
    named: bool = True
    probe: bool = False

    def __str__(self) -> str:
        return f"{self.question.method} {self.url}{self.question.path}"

    def request(self, http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """Return a fresh request."""
        # An answer may take all of the time. A connection may not: where a machine is off, another one may take its
        # address within the next tries.
        timeout = httpx2.Timeout(self.timeout_s, connect=min(self.timeout_s, _CONNECT_TIMEOUT_S))
        if self.probe:
            return http.build_request("GET", f"{self.url}/readyz", timeout=timeout)
        question = self.question
        headers = {**question.headers, "x-request-id": question.request_id}
        if question.body is not None:
            headers["content-type"] = "application/json"
            inject(headers)
        if question.body is not None and self.named:
            # The server drops what nobody waits for any more, and refuses at once what it could only answer later.
            headers["x-deadline-s"] = f"{min(max(self.timeout_s, _SHORTEST_DEADLINE_S), _LONGEST_DEADLINE_S):.3f}"
        url = f"{self.url}{question.path}"
        return http.build_request(question.method, url, headers=headers, content=question.body, timeout=timeout)

    def life(self, http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """Return the question whether the server lives, to be asked beside this one."""
        return http.build_request("GET", f"{self.url}/livez", timeout=httpx2.Timeout(LIFE_TIMEOUT_S))


@dataclass(slots=True)
class Attempts:
    """The tries of one question: where the next one goes, what time is left, and what follows from each outcome."""

    question: Question
    policy: RetryPolicy
    addresses: Addresses
    clock: Callable[[], float]
    tries: int = 0
    _deadline: float = field(init=False)
    _failing_since: float | None = field(init=False, default=None)
    _current: Try = field(init=False)
    _began: float = field(init=False, default=0.0)
    _round: list[str] = field(init=False, default_factory=list)
    _rounds: int = field(init=False, default=0)
    _hints: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.policy.timeout_s

    @property
    def watched(self) -> bool:
        """Whether the present try is watched for signs of life: it has another address to go to."""
        return len(self.addresses.urls) > 1 and not self._current.probe

    def begin(self) -> Try:
        """Return the next try.

        Raises:
            DeadlineError: if no time is left.
        """
        self._began = self.clock()
        question, left = self.question, self._deadline - self._began
        if not self._round:
            self._round = self.addresses.round(question.key)
            self._rounds += 1
            self._hints.clear()
        url = self._round.pop(0)
        if left <= 0:
            raise DeadlineError(
                f"{question.method} {url}{question.path}: no answer within {self.policy.timeout_s:g} s and "
                f"{self.tries} tries",
                request_id=question.request_id,
            )
        # A server may live and never answer this request. While there are others to ask, it gets a fair share of the
        # time and not all of it.
        share = left / (1 + len(self._round))
        probe = self.addresses.must_probe(url)
        timeout_s = min(share, PROBE_TIMEOUT_S) if probe else share
        self._current = Try(question, url, timeout_s, self.policy.named, probe)
        self.tries += not probe
        return self._current

    def in_doubt(self) -> bool:
        """Return whether to ask now if the server lives that the present try waits for.

        Raises:
            RequestError: of the HTTP library, if it was found to hang.
        """
        doubt = self.addresses.doubt(self._current.url, self._began)
        if doubt is Doubt.SILENT:
            raise _SilentError("the server does not answer /livez either")
        return doubt is Doubt.ASK

    def lives(self, failure: httpx2.RequestError | None) -> None:
        """Take what came of that question.

        Raises:
            RequestError: of the HTTP library, if there was no answer.
        """
        if failure is None:
            self.addresses.heard(self._current.url)
        elif isinstance(failure, httpx2.TimeoutException):
            self.addresses.failed(self._current.url, silent=True)
            self.in_doubt()
        # Else there is somebody who refuses it, as a server does that drains: the try's own connection tells.

    def failed(self, failure: httpx2.RequestError) -> float:
        """Return how long to wait after a try that got no answer.

        Raises:
            AnswerError: if the answer could not be decoded.
            DeadlineError: if the answer took too long.
            UnavailableError: if there is no connection and no try left.
        """
        name, current = type(failure).__name__, self._current
        hangs = isinstance(failure, _SilentError)
        # A timeout while connecting may pass. Any other one has used up the time that this address had.
        late = isinstance(failure, httpx2.TimeoutException) and not isinstance(
            failure, httpx2.ConnectTimeout | _SilentError
        )
        if late:
            error: ParagoneError = DeadlineError(
                f"{current}: no answer within {current.timeout_s:g} s ({name})", request_id=self.question.request_id
            )
            if not current.probe and not self._round:
                self.addresses.failed(current.url, silent=True)
                raise error from failure
        else:
            kind = UnavailableError if isinstance(failure, httpx2.TransportError) else AnswerError
            hint = "" if self.addresses.known else _NOBODY_THERE
            error = kind(f"{current}: {failure or name}{hint}", request_id=self.question.request_id)
            if not hangs and not isinstance(failure, _RETRIED_FAILURES):
                raise error from failure  # an unknown scheme or a redirect loop: it will fail again the same way
        if not hangs:  # whoever found that out has said so already
            self.addresses.failed(current.url, silent=late)
        return self._wait_before_retry(error, None, failure)

    def answered(self, response: httpx2.Response) -> float | None:
        """Return None after a success, else how long to wait.

        Raises:
            ParagoneError: the error that was answered, as its own class, if it is not one to retry or no try is left.
        """
        current, status = self._current, response.status_code
        self.addresses.heard(current.url)
        if current.probe:
            return self._probed(response)
        if response.is_success:
            self.addresses.answered(current.url)
            self._compare_versions(response)
            return None
        error = _error_of(response, current)
        after = error.retry_after_s
        # A 429 without a time to come back is a quota that has run out, which no wait of ours will refill. One with a
        # time is about the key and not about the address: no other address is asked.
        if status == 429 and after is not None:
            self._round.clear()
            return self._wait_before_retry(error, after, None)
        # A fault of the server is no passing failure, but another server may not have it. NaN will be NaN there too.
        if error.code in _FINAL:
            self.addresses.answered(current.url)
            raise error
        if status in _RETRIED_STATUS or (type(error) is ServerError and self._round):
            self.addresses.failed(current.url, retry_after_s=after or 0.0)
            return self._wait_before_retry(error, after, None)
        self.addresses.answered(current.url)
        raise error

    def _compare_versions(self, response: httpx2.Response) -> None:
        client = self.question.headers.get(VERSION_HEADER, "")
        server = response.headers.get(VERSION_HEADER, "")
        # A server refuses such a client itself, unless it is one that does not look, or has become another meanwhile.
        refusal = incompatibility(client, server)
        if refusal is not None:
            raise VersionError(
                f"{self._current}: {refusal}",
                status=response.status_code,
                request_id=response.headers.get("x-request-id", self.question.request_id),
            )
        difference = minor_difference(client, server)
        if difference is not None and self.addresses.first_seen(self._current.url, server):
            logger.warning("%s: %s", self._current.url, difference)

    def broken(self, failure: RuntimeError) -> ParagoneError:
        """Return what is raised where the HTTP library cannot even begin: the client was closed, or its loop."""
        return ParagoneError(
            f"{self._current}: {failure} (this client was closed, or was given a transport that belongs to another "
            "event loop: make a new client)",
            request_id=self.question.request_id,
        )

    def _probed(self, response: httpx2.Response) -> float:
        """Take an address back if it is ready; a proxy that does not pass ``/readyz`` on is taken as ready."""
        current = self._current
        if response.status_code < 500:
            self.addresses.answered(current.url)
            self._round.insert(0, current.url)
            return 0.0
        self.addresses.failed(current.url)
        return self._wait_before_retry(_error_of(response, current), None, None)

    def _wait_before_retry(
        self, error: ParagoneError, retry_after_s: float | None, cause: BaseException | None
    ) -> float:
        now, policy = self.clock(), self.policy
        # A server that says when to come back is not gone: its refusal ends no patience.
        if self._failing_since is None or (error.code in _BUSY and retry_after_s is not None):
            self._failing_since = now
        left_s = min(self._deadline, self._failing_since + policy.patience_s(known=self.addresses.known)) - now
        self._hints.append(retry_after_s or 0.0)
        if policy.retries is not None and self.tries > policy.retries:
            raise error from cause
        if self._round:
            logger.warning("try %d failed, the next one at %s: %s", self.tries, self._round[0], error)
            return 0.0
        # All addresses have failed; the first one that may be back is worth the next round. A try that the deadline
        # would cut off is not worth the wait: the caller learns now what went wrong.
        wait_s = policy.pause_s(self._rounds, min(self._hints), left_s)
        if wait_s is None:
            raise error from cause
        logger.warning(RETRIED, self.tries, wait_s, left_s, error)
        return wait_s


def _error_of(response: httpx2.Response, current: Try) -> ParagoneError:
    """Return the exception for an answer that is not a success."""
    status = response.status_code
    request_id = response.headers.get("x-request-id", current.question.request_id)
    retry_after_s = _seconds(response.headers.get("retry-after"))
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValidationError:  # not our server, so the status is all that there is to go by
        kind = exception_class(None, status)
        hint = "a proxy, or another server" if kind is not AnswerError else "a redirect; use the address it leads to"
        return kind(
            f"{current}: an answer without an error of this API (from {hint}?)",
            status=status,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    return exception_for(body.error, status=status, request_id=request_id, retry_after_s=retry_after_s)


def _seconds(retry_after: str | None) -> float | None:
    """Return a ``Retry-After`` header, a number or an HTTP date, as seconds from now; None if it is unreadable."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():  # seconds, as this service sends; a proxy may send a date
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())  # the wall clock's, whatever clock the client is given


def send(
    http: httpx2.Client,
    attempts: Attempts,
    *,
    sleep: Callable[[float], object],
    stopped: Callable[[], bool],
) -> bytes:
    """Return the body of the first success.

    Args:
        stopped: whether to give up between two tries, because a sibling part has failed.

    Raises:
        ParagoneError: the last failure, as its own class.
    """
    while True:
        current = attempts.begin()
        try:
            response = _watched(http, attempts, current) if attempts.watched else http.send(current.request(http))
        except httpx2.RequestError as failure:
            wait_s: float | None = attempts.failed(failure)
        except RuntimeError as failure:
            raise attempts.broken(failure) from failure
        else:
            wait_s = attempts.answered(response)
            if wait_s is None:
                return response.content
        if stopped():  # asked between tries only: a request on its way cannot be called back by another thread
            raise UnavailableError(f"{current}: given up, because another part of the batch failed")
        if wait_s:
            sleep(wait_s)


def _watched(http: httpx2.Client, attempts: Attempts, current: Try) -> httpx2.Response:
    """Send one try and return its answer, as long as its server shows signs of life."""
    request, context = current.request(http), contextvars.copy_context()
    outcome: queue.SimpleQueue[httpx2.Response | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(context.run(http.send, request))
        except Exception as error:  # noqa: BLE001 (it is raised again where the answer is awaited)
            outcome.put(error)

    # No other thread can end a request that waits. So it waits in a thread of its own, which is left behind with its
    # connection if the server hangs, and ends with the server or the request's time.
    threading.Thread(target=work, name="paragone", daemon=True).start()
    while True:
        try:
            answer = outcome.get(timeout=_LOOK_S)
        except queue.Empty:
            if attempts.in_doubt():
                failure = None
                try:
                    http.send(current.life(http))
                except httpx2.RequestError as error:
                    failure = error
                if outcome.empty():
                    attempts.lives(failure)
        else:
            if isinstance(answer, Exception):
                raise answer
            return answer


async def _watched_async(http: httpx2.AsyncClient, attempts: Attempts, current: Try) -> httpx2.Response:
    sending = asyncio.ensure_future(http.send(current.request(http)))
    try:
        while not (await asyncio.wait({sending}, timeout=_LOOK_S))[0]:
            if attempts.in_doubt():
                failure = None
                try:
                    await http.send(current.life(http))
                except httpx2.RequestError as error:
                    failure = error
                if not sending.done():
                    attempts.lives(failure)
        return sending.result()
    finally:
        if not sending.done():
            sending.cancel()
            await asyncio.wait({sending})


async def send_async(
    http: httpx2.AsyncClient, attempts: Attempts, *, sleep: Callable[[float], Awaitable[object]]
) -> bytes:
    """Return the body of the first success; as ``send``, and cancelled like any coroutine.

    Raises:
        ParagoneError: the last failure, as its own class.
    """
    while True:
        current = attempts.begin()
        try:
            if attempts.watched:
                response = await _watched_async(http, attempts, current)
            else:
                response = await http.send(current.request(http))
        except httpx2.RequestError as failure:
            wait_s: float | None = attempts.failed(failure)
        except RuntimeError as failure:
            raise attempts.broken(failure) from failure
        else:
            wait_s = attempts.answered(response)
            if wait_s is None:
                return response.content
        if wait_s:
            await sleep(wait_s)
