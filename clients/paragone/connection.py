"""What a client's arguments become: its addresses, headers and limits, how long it tries, and the requests themselves.

Arguments are checked once, when a client is made, and nothing is read from the environment.
"""

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paragone.addresses import checked_urls, is_loopback
from paragone.versions import VERSION_HEADER, own_version

__all__ = [
    "CONNECTIONS",
    "DEFAULT_MAX_BYTES",
    "DEFAULT_TIMEOUT_S",
    "Connection",
    "Question",
    "RetryPolicy",
]

DEFAULT_MAX_BYTES = 8 * 1024 * 1024
DEFAULT_TIMEOUT_S = 300.0
CONNECTIONS = 100
"""Connections that a client keeps open, and requests that an asynchronous one has in flight in an event loop."""

_DOUBLINGS = 60


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a request is tried again and how long to wait in between.

    Attributes:
        timeout_s: the deadline of one HTTP request, its retries and waits included.
        retry_s: how long after its first failure a request is tried again; 0: never, except at other addresses.
        retries: most tries after the first one; None: as many as there is time for.
        wait_s: the same for connections that fail as long as no address ever answered; None: ``retry_s``.
        named: whether the server is told the deadline; otherwise its own limits on waiting hold.
        first_wait_s: bound of the first wait; it doubles with each try.
        longest_wait_s: bound that the doubling stops at.
    """

    timeout_s: float
    retry_s: float
    retries: int | None = None
    first_wait_s: float = 0.25
    longest_wait_s: float = 16.0
    wait_s: float | None = None
    named: bool = True

    def patience_s(self, *, known: bool) -> float:
        """Return how long failures are borne, of a service that was or was not seen before."""
        return self.retry_s if known or self.wait_s is None else self.wait_s

    def pause_s(self, rounds: int, retry_after_s: float | None, left_s: float = float("inf")) -> float | None:
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
        deletes: whether it is a DELETE.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    key: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    deletes: bool = False

    @property
    def method(self) -> str:
        """GET, POST or DELETE."""
        return "DELETE" if self.deletes else "GET" if self.body is None else "POST"


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
        timeout_s: float | None,
        retry_s: float,
        retries: int | None,
        wait_s: float | None,
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
        if timeout_s is not None and not timeout_s > 0:  # written so that NaN is refused too
            raise ValueError(f"timeout_s={timeout_s} must be above 0")
        for name, limit in (("retry_s", retry_s), ("retries", retries), ("wait_s", wait_s)):
            if limit is not None and not limit >= 0:
                raise ValueError(f"{name}={limit} must be 0 or more")
        for name, value in (
            ("max_items_per_request", max_items_per_request),
            ("max_bytes_per_request", max_bytes_per_request),
            ("concurrency", concurrency),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        version = own_version()
        headers = {"accept": "application/json", "user-agent": f"paragone/{version}", VERSION_HEADER: version}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        return cls(
            urls=urls,
            headers=headers,
            model=model,
            policy=RetryPolicy(
                timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
                retry_s=retry_s,
                retries=retries,
                wait_s=wait_s,
                # 300 s are our guess and not the caller's word: they must not override what the operator set.
                named=timeout_s is not None,
            ),
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

    def question(
        self, path: str, body: bytes | None = None, prompt_hash: str | None = None, *, deletes: bool = False
    ) -> Question:
        """Return the request for a path: a POST of a body, a GET, or a DELETE.

        A proxy can route by the hash of the first prompt, so that siblings meet the same cache.
        """
        headers = self.headers if prompt_hash is None else {**self.headers, "x-paragone-prompt": prompt_hash}
        return Question(path, headers, body, prompt_hash, deletes=deletes)
