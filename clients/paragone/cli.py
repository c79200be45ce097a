"""The ``paragone`` command: finds its subcommands by entry point and imports only the one that is called.

A subcommand is a function for Typer or a whole Typer app, registered in the group ``paragone.commands``. Exceptions of
Paragone's own packages, and files that cannot be read or written, are messages for people and end as one line; anything
else is a bug and keeps its traceback. ``command_help.EXIT_CODES`` says what exit codes mean.
"""

import difflib
import functools
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from paragone import completion
from paragone.command_help import EXAMPLES, EXIT_CODES, SUMMARIES
from paragone.installing import pip_install

__all__ = ["main", "runner_of"]

_GROUP = "paragone.commands"
_PACKAGES = ("paragone", "paragone_models", "paragone_service", "paragone_evaluation", "paragone_training")
# Package → the extra that brings what it imports, and one of the modules that come with it.
_EXTRAS = {
    "paragone_models": ("models", "torch"),
    "paragone_service": ("service", "fastapi"),
    "paragone_evaluation": ("evaluation", "pyarrow"),
    "paragone_training": ("training", "accelerate"),
}


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
    if completion.is_asked(words):
        usable = {name for name, command in installed.items() if _missing_extra(command) is None}
        return completion.answer(installed, usable, words)
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
    path = f"{name} {rest[0]}" if rest and f"{name} {rest[0]}" in EXAMPLES else name
    try:
        return _run(name, installed[name], rest)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        extra = _missing_extra(installed[name])
        if extra is None:
            raise  # all extras are there, so a module of ours is missing
        return _failed(f"paragone {name} lacks a part of its installation ({error}): {pip_install(extra)}", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file of the user's
            return _failed(f"paragone {path}: {error.filename}: {error.strerror}", 1)
        # Ours are messages for people; anything else is a bug, whose traceback is wanted.
        if type(error).__module__.partition(".")[0] not in _PACKAGES:
            raise
        return _failed(f"paragone {path}: {error}", 2 if isinstance(error, ValueError) else 1)


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
        one.format_help = functools.partial(_write_help, path, one)
        for parameter in one.params:  # as usage and errors name it
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = parameter.name.upper()
    return runner


def _write_help(path: str, command: Any, context: Any, formatter: Any) -> None:
    """Write the help of a command, in place of Typer's table, whose six columns leave little room for words."""
    from paragone.help_page import help_page

    # The examples of a group are those of its commands, which have them in their own help.
    formatter.write(help_page(f"paragone {path}", command, context, [EXAMPLES[path]] if path in EXAMPLES else ()))


def _run(name: str, command: EntryPoint, arguments: list[str]) -> int:
    """Import a subcommand and run it."""
    import typer

    runner = runner_of(name, command.load())
    try:
        code = runner.main(args=arguments, prog_name=f"paragone {name}", standalone_mode=False)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Typer's questions take for the end of the input
            return 130
        return _failed(f"paragone {name}: stopped at a question, to which no answer could be read", 1)
    except typer.TyperException as error:
        raise SystemExit(_misused(name, error)) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _misused(name: str, error: Any) -> int:
    """Say in one line what is wrong with the words of a command, and where it is explained."""
    import typer

    if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command; Typer exports no name for it
        typer.echo(error.message, err=True)
        return int(error.exit_code)
    context = getattr(error, "ctx", None)
    path = f"paragone {name}" if context is None else context.command_path
    text = error.format_message()
    if isinstance(error, typer.BadParameter) and error.param is None and error.param_hint is None:
        text = error.message  # ours, which names its option; Typer would put "Invalid value" before it
    text = " ".join(text.split()).rstrip(".")
    known = getattr(getattr(context, "command", None), "commands", {})
    if text.startswith("No such command") and not text.endswith("?"):
        text += f", there are {', '.join(known)}"
    return _failed(f"{path}: {text}; see {path} --help", error.exit_code)


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
        needs = f"  (needs: {pip_install(extra)})" if extra else ""
        lines.append(f"  {name:<10} {SUMMARIES.get(name, installed[name].value)}{needs}")
    lines += [
        "",
        "Options:",
        "  --version             Show the version.",
        "  --help                Show this message; paragone COMMAND --help explains a command.",
        "  --install-completion [SHELL]",
        "                        Have your shell complete commands and options: bash, zsh, fish, powershell.",
        "  --show-completion [SHELL]",
        "                        Show what that would install.",
        "",
        "Exit codes:",
        *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
