"""What a recipe's [servers] must not say: refused by name before anything runs."""

import math
import shlex

from paragone_training.errors import RecipeError
from paragone_training.policy.sections import ServersSection

__all__ = ["check_servers", "command_line"]


def check_servers(servers: ServersSection) -> None:
    """Refuse a section that cannot be run.

    Args:
        servers: of a recipe.

    Raises:
        RecipeError: if it cannot; the value and the remedy are in the message.
    """
    _check_reload(servers)
    for name in ("count", "concurrency", "tries"):
        if getattr(servers, name) < 1:
            raise RecipeError(f"servers.{name} is {getattr(servers, name)}; it must be at least 1")
    for name, positive in (
        ("request_timeout_s", True),
        ("start_timeout_s", True),
        ("round_timeout_s", False),
        ("patience_s", False),
    ):
        value = getattr(servers, name)
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise RecipeError(f"servers.{name} is {value}; it must be {'positive' if positive else '0 or more'}")


def command_line(template: str, **values: object) -> list[str]:
    """Return the program and the arguments of a command template; no shell is asked.

    Args:
        template: with ``{name}`` where a value goes.
        values: by name; a space in a value does not cut an argument in two.

    Raises:
        RecipeError: if the template asks for a value there is not, or its quotes do not close.
    """
    try:
        return [word.format(**values) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as error:
        raise RecipeError(
            f"servers.command {template!r}: {error!r}; known are {', '.join('{' + name + '}' for name in values)}, and "
            "a brace of its own is written twice"
        ) from error


def _check_reload(servers: ServersSection) -> None:
    if servers.reload == "restart":
        if servers.urls:
            raise RecipeError("servers.urls are not this run's to restart: remove them, or set reload to 'update'")
        words = _filled(servers, model="MODEL", port=1, index=0)
        if not (any("MODEL" in word for word in words) and any("1" in word for word in words)):
            raise RecipeError("servers.command needs {model} and {port}: vllm serve {model} --port {port}")
        return
    if not servers.urls:
        raise RecipeError(f"servers.reload is {servers.reload!r}: servers.urls has to name servers that run")
    if servers.count != 1:
        raise RecipeError("servers.count is for reload = 'restart'; servers that run already are counted by urls")
    if servers.reload == "update" and servers.command is not None:
        raise RecipeError("servers.command is not run with reload = 'update': remove it, or set reload to 'command'")
    if servers.reload == "command":
        _filled(servers, model="MODEL")
        if servers.phases == "colocated":
            raise RecipeError(
                "servers.phases = 'colocated' needs servers that this run can stop or put to sleep: set reload to "
                "'restart' or 'update', or phases to 'disaggregated'"
            )


def _filled(servers: ServersSection, **values: object) -> list[str]:
    words = command_line(servers.command or "", **values)
    if not words:
        raise RecipeError(f"servers.reload is {servers.reload!r}: servers.command has to say what is run")
    return words
