"""The addresses of one service, and which of them are well: where a request goes first, and where it goes next.

A request goes to the address that the hash of its prompt prefers (rendezvous hashing), so that responses to one prompt
meet the same cache. An address that failed is set aside for a while, and is asked ``/readyz`` before it gets a request
again. Nothing runs in the background: what the requests see is all that is known.

A process that hangs accepts connections and says nothing, as one does that computes for long. ``/livez`` tells them
apart: it is asked beside a request that has waited for a while without a sign of life from its address.
"""

import enum
import hashlib
import ipaddress
import math
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "DEFAULT_URL",
    "LIFE_TIMEOUT_S",
    "PROBE_TIMEOUT_S",
    "Addresses",
    "Doubt",
    "checked_urls",
    "is_loopback",
    "without_userinfo",
]

DEFAULT_URL = "http://127.0.0.1:8000"
PROBE_TIMEOUT_S = 5.0
"""How long ``/readyz`` may take: a server that is well answers it in milliseconds."""
LIFE_TIMEOUT_S = 3.0
"""How long ``/livez`` may take, of a server that is asked whether it hangs."""

_SILENCE_S = 3.0
"""How long an address may say nothing to anybody while a request waits for it, before it is asked."""

_FIRST_HOLD_S = 1.0
_LONGEST_HOLD_S = 30.0
_DOUBLINGS = 16


def checked_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several addresses, without a final slash.

    Raises:
        ValueError: if there is none, one is no http:// or https:// address or names a user, or two are the same.
    """
    given = [url] if isinstance(url, str) else list(url)
    if not given:
        raise ValueError(f"url={url!r} names no address; the default is {DEFAULT_URL}")
    urls = tuple(_checked_url(one) for one in given)
    for one in urls:
        if urls.count(one) > 1:
            raise ValueError(f"url names {one} more than once: each replica has an address of its own")
    return urls


def _checked_url(url: str) -> str:
    if not isinstance(url, str):
        raise ValueError(f"url={url!r} is not an http:// or https:// address, as {DEFAULT_URL}")
    refusal = f"url={without_userinfo(url)!r} is not an http:// or https:// address, as {DEFAULT_URL}"
    try:
        parsed = urllib.parse.urlsplit(url)
        parsed.port  # noqa: B018 (reading it is what checks it)
    except ValueError as error:
        # Of an address that holds a password with a slash, the reason may be a part of it.
        raise ValueError(refusal if "@" in url else f"{refusal} ({error})") from None
    # Errors and logs name addresses, so an address must not hold a secret.
    if parsed.username is not None or parsed.password is not None:
        raise ValueError("url holds a user or a password, which errors would repeat: use api_key=…")
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError(refusal)
    return url.rstrip("/")


def without_userinfo(url: str) -> str:
    """Return an address without the user and the password that it may hold, also one that is otherwise wrong.

    >>> without_userinfo("redis://me:se/cr@t@cache:6379/1")
    'redis://cache:6379/1'
    """
    # Up to the last @, and not as the standard says: a password often has characters that ought to be encoded.
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else url.rpartition("@")[2]


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine; a proxy of the environment is for other machines."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Doubt(enum.Enum):
    """What a request does that has waited for a while: wait on, ask whether the address lives, or leave it."""

    NONE = enum.auto()
    ASK = enum.auto()
    SILENT = enum.auto()


@dataclass(slots=True)
class _Health:
    """What is known of an address; moments are those of the clock, and long ago where there were none.

    Attributes:
        failures: since the last answer; 0: it is well.
        until: when it is left alone no longer.
        heard: when it answered anything at all.
        silent: when it was found to say nothing.
        asking_until: when whoever asks whether it lives must have finished.
    """

    failures: int = 0
    until: float = 0.0
    heard: float = -math.inf
    silent: float = -math.inf
    asking_until: float = -math.inf


class Addresses:
    """Say where a request goes, from what became of those before. Safe to share between threads.

    With one address there is no choice, and nothing is remembered but whether it ever answered.

    Args:
        clock: seconds since any fixed moment.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float]) -> None:
        self.urls = tuple(urls)
        self._clock = clock
        self._health = {url: _Health() for url in urls}
        self._versions: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def round(self, key: str | None) -> list[str]:
        """Return the addresses to try, one after the other, before the request waits.

        Args:
            key: hash of the prompt; None: no address is preferred.
        """
        if len(self.urls) == 1:
            return list(self.urls)
        preferred = self.urls if key is None else sorted(self.urls, key=lambda url: _weight(url, key))
        with self._lock:
            now = self._clock()
            usable = [url for url in preferred if self._health[url].until <= now]
            # Where all are set aside, any of them may be back: to refuse without asking would lose the request.
            return usable or sorted(self.urls, key=lambda url: self._health[url].until)

    @property
    def known(self) -> bool:
        """Whether any of them ever answered."""
        return any(health.heard > -math.inf for health in self._health.values())

    def heard(self, url: str) -> None:
        """Remember that an address answered something."""
        self._health[url].heard = self._clock()

    def first_seen(self, url: str, version: str) -> bool:
        """Return whether an address has not told this version before."""
        with self._lock:
            known = len(self._versions)
            self._versions.add((url, version))
            return len(self._versions) > known

    def doubt(self, url: str, since: float) -> Doubt:
        """Return what a request does that has waited for an address since then; one at a time asks."""
        health = self._health[url]
        with self._lock:
            now = self._clock()
            if health.silent >= since:
                return Doubt.SILENT
            if now < max(since, health.heard) + _SILENCE_S or now < health.asking_until:
                return Doubt.NONE
            health.asking_until = now + LIFE_TIMEOUT_S
            return Doubt.ASK

    def must_probe(self, url: str) -> bool:
        """Return whether an address has to answer ``/readyz`` before it gets a request; others then leave it alone."""
        health = self._health[url]
        with self._lock:
            now = self._clock()
            if len(self.urls) == 1 or not health.failures or health.until > now:
                return False
            health.until = now + PROBE_TIMEOUT_S
            return True

    def failed(self, url: str, *, retry_after_s: float = 0.0, silent: bool = False) -> None:
        """Set an address aside: for as long as it asked for, longest where it accepted a request and said nothing.

        The time doubles with each failure from 1 s to 30 s.
        """
        health = self._health[url]
        with self._lock:
            now = self._clock()
            if silent:
                health.silent = now
            # A hundred requests that fail together are one failure of the address.
            if health.until <= now or not health.failures:
                health.failures += 1
            doubled = min(_LONGEST_HOLD_S, _FIRST_HOLD_S * 2.0 ** min(health.failures - 1, _DOUBLINGS))
            hold_s = max(_LONGEST_HOLD_S if silent else doubled, min(retry_after_s, _LONGEST_HOLD_S))
            health.until = max(health.until, now + hold_s)

    def answered(self, url: str) -> None:
        """Take an address back among those that are well."""
        health = self._health[url]
        if health.failures:  # read without the lock: nearly always there is nothing to do
            with self._lock:
                health.failures, health.until = 0, 0.0


def _weight(url: str, key: str) -> bytes:
    # Each prompt orders the addresses in its own way: when one is gone, its prompts spread over all others.
    return hashlib.blake2b(f"{key} {url}".encode(), digest_size=8).digest()
