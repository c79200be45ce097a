"""The blocks of docs/evaluation.md run, and show what they claim."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from paragone.cli import main
from paragone_evaluation.readers import LAYOUTS
from paragone_evaluation.readers.containers import SUFFIXES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_of_data_files_has_every_container_and_layout():
    page = (ROOT / "docs" / "data-files.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE)
    assert {f"`{name}`" for name in LAYOUTS} <= set(first_cells)
    assert set(SUFFIXES) == {name for cell in first_cells for name in re.findall(r"`(\.\w+)`", cell)}


def test_there_are_commands_to_run():
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.replace("\\\n", " "))
    monkeypatch.setattr("sys.argv", words)
    with contextlib.suppress(SystemExit):
        main(words[1:])
    told = capsys.readouterr()
    assert "95 % interval" in told.out, told.err
    assert (tmp_path / words[words.index("--output") + 1]).is_dir()


def test_the_documented_python_prints_what_it_claims():
    code, claimed = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", TEXT, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert printed.getvalue() == claimed
