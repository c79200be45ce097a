"""Shell completion: what a shell asks while a line is typed, and what installs it.

Only the command on the line is imported, and none that lacks its extra.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from paragone.command_help import SUMMARIES

__all__ = ["OPTIONS", "answer", "is_asked"]

OPTIONS = ("--install-completion", "--show-completion")
_ASKED = "_PARAGONE_COMPLETE"
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
# What shells say of the line that is being completed: bash and the others.
_LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
_BREAKS = (":", "=")
# zsh reads the file at the first tab, which without this would define a function and complete nothing.
_FIRST_TAB = '[[ $zsh_eval_context[-1] == loadautofunc ]] && _paragone_completion "$@"'
_CHOICES = re.compile(r"[\w.-]+(\|[\w.-]+)+")


def is_asked(words: Sequence[str]) -> bool:
    """Return whether a shell completes a line, or somebody installs that."""
    return _ASKED in os.environ or (bool(words) and words[0] in OPTIONS)


def answer(installed: Mapping[str, EntryPoint], usable: Collection[str], words: list[str]) -> int:
    """Answer a shell, or install what asks.

    Args:
        installed: all commands, by name.
        usable: those that can be imported.

    Raises:
        SystemExit: as Typer ends it.
    """
    if words[:1] and words[0] in OPTIONS:
        return _for_shell(*words[:2])
    cut = _whole_words() if os.environ.get(_ASKED) == "complete_bash" else 0
    lines = [os.environ.get(name, "").split() for name in _LINES]
    written = next((line for line in lines if line), [])
    # The one command that the line names: another one's options are nobody's question.
    root = _root(installed, {word for word in written[1:2] if word in usable})
    answered = io.StringIO()
    try:
        with contextlib.redirect_stdout(answered):
            root(args=words, prog_name="paragone")
    finally:
        sys.stdout.writelines(line[cut:] for line in answered.getvalue().splitlines(keepends=True))
    return 0


def _for_shell(option: str, named: str | None = None) -> int:
    """Install completion for the shell that is named, else for the one that runs, or show what that would be."""
    # Typer's own options take no name where they know the shell that runs, and would install for that one.
    from typer._completion_shared import _get_shell_name, get_completion_script, install

    shell = named or _get_shell_name() or "unknown"
    if shell not in _SHELLS:
        sys.stderr.write(f"paragone: no completion for the shell {shell!r}; {option} takes {', '.join(_SHELLS)}\n")
        return 2
    if option == OPTIONS[1]:
        script = get_completion_script(prog_name="paragone", complete_var=_ASKED, shell=shell)
        sys.stdout.write(f"{script}\n")
    else:
        _, path = install(shell=shell, prog_name="paragone", complete_var=_ASKED)
        if shell == "zsh":
            path.write_text(f"{path.read_text(encoding='utf-8')}\n{_FIRST_TAB}\n", encoding="utf-8")
        sys.stdout.write(f"{shell} completion is installed in {path}, for new terminals\n")
    return 0


def _whole_words() -> int:
    """Put together what bash takes apart, and return how much of each answer is on the line already.

    For bash a colon and an equals sign are words of their own: of ``judge=builtin:mi`` it asks how ``mi`` goes on.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    try:
        current = int(os.environ.get("COMP_CWORD", ""))
    except ValueError:
        return 0
    if not current < len(words):
        return 0
    whole: list[str] = []
    place = 0
    for number, word in enumerate(words):
        if whole and number > 1 and (word in _BREAKS or words[number - 1] in _BREAKS):
            whole[-1] += word
        else:
            whole.append(word)
        if number == current:
            place = len(whole) - 1
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(whole), str(place)
    # A value behind --option= is completed by itself.
    typed = re.sub(r"^--[\w-]+=", "", whole[place])
    return max(typed.rfind(sign) for sign in _BREAKS) + 1


def _root(installed: Mapping[str, EntryPoint], imported: Collection[str]) -> Any:
    """Return all commands as one; those that are not imported have no options."""
    import typer
    import typer.main

    root = typer.Typer(help="Ask, serve and train reward and preference models.", no_args_is_help=True)
    for name in sorted(installed):
        loaded = installed[name].load() if name in imported else _placeholder
        if isinstance(loaded, typer.Typer):
            root.add_typer(loaded, name=name, help=SUMMARIES.get(name))
        else:
            root.command(name, help=SUMMARIES.get(name) if name not in imported else None)(loaded)
    runner = typer.main.get_command(root)
    for command in runner.commands.values():  # type: ignore[attr-defined]  # it is a group
        for one in (command, *getattr(command, "commands", {}).values()):
            for parameter in one.params:
                # What the help shows as choices is what completes. Typer has a public way for functions alone.
                if _CHOICES.fullmatch(parameter.metavar or ""):
                    parameter._custom_shell_complete = _chosen  # noqa: SLF001
    return runner


def _chosen(_context: Any, parameter: Any, begun: str) -> list[str]:
    # Of auto|TOKENS only the first one is typed as it is.
    choices = [choice for choice in parameter.metavar.split("|") if not choice.isupper()]
    return [choice for choice in choices if choice.startswith(begun)]


def _placeholder() -> None:
    """Stand for a command that is not imported."""
