"""The README keeps its word: its commands run, and print what it says they print.

The two set-up lines themselves are run by scripts/ci, in a fresh clone; here everything after the installation is.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PARAGONE = Path(sys.executable).with_name("paragone")


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A bare ``paragone serve``, as the first command starts it, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        process = subprocess.Popen([PARAGONE, "serve", "--port", str(port)], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
                    break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()


def test_the_first_screen_is_short():
    before_the_first_block = README.split("```")[0]
    assert len(before_the_first_block.split()) < 60


def test_the_set_up_commands_are_one_line_each_and_use_the_constraints():
    serve, check = (line for text in blocks("sh") for line in text.splitlines() if line.startswith("python3 -m venv"))
    assert serve.endswith("'.[service]' && .venv/bin/paragone serve")
    assert check.endswith("-e '.[dev]' && .venv/bin/pytest -n 2 --dist loadfile")
    assert "-c constraints.txt" in serve
    assert "-c constraints.txt" in check


def test_ask_prints_what_the_readme_shows(url):
    ask = next(text for text in blocks("sh") if text.startswith(".venv/bin/paragone ask"))
    command = ask.replace(".venv/bin/paragone", str(PARAGONE))
    environment = os.environ | {"PARAGONE_URL": url}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == blocks("text")[1]


def test_the_python_example_prints_what_the_readme_shows(url):
    example = blocks("python")[0].replace("http://127.0.0.1:8000", url)
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert result.stdout == blocks("text")[0]


def test_the_real_model_is_served_by_a_flag_that_exists():
    command = next(text for text in blocks("sh") if "--model" in text).split()
    result = subprocess.run([PARAGONE, "serve", "--help"], capture_output=True, text=True, check=True)
    assert command[2] in result.stdout
