"""The ``pip install`` that adds an extra to this distribution, from where it was installed itself."""

import functools
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from paragone.addresses import without_userinfo

__all__ = ["pip_install"]


def pip_install(*extras: str, place: bool = True) -> str:
    """Return the command that adds extras: in the clone, or from the file, repository or index that this came from.

    Args:
        place: whether it says where this came from: a folder, a file or a repository, which is nobody else's business.
    """
    return _command(_origin(), ",".join(extras), place=place)


@functools.cache
def _origin() -> dict[str, Any]:
    """Return pip's record of a direct install (PEP 610); empty if there is none, as for one from an index."""
    try:
        text = distribution("paragone").read_text("direct_url.json")
    except PackageNotFoundError:  # run from its sources
        text = None
    record = json.loads(text) if text else {}
    return record if isinstance(record, dict) else {}


def _command(origin: Mapping[str, Any], extras: str, *, place: bool) -> str:
    url = str(origin.get("url", ""))
    if not url or (not place and "dir_info" not in origin):
        return f"pip install 'paragone[{extras}]'"
    if not url.startswith("file:"):
        source = without_userinfo(url)
        if version_control := origin.get("vcs_info"):
            source = f"{version_control['vcs']}+{source}@{version_control['commit_id']}"
        return f"pip install 'paragone[{extras}] @ {source}'"
    path = Path(url2pathname(urlsplit(url).path))
    if "dir_info" not in origin:
        return f"pip install '{path}[{extras}]'"
    options = "-c constraints.txt " * (path / "constraints.txt").is_file()
    options += "-e " * bool(origin["dir_info"].get("editable"))
    return f"pip install {options}'.[{extras}]' in {path if place else 'its clone'}"
