"""From TOML tables to frozen dataclasses: unknown keys, wrong types and forbidden values are refused by name."""

import difflib
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from paragone_training.errors import RecipeError

__all__ = ["build", "overridden", "read_toml"]

Section = TypeVar("Section")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Args:
        path: the file.

    Raises:
        RecipeError: if it is not there, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def overridden(tables: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the tables with ``section.key=value`` assignments applied.

    Args:
        tables: of a recipe.
        assignments: values in TOML syntax; what is no TOML value is taken as a string.

    Raises:
        RecipeError: if an assignment has no ``=``, or no section.
    """
    result: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in tables.items()
    }
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key):
            raise RecipeError(f"--set {assignment!r} is not of the form section.key=value, as in training.epochs=2")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            value = text.strip()
        table = result.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {assignment!r}: {section} is no section of the recipe")
        table[key] = value
    return result


def build(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Return a dataclass filled from a table, nested tables included.

    Args:
        section: a dataclass whose fields are annotated with str, int, float, bool, Literal, tuple, dataclasses, or a
            union of one of them with None.
        values: the table.
        where: dotted name of the table, for messages.

    Raises:
        RecipeError: if a key is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(section)
    known = {field.name: field for field in fields(section)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise RecipeError(f"unknown key {_dotted(where, name)!r}; {hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{_dotted(where, name)} is missing, and it has no default")
    return section(**{name: _value(hints[name], value, _dotted(where, name)) for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (hint,) = [choice for choice in get_args(hint) if choice is not type(None)]
        return _value(hint, value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} is {value!r}; it must be a table: [{where}]")
        return build(hint, value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise RecipeError(f"{where} is {value!r}; it must be of type {hint.__name__}")
    return value


def _tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"{where} is {value!r}; it must be a list, as in [{value!r}]")
    if hints[-1] is not Ellipsis and len(value) != len(hints):
        raise RecipeError(f"{where} has {len(value)} entries; it must have {len(hints)}")
    return tuple(_value(hints[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
