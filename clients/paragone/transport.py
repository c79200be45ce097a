"""One HTTP request with retries: where it goes, when it is tried again, how long to wait, what failed.

A client's arguments are checked once, when it is made, and nothing is read from the environment.

Tried again: connections that fail, 502, 503, 504, and a 429 that says ``Retry-After``. All routes are pure questions,
so asking twice changes nothing. Where there are several addresses, the others are tried at once, also after a 500 or a
silence; only when all have failed does the request wait. Waits have full jitter (uniform between 0 and a bound that
doubles), never end before the server's ``Retry-After``, and never go past the retry time or the deadline. Every retry
is logged at WARNING.
"""

import email.utils
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx2
from pydantic import ValidationError

from paragone.addresses import DEFAULT_URL, PROBE_TIMEOUT_S, Addresses, checked_urls, is_loopback
from paragone.exceptions import (
    AnswerError,
    DeadlineError,
    ParagoneError,
    ServerError,
    UnavailableError,
    exception_class,
    exception_for,
)
from paragone.tracing import inject
from paragone.wire import ErrorBody

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_URL",
    "Attempts",
    "Connection",
    "Question",
    "RetryPolicy",
    "Try",
    "send",
    "send_async",
]

logger = logging.getLogger("paragone")

DEFAULT_MAX_BYTES = 8 * 1024 * 1024

_CONNECT_TIMEOUT_S = 10.0
_DOUBLINGS = 60
_SHORTEST_DEADLINE_S, _LONGEST_DEADLINE_S = 0.001, 86_400.0
"""What the service takes as a deadline."""
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
    """How long a request is tried again and how long to wait in between.

    Attributes:
        timeout_s: the deadline of one HTTP request, its retries and waits included.
        retry_s: how long after its first failure a request is tried again; 0: never, except at other addresses.
        retries: most tries after the first one; None: as many as there is time for.
        first_wait_s: bound of the first wait; it doubles with each try.
        longest_wait_s: bound that the doubling stops at.
    """

    timeout_s: float
    retry_s: float
    retries: int | None = None
    first_wait_s: float = 0.25
    longest_wait_s: float = 16.0

    def wait_s(self, rounds: int, retry_after_s: float | None, left_s: float = float("inf")) -> float | None:
        """Return how long to wait after so many rounds of tries, at least as long as the server asked for.

        Args:
            left_s: the time in which a next try may begin.

        Returns:
            The seconds, or None if no try fits into the time that is left.
        """
        # Many doublings overflow a float, and the bound has long been the longest wait then.
        bound = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(rounds - 1, _DOUBLINGS))
        asked = retry_after_s or 0.0  # added to the jitter, not the larger of both: all who were refused have one hint
        # The last wait is shortened rather than given up, so that the retry time is used to its end. A shorter rest
        # than the first wait is no time: waits would halve for ever.
        if left_s < asked + self.first_wait_s:
            return None
        return asked + random.uniform(0.0, min(bound, left_s - asked))  # noqa: S311 (it spreads load, it hides nothing)


@dataclass(frozen=True, slots=True)
class Question:
    """One request as it is sent with each try: the path, the headers, and the body (None: a GET).

    All tries carry the same ``x-request-id``, so that the server's log tells a retry from a second question.

    Attributes:
        key: hash of the prompt, by which an address is chosen; None: any.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    key: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Connection:
    """Where a client sends its requests, and how. Its repr leaves the headers out: they hold the key.

    Attributes:
        urls: addresses of the service, without a final slash.
        model: id of the model that is asked when a call names none; None: the server's default.
        max_bytes: most bytes of items in one request.
        concurrency: most requests of one call in flight.
    """

    urls: tuple[str, ...]
    headers: Mapping[str, str]
    model: str | None
    policy: RetryPolicy
    max_items: int
    max_bytes: int
    concurrency: int

    @classmethod
    def made(
        cls,
        url: str | Sequence[str],
        *,
        api_key: str | None,
        model: str | None,
        timeout_s: float,
        retry_s: float,
        retries: int | None,
        max_items_per_request: int,
        max_bytes_per_request: int,
        concurrency: int,
    ) -> "Connection":
        """Return a connection with checked arguments.

        Raises:
            ValueError: if a URL is not one, the key cannot be sent, or a number is out of its range.
        """
        urls = checked_urls(url)
        # The HTTP library would refuse such a header too, but with the key in its message.
        if api_key is not None and not (
            api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""
        ):
            raise ValueError(
                "api_key holds a space at an end, a control character or a letter outside ASCII, or is empty"
            )
        if not timeout_s > 0:  # written so that NaN is refused too
            raise ValueError(f"timeout_s={timeout_s} must be above 0")
        if not retry_s >= 0:
            raise ValueError(f"retry_s={retry_s} must be 0 or more")
        if retries is not None and retries < 0:
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
            urls=urls,
            headers=headers,
            model=model,
            policy=RetryPolicy(timeout_s=timeout_s, retry_s=retry_s, retries=retries),
            max_items=max_items_per_request,
            max_bytes=max_bytes_per_request,
            concurrency=concurrency,
        )

    def __repr__(self) -> str:
        urls = list(self.urls) if len(self.urls) > 1 else self.urls[0]
        return f"url={urls!r}, model={self.model!r}"

    @property
    def trust_env(self) -> bool:
        """Whether a proxy of the environment may be asked.

        It would be asked for 127.0.0.1 as well, and reach its own machine.
        """
        return not all(map(is_loopback, self.urls))

    @property
    def direct(self) -> dict[str, None]:
        """Patterns of the addresses that no proxy is asked for, as the HTTP library's ``mounts`` take them."""
        return {url: None for url in self.urls if is_loopback(url)} if self.trust_env else {}

    def question(self, path: str, body: bytes | None = None, prompt_hash: str | None = None) -> Question:
        """Return the request for a path: a POST of a body, or a GET.

        A proxy can route by the hash of the first prompt, so that siblings meet the same cache.
        """
        headers = self.headers if prompt_hash is None else {**self.headers, "x-paragone-prompt": prompt_hash}
        return Question(path, headers, body, prompt_hash)


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a question: the address, and how long it may take.

    Attributes:
        probe: whether this is the question after the health of an address that failed before.
    """

    question: Question
    url: str
    timeout_s: float
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
            # The server drops what nobody waits for any more, and refuses at once what it could only answer later.
            headers["x-deadline-s"] = f"{min(max(self.timeout_s, _SHORTEST_DEADLINE_S), _LONGEST_DEADLINE_S):.3f}"
        url = f"{self.url}{question.path}"
        return http.build_request(question.method, url, headers=headers, content=question.body, timeout=timeout)


@dataclass(slots=True)
class Attempts:
    """The tries of one question: where the next one goes, what time is left, and what follows from each outcome."""

    question: Question
    policy: RetryPolicy
    addresses: Addresses
    clock: Callable[[], float]
    tries: int = 0
    _deadline: float = field(init=False)
    _retry_until: float | None = field(init=False, default=None)
    _current: Try = field(init=False)
    _round: list[str] = field(init=False, default_factory=list)
    _rounds: int = field(init=False, default=0)
    _hints: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.policy.timeout_s

    def begin(self) -> Try:
        """Return the next try.

        Raises:
            DeadlineError: if no time is left.
        """
        question, left = self.question, self._deadline - self.clock()
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
        # A process that hangs accepts connections and says nothing. While there are others to ask, it gets a fair
        # share of the time and not all of it.
        share = left / (1 + len(self._round))
        probe = self.addresses.must_probe(url)
        self._current = Try(question, url, min(share, PROBE_TIMEOUT_S) if probe else share, probe)
        self.tries += not probe
        return self._current

    def failed(self, failure: httpx2.RequestError) -> float:
        """Return how long to wait after a try that got no answer.

        Raises:
            AnswerError: if the answer could not be decoded.
            DeadlineError: if the answer took too long.
            UnavailableError: if there is no connection and no try left.
        """
        name, current = type(failure).__name__, self._current
        # A timeout while connecting may pass. Any other one has used up the time that this address had.
        silent = isinstance(failure, httpx2.TimeoutException) and not isinstance(failure, httpx2.ConnectTimeout)
        if silent:
            error: ParagoneError = DeadlineError(
                f"{current}: no answer within {current.timeout_s:g} s ({name})", request_id=self.question.request_id
            )
            if not current.probe and not self._round:
                self.addresses.failed(current.url, silent=True)
                raise error from failure
        else:
            kind = UnavailableError if isinstance(failure, httpx2.TransportError) else AnswerError
            error = kind(f"{current}: {failure or name}", request_id=self.question.request_id)
            if not isinstance(failure, _RETRIED_FAILURES):
                raise error from failure  # an unknown scheme or a redirect loop: it will fail again the same way
        self.addresses.failed(current.url, silent=silent)
        return self._wait_before_retry(error, None, failure)

    def answered(self, response: httpx2.Response) -> float | None:
        """Return None after a success, else how long to wait.

        Raises:
            ParagoneError: the error that was answered, as its own class, if it is not one to retry or no try is left.
        """
        current, status = self._current, response.status_code
        if current.probe:
            return self._probed(response)
        if response.is_success:
            self.addresses.answered(current.url)
            return None
        error = _error_of(response, current)
        after = error.retry_after_s
        # A 429 without a time to come back is a quota that has run out, which no wait of ours will refill. One with a
        # time is about the key and not about the address: no other address is asked.
        if status == 429 and after is not None:
            self._round.clear()
            return self._wait_before_retry(error, after, None)
        # A fault of the server is no passing failure, but another server may not have it. NaN will be NaN there too.
        if status in _RETRIED_STATUS or (type(error) is ServerError and self._round):
            self.addresses.failed(current.url, retry_after_s=after or 0.0)
            return self._wait_before_retry(error, after, None)
        self.addresses.answered(current.url)
        raise error

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
        if self._retry_until is None:
            self._retry_until = min(self._deadline, now + policy.retry_s)
        self._hints.append(retry_after_s or 0.0)
        if policy.retries is not None and self.tries > policy.retries:
            raise error from cause
        if self._round:
            logger.warning("try %d failed, the next one at %s: %s", self.tries, self._round[0], error)
            return 0.0
        # All addresses have failed; the first one that may be back is worth the next round. A try that the deadline
        # would cut off is not worth the wait: the caller learns now what went wrong.
        wait_s = policy.wait_s(self._rounds, min(self._hints), self._retry_until - now)
        if wait_s is None:
            raise error from cause
        left_s = self._retry_until - now
        logger.warning("try %d failed, the next one in %.2f s (%.0f s left): %s", self.tries, wait_s, left_s, error)
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
            response = http.send(current.request(http))
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
