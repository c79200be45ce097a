"""One HTTP request with retries: when to try again, how long to wait, and what a failure is called.

Tried again: connections that fail, 502, 503, 504, and a 429 that says ``Retry-After``. All routes are pure questions,
so asking twice changes nothing. Waits have full jitter (uniform between 0 and a bound that doubles), never end before
the server's ``Retry-After``, and never go past the deadline. Every retry is logged at WARNING.
"""

import email.utils
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import httpx2
from pydantic import ValidationError

from paragone.exceptions import (
    AnswerError,
    DeadlineError,
    ParagoneError,
    UnavailableError,
    exception_class,
    exception_for,
)
from paragone.wire import ErrorBody

__all__ = ["Attempts", "Question", "RetryPolicy", "send", "send_async"]

logger = logging.getLogger("paragone")

_CONNECT_TIMEOUT_S = 10.0
_DOUBLINGS = 60
_RETRIED_STATUS = frozenset({502, 503, 504})
_RETRIED_FAILURES = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.ReadError,
    httpx2.WriteError,
    httpx2.CloseError,
    httpx2.RemoteProtocolError,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a request is tried again and how long to wait in between.

    Attributes:
        retries: tries after the first one.
        timeout_s: the deadline of one HTTP request, its retries and waits included.
        first_wait_s: bound of the first wait; it doubles with each try.
        longest_wait_s: bound that the doubling stops at.
    """

    retries: int
    timeout_s: float
    first_wait_s: float = 0.25
    longest_wait_s: float = 16.0

    def wait_s(self, tries: int, retry_after_s: float | None) -> float:
        """Return how long to wait after so many tries, at least as long as the server asked for."""
        # Beyond some doublings the bound is the longest wait; a thousand of them no float can hold.
        bound = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(tries - 1, _DOUBLINGS))
        jitter = random.uniform(0.0, bound)  # noqa: S311 (it spreads load, it hides nothing)
        return jitter + (retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Question:
    """One request as it is sent with each try: where to, with which headers, and the body (None: a GET).

    All tries carry the same ``x-request-id``, so that the server's log tells a retry from a second question.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"{'GET' if self.body is None else 'POST'} {self.url}"

    def request(self, http: httpx2.Client | httpx2.AsyncClient, timeout: httpx2.Timeout) -> httpx2.Request:
        """Return a fresh request for one try."""
        headers = {**self.headers, "x-request-id": self.request_id}
        if self.body is None:
            return http.build_request("GET", self.url, headers=headers, timeout=timeout)
        headers["content-type"] = "application/json"
        return http.build_request("POST", self.url, headers=headers, content=self.body, timeout=timeout)


@dataclass(slots=True)
class Attempts:
    """The tries of one question: what time is left, and what follows from each outcome.

    Attributes:
        question: what is asked.
        policy: how often and how long.
        clock: seconds since any fixed moment.
    """

    question: Question
    policy: RetryPolicy
    clock: Callable[[], float]
    tries: int = 0
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.policy.timeout_s

    def begin(self) -> httpx2.Timeout:
        """Count one more try and return its timeouts.

        Raises:
            DeadlineError: if no time is left.
        """
        left = self._deadline - self.clock()
        if left <= 0:
            raise DeadlineError(
                f"{self.question}: no answer within {self.policy.timeout_s:g} s and {self.tries} tries",
                request_id=self.question.request_id,
            )
        self.tries += 1
        return httpx2.Timeout(left, connect=min(left, _CONNECT_TIMEOUT_S))

    def failed(self, failure: httpx2.RequestError) -> float:
        """Return how long to wait after a try that got no answer.

        Raises:
            AnswerError: if the answer could not be decoded.
            DeadlineError: if the answer took too long.
            UnavailableError: if there is no connection and no try left.
        """
        name = type(failure).__name__
        if isinstance(failure, httpx2.TimeoutException) and not isinstance(failure, httpx2.ConnectTimeout):
            raise DeadlineError(
                f"{self.question}: no answer within {self.policy.timeout_s:g} s ({name})",
                request_id=self.question.request_id,
            ) from failure
        kind = UnavailableError if isinstance(failure, httpx2.TransportError) else AnswerError
        error = kind(f"{self.question}: {failure or name}", request_id=self.question.request_id)
        if not isinstance(failure, _RETRIED_FAILURES):
            raise error from failure
        return self._wait_before_retry(error, None, failure)

    def answered(self, response: httpx2.Response) -> float | None:
        """Return None after a success, else how long to wait.

        Raises:
            ParagoneError: the error that was answered, as its own class, if it is not one to retry or no try is left.
        """
        if response.is_success:
            return None
        error = _error_of(response, self.question)
        after = error.retry_after_s
        if response.status_code in _RETRIED_STATUS or (response.status_code == 429 and after is not None):
            return self._wait_before_retry(error, after, None)
        raise error

    def _wait_before_retry(
        self, error: ParagoneError, retry_after_s: float | None, cause: BaseException | None
    ) -> float:
        wait_s = self.policy.wait_s(self.tries, retry_after_s)
        if self.tries > self.policy.retries or self.clock() + wait_s >= self._deadline:
            raise error from cause
        logger.warning(
            "try %d of %d failed, the next one in %.2f s: %s", self.tries, self.policy.retries + 1, wait_s, error
        )
        return wait_s


def _error_of(response: httpx2.Response, question: Question) -> ParagoneError:
    """Return the exception for an answer that is not a success."""
    status = response.status_code
    request_id = response.headers.get("x-request-id", question.request_id)
    retry_after_s = _seconds(response.headers.get("retry-after"))
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValidationError:
        kind = exception_class(None, status)
        hint = "a proxy, or another server" if kind is not AnswerError else "a redirect; use the address it leads to"
        return kind(
            f"{question}: an answer without an error of this API (from {hint}?)",
            status=status,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    return exception_for(body.error, status=status, request_id=request_id, retry_after_s=retry_after_s)


def _seconds(retry_after: str | None) -> float | None:
    """Return a ``Retry-After`` header, a number or an HTTP date, as seconds from now; None if it is unreadable."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def send(
    http: httpx2.Client,
    question: Question,
    attempts: Attempts,
    *,
    sleep: Callable[[float], object],
    stopped: Callable[[], bool],
) -> bytes:
    """Return the body of the first success.

    Args:
        http: what carries the request.
        question: what is sent, anew with each try.
        attempts: how often and how long.
        sleep: waits for some seconds.
        stopped: whether to give up between two tries, because a sibling part has failed.

    Raises:
        ParagoneError: the last failure, as its own class.
    """
    while True:
        request = question.request(http, attempts.begin())
        try:
            response = http.send(request)
        except httpx2.RequestError as failure:
            wait_s: float | None = attempts.failed(failure)
        else:
            wait_s = attempts.answered(response)
            if wait_s is None:
                return response.content
        if stopped():
            raise UnavailableError(f"{attempts.question}: given up, because another part of the batch failed")
        sleep(wait_s or 0.0)


async def send_async(
    http: httpx2.AsyncClient,
    question: Question,
    attempts: Attempts,
    *,
    sleep: Callable[[float], Awaitable[object]],
) -> bytes:
    """Return the body of the first success; as ``send``, and cancelled like any coroutine.

    Raises:
        ParagoneError: the last failure, as its own class.
    """
    while True:
        request = question.request(http, attempts.begin())
        try:
            response = await http.send(request)
        except httpx2.RequestError as failure:
            wait_s: float | None = attempts.failed(failure)
        else:
            wait_s = attempts.answered(response)
            if wait_s is None:
                return response.content
        await sleep(wait_s or 0.0)
