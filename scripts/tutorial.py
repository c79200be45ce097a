"""Do what docs/tutorial.md says, block by block, and compare what is printed with what stands there.

    python scripts/tutorial.py             # in a fresh clone and a fresh environment; before a release
    python scripts/tutorial.py --short     # here: nothing is installed, few steps, no comparison of what they give

``sh`` blocks are run in the order of the page, in one folder, and one that starts the server is left running. ``toml``
and ``python`` blocks are written to the file that the text before them names. In a ``text`` block … is anything.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
ADDRESS = "http://127.0.0.1:8000"
# What --short does less of; each has to stand on the page.
_SHORTER = {"epochs = 3": "epochs = 1", f"{ADDRESS} 40": f"{ADDRESS} 2"}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_START_S = 180


class TutorialError(Exception):
    """The page does not do what it says."""


@dataclass(frozen=True)
class Block:
    """A block of the page: its language, its text, and the file that the text before it names."""

    language: str
    text: str
    file: str | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Follow the page; end with 1 where it does not do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="Install nothing, train a few steps, compare less.")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "paragone"
            if chosen.short:
                place.mkdir()
                (place / "data").symlink_to(ROOT / "data")
            else:
                subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
            follow(PAGE.read_text(encoding="utf-8"), place, short=chosen.short)
    except TutorialError as error:
        sys.exit(f"tutorial: {error}")
    print(f"the tutorial does what it says, in {(time.monotonic() - began) / 60:.1f} minutes")


def follow(page: str, place: Path, *, short: bool) -> None:
    """Run a page's blocks in a folder.

    Args:
        place: a clone, or with ``short`` a folder with the data alone.
        short: run no block that installs, train less, and compare only what does not depend on that.

    Raises:
        TutorialError: if a command fails, or prints something else than the page says.
    """
    environment = _environment(place, short=short)
    servers: list[subprocess.Popen[str]] = []
    printed, compared = "", True
    try:
        for block in blocks_of(page):
            if short and "pip install" in block.text:
                continue
            text = shortened(block.text) if short else block.text
            if block.language != "text":
                compared = text == block.text
            text = text.replace(ADDRESS, environment["PARAGONE_URL"])
            if block.file:
                (place / block.file).write_text(text, encoding="utf-8")
            elif block.language == "sh" and "paragone serve" in text:
                servers.append(_served(text, place, environment))
            elif block.language == "sh":
                printed = _run(text, place, environment)
            elif block.language == "text" and compared and not matches(block.text, printed):
                raise TutorialError(f"the page says\n{block.text}\nand what was printed is\n{printed}")
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=60)


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page; a file's name is the last code in the sentence that ends before its block."""
    for found in _BLOCK.finditer(page):
        language, text = found.groups()
        before = page[: found.start()].rstrip().rpartition("\n\n")[2]
        names = re.findall(r"`(my/[\w.]+)`", before)
        yield Block(language, text, names[-1] if language in ("toml", "python") else None)


def shortened(text: str) -> str:
    """Return a block with less to train."""
    for long, less in _SHORTER.items():
        text = text.replace(long, less)
    return text


def matches(shown: str, printed: str) -> bool:
    """Return whether what was printed is what is shown: … stands for anything, and any space for any other."""
    parts = [re.sub(r"(?:\\\s|\s)+", r"\\s+", re.escape(part)) for part in re.split("…", shown.strip())]
    return re.fullmatch(r"[\s\S]*?".join(parts), printed.strip()) is not None


def _environment(place: Path, *, short: bool) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # In short the commands are those of the environment that runs this script.
    commands = Path(sys.executable).parent if short else place / ".venv" / "bin"
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": path,
        "COLUMNS": "160",
        "PARAGONE_PORT": str(port),
        "PARAGONE_URL": f"http://127.0.0.1:{port}",
    }


def _run(text: str, place: Path, environment: dict[str, str]) -> str:
    print(f"+ {text.rstrip()}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-e", "-c", _active(text, place)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        raise TutorialError(f"{text}ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _served(text: str, place: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Return a server that was started and is ready."""
    # Bash gives way to the server, so that ending the process ends the server.
    command = _active(text.replace("paragone serve", "exec paragone serve"), place)
    print(f"+ {text.rstrip()}", flush=True)
    with (place / "serve.log").open("w") as log:
        server = subprocess.Popen(["bash", "-e", "-c", command], cwd=place, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urlopen(f"{environment['PARAGONE_URL']}/readyz", timeout=10):
                return server
        except OSError:
            time.sleep(0.5)
    server.terminate()
    raise TutorialError(f"the server was not ready in {_START_S} s:\n{(place / 'serve.log').read_text()}")


def _active(text: str, place: Path) -> str:
    # Without an environment in the folder there is nothing to activate: its commands are on the path already.
    return text if (place / ".venv").exists() else text.replace(". .venv/bin/activate\n", "")


if __name__ == "__main__":
    main()
