"""The page of the command line: every command with every argument and option, in the words of its help."""

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import typer

from paragone.cli import runner_of
from paragone.command_help import EXAMPLES, EXIT_CODES
from paragone.help_page import Words, usage, words_of

from .markdown import paragraph, table

__all__ = ["command_pages"]


def command_pages(commands: Iterable[EntryPoint]) -> dict[str, str]:
    """Return the name and text of every page: ``index.md``, and one of each command with its subcommands.

    Args:
        commands: the entry points of the group ``paragone.commands``.
    """
    pages, rows = {}, []
    for entry in sorted(commands, key=lambda entry: entry.name):
        command = runner_of(entry.name, entry.load())
        pages[f"{entry.name}.md"] = "\n".join(_command(entry.name, command, level=1))
        rows.append((f"[`paragone {entry.name}`]({entry.name}.md)", paragraph(command.help or "").split("\n\n")[0]))
    codes = [(f"{code}", meaning) for code, meaning in EXIT_CODES.items()]
    pages["index.md"] = (
        "# Command line\n\nWhat the commands are for, with examples: [the command line](../../command-line.md).\n\n"
        f"{table(('command', 'what it does'), rows)}\n## Exit codes\n\n{table(('code', 'meaning'), codes)}"
    )
    return pages


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    context = typer.Context(command)
    yield f"{'#' * level} paragone {path}\n"
    yield paragraph(command.help or "") + "\n"
    yield f"```text\n{usage(f'paragone {path}', command, context)}\n```\n"
    if path in EXAMPLES:
        yield f"For example:\n\n```bash\n{EXAMPLES[path]}\n```\n"
    shown = [one for one in command.params if not one.hidden]
    arguments = [words_of(one, context) for one in shown if one.param_type_name == "argument"]
    if arguments:
        rows = [(f"`{one.names[0]}`", _default(one), paragraph(one.meaning)) for one in arguments]
        yield table(("argument", "default", "meaning"), rows)
    options = [words_of(one, context) for one in shown if one.param_type_name == "option"]
    if options:
        yield table(("option", "value", "default", "meaning"), map(_option, options))
    for subname, subcommand in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {subname}", subcommand, level=level + 1)


def _option(words: Words) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in words.names)
    value = f"`{words.value}`" if words.value else ""
    return names, value, _default(words), paragraph(words.meaning) + "".join(f" ({one})" for one in words.remarks)


def _default(words: Words) -> str:
    if "required" in words.remarks:
        return "required"
    # Where a default is worked out later, it is said in words.
    return words.default if not words.default or " " in words.default else f"`{words.default}`"
