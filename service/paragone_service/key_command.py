"""``paragone key new``: make a key for a server, and the line that lets it in."""

import json
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer

from paragone_service.api_keys import NAME, hash_of, parse_keys
from paragone_service.config import ConfigError

__all__ = ["key"]

key = typer.Typer(help="Make keys for a server.", no_args_is_help=True, add_completion=False)


@key.callback()
def _group() -> None:
    """Make keys for a server."""  # with a callback "new" stays a command, even as the only one


@key.command()
def new(
    name: Annotated[str, typer.Argument(help="What logs and metrics call the key.")],
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the line to this file, which --api-key-file names.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Cache this key's representations apart, together with the tenant's other keys.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="How many requests the key may send.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="How many tokens the key may have run.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Let the key load and unload models.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")] = False,
) -> None:
    """Print a new key, and the line that stands for it in a server's --api-key-file.

    The line holds a hash: whoever reads the file cannot use the key. A running server takes it within a few seconds.
    """
    made = "pk-" + secrets.token_urlsafe(32)
    options = {
        "tenant": tenant,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "admin": "yes" if admin else None,
    }
    given = "".join(f" {option}={value}" for option, value in options.items() if value is not None)
    line = f"{name}:{hash_of(made)}{given}"
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"no key was made: the name {name!r} must have letters, digits, '.', '_' and '-' alone, up to 64"
        )
    try:
        before = "" if file is None or not file.exists() else file.read_text(encoding="utf-8")
        if re.search(rf"^\s*{re.escape(name)}:", before, re.MULTILINE):
            raise ValueError(f"{file} has a key named {name} already: give another name, or remove its line first")
        # With a second line, so that it is read as a list and never as one plain key.
        parse_keys(f"{before}\n{line}\n{_OTHER}\n")
        if file is not None:
            _append(file, before, line)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no key was made: {error}") from error
    if as_json:
        typer.echo(json.dumps({"key": made, "line": line, "file": None if file is None else str(file)}))
        return
    typer.echo(made)
    if file is None:
        typer.echo(line)


_OTHER = "another:" + "0" * 64


def _append(file: Path, before: str, line: str) -> None:
    start = "\n" if before and not before.endswith("\n") else ""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as lines:
        lines.write(f"{start}{line}\n")
