"""Refuse requests that would wait for too long before their bodies are parsed, which is most of what they would cost.

A request must name its model and its deadline in its body, if anywhere. Both are looked for in the bytes, and where
they are not plainly there the body is parsed like any other: what is refused here would be refused afterwards too.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from paragone_service.api_keys import ApiKey
from paragone_service.http.deadlines import named_deadline_s
from paragone_service.http.errors import SCOPE_SHAPE, ErrorShapes, ServiceError, refuse
from paragone_service.http.middleware import SCOPE_KEY, Authorization, Drain, HostGuard, Observation
from paragone_service.metrics import Metrics
from paragone_service.registry import Registry
from paragone_service.scoring.request import Reservation

__all__ = [
    "SCOPE_RESERVATION",
    "SCORING_PATHS",
    "Foreign",
    "QuickRefusals",
    "Reserving",
    "client_of",
    "unparsed_refusal",
]

SCORING_PATHS = frozenset({"/v1/preferences", "/v1/rewards", "/v1/tournaments"})
"""Where work for a device is asked for."""

SCOPE_RESERVATION = "paragone.reservation"
"""Key of an ASGI scope under which the ``Reservation`` of its request is kept, where it has one."""

# A quotation mark inside a text has a backslash before it, so neither name is found in a text of the request.
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\\\]{1,256})"')
_DEADLINE = re.compile(rb'"deadline_s"\s*:\s*([0-9.]{1,16})\s*[,}]')


def client_of(scope: Scope) -> Hashable:
    """Return who asks: the key and the connection.

    Many share a key, and many an address; a connection is one program's, and has one request at a time.
    """
    key: ApiKey | None = scope.get(SCOPE_KEY)
    client = scope.get("client")
    return (key.name if key else None, tuple(client) if client else None)


def unparsed_refusal(
    scope: Scope, body: bytes | bytearray, registry: Registry, *, foreign: "Foreign | None" = None
) -> ServiceError | None:
    """Return what a request is refused with whose body is complete and not parsed, or None if it must be parsed.

    It is judged once, and where its model is known its work is reserved from then on.

    Args:
        foreign: of a dialect's request.
    """
    if not (foreign or scope["path"] in SCORING_PATHS) or SCOPE_RESERVATION in scope:
        return None
    name = None
    if b'"model"' in body:
        names = _MODEL.findall(body)
        if len(names) != 1 or body.count(b'"model"') != 1:
            return None
        name = names[0].decode("utf-8", "replace")
    seconds = [] if (named := named_deadline_s(scope)) is None else [named]
    if b'"deadline_s"' in body:
        times = _DEADLINE.findall(body)
        if len(times) != 1 or body.count(b'"deadline_s"') != 1 or times[0].count(b".") > 1:
            return None
        seconds.append(float(times[0]))
    if foreign is not None:
        seconds.append(foreign.patience_s)
        name = registry.foreign_name(name)
        if name is None:
            return None
    judged = registry.judged(name, client_of(scope), len(body), min(seconds, default=None))
    if isinstance(judged, ServiceError):
        return judged
    if judged is not None:
        scope[SCOPE_RESERVATION] = judged
    return None


class Foreign(NamedTuple):
    """How a dialect's requests differ: they name models as they like.

    Attributes:
        patience_s: the seconds for which its clients wait for an answer, which they cannot say themselves.
    """

    patience_s: float


class Reserving:
    """Give back what a request has reserved, however it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        try:
            await self._app(scope, receive, send)
        finally:
            reservation: Reservation | None = scope.get(SCOPE_RESERVATION)
            if reservation is not None:
                reservation.release()


_SCOPE_REFUSAL = "paragone.refusal"


@dataclass(frozen=True)
class _Route:
    """What log and metrics call a request that no route has seen."""

    path: str


class QuickRefusals:
    """Refuse complete requests at once, in their connections, without a task for each.

    Of a burst of a thousand requests the last one would else wait until all the others have had their turns. What is
    not plainly to be refused for its wait alone goes the usual way.

    Args:
        shapes: in whose shape each path is refused.
        foreign: of dialects, by the paths that ask for work of a device.
    """

    def __init__(
        self,
        registry: Registry,
        drain: Drain,
        metrics: Metrics,
        *,
        guards: Callable[[ASGIApp], tuple[HostGuard, Authorization]],
        clock: Callable[[], float],
        shapes: ErrorShapes,
        foreign: Mapping[str, Foreign] = MappingProxyType({}),
    ) -> None:
        self._registry = registry
        self._shapes = shapes
        self._foreign = foreign
        self._drain = drain
        self._host_guard, self._authorization = guards(_refuse_kept)
        self.app: ASGIApp = Observation(_refuse_kept, metrics=metrics, clock=clock)

    @property
    def on(self) -> bool:
        """Whether anything is refused for its wait: a server that shuts down has another reason."""
        return not self._drain.begun

    def refuses(self, scope: Scope, body: bytes | bytearray) -> bool:
        """Return whether a request is to be answered by ``app``, which never waits for anything.

        What is not may have reserved its work, which ``Reserving`` gives back.
        """
        if scope["method"] != "POST" or self._host_guard.refusal(scope) or self._authorization.refusal(scope):
            return False
        error = unparsed_refusal(scope, body, self._registry, foreign=self._foreign.get(scope["path"]))
        if error is None:
            return False
        scope[_SCOPE_REFUSAL], scope["route"] = error, _Route(scope["path"])
        scope[SCOPE_SHAPE] = self._shapes.of(scope["path"])
        return True


async def _refuse_kept(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(scope[_SCOPE_REFUSAL], scope, receive, send)
