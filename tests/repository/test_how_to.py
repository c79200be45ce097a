"""The how-to pages: their commands and options exist, their files load, their code stands in an example that is run."""

import re
import shlex
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import typer.main
import yaml

from paragone_service.settings_sources import load_settings
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.preference.recipe import Recipe
from paragone_training.settings import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
COMMANDS = {entry.name: entry for entry in entry_points(group="paragone.commands")}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command(words):
    """Return the Typer command that words name, and the words after its name."""
    loaded = COMMANDS[words[0]].load()
    if isinstance(loaded, typer.Typer):
        return typer.main.get_group(loaded).commands[words[1]], words[2:]
    app = typer.Typer(add_completion=False)
    app.command(words[0])(loaded)
    return typer.main.get_command(app), words[1:]


def refused(words):
    """Return what a command would refuse in its words: options that it has not, too many or too few arguments."""
    found, rest = command(words)
    options = {name: one for one in found.params if one.param_type_name == "option" for name in one.opts}
    arguments, rest = [one for one in found.params if one.param_type_name == "argument"], list(rest)
    given = 0
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_has_its_options_and_every_script_is_there(page):
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    assert lines
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        if name == "paragone":
            assert refused(words) is None, line
        elif name == "python":
            assert (ROOT / words[0]).is_file(), line
        else:
            assert name in ("curl", "pip", "cp", "vllm"), line


def test_a_command_that_would_be_refused_is_found():
    assert refused(["serve", "--modle", "x"]) == "no option --modle"
    assert refused(["train", "head"]) == "0 arguments, not 1 to 99"
    assert refused(["ask", "a", "b", "--json"]) == "2 arguments, not 3 to 3"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_a_page_loads(page, tmp_path):
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if "models" in table:
            (tmp_path / "server.toml").write_text(block)
            assert load_settings({}, tmp_path / "server.toml").models
        else:
            parse(PolicyRecipe if "method" in table else Recipe, table)
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def plain(code):
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_piece_of_python_stands_in_an_example(page):
    sources = [plain(path.read_text(encoding="utf-8")) for path in (ROOT / "examples").rglob("*.py")]
    for block in blocks(page, "python"):
        assert any(plain(block) in source for source in sources), block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_one_task_and_short(page):
    assert 20 <= len(page.read_text(encoding="utf-8").splitlines()) <= 90
    languages = set(re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert languages <= {"sh", "toml", "yaml", "python", "text"}
