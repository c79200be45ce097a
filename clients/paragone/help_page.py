"""The help of every command: what it does, its arguments and options in the words of the shell, and an example.

``words_of`` says what a parameter is called, takes and is if omitted; the reference of the command line is written of
the same words.
"""

import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import typer

__all__ = ["Words", "help_page", "usage", "words_of"]

_WIDEST = 110  # longer lines are hard to read, however wide a terminal is
_NARROWEST = 40
_NAMES = 26  # columns of names beside their meaning; longer ones have a line of their own
_LONGEST_VALUE = 44  # characters of choices that stand behind a name; more of them are listed in its meaning
_UNITS = {"s": "SECONDS", "ms": "MILLISECONDS", "mb": "MB", "days": "DAYS", "tokens": "TOKENS"}


class Words(NamedTuple):
    """What is said of one argument or option.

    Attributes:
        names: as they are typed, with those that turn it off.
        value: what stands behind the name; empty for a flag.
        default: if omitted; empty where the meaning says it, or nothing stands for it.
        remarks: that it is required, the range of a number, the variable of the environment.
    """

    names: tuple[str, ...]
    value: str
    default: str
    remarks: tuple[str, ...]
    meaning: str


def words_of(parameter: Any, context: Any) -> Words:
    """Return what is said of a parameter of a Typer command."""
    is_argument = parameter.param_type_name == "argument"
    names = (_value(parameter, context),) if is_argument else (*parameter.opts, *parameter.secondary_opts)
    value = "" if is_argument or parameter.is_flag else _value(parameter, context)
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    remarks = []
    if parameter.required and not is_argument:
        remarks.append("required")
    if least is not None and most is not None:
        remarks.append(f"{least} to {most}")
    elif least is not None or most is not None:
        remarks.append(f"at least {least}" if most is None else f"at most {most}")
    if parameter.envvar:
        remarks.append(f"environment: {parameter.envvar}")
    meaning = " ".join((parameter.help or "").split())
    if len(value) > _LONGEST_VALUE and "|" in value:
        meaning = f"{meaning} One of {', '.join(value.split('|'))}."
        value = str(parameter.name).upper()
    return Words(names, value, _default(parameter), tuple(remarks), meaning)


def _value(parameter: Any, context: Any) -> str:
    """Return what is typed for a parameter, as ``FILE``, ``SECONDS`` or ``auto|cpu``."""
    if parameter.metavar is not None:
        return str(parameter.metavar)
    kind = parameter.type_descriptor
    if kind.is_choice:
        return str(parameter.display_type(context)).strip("<>").removeprefix("list[").removesuffix("]")
    last = str(parameter.name).rpartition("_")[2]
    annotation = next(iter(get_args(kind.annotation)), kind.annotation)
    if annotation in (int, float):
        return _UNITS.get(last, "N" if annotation is int else "NUMBER")
    if annotation is Path and last not in ("file", "dir"):
        return "PATH"
    return last.upper()


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return str(parameter.show_default)
    value = parameter.default
    if not parameter.show_default or value is None or value is False or callable(value) or value in ((), [], ""):
        return ""
    if getattr(parameter, "is_flag", False):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(getattr(value, "value", value))


def usage(path: str, command: Any, context: Any) -> str:
    """Return the line of usage.

    Args:
        path: what is typed to call the command, as ``paragone train model``.
    """
    if getattr(command, "commands", None):
        return f"{path} COMMAND [OPTIONS]"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    words = [_value(one, context) if one.required else f"[{_value(one, context)}]" for one in arguments]
    return " ".join([path, *words, "[OPTIONS]"])


def help_page(path: str, command: Any, context: Any, examples: Iterable[str] = ()) -> str:
    """Return the help of a command, as wide as the terminal."""
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
    lines = [f"{_strong('Usage:')} {usage(path, command, context)}", ""]
    for paragraph in filter(None, re.split(r"\n\s*\n", (command.help or "").strip())):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False), ""]
    subcommands = getattr(command, "commands", {})
    if subcommands:
        rows = [(name, _first_sentence(one.help or "")) for name, one in subcommands.items()]
        lines += [_strong("Commands:"), *_columns(rows, width), ""]
    for title, parameters in _sections(command, context).items():
        rows = [_row(words_of(one, context)) for one in parameters]
        lines += [_strong(f"{title}:"), *_columns(rows, width), ""]
    if subcommands:
        lines += [f"`{path} COMMAND --help` explains a command.", ""]
    # Never wrapped: it is there to be pasted.
    shown = [f"  {example}" for example in examples]
    return "\n".join([*lines, *([_strong("Example:"), *shown] if shown else [])]).rstrip()


def _sections(command: Any, context: Any) -> dict[str, list[Any]]:
    """Return parameters by the title that they stand under, those without one last."""
    arguments = [one for one in command.params if one.param_type_name == "argument" and not one.hidden]
    options = [one for one in command.get_params(context) if one.param_type_name == "option" and not one.hidden]
    sections: dict[str, list[Any]] = {"Arguments": arguments} if arguments else {}
    for option in sorted(options, key=lambda one: getattr(one, "rich_help_panel", None) is None):
        sections.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    return sections


def _row(words: Words) -> tuple[str, str]:
    notes = [*words.remarks, *([f"default: {words.default}"] if words.default else [])]
    meaning = f"{words.meaning} [{'; '.join(notes)}]" if notes else words.meaning
    return " ".join([", ".join(words.names), *([words.value] if words.value else [])]), meaning


def _columns(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    rows = list(rows)
    fitting = [len(name) for name, _ in rows if len(name) <= _NAMES]
    indent = 4 + max(fitting, default=4)
    for name, meaning in rows:
        wrapped = textwrap.wrap(meaning, width - indent, break_on_hyphens=False, break_long_words=False) or [""]
        if len(name) > _NAMES:
            yield f"  {_strong(name)}"
        else:
            yield f"  {_strong(name)}{' ' * (indent - 2 - len(name))}{wrapped.pop(0)}".rstrip()
        yield from (f"{' ' * indent}{line}" for line in wrapped)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]


def _strong(text: str) -> str:
    # What is written to no terminal loses it again.
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
