"""What every request passes before it reaches a route, outermost first. Pure ASGI, no task or queue of their own.

Lingering     reads on where an answer came before the end of its request's body
Observation   request id, timing headers, metrics, access log; a crash becomes internal_error
Draining      no new work once the server is shutting down, and none that goes on beyond the grace
Authorization one bearer key for every route but the health checks
BodyLimit     by Content-Length, and by counting what comes without one
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paragone.codes import ErrorCode
from paragone_service.http.errors import ClientGoneError, ServiceError, error_response
from paragone_service.http.timings import timings_of
from paragone_service.metrics import Metrics

__all__ = ["OPEN_PATHS", "Authorization", "BodyLimit", "Drain", "Draining", "Lingering", "Observation"]

logger = logging.getLogger("paragone.service")
access_logger = logging.getLogger("paragone.access")

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What needs no key, and is answered while draining."""
_ALWAYS_ANSWERED = OPEN_PATHS | {"/metrics"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499
_LINGER_S = 30.0
_SILENCE_S = 5.0


class Drain:
    """How far the server has come in shutting down.

    Attributes:
        begun: set once, by the signal handler.
        over: whether the time that requests in flight had is over.
    """

    def __init__(self) -> None:
        self.begun = False
        self.over = False
        self._running: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def grace(self) -> AsyncIterator[None]:
        """Let what is inside run until the time of requests in flight is over.

        Raises:
            TimeoutError: if it is.
        """
        async with asyncio.timeout(0 if self.over else None) as running:
            self._running.add(running)
            try:
                yield
            finally:
                self._running.discard(running)

    def end(self) -> None:
        """End the time of requests in flight; needs a running event loop."""
        self.over = True
        now = asyncio.get_running_loop().time()
        for running in self._running:
            running.reschedule(now)


class Lingering:
    """Read on, for a while, where a request was answered before its body's end, and throw away what comes.

    To close a connection with unread bytes is to reset it, and a client that is still sending may then never see its
    answer. So the answer goes out in full at once, for clients that look up, but does not end before the body does.

    Args:
        app: whose answers may come early.
        drain: whose grace it does not outlast.
        linger_s: how long a body is read on.
        silence_s: how long the next piece of it may take.
    """

    def __init__(
        self, app: ASGIApp, *, drain: Drain, linger_s: float = _LINGER_S, silence_s: float = _SILENCE_S
    ) -> None:
        self._app = app
        self._drain = drain
        self._linger_s = linger_s
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and read what is left of it once it is answered."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        unread, owed = True, False

        async def watch() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def hold_the_end(message: Message) -> None:
            nonlocal owed
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                message, owed = {**message, "more_body": True}, True
            await send(message)

        await self._app(scope, watch, hold_the_end)
        if owed:
            now = asyncio.get_running_loop().time
            end = now() + self._linger_s
            with contextlib.suppress(TimeoutError):
                async with self._drain.grace():
                    while unread and now() < end:
                        async with asyncio.timeout_at(min(end, now() + self._silence_s)):
                            await watch()
            await send({"type": "http.response.body", "body": b""})


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


class Observation:
    """Give every request an id, time it, count it, and turn a crash into an answer.

    Args:
        app: what is observed.
        metrics: where it is counted.
        clock: in seconds.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        timings = timings_of(scope)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-tokenize-ms"] = f"{1e3 * timings.tokenize_s:.3f}"
                headers["x-queue-ms"] = f"{1e3 * timings.queue_s:.3f}"
                headers["x-inference-ms"] = f"{1e3 * timings.inference_s:.3f}"
                headers["x-total-ms"] = f"{1e3 * (self._clock() - started):.3f}"
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, observe)
            except (ClientGoneError, ClientDisconnect):
                status = _CLIENT_GONE
            except Exception:
                logger.exception("request %s failed", request_id)
                if status:
                    raise  # the answer has begun; the connection can only be closed
                error = ServiceError(ErrorCode.INTERNAL_ERROR, f"the server failed; its log has request {request_id}")
                scope["paragone.code"] = error.code
                await error_response(error)(scope, receive, observe)
        self._count(scope, request_id, status, self._clock() - started)

    def _count(self, scope: Scope, request_id: str, status: int, total_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        timings = timings_of(scope)
        self._metrics.requests.labels(route, str(status)).inc()
        code = scope.get("paragone.code")
        if code is not None:
            self._metrics.errors.labels(code).inc()
        self._metrics.seconds.labels(route, "total").observe(total_s)
        for phase, seconds in (
            ("tokenize", timings.tokenize_s),
            ("queue", timings.queue_s),
            ("inference", timings.inference_s),
        ):
            if seconds:
                self._metrics.seconds.labels(route, phase).observe(seconds)
        access_logger.info("%s %s %s %d %.1f ms", request_id, scope["method"], route, status, 1e3 * total_s)


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    scope["paragone.code"] = error.code
    await error_response(error)(scope, receive, send)


class _Gate:
    """A middleware that either answers an HTTP request with an error or passes it on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        error = self.refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self.admit(scope, receive, send)
        else:
            await _refuse(error, scope, receive, send)

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that is not refused."""
        await self._app(scope, receive, send)

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Return why the request is not passed on, or None."""
        raise NotImplementedError


class Draining(_Gate):
    """Admit nothing new once the server is shutting down, and refuse what was admitted when the grace is over.

    Args:
        app: what is guarded.
        drain: the state, shared with the signal handler.
    """

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        super().__init__(app)
        self._drain = drain

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Return ``shutting_down`` for everything but health and metrics."""
        if not self._drain.begun or scope["path"] in _ALWAYS_ANSWERED:
            return None
        return self._error()

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and refuse it after all if it has no answer when the grace is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = False

        async def watch(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            async with self._drain.grace():
                await self._app(scope, receive, watch)
        except TimeoutError:
            if answered or not self._drain.over:
                raise
            await _refuse(self._error(), scope, receive, send)

    def _error(self) -> ServiceError:
        return ServiceError(
            ErrorCode.SHUTTING_DOWN,
            "the server is shutting down; try again, at another replica",
            retry_after_s=1,
            headers={"connection": "close"},
        )


class Authorization(_Gate):
    """Ask for the bearer key, on every path but the health checks.

    Args:
        app: what is guarded.
        api_key: the key, or None to let everybody in.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None) -> None:
        super().__init__(app)
        self._key = None if api_key is None else api_key.encode()

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Return ``missing_key`` or ``wrong_key``; the comparison takes the same time for every wrong key."""
        if self._key is None or scope["path"] in OPEN_PATHS:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            return ServiceError(
                ErrorCode.MISSING_KEY,
                "this server needs a key: send it as authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )
        if not secrets.compare_digest(key.strip(), self._key):
            return ServiceError(ErrorCode.WRONG_KEY, "this is not the server's key")
        return None


class BodyLimit:
    """Refuse bodies over a limit without reading them.

    Args:
        app: what is guarded.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it by its length, at once or when it turns out too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await _refuse(self._error(), scope, receive, send)
            return
        counted = 0

        async def count() -> Message:
            nonlocal counted
            message = await receive()
            if message["type"] == "http.request":
                counted += len(message.get("body", b""))
                if counted > self._max_bytes:
                    raise self._error()
            return message

        await self._app(scope, count, send)

    def _error(self) -> ServiceError:
        return ServiceError(
            ErrorCode.BODY_TOO_LARGE,
            f"the body is over the limit of {self._max_bytes} bytes: split the request, or raise --max-body-mb",
            headers={"connection": "close"},  # nobody knows how long the rest of it is
        )
