"""What both clients are set to: checked once, when a client is made, and never read from the environment."""

import ipaddress
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from paragone.batches import Options, Part
from paragone.transport import Question, RetryPolicy
from paragone.wire import OnError, Truncation

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_URL", "Settings"]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_BYTES = 8 * 1024 * 1024


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """Where a client sends its requests, and how. Its repr leaves the headers out: they hold the key.

    Attributes:
        url: address of the service, without a final slash.
        loopback: whether the service is on this machine; a proxy of the environment is for other machines.
        headers: sent with every request.
        model: id of the model that is asked when a call names none; None: the server's default.
        policy: how often and how long a request is tried.
        max_items: most items in one request. [count]
        max_bytes: most bytes of items in one request. [bytes]
        concurrency: most requests of one call in flight. [count]
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
    ) -> "Settings":
        """Return checked settings.

        Raises:
            ValueError: if the URL is not one, the key cannot be sent, or a number is out of its range.
        """
        parsed = urllib.parse.urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise ValueError(f"url={url!r} is not an http:// or https:// address, as {DEFAULT_URL}")
        if api_key is not None and not (
            api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""
        ):
            raise ValueError(
                "api_key holds a space at an end, a control character or a letter outside ASCII, or is empty"
            )
        if not timeout_s > 0:
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

    def options(
        self,
        model: str | None,
        truncation: Truncation,
        on_error: OnError,
        return_: Sequence[str] = (),
    ) -> Options:
        """Return what a request says besides its list, with this client's model where the call names none."""
        return Options(
            model=self.model if model is None else model, truncation=truncation, on_error=on_error, return_=return_
        )

    def question(self, path: str, part: Part | None = None) -> Question:
        """Return the request for a path: a POST of a part, or a GET."""
        if part is None:
            return Question(f"{self.url}{path}", self.headers)
        headers = self.headers if part.prompt_hash is None else {**self.headers, "x-paragone-prompt": part.prompt_hash}
        return Question(f"{self.url}{path}", headers, part.body)
