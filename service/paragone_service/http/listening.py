"""The sockets of a server: bound before its models are loaded, so that a port that is taken is told at once."""

import errno
import socket
from collections.abc import Iterable

__all__ = ["ListenError", "bind", "host_and_port", "leave_for_successors", "refusal"]

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(Exception):
    """An address cannot be listened on.

    Attributes:
        reason: what is wrong.
        remedy: what to do.
        taken: whether another process has the port.
    """

    def __init__(self, reason: str, remedy: str, *, taken: bool = False) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy, self.taken = reason, remedy, taken


def host_and_port(host: str, port: int) -> str:
    """Return host and port as a URL has them.

    >>> host_and_port("::1", 8000)
    '[::1]:8000'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host; none listens yet, so whoever connects is refused.

    Args:
        port: 0 takes a free one, the same for all addresses.

    Raises:
        ListenError: if the port is taken or privileged, or the host is no address of this machine.
    """
    try:
        # As uvicorn's loop would find them.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # ValueError: what the codec of names, or the system, takes for none
        raise _not_here(host, getattr(error, "strerror", None) or str(error)) from error
    bound: list[socket.socket] = []
    absent: OSError | None = None
    for family, place in dict.fromkeys((one[0], one[4]) for one in found):
        port = port or (bound[0].getsockname()[1] if bound else 0)
        try:
            bound.append(_bound(family, (place[0], port, *place[2:])))
        except OSError as error:
            # localhost is often two addresses, of which a machine without IPv6 has one.
            if error.errno in _NOT_HERE:
                absent = error
                continue
            for one in bound:
                one.close()
            raise refusal(error, host, port) from error
    if not bound:
        assert absent is not None
        raise refusal(absent, host, port) from absent
    return bound


def _bound(family: int, place: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # Alone: with SO_REUSEADDR two servers that still load could both have the port, and one would fail later.
            opened.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Or what is left of connections of a server that has ended, beside which only a shared address is free.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
    except OSError:
        opened.close()
        raise
    return opened


def leave_for_successors(sockets: Iterable[socket.socket]) -> None:
    """Have connections of sockets that listen keep no later server from their port when this one has ended."""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def refusal(error: OSError, host: str, port: int) -> ListenError:
    """Return in words why an address cannot be listened on, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"{host_and_port(host, port)} is taken by another process, perhaps a `paragone serve` that still runs",
            f"stop it (`ss -ltnp 'sport = :{port}'` shows which it is), or take another --port",
            taken=True,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ListenError(
            f"{host_and_port(host, port)}: this user may not listen on port {port}",
            "take a --port from 1024 on, and a proxy or a container for the one that others see",
        )
    return _not_here(host, error.strerror or str(error))


def _not_here(host: str, why: str) -> ListenError:
    return ListenError(
        f"host {host!r} is no address of this machine ({why})",
        "`ip addr` lists them; --host 127.0.0.1 is for this machine alone, and 0.0.0.0 for all that reach it",
    )
