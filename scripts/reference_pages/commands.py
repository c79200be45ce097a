"""The page of the command line: every command with every argument and option, from Typer."""

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import typer
import typer.main

from .markdown import paragraph, table

__all__ = ["command_pages"]


def command_pages(commands: Iterable[EntryPoint]) -> dict[str, str]:
    """Return the name and text of every page: ``index.md``, and one of each command with its subcommands.

    Args:
        commands: the entry points of the group ``paragone.commands``.
    """
    pages, rows = {}, []
    for entry in sorted(commands, key=lambda entry: entry.name):
        command = _loaded(entry.name, entry.load())
        pages[f"{entry.name}.md"] = "\n".join(_command(f"paragone {entry.name}", command, level=1))
        rows.append((f"[`paragone {entry.name}`]({entry.name}.md)", _summary(command)))
    pages["index.md"] = (
        "# Command line\n\nExit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.\n\n"
        + table(("command", "what it does"), rows)
    )
    return pages


def _loaded(name: str, loaded: Any) -> Any:
    if isinstance(loaded, typer.Typer):
        return typer.main.get_group(loaded)
    app = typer.Typer(add_completion=False)
    app.command(name)(loaded)
    return typer.main.get_command(app)


def _summary(command: Any) -> str:
    return paragraph(command.help or "").split("\n\n")[0]


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    context = typer.Context(command)
    yield f"{'#' * level} {name}\n"
    yield paragraph(command.help or "") + "\n"
    subcommands = getattr(command, "commands", {})
    words = [one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"]
    usage = [name, *(["COMMAND"] if subcommands else []), "[OPTIONS]", *words]
    yield f"```text\n{' '.join(usage)}\n```\n"
    arguments = [
        (f"`{one.name}`", paragraph(one.help or "")) for one in command.params if one.param_type_name == "argument"
    ]
    if arguments:
        yield table(("argument", "meaning"), arguments)
    options = [_option(one, context) for one in command.params if one.param_type_name == "option" and not one.hidden]
    if options:
        yield table(("option", "value", "default", "meaning"), options)
    for subname, subcommand in subcommands.items():
        yield from _command(f"{name} {subname}", subcommand, level=level + 1)


def _option(option: Any, context: typer.Context) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f"`{option.metavar or option.display_type(context).strip('<>')}`"
    unset = option.default is None or callable(option.default) or option.default in ((), [], "")
    default = "required" if option.required else "" if unset or option.is_flag else f"`{option.default}`"
    environment = f" Environment: `{option.envvar}`." if option.envvar else ""
    # Where a default is worked out later, the help says it.
    meaning, _, told = (option.help or "").removesuffix(")").partition(" (default: ")
    if told and not default:
        return names, value, told if " " in told else f"`{told}`", paragraph(meaning) + environment
    return names, value, default, paragraph(option.help or "") + environment
