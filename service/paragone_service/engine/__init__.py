"""What runs a backbone: the contract, the engine that runs in this process, and those that ask other servers."""

import re
from typing import NamedTuple

from paragone.addresses import without_userinfo

__all__ = ["REMOTE_ENGINES", "RemoteEngine", "parse_remote"]

_REMOTE = re.compile(r"(\w+):((\w+)://.+)")
_HOST = re.compile(r"[^\s?#,/]+(/[^\s?#,]*)?")


class RemoteEngine(NamedTuple):
    """An engine that asks other servers.

    Attributes:
        opener: what makes it, as ``module:function``; imported when a model asks for it, because reading settings needs
            no torch. Called with the model and the addresses, and with ``timeout_s`` and ``api_key``; it raises
            ``ConfigError`` for a model that the servers cannot run.
        schemes: of an address; the first one is shown in examples.
        extra: of ``pip install paragone[…]`` that brings its client; empty if there is none.
    """

    opener: str
    schemes: tuple[str, ...]
    extra: str = ""


REMOTE_ENGINES = {
    "vllm": RemoteEngine("paragone_service.engine.vllm:open_vllm", ("http", "https")),
    "triton": RemoteEngine("paragone_service.engine.triton:open_triton", ("grpc", "grpcs"), "triton"),
}
"""By the word before the addresses in ``--engine NAME=WORD:SCHEME://HOST:PORT[,HOST:PORT…]``."""


def parse_remote(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the engine's word and the addresses of ``WORD:SCHEME://HOST:PORT[,HOST:PORT…]``, each with its scheme.

    Raises:
        ValueError: if it has another form or holds a user, or an address comes twice.

    >>> parse_remote("triton:grpc://gpu-1:8001,gpu-2:8001")
    ('triton', ('grpc://gpu-1:8001', 'grpc://gpu-2:8001'))
    """
    if "@" in text:
        raise ValueError(
            f"engine {without_userinfo(text)!r} holds a user or a password, which logs would repeat: use engine_api_key"
        )
    parts = _REMOTE.fullmatch(text)
    engine = None if parts is None else REMOTE_ENGINES.get(parts[1])
    if parts is None or engine is None or parts[3] not in engine.schemes:
        forms = " or ".join(f"{word}:{one.schemes[0]}://HOST:PORT" for word, one in REMOTE_ENGINES.items())
        raise ValueError(f"engine {text!r}: write {forms}; several addresses with commas between them")
    scheme = f"{parts[3]}://"
    hosts = [address.removeprefix(scheme).rstrip("/") for address in parts[2].split(",")]
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"engine {text!r}: {host!r} is no HOST:PORT, with {scheme} or without")
        if hosts.count(host) > 1:
            raise ValueError(f"engine {text!r}: {host} comes twice")
    return parts[1], tuple(scheme + host for host in hosts)
