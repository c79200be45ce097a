"""The ``paragone`` command: finds its subcommands by entry point and imports only the one that is called.

A subcommand is a function for Typer or a whole Typer app, registered in the group ``paragone.commands``. Exceptions of
Paragone's own packages are messages for people and end as one line; anything else is a bug and keeps its traceback.
Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["main"]

_GROUP = "paragone.commands"
_PACKAGES = ("paragone", "paragone_models", "paragone_service", "paragone_evaluation", "paragone_training")
# Package → the extra that brings what it imports, and one of the modules that come with it.
_EXTRAS = {
    "paragone_models": ("models", "torch"),
    "paragone_service": ("service", "fastapi"),
    "paragone_evaluation": ("evaluation", "pyarrow"),
    "paragone_training": ("training", "accelerate"),
}
_HELP = {
    "annotate": "Score every row of data files, and make pairs for DPO.",
    "ask": "Ask which of two responses is preferred.",
    "bench": "Measure how fast a service answers.",
    "calibrate": "Fit the temperature of a model and store it with it.",
    "data": "Say what data files hold, and convert them.",
    "export": "Write a model for other programs, vLLM for one.",
    "eval": "Measure how well a model agrees with people.",
    "key": "Make keys for a server.",
    "serve": "Serve reward and preference models over HTTP.",
    "verify": "Compare a reward server with its model, and name what differs.",
    "train": "Train preference models and policies.",
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
        # Ours are messages for people; anything else is a bug, whose traceback is wanted.
        if type(error).__module__.partition(".")[0] not in _PACKAGES:
            raise
        return _failed(f"paragone {name}: {error}", 2 if isinstance(error, ValueError) else 1)


def _run(name: str, command: EntryPoint, arguments: list[str]) -> int:
    """Import a subcommand and run it; Typer ends most of them with SystemExit."""
    loaded: Any = command.load()
    import typer
    import typer.main

    if isinstance(loaded, typer.Typer):
        runner: Any = typer.main.get_group(loaded)
    else:
        app = typer.Typer(add_completion=False)
        app.command(name)(loaded)
        runner = typer.main.get_command(app)
    # Docstrings are wrapped for readers of the code; a terminal has a width of its own.
    for one in (runner, *getattr(runner, "commands", {}).values()):
        one.help = re.sub(r"(?<!\n)\n[ ]*(?=\S)", " ", one.help or "")
    runner(args=arguments, prog_name=f"paragone {name}")
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
        lines.append(f"  {name:<9} {_HELP.get(name, installed[name].value)}{needs}")
    lines += [
        "",
        "Options:",
        "  --version  Show the version.",
        "  --help     Show this message; paragone COMMAND --help explains a command.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
