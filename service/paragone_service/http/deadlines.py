"""Every request has a deadline: when it passes, whatever the request waits for is dropped and the answer is 504.

A deadline counts from the arrival of the request's head, so the time that its body takes is part of it. It is one
timeout around everything: ending it cancels the body's reading, takes texts out of the reading thread's line and
responses out of the queue, where nobody else waits for them. What is on the device runs to its end, and is cached.
"""

import asyncio
import math

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError, answer_within, refuse
from paragone_service.scoring.request import Deadline

__all__ = ["DEADLINE_HEADER", "SCOPE_DEADLINE", "Deadlines", "named_deadline_s"]

DEADLINE_HEADER = "x-deadline-s"
SCOPE_DEADLINE = "paragone.deadline"
"""Key of an ASGI scope under which the ``Deadline`` of its request is kept."""
_LONGEST_S = 86_400.0


class Deadlines:
    """Give every request a deadline, and answer ``deadline_exceeded`` once it has passed.

    Args:
        default_s: for requests that name none.
    """

    def __init__(self, app: ASGIApp, *, default_s: float) -> None:
        self._app = app
        self._default_s = default_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; refuse it if its header is no time, or if it has no answer in time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = Headers(scope=scope).get(DEADLINE_HEADER)
        seconds = self._default_s if header is None else _seconds(header)
        if seconds is None:
            problem = f"{DEADLINE_HEADER} must be a number of seconds, over 0 and at most {_LONGEST_S:g}"
            await refuse(ServiceError(ErrorCode.INVALID_REQUEST, problem), scope, receive, send)
            return
        running = asyncio.timeout(seconds)
        deadline = scope[SCOPE_DEADLINE] = Deadline(seconds, running, chosen=header is not None)
        await answer_within(running, self._app, scope, receive, send, over=running.expired, error=deadline.error)


def named_deadline_s(scope: Scope) -> float | None:
    """Return the seconds that a request names in its header; None if it names none, or something else."""
    header = Headers(scope=scope).get(DEADLINE_HEADER)
    return None if header is None else _seconds(header)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= _LONGEST_S else None
