"""The tables of settings in the documents, written from the fields of the recipes.

``python -m paragone_training.settings_tables docs/*.md`` rewrites what stands between a line
``<!-- settings: MODULE.RECIPE -->`` and the next ``<!-- end of settings -->``. A test compares.
"""

import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from paragone_training.settings import Section, kind_and_limit

__all__ = ["settings_table"]

# The shortest stretch up to an end: a document may have several tables.
_MARKED = re.compile(r"(<!-- settings: (\S+)\.(\w+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def _rewritten(document: str) -> str:
    """Return a document with the tables between its markers written anew."""

    def table(match: re.Match[str]) -> str:
        recipe = getattr(import_module(match[2]), match[3])
        return f"{match[1]}\n{settings_table(recipe)}\n{match[4]}"

    return _MARKED.sub(table, document)


def settings_table(recipe: type[Section]) -> str:
    """Return the settings of a recipe in Markdown: a table of the settings of its own, then one per section."""
    own, sections = list[str](), list[str]()
    for name, field in recipe.model_fields.items():
        kind = kind_and_limit(field)[0]
        if isinstance(kind, type) and issubclass(kind, Section):
            optional = "" if field.is_required() or field.default is not None else " Left out unless given."
            lines = [_row(key, setting) for key, setting in kind.model_fields.items()]
            title = textwrap.wrap(f"`[{name}]` {_prose(kind.__doc__)}{optional}", _WIDTH, break_on_hyphens=False)
            sections += [*title, "", *_HEADER, *lines, ""]
        else:
            own.append(_row(name, field))
    return "\n".join([*_HEADER, *own, "", *sections] if own else sections)


# Of a line of prose in docs/.
_WIDTH = 116
_HEADER = ("| key | value | default | meaning |", "|---|---|---|---|")


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _literal(field.get_default(call_default_factory=True))
    return f"| `{name}` | {_values(field)} | {default} | {_prose(field.description)} |"


def _values(field: FieldInfo) -> str:
    kind, limit = kind_and_limit(field)
    if get_origin(kind) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(kind))
    if get_origin(kind) is tuple:
        inner, *more = get_args(kind)
        count = "" if more == [Ellipsis] else f"{1 + len(more)} "
        return f"list of {count}{_name(kind_and_limit(FieldInfo.from_annotation(inner))[0])}s"
    return f"{_name(kind)} {limit}".strip()


def _name(kind: Any) -> str:
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, str(kind))


def _literal(value: Any) -> str:
    # As TOML writes it, so that a cell can be copied into a recipe.
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if value else ""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str | None) -> str:
    # A cell is one line, and a bar would end it.
    return " ".join((text or "").split()).replace("|", r"\|")


if __name__ == "__main__":
    for _path in map(Path, sys.argv[1:]):
        _path.write_text(_rewritten(_path.read_text(encoding="utf-8")), encoding="utf-8")
