"""``progress.jsonl``: what a run says while it lasts, one JSON object a line, for whoever watches it from outside.

No torch: `paragone watch` reads it and starts at once.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PROGRESS_FILE", "append_progress", "read_progress"]

PROGRESS_FILE = "progress.jsonl"


def append_progress(folder: Path, values: Mapping[str, Any]) -> None:
    """Add a line to the file in a folder, which is made where needed; the line begins with the time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PROGRESS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), **values}) + "\n")


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the file in a folder, none without one; a line that is being written is left out."""
    file = folder / PROGRESS_FILE
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
