"""The client of Paragone: ask a hosted reward or preference model which of two responses people prefer.

Everything is imported when it is first used, so that ``import paragone`` costs nothing, and so that the service can
take the wire types without the HTTP client.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paragone.async_client import AsyncClient
    from paragone.client import Client
    from paragone.codes import ErrorCode
    from paragone.exceptions import ParagoneError, checked
    from paragone.wire import ItemError, Message, ModelInfo, Preference, Reward, Tournament

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "ErrorCode",
    "ItemError",
    "Message",
    "ModelInfo",
    "ParagoneError",
    "Preference",
    "Reward",
    "Tournament",
    "__version__",
    "checked",
]

_HOMES = {
    "AsyncClient": "paragone.async_client",
    "Client": "paragone.client",
    "ErrorCode": "paragone.codes",
    "ItemError": "paragone.wire",
    "Message": "paragone.wire",
    "ModelInfo": "paragone.wire",
    "ParagoneError": "paragone.exceptions",
    "Preference": "paragone.wire",
    "Reward": "paragone.wire",
    "Tournament": "paragone.wire",
    "checked": "paragone.exceptions",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("paragone")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'paragone' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
