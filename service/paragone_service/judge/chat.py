"""One OpenAI-compatible chat server: asked with bounded concurrency, at the pace that it wants, and believed if whole.

A server that says 429 or is away for a moment is asked again, after its own ``Retry-After`` or after pauses that
double. It is not asked meanwhile: the pause is the server's, and not one call's. Texts and key go to the host that was
set and to no other, whatever it redirects to.
"""

import asyncio
import email.utils
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError

__all__ = ["ChatAnswer", "ChatError", "ChatServer", "Token"]

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEP_THE_METHOD = frozenset({307, 308})
_MOST_HOPS = 3
_TRIES = 8
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_HEALTH_TIMEOUT_S = 2.0
_LARGEST_ANSWER = 16_000_000
_DAY_S = 86_400
_ROUNDING = 1e-2


class ChatError(ServiceError):
    """Say what a chat server answered instead of a completion.

    Attributes:
        status: its HTTP status; None where there was no answer.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(code, message, retry_after_s=retry_after_s)
        self.status = status


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, and what might have stood in its place: texts with their log-probabilities."""

    text: str
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a model answered.

    Attributes:
        thoughts: what it thought before, where the server keeps that apart.
        finish_reason: as the server says it: ``stop``, ``length``, ….
        refused: whether the model, or a filter, refused to answer.
        tokens: of the text; empty where the server gives no log-probabilities.
        prompt_tokens: that were read; None where the server does not count.
        completion_tokens: that were written, thoughts included; None likewise.
    """

    text: str
    thoughts: str = ""
    finish_reason: str | None = "stop"
    refused: bool = False
    tokens: tuple[Token, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatServer:
    """Ask one server.

    Args:
        url: its address up to and with ``/v1``.
        api_key: bearer key, or None.
        timeout_s: how long one completion may take.
        concurrency: most calls under way.
        patience_s: how long a call waits for a server that is busy or away, in all.
        transport: what carries requests instead of the network.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        concurrency: int = 32,
        patience_s: float = 60.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self.concurrency = concurrency
        self._patience_s = patience_s
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrency)
        self._not_before = -math.inf
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S), pool=None),
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def reachable(self) -> bool:
        """Return whether it answers and takes the key."""
        try:
            answer = await self._client.get(f"{self.url}/models", timeout=_HEALTH_TIMEOUT_S)
        except httpx2.HTTPError:
            return False
        return answer.status_code < 500 and answer.status_code not in (401, 403)

    async def complete(self, body: Mapping[str, Any], *, left_s: Callable[[], float] | None = None) -> ChatAnswer:
        """Return the answer to a body of ``/chat/completions``.

        Args:
            left_s: tells how many seconds whoever waits has left: no pause is begun that is longer.

        Raises:
            ChatError: ``judge_unavailable``, if the server is away or busy for too long; ``response_too_long``, if it
                says that the texts are over its context; else ``judge_failed``.
        """
        content = json.dumps(body).encode()
        async with self._slots:
            started = self._clock()
            for number in range(_TRIES):
                await self._pause()
                problem, status, wait_s = await self._attempt(content)
                if isinstance(problem, ChatAnswer):
                    return problem
                if wait_s is None:
                    wait_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**number) * random.uniform(0.5, 1.5)  # noqa: S311
                left = self._patience_s - (self._clock() - started)
                if left_s is not None:
                    left = min(left, left_s())
                if wait_s >= left or number == _TRIES - 1:
                    raise ChatError(
                        ErrorCode.JUDGE_UNAVAILABLE,
                        f"the judge's server {problem}, and the next try would be in {wait_s:.1f} s, which is longer "
                        "than it is waited for: try later, ask for fewer comparisons at a time, or raise its "
                        "patience_s",
                        status=status,
                        retry_after_s=max(1, math.ceil(wait_s)),
                    )
                self._not_before = max(self._not_before, self._clock() + wait_s)
        raise AssertionError  # the last try returned or raised

    async def _pause(self) -> None:
        wait_s = self._not_before - self._clock()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            await self._pause()  # others may have prolonged it meanwhile

    async def _attempt(self, content: bytes) -> tuple[ChatAnswer | str, int | None, float | None]:
        """Return the answer, or what is wrong for the moment, its status, and how long the server wants to be left."""
        try:
            status, headers, raw = await self._post(content)
        except httpx2.ReadTimeout as error:
            raise ChatError(
                ErrorCode.JUDGE_UNAVAILABLE,
                "the judge's server did not answer in time: raise its timeout_s, or have it answer in fewer tokens",
            ) from error
        except httpx2.TransportError as error:
            return f"cannot be reached ({type(error).__name__})", None, None
        if status in _BUSY:
            return f"is {status}", status, _retry_after_s(headers)
        if status != 200:
            raise _refusal(status, raw)
        try:
            return _read(json.loads(raw)), status, None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ChatError(
                ErrorCode.JUDGE_FAILED,
                f"the judge's server answered in another shape than a chat completion: {type(error).__name__}",
                status=status,
            ) from error

    async def _post(self, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body, having followed redirects within the host.

        Raises:
            ChatError: ``judge_failed``, if it redirects elsewhere, or answers without end.
        """
        url = httpx2.URL(f"{self.url}/chat/completions")
        for _ in range(_MOST_HOPS):
            request = self._client.build_request(
                "POST", url, content=content, headers={"content-type": "application/json"}
            )
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code in _REDIRECTS:
                    url = _next_url(url, response)
                    continue
                raw = bytearray()
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > _LARGEST_ANSWER:
                        raise ChatError(
                            ErrorCode.JUDGE_FAILED,
                            f"the judge's server answered more than {_LARGEST_ANSWER // 10**6} MB: that is no verdict",
                            status=response.status_code,
                        )
                return response.status_code, response.headers, bytes(raw)
            finally:
                await response.aclose()
        raise ChatError(ErrorCode.JUDGE_FAILED, f"the judge's server redirects more than {_MOST_HOPS} times")


def _next_url(url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
    target = url.join(response.headers.get("location", ""))
    same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
    if not same or response.status_code not in _KEEP_THE_METHOD:
        where = "itself, as a GET" if same else "another host"
        raise ChatError(
            ErrorCode.JUDGE_FAILED,
            f"the judge's server redirects to {where} ({response.status_code}), which is not followed: texts and key "
            "go to the address that was set. Set the right one",
            status=response.status_code,
        )
    return target


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server wants to be left alone, given as such or as a date; None without."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), _DAY_S) if math.isfinite(seconds) else None


def _refusal(status: int, raw: bytes) -> ChatError:
    """Return what a refused request is answered with; the server's own words may repeat its texts and are left out."""
    if status in (401, 403):
        reason = "refuses the key: set key_env or key_file of the judge"
    elif status == 404:
        reason = "knows no such address, or no such model: look at the judge's source and model"
    elif status == 413 or b"context_length" in raw or b"context length" in raw:
        return ChatError(
            ErrorCode.RESPONSE_TOO_LONG,
            "the prompt and the responses together are over the judge's context: shorten them",
            status=status,
        )
    else:
        reason = "refuses the request: it may not know one of the judge's settings"
    return ChatError(ErrorCode.JUDGE_FAILED, f"the judge's server {reason} ({status})", status=status)


def _read(answer: Any) -> ChatAnswer:
    choice = answer["choices"][0]
    message = choice["message"]
    text = message.get("content")
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(text, str | None) or not isinstance(thoughts, str | None):
        raise TypeError("content")
    reason = choice.get("finish_reason")
    usage = answer.get("usage") or {}
    listed = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(Token(_text(token), _alternatives(token.get("top_logprobs") or ())) for token in listed)
    return ChatAnswer(
        text=text or "",
        thoughts=thoughts or "",
        finish_reason=reason,
        refused=bool(message.get("refusal")) or reason == "content_filter",
        tokens=tokens,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _text(token: Any) -> str:
    if not isinstance(token["token"], str):
        raise TypeError("token")
    return str(token["token"])


def _alternatives(listed: Any) -> tuple[tuple[str, float], ...]:
    found = [(_text(one), float(one["logprob"])) for one in listed]
    # Rounding may lift a certain one a little above 0. What is no logarithm of a probability must not become a verdict.
    if not all(logprob < _ROUNDING for _, logprob in found):
        raise ValueError("logprob")
    # A token of probability 0 says no more than one that is not listed.
    return tuple((text, min(logprob, 0.0)) for text, logprob in found if logprob > -math.inf)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
