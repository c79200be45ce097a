"""Connections, before anybody has shown a key: how many there are, how long each may be silent, how long a head may be.

uvicorn bounds none of these: a connection that sends nothing stays open for ever, and so does one that sends a header
a minute. Whoever can reach the port could so use up its memory and its files, with no key at all.

A connection is in a *head*, from its opening or from the first byte of its next request until the headers are complete;
or in a request; or *idle*, kept for the client's next one. Heads have a time-out and a size, idle connections a
time-out, and where a new connection finds no room the longest idle one gives way. How fast a body must come is seen to
in the middleware, which knows that it is wanted.
"""

import asyncio
import functools
import logging
import resource
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from paragone.codes import ErrorCode
from paragone_service.config import Settings
from paragone_service.http.errors import ErrorShape, ErrorShapes, ServiceError, error_response
from paragone_service.http.middleware import SCOPE_BEGUN
from paragone_service.http.overload import QuickRefusals
from paragone_service.metrics import Metrics

__all__ = ["Connection", "Door", "raise_file_limit"]

logger = logging.getLogger("paragone.service")

_FILES_BESIDE = 256
"""Open files that a server needs beside its connections: models, Redis, engines, its log."""
_REFUSED_AT_A_TIME = 64
"""Connections over the limit that are kept for a moment, so that they see why they are refused."""
_REFUSED_FOR_S = 1.0
_SECOND_LOOK_S = 0.25
"""How much longer a late head is waited for: after a stall of the event loop it may lie in the socket already."""


def raise_file_limit(connections: int) -> int:
    """Let this process open as many files as so many connections need, and return how many connections it can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < needed:
        granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
        if granted < needed:
            room = max(1, granted - _FILES_BESIDE)
            logger.warning(
                "this process may open %d files, which is enough for %d connections and not for max_connections %d: "
                "raise its limit (ulimit -n)",
                granted,
                room,
                connections,
            )
            return room
    return connections


@dataclass
class Door:
    """What all connections of a server share.

    Attributes:
        settings: whose limits count.
        connections: the most at a time.
        idle: those between two requests, the longest idle first.
        refused: those over the limit that are about to be closed.
        shapes: in whose shape a head is refused, by its path.
        quick_refusals: what may answer a complete request before anything else sees it.
    """

    settings: Settings
    metrics: Metrics
    connections: int
    shapes: ErrorShapes = field(default_factory=lambda: ErrorShapes({}))
    quick_refusals: QuickRefusals | None = None
    idle: dict["Connection", None] = field(default_factory=dict)
    refused: set["Connection"] = field(default_factory=set)

    def protocol(self) -> Any:
        """Return what uvicorn makes a connection with."""
        return functools.partial(Connection, door=self)

    def has_room(self, connection: "Connection") -> bool:
        """Return whether one more connection may stay, closing an idle one for it if need be."""
        others = len(connection.connections) - len(self.refused) - 1
        if others < self.connections:
            return True
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        oldest.leave("idle")
        return True

    def count(self, reason: str) -> None:
        """Count a connection that was closed by a limit."""
        self.metrics.connections_cut.labels(reason).inc()


class _RefusedError(Exception):
    """End the parsing of a head; the connection knows why."""


class Connection(HttpToolsProtocol):
    """One connection, uvicorn's, with limits.

    Args:
        door: what all connections share.
    """

    def __init__(self, *arguments: Any, door: Door, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._door = door
        self._settings = door.settings
        self.url = b""  # uvicorn has none before the first request
        self._in_head = True
        self._begun = False  # whether a byte of the head has come
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: ServiceError | None = None
        self._reason = ""
        self._feeding = False  # whether bytes are being parsed
        self._held: tuple[RequestResponseCycle, Any] | None = None  # a request that has no task yet
        self._deaf = False  # whether what comes is thrown away: the connection is about to end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a head, or refuse a connection that there is no room for."""
        super().connection_made(transport)
        if self._door.has_room(self):
            self._await_head(self._settings.header_timeout_s)
            return
        self._refusal = ServiceError(
            ErrorCode.TOO_MANY_CONNECTIONS,
            f"the server has all the {self._door.connections} connections that it may have: use fewer, keep them "
            "open between requests, or raise --max-connections",
            retry_after_s=1,
        )
        if len(self._door.refused) >= _REFUSED_AT_A_TIME:
            self._end("full")
            return
        # The answer waits for the request: to close a connection with unread bytes in it is to reset it.
        self._door.refused.add(self)
        self._await_head(_REFUSED_FOR_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._door.idle.pop(self, None)
        self._door.refused.discard(self)
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that is too long ends the connection with an answer."""
        if self._deaf or self.transport.is_closing():
            return
        if self._refusal is not None:  # there was no room for it
            self._end("full")
            return
        self._unset_keepalive_if_required()
        self._door.idle.pop(self, None)
        going_on = self._in_head and self._begun
        self._feeding = True
        try:
            self.parser.feed_data(data)
            if going_on and self._in_head and self._begun:
                self._count_head(len(data))  # of a line that has no end yet the parser has told nothing
            if self._in_head and self._begun and self._head_timer is None:  # a further request of a kept connection
                self._await_head(self._settings.header_timeout_s)
        except httptools.HttpParserUpgrade:
            logger.debug("an upgrade of the protocol was asked for, and is not known here")
        except _RefusedError:
            self._end(self._reason)
        except httptools.HttpParserError:
            # What one of our own callbacks raises comes as an error of the parser too.
            if self._refusal is None:
                self._refusal = ServiceError(
                    ErrorCode.INVALID_HTTP, "what came is no HTTP/1.1 request: is it TLS, HTTP/2, or a wrong length?"
                )
            self._end(self._reason or "malformed")
        finally:
            self._feeding = False
            self._start_held()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._unset_keepalive_if_required()  # where the one before was answered in the middle of these bytes
        self._door.idle.pop(self, None)
        self._in_head = self._begun = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        super().on_url(url)
        self._count_head(len(url))  # afterwards: the refusal is in the shape of the path

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what follows a body in pieces looks the same, and is counted and dropped."""
        self._count_head(len(name) + len(value) + 4)  # with colon, space and line end
        if not self._in_head:
            return
        super().on_header(name, value)
        if len(self.headers) > self._settings.max_headers:
            self._refuse_head(f"the request has more than {self._settings.max_headers} headers")

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._in_head = self._begun = False
        self._head_bytes = 0  # from here on for what follows the body
        self._stop_head_timer()
        cast("dict[str, Any]", self.scope)[SCOPE_BEGUN] = time.perf_counter()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        super().on_message_complete()
        self._in_head, self._begun = True, False
        quick = self._door.quick_refusals
        if self._held is None or quick is None:
            return
        cycle, _ = self._held
        # An answer that nobody reads may have to wait; and then it needs a task.
        if not self.flow.write_paused and quick.refuses(cast("dict[str, Any]", cycle.scope), cycle.body):
            self._held = None
            cycle.body.clear()
            _run_through(cycle.run_asgi(cast("Any", quick.app)))
        else:
            self._start_held()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # A request whose body comes along with its head may be answered before it is given a task.
        quick = self._door.quick_refusals
        if self._feeding and quick is not None and quick.on:
            self._held = (cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def _start_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            super()._start_asgi_task(*held)

    def on_response_complete(self) -> None:
        """Keep the connection for the next request, unless the rest of this one is still to come."""
        last = not self.pipeline
        super().on_response_complete()
        if not last or self.transport.is_closing():
            return
        if self.cycle.more_body:
            # Its client was given time to send the rest; bytes that nobody wants have no time-out of their own.
            self.leave("body")
        elif self._deaf:
            self.transport.close()
        elif not self._begun:
            self._door.idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long."""
        if not self._begun:  # what began a head has the time that heads have
            self.leave("idle")

    def leave(self, reason: str) -> None:
        """Close the connection without a word."""
        self._door.idle.pop(self, None)
        if not self.transport.is_closing():
            self._door.count(reason)
            self.transport.close()

    def _await_head(self, seconds: float) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(seconds, self._head_is_late, False)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self, looked_again: bool) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or not looked_again:
            # While an earlier request is answered nothing is read, and the client is not the one who is late.
            self._head_timer = self.loop.call_later(_SECOND_LOOK_S, self._head_is_late, not answering)
            return
        self._head_timer = None
        if self._refusal is None and self._begun:
            self._refusal = ServiceError(
                ErrorCode.REQUEST_TIMEOUT,
                f"the headers did not come within the limit of {self._settings.header_timeout_s:g} s: send them at "
                "once, or raise header_timeout_s",
            )
        self._end("full" if self in self._door.refused else "head")

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._settings.max_header_bytes:
            self._refuse_head(f"address and headers are over the limit of {self._settings.max_header_bytes} bytes")

    def _refuse_head(self, problem: str) -> None:
        self._reason = "headers"
        self._refusal = ServiceError(
            ErrorCode.HEADERS_TOO_LARGE, f"{problem}: texts belong into the body, cookies nowhere"
        )
        raise _RefusedError

    def _end(self, reason: str) -> None:
        """Close the connection, with an answer where there is something to say and nothing else is being said."""
        self._deaf = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._door.count(reason)
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:
                self.cycle.keep_alive = False  # an earlier request, whole and sound: it has its answer first
                return
            if self.cycle.response_started:
                self.transport.close()
                return
        if self._refusal is not None:
            path = self.url.partition(b"?")[0].decode("latin-1")
            self.transport.write(_answer(self._refusal, self._door.shapes.of(path)))
        self.transport.close()


def _answer(error: ServiceError, shape: ErrorShape | None) -> bytes:
    response = error_response(error, shape)
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[response.status_code] + headers + b"connection: close\r\n\r\n" + bytes(response.body)


def _run_through(work: Coroutine[Any, Any, None]) -> None:
    """Run what never waits, outside of any task."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("a quick answer waited for something")
