"""What every request passes before it reaches a route, outermost first. Pure ASGI, no task or queue of their own.

Lingering     reads the rest of a body whose request was answered early
Observation   request id, timing headers, metrics, access log; a crash becomes internal_error
Draining      refuses new work once the server is shutting down, and ends old work after the grace
HostGuard     refuses requests for another server's name, and what a page from elsewhere would do
Authorization asks for a key, on every route but the health checks and the page
Versions      tells the server's version, and refuses clients of another major one
Quota         counts the requests of a key, and tells how its quotas stand
BodyLimit     by Content-Length, and by counting what comes without one; by time
"""

import asyncio
import base64
import binascii
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
from paragone.versions import VERSION_HEADER, incompatibility
from paragone_service.api_keys import ApiKey, KeyRing
from paragone_service.http.errors import SCOPE_CODE, ClientGoneError, ServiceError, answer_within, printable, refuse
from paragone_service.logs import FIELDS, HOLDS_TEXTS
from paragone_service.metrics import Metrics
from paragone_service.quotas import Quotas
from paragone_service.scoring.request import Timings

__all__ = [
    "SCOPE_ASKED",
    "SCOPE_BEGUN",
    "SCOPE_KEY",
    "SCOPE_SPENDING",
    "SCOPE_TIMINGS",
    "Authorization",
    "BodyLimit",
    "Drain",
    "Draining",
    "HostGuard",
    "Lingering",
    "Observation",
    "Quota",
    "Versions",
]

logger = logging.getLogger("paragone.service")
access_logger = logging.getLogger("paragone.access")

SCOPE_TIMINGS = "paragone.timings"
"""Key of an ASGI scope under which the ``Timings`` of its request are kept."""
SCOPE_BEGUN = "paragone.begun"
"""Key of an ASGI scope under which is kept when its head was complete, by ``time.perf_counter``."""
SCOPE_KEY = "paragone.key"
"""Key of an ASGI scope under which the ``ApiKey`` of its request is kept, where the server has keys."""
SCOPE_ASKED = "paragone.asked"
"""Key of an ASGI scope under which is kept what log and metrics say of its request: the model, how many items."""
SCOPE_SPENDING = "paragone.spending"
"""Key of an ASGI scope under which the ``Spending`` of its request is kept, where it has quotas."""
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""What needs no key."""
_ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing and run no model."""
_USUAL_PORTS = {"http": ":80", "https": ":443"}
_CLIENT_GONE = 499
_LINGER_S = 30.0
_SILENCE_S = 5.0
_SLOWEST = 1_000.0
"""Bytes a second under which nobody sends a body who means to send one."""
_SECOND_LOOK_S = 0.25


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
        # A timeout that has no end until ``end`` gives it one. A task that were cancelled instead would look like one
        # whose client has left.
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
            running.reschedule(now)  # a timeout in the past fires in the next turn of the loop


class Lingering:
    """Read the rest of a body, for a while, whose request was answered before its end, and throw it away.

    To close a connection with unread bytes is to reset it, and a client that is still sending may then never see its
    answer. So the answer goes out in full at once, for clients that read while they send, but does not end before the
    body does.

    Args:
        drain: whose grace it does not outlast.
        linger_s: how long the rest of a body is read.
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
        """Pass the request on, and read the rest of its body once it is answered."""
        # A GET, as every health check is, has nothing to linger for: no wrapper, no cost.
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        unread, end_withheld = True, False

        async def watch() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def withhold_end(message: Message) -> None:
            nonlocal end_withheld
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                message, end_withheld = {**message, "more_body": True}, True
            await send(message)

        await self._app(scope, watch, withhold_end)
        if end_withheld:
            now = asyncio.get_running_loop().time
            end = now() + self._linger_s
            with contextlib.suppress(TimeoutError):  # whoever is too slow has had the answer, and is cut off
                async with self._drain.grace():
                    while unread and now() < end:
                        async with asyncio.timeout_at(min(end, now() + self._silence_s)):
                            await watch()  # the server drops what was read, piece by piece: nothing piles up
            await send({"type": "http.response.body", "body": b""})


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


class Observation:
    """Give every request an id, time it, count it, and turn a crash into an answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope.get(SCOPE_BEGUN) or self._clock()
        timings = scope[SCOPE_TIMINGS] = Timings()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):  # it goes into the log and into a header as it is
            request_id = secrets.token_hex(16)
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
                status = _CLIENT_GONE  # for log and metrics alone
            except Exception:
                logger.exception("request %s failed", request_id, extra={HOLDS_TEXTS: True})
                if status:
                    raise  # the answer has begun; the connection can only be closed
                error = ServiceError(ErrorCode.INTERNAL_ERROR, f"the server failed; its log has request {request_id}")
                await refuse(error, scope, receive, observe)
        self._count(scope, request_id, status, self._clock() - started)

    def _count(self, scope: Scope, request_id: str, status: int, total_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the pattern: a label of every path would never end
        timings: Timings = scope[SCOPE_TIMINGS]
        self._metrics.requests.labels(route, str(status)).inc()
        code = scope.get(SCOPE_CODE)
        if code is not None:
            self._metrics.errors.labels(code).inc()
        key: ApiKey | None = scope.get(SCOPE_KEY)
        if key is not None:
            self._metrics.count_key(key.name, code, total_s, scope.get(SCOPE_ASKED))
        self._metrics.seconds.labels(route, "total").observe(total_s)
        # Phases in which nothing was done are no zeros among the observations: these would hide the others' times.
        for phase, seconds in (
            ("tokenize", timings.tokenize_s),
            ("queue", timings.queue_s),
            ("inference", timings.inference_s),
        ):
            if seconds:
                self._metrics.seconds.labels(route, phase).observe(seconds)
        if access_logger.isEnabledFor(logging.INFO):
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "code": code,
                "key": key.name if key else None,
                "total_ms": round(1e3 * total_s, 3),
                "tokenize_ms": round(1e3 * timings.tokenize_s, 3),
                "queue_ms": round(1e3 * timings.queue_s, 3),
                "inference_ms": round(1e3 * timings.inference_s, 3),
                **scope.get(SCOPE_ASKED, {}),
            }
            line = "%s %s %s %d %.1f ms"
            total_ms = 1e3 * total_s
            access_logger.info(line, request_id, scope["method"], route, status, total_ms, extra={FIELDS: fields})


class Draining:
    """Admit nothing new once the server is shutting down, and refuse what was admitted when the grace is over."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it; also after all, if it has no answer when the grace is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._drain.begun and scope["path"] not in _ALWAYS_ANSWERED:
            await refuse(self._error(), scope, receive, send)
            return
        grace = self._drain.grace()
        await answer_within(grace, self._app, scope, receive, send, over=lambda: self._drain.over, error=self._error)

    def _error(self) -> ServiceError:
        return ServiceError(
            ErrorCode.SHUTTING_DOWN,
            "the server is shutting down; try again, at another replica",
            retry_after_s=1,
            headers={"connection": "close"},
        )


class HostGuard:
    """Answer only requests that were sent to a name of this server, and of web pages only its own do more than read.

    Args:
        hosts: the names, in lower case; None for any.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with ``unknown_host`` or ``not_allowed``."""
        error = self.refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refuse(error, scope, receive, send)

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Return what a request is refused with, or None."""
        if scope["method"] not in _SAFE_METHODS and (page := _foreign_page(Headers(scope=scope))):
            return ServiceError(
                ErrorCode.NOT_ALLOWED,
                f"a web page of another origin ({printable(page)}) sent this, and only this server's own page may: ask "
                "from a program, or have the proxy before this server pass on Host, or X-Forwarded-Host",
            )
        # Health checks show nothing, and who sends them may know an address alone.
        if self._hosts is None or scope["path"] in _OPEN_PATHS:
            return None
        names = [value for name, value in scope["headers"] if name == b"host"]
        # Without any it was no browser; with two, proxies and we might read different ones.
        if not names or (len(names) == 1 and _host_name(names[0]) in self._hosts):
            return None
        sent = printable(names[0].decode("latin-1"))
        return ServiceError(
            ErrorCode.UNKNOWN_HOST, f"this server is not called {sent}: if it should be, add it to --allowed-hosts"
        )


def _foreign_page(headers: Headers) -> str:
    """Return where the page is from that had a browser send a request; empty for this server's own, and for no page."""
    # Browsers send a text/plain body wherever a page wants it, and cached keys of HTTP Basic with it. What they say of
    # the sender no page can change, nor can it set X-Forwarded-Host without leave, which is never given here.
    sites = headers.getlist("sec-fetch-site")
    origins = headers.getlist("origin")
    if sites and all(site in ("same-origin", "none") for site in sites):
        return ""
    if sites:
        return ", ".join(origins) or ", ".join(sites)
    names = ",".join([*headers.getlist("host"), *headers.getlist("x-forwarded-host")]).split(",")
    return next((one for one in origins if not any(_is_at(one, name) for name in names)), "")


def _is_at(origin: str, host: str) -> bool:
    scheme, _, place = origin.lower().partition("://")
    # A browser leaves out the port that its scheme has anyway; a proxy may write it.
    return bool(place) and place == host.strip().lower().removesuffix(_USUAL_PORTS.get(scheme, ":"))


def _host_name(header: bytes) -> str:
    name = header.decode("latin-1").strip().lower()
    if name.startswith("["):  # an IPv6 address, perhaps with a port
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


class Authorization:
    """Ask for a key, on every path but the open ones; who asks is in the scope from there on.

    Args:
        keys: those that are let in; an empty ring lets everybody in.
        files: paths beside the health checks that are read without a key.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, files: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._keys = keys
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with ``missing_key`` or ``wrong_key``."""
        error = self.refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refuse(error, scope, receive, send)

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Return what a request is refused with, or None; then its key is in the scope."""
        if not self._keys.wanted or scope["path"] in _OPEN_PATHS or _reads_file(scope, self._files):
            return None
        presented = _presented(next((value for name, value in scope["headers"] if name == b"authorization"), b""))
        if not presented:
            return ServiceError(
                ErrorCode.MISSING_KEY,
                "this server needs a key: send it as authorization: Bearer KEY, or as the password of HTTP Basic",
                headers={"www-authenticate": 'Bearer realm="paragone", Basic realm="paragone", charset="UTF-8"'},
            )
        key = scope[SCOPE_KEY] = self._keys.find(presented)
        return ServiceError(ErrorCode.WRONG_KEY, "this is not the server's key") if key is None else None


def _reads_file(scope: Scope, files: frozenset[str]) -> bool:
    return scope["path"] in files and scope["method"] in ("GET", "HEAD")


def _presented(header: bytes) -> bytes:
    """Return the key of an authorization header, empty if it has none."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() != b"basic":
        return b""
    # Trainers that take a URL and no header can send http://any:KEY@host and nothing else.
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


class Versions:
    """Tell each answer's reader the version of this server, and refuse clients of another major version.

    Inside of ``Authorization``: whoever has no key does not learn which version runs here.

    Args:
        version: this server's.
        files: paths that are read without a key.
    """

    def __init__(self, app: ASGIApp, *, version: str, files: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._version = version
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with ``incompatible_version``."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or _reads_file(scope, self._files):
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[VERSION_HEADER] = self._version
            await send(message)

        client = Headers(scope=scope).get(VERSION_HEADER)
        reason = None if client is None else incompatibility(client, self._version)
        if reason is None:
            await self._app(scope, receive, tell)
        else:
            await refuse(ServiceError(ErrorCode.INCOMPATIBLE_VERSION, reason), scope, receive, tell)


class Quota:
    """Refuse requests of keys that have sent too many, and tell each answer's reader how the key's quotas stand."""

    def __init__(self, app: ASGIApp, *, quotas: Quotas) -> None:
        self._app = app
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with ``quota_exceeded``."""
        # What is no question to a model costs nothing: metrics, the documents, the health checks.
        counts = scope["type"] == "http" and (scope["method"] == "POST" or scope["path"].startswith("/v1/"))
        spending = self._quotas.of(scope.get(SCOPE_KEY)) if counts else None
        if spending is None:
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(spending.headers())
            await send(message)

        scope[SCOPE_SPENDING] = spending
        try:
            await spending.request()
        except ServiceError as error:
            await refuse(error, scope, receive, tell)
            return
        await self._app(scope, receive, tell)


class BodyLimit:
    """Refuse bodies over a limit without reading them, and bodies that come too slowly.

    Args:
        max_bytes: the limit.
        timeout_s: how long a body may take, a second more for each ``_SLOWEST`` bytes that have come.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it by its length, at once or when it turns out too long or too slow."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await refuse(self._too_large(), scope, receive, send)
            return
        # The length may be absent (chunked) or a lie: what really comes is what counts.
        counted, complete, patience_s = 0, False, _SECOND_LOOK_S
        end = asyncio.get_running_loop().time() + self._timeout_s

        async def count() -> Message:
            nonlocal counted, complete, patience_s
            if complete:
                return await receive()  # a wait for the client to leave, which has no end of its own
            try:
                async with asyncio.timeout_at(end + counted / _SLOWEST):
                    message = await receive()
            except TimeoutError:
                # A second look, once: after a stall of the event loop the piece may lie in the socket already.
                try:
                    message = await asyncio.wait_for(receive(), patience_s)
                except TimeoutError:
                    raise self._too_slow() from None
                patience_s = 0
            if message["type"] == "http.request":
                counted += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if counted > self._max_bytes:
                    raise self._too_large()  # out of the route's read, where the handlers turn it into an answer
            return message

        await self._app(scope, count, send)

    def _too_large(self) -> ServiceError:
        return ServiceError(
            ErrorCode.BODY_TOO_LARGE,
            f"the body is over the limit of {self._max_bytes} bytes: split the request, or raise --max-body-mb",
            headers={"connection": "close"},  # nobody knows how long the rest of it is
        )

    def _too_slow(self) -> ServiceError:
        return ServiceError(
            ErrorCode.REQUEST_TIMEOUT,
            f"the body did not come within {self._timeout_s:g} s and one more for each {_SLOWEST:g} bytes: send it "
            "faster, or raise body_timeout_s",
            headers={"connection": "close"},
        )
