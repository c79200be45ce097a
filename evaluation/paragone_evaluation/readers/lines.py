"""JSON Lines, plain or gzipped, with line numbers in every complaint."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paragone_evaluation.errors import DataError

__all__ = ["field", "read_lines", "text_field"]


def read_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers, from 1, and the objects on those lines; empty lines are passed over.

    Args:
        path: a .jsonl or .jsonl.gz file in UTF-8.

    Raises:
        DataError: if the file cannot be read, or a line is no JSON object.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise DataError(f"{path}:{number}: a line must be a JSON object, not {type(value).__name__}")
                yield number, value
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        # A JSON error's own text counts lines within this one.
        told = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path}:{number + isinstance(error, UnicodeDecodeError)}: {told}") from error


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Return a field of a row.

    Args:
        row: one object of a file.
        name: the field.
        where: file and line, for the message.

    Raises:
        DataError: if the row lacks it.
    """
    if name not in row:
        raise DataError(f"{where}: field {name!r} is missing; the row has {', '.join(sorted(row)) or 'none'}")
    return row[name]


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field of a row that must be text.

    Args:
        row: one object of a file.
        name: the field.
        where: file and line, for the message.

    Raises:
        DataError: if the row lacks it, it is no text, or it holds what UTF-8 cannot (a lone surrogate).
    """
    value = field(row, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} must be text, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: field {name!r} holds a lone surrogate, which is no character") from error
    return value
