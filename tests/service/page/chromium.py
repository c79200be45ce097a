"""Find a Chromium, or fetch Debian's: its packages, and those that it needs and this machine lacks, are unpacked into
`~/.cache/paragone-tests` (or `$XDG_CACHE_HOME`) once. Nothing is installed, and root is not needed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium(*apt_options: str) -> tuple[str, dict[str, str]]:
    """Return the program and its environment.

    Raises:
        RuntimeError: if there is none and none can be fetched; it says what to do.
    """
    environment = dict(os.environ)
    named = os.environ.get("PARAGONE_CHROMIUM")
    if named:
        return named, environment
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is not None and not apt_options:
        return found, environment
    root = _fetched(apt_options)
    libraries = [str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu"))]
    environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    return str(root / "usr/lib/chromium/chromium"), environment


def _fetched(apt_options: tuple[str, ...]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paragone-tests"
    folder = cache / "chromium"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        lists, packages, unpacked = (Path(scratch) / name for name in ("lists", "packages", "unpacked"))
        for path in (lists / "partial", packages / "archives" / "partial"):
            path.mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", "Debug::NoLocking=1", "-o", f"Dir::State::lists={lists}"]
        apt += ["-o", f"Dir::Cache={packages}", "-o", "APT::Sandbox::User=root", *apt_options]
        try:
            subprocess.run([*apt, "update"], check=True)
            wanted = ["install", "--download-only", "--yes", "--no-install-recommends", "chromium"]
            subprocess.run([*apt, *wanted], check=True, stdout=subprocess.DEVNULL)
            for package in (packages / "archives").glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, unpacked], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"the tests of the page need a Chromium, and Debian's could not be fetched ({error}): install one, or "
                "name one with PARAGONE_CHROMIUM; to run the others alone: pytest -m 'not browser and not docker'"
            ) from error
        # Whoever is first, of several that start at once: the others throw theirs away.
        with contextlib.suppress(OSError):
            unpacked.rename(folder)
    return folder
