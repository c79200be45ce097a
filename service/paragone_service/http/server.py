"""The HTTP server: uvicorn, told to drain. A signal makes readiness fail and lets requests in flight finish; exit 0."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from paragone_service.config import Settings
from paragone_service.http.connections import Door, raise_file_limit
from paragone_service.http.errors import ErrorShapes
from paragone_service.http.listening import leave_for_successors, refusal
from paragone_service.http.middleware import Drain
from paragone_service.metrics import Metrics

__all__ = ["Server", "configure"]

_BACKLOG = 2048
_FAREWELL_S = 2
"""For the refusals of what is not finished in time, until uvicorn closes connections without a word."""


class Server(uvicorn.Server):
    """Serve until the first signal, finish what was begun, refuse what takes too long, and return.

    A second Ctrl-C returns at once.

    uvicorn raises the signals it caught once more after shutting down, which would end the process by SIGTERM; this
    server does not remember them, so that a drained process exits with 0.

    Args:
        drain: told of the first signal, and of the end of the time that requests in flight have.
        listens: called with the port once requests are taken.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, *, listens: Callable[[int], object] | None = None) -> None:
        super().__init__(config)
        self._drain = drain
        self._listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so.

        Raises:
            ListenError: if another process listens at a bound address meanwhile.
        """
        try:
            # Here, because uvloop raises nothing where it cannot listen: the server would run and hear nobody.
            for one in sockets or ():
                one.listen(self.config.backlog)
        except OSError as error:
            raise refusal(error, self.config.host, self.config.port) from error
        leave_for_successors(sockets or ())
        await super().startup(sockets)
        if self.started and self._listens is not None:
            self._listens(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Begin to drain, or stop at once on a second SIGINT."""
        self._drain.begun = True  # from now on readiness fails, so that load balancers send nobody any more
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the requests in flight, but not beyond their time, and close everything."""
        assert self.config.timeout_graceful_shutdown is not None
        grace_s = self.config.timeout_graceful_shutdown - _FAREWELL_S
        # Ours ends before uvicorn's: requests that take too long still get an answer, and not a closed connection.
        end = asyncio.get_running_loop().call_later(grace_s, self._drain.end)
        await super().shutdown(sockets)
        end.cancel()


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration: uvloop and httptools, and our limits on connections."""
    metrics = getattr(app.state, "metrics", None) or Metrics()
    quick = getattr(app.state, "quick_refusals", None)
    shapes = getattr(app.state, "error_shapes", None) or ErrorShapes({})
    connections = raise_file_limit(settings.max_connections)
    door = Door(settings, metrics, connections, shapes=shapes, quick_refusals=quick)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=door.protocol(),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=_BACKLOG,
        # uvicorn would believe whoever asks from loopback, and a list in the environment.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]  # it only adds it to a time
        timeout_graceful_shutdown=settings.drain_timeout_s + _FAREWELL_S,
    )
