"""The pages of the repository and the blocks of code in them, for the tests of what they say."""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import typer
import typer.main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "data" / "README.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMANDS = {entry.name: entry for entry in entry_points(group="paragone.commands")}


def name_of(page: Path) -> str:
    """Return a page's path as a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the page's blocks in these languages."""
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that is no code, no row of a table and no picture."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.lstrip().startswith(("|", "![")):
            yield number, line


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, variables before it left out.

    Raises:
        ValueError: if a quote is open at the end.
    """
    pending = ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue
        pending = ""
        for part in _parts(words):
            while re.match(r"[A-Z_]+=", part[0]):
                del part[0]
            yield [part[0].removeprefix(".venv/bin/"), *part[1:]]
    if pending:
        raise ValueError(f"a quote is open at the end: {pending}")


def refused(words: list[str]) -> str | None:
    """Return what ``paragone`` would refuse in its words: an option that it has not, too many or too few arguments."""
    found, rest = _command(words)
    options = {
        name: one
        for one in found.params
        if one.param_type_name == "option"
        for name in (*one.opts, *one.secondary_opts)
    }
    arguments, given = [one for one in found.params if one.param_type_name == "argument"], 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            given += 1
        elif word not in options:
            return f"no option {word}"
        elif not options[word].is_flag:
            rest.pop(0)
    least = sum(1 for one in arguments if one.required)
    most = len(arguments) if all(one.nargs == 1 for one in arguments) else 99
    return None if least <= given <= most else f"{given} arguments, not {least} to {most}"


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", "|"):
            if part:
                yield part
            part = []
        else:
            part.append(word)


def _command(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    loaded = _COMMANDS[words[0]].load()
    if isinstance(loaded, typer.Typer):
        return typer.main.get_group(loaded).commands[words[1]], words[2:]
    app = typer.Typer(add_completion=False)
    app.command(words[0])(loaded)
    return typer.main.get_command(app), words[1:]
