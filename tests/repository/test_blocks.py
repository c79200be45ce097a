"""Every page: its lines are short, its commands and options exist, its files load, its requests are answered.

Python blocks have tests of their own: those of README, tutorial, explanations, client, models and evaluation are run,
and those of training loops stand in examples.
"""

import ast
import contextlib
import itertools
import json
import re
import tomllib
from urllib.request import Request, urlopen

import pytest
import yaml
from pydantic import TypeAdapter

from paragone import cli
from paragone.wire import PreferencesRequest
from paragone_models import load_model
from paragone_service.config import ConfigError
from paragone_service.judge.verdicts import load_format
from paragone_service.settings_sources import load_settings, parse_engine, parse_model
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.preference.recipe import Recipe
from paragone_training.settings import parse
from tests.evaluation.conftest import served
from tests.repository.documents import PAGES, ROOT, blocks, commands, name_of, prose, refused

LONGEST = 120
# Commands of others, which no test has at hand: what they are given is read, and not run.
OTHERS = (
    *("cp", "curl", "docker", "grep", "jq", "kubectl", "mkdir", "chmod", "pytest", "tritonserver", "vllm", "."),
    "python3",
)
SHELL = ("sh", "bash")
every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@every_page
def test_no_line_of_prose_is_long(page):
    long = [number for number, line in prose(page) if len(line) > LONGEST and "](http" not in line]
    assert long == [], f"lines of {name_of(page)} with over {LONGEST} characters: wrap their paragraphs"


def checked(words):
    """Fail if a command cannot be run as it stands."""
    name, *rest = words
    if name == "paragone":
        assert refused(rest) is None
        for option, value in itertools.pairwise(rest):
            if rest[0] == "serve" and option in ("--model", "--engine"):
                (parse_model if option == "--model" else parse_engine)(value)
    elif name == "python" and rest[0] == "-c":
        ast.parse(rest[1])
    elif name == "python":
        assert (ROOT / rest[0]).is_file() or rest[0].startswith("my/")
    elif name in ("accelerate", "torchrun"):
        assert refused(rest[rest.index("paragone.cli") + 1 :]) is None
        files = [value for option, value in itertools.pairwise(rest) if option == "--config_file"]
        assert all((ROOT / file).is_file() for file in files)
    elif name == "pip":
        assert rest[rest.index("-c") + 1] == "constraints.txt"
    else:
        assert name in OTHERS


@every_page
def test_every_command_can_be_run_as_it_stands(page):
    for block in blocks(page, *SHELL):
        for words in commands(block):
            try:
                checked(words)
            except Exception as error:
                raise AssertionError(f"{' '.join(words)}: {error}") from error


def test_a_command_that_would_be_refused_is_found():
    assert refused(["serve", "--modle", "x"]) == "no option --modle"
    assert refused(["train", "head"]) == "0 arguments, not 1 to 99"
    assert refused(["ask", "a", "b", "--json"]) == "2 arguments, not 3 to 3"
    for wrong in ("paragone serve --model judge=x,colour=red", "pip install paragone", "python nowhere.py", "rm x"):
        with pytest.raises((AssertionError, ValueError, ConfigError)):
            checked(next(commands(wrong)))
    assert list(commands("A=1 a \\\n  b && c 'd\ne'  # f")) == [["a", "b"], ["c", "d\ne"]]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "decisions"], ids=name_of)
def test_every_install_line_works_in_a_clone(page):
    text = page.read_text(encoding="utf-8")
    # README says how it will be once there is a release; messages of the commands are not ours to change here.
    lines = [line for line in re.findall(r"pip install [^`\n]*", text) if "paragone[" not in line]
    assert [line for line in lines if "-c constraints.txt" not in line and "-m pip" not in line] == []


def mentioned(table):
    """Return the models that ensembles and aliases of a server's file name, and that the file has not."""
    ensembles = [
        one["source"] for one in table.get("models", {}).values() if one.get("source", "").startswith("ensemble:")
    ]
    members = {name for source in ensembles for name in source.removeprefix("ensemble:").split("+")}
    return (members | set(table.get("aliases", {}).values())) - table.get("models", {}).keys()


def load(block, path):
    """Fail if a TOML file, or the sections that a page shows of one, would be refused."""
    table = tomllib.loads(block)
    if table.keys() & {"models", "dialects"}:
        path.write_text(
            block + "".join(f'[models.{name}]\nsource = "builtin:mini-regression"\n' for name in mentioned(table))
        )
        assert load_settings({}, path).models
    elif "messages" in table:
        path.write_text(block)
        assert load_format(str(path))
    elif "data" in table:
        parse(PolicyRecipe if "method" in table else Recipe, table)
    else:
        recipe = PolicyRecipe if "servers" in table else Recipe
        for name, section in table.items():
            TypeAdapter(recipe.model_fields[name].annotation).validate_python(section)


@every_page
def test_every_file_loads(page, tmp_path):
    for block in blocks(page, "toml"):
        load(block, tmp_path / "block.toml")
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)
    for block in blocks(page, "json"):
        assert json.loads(block.replace(", …", ""))


def test_a_file_that_would_be_refused_is_found(tmp_path):
    for wrong in ('[models.a]\nsuorce = "x"\n', "[servers]\nurl = 1\n", '[model]\nkind = "best"\n'):
        with pytest.raises(Exception, match=r"suorce|url|kind"):
            load(wrong, tmp_path / "block.toml")


@pytest.fixture(scope="module")
def url():
    """The address of a server with a model of each kind that pages ask, under the names that they have there."""
    hosted = {
        "mini-general-preference": load_model("builtin:mini-general-preference", device="cpu"),
        "judge": load_model("builtin:mini-bradley-terry", name="judge", device="cpu"),
    }
    with served(hosted, aliases={"*": "judge"}) as address:
        yield address


def requests(page):
    return [words[1:] for block in blocks(page, *SHELL) for words in commands(block) if words[0] == "curl"]


@pytest.mark.parametrize("page", [page for page in PAGES if requests(page)], ids=name_of)
def test_every_request_by_curl_is_answered(page, url):
    for words in requests(page):
        (address,) = [word for word in words if "localhost:" in word or "127.0.0.1:" in word]
        body = words[words.index("-d") + 1] if "-d" in words else None
        if page.stem == "judges":
            # It asks for a judge's reason: the request is one, and only a judge could answer it.
            assert PreferencesRequest.model_validate_json(body)
            continue
        path = re.sub(r"^(http://)?[\w.]+:\d+", "", address)
        request = Request(url + path, body and body.encode(), {"content-type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            assert json.load(answer)


def test_what_the_page_of_hosting_asks_is_answered(url, monkeypatch, capsys):
    """The commands that ask a server that runs, with a model that ships in the place of a large one."""
    page = ROOT / "docs" / "how-to" / "host-a-reward-model.md"
    asking = [
        words for block in blocks(page, *SHELL) for words in commands(block) if words[1:2] in (["ask"], ["verify"])
    ]
    assert [words[1] for words in asking] == ["ask", "verify"]
    monkeypatch.setenv("PARAGONE_URL", url)
    for words in asking:
        with contextlib.suppress(SystemExit):
            cli.main([word.replace("http://127.0.0.1:8000", url) for word in words[1:]])
    printed = capsys.readouterr()
    assert "first preferred: " in printed.out
    assert "agrees" in printed.out, printed
