"""The ``paragone`` command: finds its subcommands by entry point and imports only the one that is called.

A subcommand is a function for Typer or a whole Typer app, registered in the group ``paragone.commands``. Exceptions of
Paragone's own packages, and files that cannot be read or written, are messages for people and end as one line; anything
else is a bug and keeps its traceback. ``command_help.EXIT_CODES`` says what exit codes mean.
"""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from paragone.command_help import EXAMPLES, EXIT_CODES, SUMMARIES

__all__ = ["main", "root_app", "runner_of"]

_GROUP = "paragone.commands"
_PACKAGES = ("paragone", "paragone_models", "paragone_service", "paragone_evaluation", "paragone_training")
# Package → the extra that brings what it imports, and one of the modules that come with it.
_EXTRAS = {
    "paragone_models": ("models", "torch"),
    "paragone_service": ("service", "fastapi"),
    "paragone_evaluation": ("evaluation", "pyarrow"),
    "paragone_training": ("training", "accelerate"),
}
_COMPLETING = "_PARAGONE_COMPLETE"
# What shells say of the line that is being completed: bash and the others.
_COMPLETED_LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
_COMPLETION_OPTIONS = ("--install-completion", "--show-completion")


def main(arguments: Sequence[str] | None = None, *, commands: Iterable[EntryPoint] | None = None) -> int:
    """Run one subcommand and return the exit code.

    Args:
        arguments: the words after ``paragone``; those of this process if None.
        commands: the subcommands; those that are installed if None.

    Raises:
        SystemExit: as Typer ends a command, with its exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from paragone import __version__

        sys.stdout.write(f"paragone {__version__}\n")
        return 0
    installed = {command.name: command for command in (entry_points(group=_GROUP) if commands is None else commands)}
    if _COMPLETING in os.environ or (words[:1] and words[0] in _COMPLETION_OPTIONS):
        return _complete(installed, words)
    if not words:
        sys.stderr.write(_help(installed))
        return 2
    # Made from the names of the entry points: to import all commands for their help would take seconds of torch.
    if words[0] in ("--help", "-h"):
        sys.stdout.write(_help(installed))
        return 0
    name, *rest = words
    if name not in installed:
        return _failed(_unknown(name, installed), 2)
    try:
        return _run(name, installed[name], rest)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        extra = _missing_extra(installed[name])
        if extra is None:
            raise  # all extras are there, so a module of ours is missing
        return _failed(
            f"paragone {name} lacks a part of its installation ({error}): pip install 'paragone[{extra}]'", 1
        )
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file of the user's
            return _failed(f"paragone {name}: {error.filename}: {error.strerror}", 1)
        # Ours are messages for people; anything else is a bug, whose traceback is wanted.
        if type(error).__module__.partition(".")[0] not in _PACKAGES:
            raise
        return _failed(f"paragone {name}: {error}", 2 if isinstance(error, ValueError) else 1)


def root_app(installed: Mapping[str, EntryPoint], imported: Collection[str]) -> Any:
    """Return all commands as one Typer app, for completion and for references.

    Args:
        imported: names of the commands that are imported; the others have their line of help and no options.

    Raises:
        ModuleNotFoundError: if an imported command lacks its extra.
    """
    import typer

    root = typer.Typer(help="Ask, serve and train reward and preference models.", no_args_is_help=True)
    for name in sorted(installed):
        loaded = installed[name].load() if name in imported else _placeholder
        if isinstance(loaded, typer.Typer):
            root.add_typer(loaded, name=name, help=SUMMARIES.get(name))
        else:
            root.command(name, help=SUMMARIES.get(name) if name not in imported else None)(loaded)
    return root


def _placeholder() -> None:
    """Stand for a command that is not imported."""


def _complete(installed: Mapping[str, EntryPoint], words: list[str]) -> int:
    """Answer a shell that completes a line, or install what asks us."""
    lines = [os.environ.get(name, "").split() for name in _COMPLETED_LINES]
    written = next((line for line in lines if line), [])
    # The one command that the line names: another one's options are nobody's question.
    named = {word for word in written[1:2] if word in installed and _missing_extra(installed[word]) is None}
    root_app(installed, named)(args=words, prog_name="paragone")
    return 0


def runner_of(name: str, loaded: Any) -> Any:
    """Return what parses the words of a subcommand and runs it: a command of Typer, or a group of them.

    Args:
        loaded: what the entry point leads to.
    """
    import typer
    import typer.main

    if isinstance(loaded, typer.Typer):
        runner: Any = typer.main.get_group(loaded)
    else:
        app = typer.Typer(add_completion=False)
        app.command(name)(loaded)
        runner = typer.main.get_command(app)
    subcommands = getattr(runner, "commands", {})
    for path, one in ((name, runner), *((f"{name} {own}", sub) for own, sub in subcommands.items())):
        # Docstrings are wrapped for readers of the code; a terminal has a width of its own.
        one.help = re.sub(r"(?<!\n)\n[ ]*(?=\S)", " ", one.help or "")
        if path in EXAMPLES:
            one.epilog = f"Example: {EXAMPLES[path]}"
    return runner


def _run(name: str, command: EntryPoint, arguments: list[str]) -> int:
    """Import a subcommand and run it; Typer ends most of them with SystemExit."""
    runner_of(name, command.load())(args=arguments, prog_name=f"paragone {name}")
    return 0


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"{message}\n")
    return code


def _missing_extra(command: EntryPoint) -> str | None:
    """Return the extra that a subcommand lacks, or None if all is there."""
    extra, module = _EXTRAS.get(command.module.partition(".")[0], (None, ""))
    return extra if extra is not None and importlib.util.find_spec(module) is None else None


def _unknown(name: str, installed: Mapping[str, EntryPoint]) -> str:
    near = difflib.get_close_matches(name, installed, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(installed))}"
    return f"paragone: no command {name!r}; {hint}"


def _help(installed: Mapping[str, EntryPoint]) -> str:
    lines = [
        "Usage: paragone COMMAND [OPTIONS]",
        "",
        "Ask, serve and train reward and preference models.",
        "",
        "Commands:",
    ]
    for name in sorted(installed):
        extra = _missing_extra(installed[name])
        needs = f"  (needs: pip install 'paragone[{extra}]')" if extra else ""
        lines.append(f"  {name:<9} {SUMMARIES.get(name, installed[name].value)}{needs}")
    lines += [
        "",
        "Options:",
        "  --version             Show the version.",
        "  --help                Show this message; paragone COMMAND --help explains a command.",
        "  --install-completion  Have your shell complete commands and options.",
        "  --show-completion     Show what that would install.",
        "",
        "Exit codes:",
        *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
