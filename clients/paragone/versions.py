"""The version of the package, which client and server tell each other with each request, and what a difference means.

Versions are ``major.minor.patch``. Another major version may mean other things by the same words, so client and server
refuse each other. Another minor one adds to the wire: what both know works, and the client warns once. A patch changes
nothing there. Before 1.0 the same holds. Whoever tells no version is not judged by it: another client, or a server
behind a proxy that drops headers.
"""

import re
from importlib.metadata import version

__all__ = ["VERSION_HEADER", "incompatibility", "minor_difference", "own_version"]

VERSION_HEADER = "x-paragone-version"
"""Name of the header, of requests and of answers."""

_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.[0-9A-Za-z.+-]{1,64})?")


def own_version() -> str:
    """Return the version of the package that is installed here."""
    return version("paragone")


def incompatibility(client: str, server: str) -> str | None:
    """Return in words why a client of one version cannot ask a server of another, and the remedy; None if it can."""
    parts = _parts(client, server)
    if parts is None or parts[0][0] == parts[1][0]:
        return None
    (asking, _), (answering, _) = parts
    age = "old" if asking < answering else "new"
    change = "upgrade the client" if asking < answering else "upgrade the server, or take an older client"
    # In words: how a client elsewhere was installed is not known here.
    return (
        f"the client's version {client} is too {age} for the server's version {server}: {change} "
        f"(install paragone {answering}.* where the client runs)"
    )


def minor_difference(client: str, server: str) -> str | None:
    """Return in words what to expect where the minor versions differ; None if they do not, or the major ones do."""
    parts = _parts(client, server)
    if parts is None or parts[0][0] != parts[1][0] or parts[0][1] == parts[1][1]:
        return None
    older = "server" if parts[0][1] > parts[1][1] else "client"
    return (
        f"the client's version is {client} and the server's {server}: what is new in the later one does not work "
        f"between them; upgrade the {older}"
    )


def _parts(*versions: str) -> list[tuple[int, int]] | None:
    """Return major and minor number of each; None if one is unreadable."""
    found = [_VERSION.fullmatch(one) for one in versions]
    return [(int(match[1]), int(match[2])) for match in found if match] if all(found) else None
