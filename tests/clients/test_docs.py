import inspect
import re
import shlex
from pathlib import Path

import pytest

from paragone import cli, exceptions
from paragone.client import Client
from paragone.connection import DEFAULT_TIMEOUT_S
from tests.clients.oracle import Oracle, error, listening

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def answer(request):
    """Answer as the oracle does, and refuse an empty prompt as the service does."""
    if b'"prompt":""' in request.content:
        return error(422, "empty_prompt", "items[1]: the prompt is empty", 1)
    return Oracle()(request)


def test_every_python_block_of_the_page_runs_in_order():
    written = blocks("python")
    assert len(written) >= 5
    with listening(answer) as url:
        names = {}
        for block in written:
            exec(compile(block.replace(ADDRESS, url), "docs/client.md", "exec"), names)
        names["client"].close()
    assert (names["best"], names["scored"]) == (0, [1.8, 1.8])
    assert (names["reward"].__name__, names["custom_rm"].__name__) == ("paragone_win_rate", "reward")


def test_the_command_of_the_page_runs(monkeypatch, capsys):
    (block,) = blocks("bash")
    name, *arguments = shlex.split(block.replace("\\\n", " "))
    assert name == "paragone"
    with listening(answer) as url:
        monkeypatch.setenv("PARAGONE_URL", url)
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
    assert not end.value.code
    assert capsys.readouterr().out.startswith("first preferred: ")


def test_the_page_names_every_exception_and_what_it_refines():
    table = dict(re.findall(r"^\| (`\w+Error`.*?) \| `(\w+)` \|", PAGE, re.MULTILINE))
    named = {}
    for cell, standard in table.items():
        for kind in re.findall(r"`(\w+)`", cell):
            named[kind] = standard
    public = {name for name in exceptions.__all__ if name.endswith("Error")} - {"ParagoneError"}
    assert set(named) == public
    for kind, standard in named.items():
        assert standard in [base.__name__ for base in getattr(exceptions, kind).__mro__]


def test_the_page_names_every_method_and_the_real_defaults():
    for name in [name for name, member in vars(Client).items() if inspect.isfunction(member)]:
        assert name.startswith("_") or name == "close" or f"`{name}(" in PAGE
    page = " ".join(PAGE.split())
    defaults = {name: one.default for name, one in inspect.signature(Client).parameters.items()}
    assert f"`max_items_per_request` items ({defaults['max_items_per_request']:,};" in page
    assert f"`max_bytes_per_request` ({defaults['max_bytes_per_request'] >> 20} MiB)" in page
    assert f"`concurrency` ({defaults['concurrency']})" in page
    assert f"`retry_s` ({defaults['retry_s']:g} s)" in page
    assert f"`timeout_s` ({DEFAULT_TIMEOUT_S:g} s)" in page
