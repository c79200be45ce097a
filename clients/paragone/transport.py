"""Where a client's requests go, and one HTTP request with retries: when to try again, how long to wait, what failed.

A client's arguments are checked once, when it is made, and nothing is read from the environment.

Tried again: connections that fail, 502, 503, 504, and a 429 that says ``Retry-After``. All routes are pure questions,
so asking twice changes nothing. Waits have full jitter (uniform between 0 and a bound that doubles), never end before
the server's ``Retry-After``, and never go past the deadline. Every retry is logged at WARNING.
"""

import email.utils
import ipaddress
import logging
import random
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

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

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_URL",
    "Attempts",
    "Connection",
    "Question",
    "RetryPolicy",
    "send",
    "send_async",
]

logger = logging.getLogger("paragone")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_BYTES = 8 * 1024 * 1024

_CONNECT_TIMEOUT_S = 10.0
_DOUBLINGS = 60
# What a proxy answers while the service behind it restarts, and what the service answers while it is busy.
_RETRIED_STATUS = frozenset({502, 503, 504})
# A read error is a connection that broke under the request: safe to repeat, because every request is a pure question.
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
        # Many doublings overflow a float, and the bound has long been the longest wait then.
        bound = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(tries - 1, _DOUBLINGS))
        jitter = random.uniform(0.0, bound)  # noqa: S311 (it spreads load, it hides nothing)
        return jitter + (retry_after_s or 0.0)  # added, not the larger of both: all who were refused have one hint


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Connection:
    """Where a client sends its requests, and how. Its repr leaves the headers out: they hold the key.

    Attributes:
        url: address of the service, without a final slash.
        loopback: whether the service is on this machine; a proxy of the environment is for other machines.
        model: id of the model that is asked when a call names none; None: the server's default.
        max_bytes: most bytes of items in one request.
        concurrency: most requests of one call in flight.
    """

    url: str
    loopback: bool
    headers: Mapping[str, str]
    model: str | None
    policy: RetryPolicy
    max_items: int
    max_bytes: int
    concurrency: int

    @classmethod
    def made(
        cls,
        url: str,
        *,
        api_key: str | None,
        model: str | None,
        timeout_s: float,
        retries: int,
        max_items_per_request: int,
        max_bytes_per_request: int,
        concurrency: int,
    ) -> "Connection":
        """Return a connection with checked arguments.

        Raises:
            ValueError: if the URL is not one, the key cannot be sent, or a number is out of its range.
        """
        parsed = urllib.parse.urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise ValueError(f"url={url!r} is not an http:// or https:// address, as {DEFAULT_URL}")
        # The HTTP library would refuse such a header too, but with the key in its message.
        if api_key is not None and not (
            api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""
        ):
            raise ValueError(
                "api_key holds a space at an end, a control character or a letter outside ASCII, or is empty"
            )
        if not timeout_s > 0:  # written so that NaN is refused too
            raise ValueError(f"timeout_s={timeout_s} must be above 0")
        if retries < 0:
            raise ValueError(f"retries={retries} must be 0 or more")
        for name, value in (
            ("max_items_per_request", max_items_per_request),
            ("max_bytes_per_request", max_bytes_per_request),
            ("concurrency", concurrency),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        headers = {"accept": "application/json", "user-agent": f"paragone/{version('paragone')}"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        return cls(
            url=url.rstrip("/"),
            loopback=_is_loopback(parsed.hostname),
            headers=headers,
            model=model,
            policy=RetryPolicy(retries=retries, timeout_s=timeout_s),
            max_items=max_items_per_request,
            max_bytes=max_bytes_per_request,
            concurrency=concurrency,
        )

    def __repr__(self) -> str:
        return f"url={self.url!r}, model={self.model!r}"

    def question(self, path: str, body: bytes | None = None, prompt_hash: str | None = None) -> Question:
        """Return the request for a path: a POST of a body, or a GET.

        A proxy can route by the hash of the first prompt, so that siblings meet the same cache.
        """
        headers = self.headers if prompt_hash is None else {**self.headers, "x-paragone-prompt": prompt_hash}
        return Question(f"{self.url}{path}", headers, body)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(slots=True)
class Attempts:
    """The tries of one question: what time is left, and what follows from each outcome."""

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
        # An answer may take all the time that is left. A connection may not: where a machine is off, another one may
        # take its address within the next tries.
        return httpx2.Timeout(left, connect=min(left, _CONNECT_TIMEOUT_S))

    def failed(self, failure: httpx2.RequestError) -> float:
        """Return how long to wait after a try that got no answer.

        Raises:
            AnswerError: if the answer could not be decoded.
            DeadlineError: if the answer took too long.
            UnavailableError: if there is no connection and no try left.
        """
        name = type(failure).__name__
        # A timeout while connecting may pass. Any other one has used up the time of the whole question.
        if isinstance(failure, httpx2.TimeoutException) and not isinstance(failure, httpx2.ConnectTimeout):
            raise DeadlineError(
                f"{self.question}: no answer within {self.policy.timeout_s:g} s ({name})",
                request_id=self.question.request_id,
            ) from failure
        kind = UnavailableError if isinstance(failure, httpx2.TransportError) else AnswerError
        error = kind(f"{self.question}: {failure or name}", request_id=self.question.request_id)
        if not isinstance(failure, _RETRIED_FAILURES):
            raise error from failure  # an unknown scheme or a redirect loop: it will fail again the same way
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
        # A 429 without a time to come back is a quota that has run out, which no wait of ours will refill.
        if response.status_code in _RETRIED_STATUS or (response.status_code == 429 and after is not None):
            return self._wait_before_retry(error, after, None)
        raise error

    def _wait_before_retry(
        self, error: ParagoneError, retry_after_s: float | None, cause: BaseException | None
    ) -> float:
        wait_s = self.policy.wait_s(self.tries, retry_after_s)
        # A try that the deadline would cut off is not worth the wait: the caller learns now what went wrong.
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
    except ValidationError:  # not our server, so the status is all that there is to go by
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
    if retry_after.strip().isdecimal():  # seconds, as this service sends; a proxy may send a date
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())  # the wall clock's, whatever clock the client is given


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
        if stopped():  # asked between tries only: a request on its way cannot be called back by another thread
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
