"""A model and its settings on a command line: ``NAME=SOURCE,KEY=VALUE,…``, the same wherever a model is named."""

import difflib
import json
import re
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from paragone_models.errors import ModelLoadError

__all__ = ["NAME", "NamedSource", "load_options", "named_source"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""What a model may be called: it stands in addresses."""

_NAMED = re.compile(rf"({NAME})=(.+)")
_SETTING = re.compile(r",([a-z_]+)=")
_TEXTS = (
    "kind",
    "head",
    "device",
    "dtype",
    "special_tokens",
    "bos",
    "reasoning",
    "chat_template",
    "aggregation",
    "backbone",
    "revision",
)
_SWITCHES = {"true": True, "false": False}
_NUMBERS = {"temperature": float, "skew_weight": float, "max_length": int}
_KEYS = (*_TEXTS, *_NUMBERS, "weights", "trust_remote_code", "deterministic")


class NamedSource(NamedTuple):
    """A model as a command line names it.

    Attributes:
        name: given, or the last part of the source; it may be unfit for an address.
        settings: texts by key, lists and tables as their JSON says.
    """

    name: str
    source: str
    settings: dict[str, Any]


def named_source(text: str) -> NamedSource:
    """Return what ``NAME=SOURCE,KEY=VALUE,…`` says; NAME and settings may be left out.

    Only a comma with a key and an equals sign behind it ends what stands before, so a folder may have commas in its
    name. A list or table is written as JSON.

    Raises:
        ModelLoadError: if a setting is given twice.

    >>> named_source("judge=owner/model,dtype=bfloat16").settings
    {'dtype': 'bfloat16'}
    """
    source, *settings = _SETTING.split(text)
    values: dict[str, Any] = {}
    for key, value in zip(settings[::2], settings[1::2], strict=True):
        if key in values or key == "source":
            raise ModelLoadError(f"{text!r}: {key} is given twice")
        values[key] = _json_or_text(value)
    named = _NAMED.fullmatch(source)
    if named is not None:
        return NamedSource(named[1], named[2], values)
    return NamedSource(PurePosixPath(source.rpartition(":")[2]).name, source, values)


def _json_or_text(value: str) -> Any:
    """Return a list or table from its JSON, and anything else as text, of which the settings make what they want."""
    if not value.startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def load_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as ``load_model`` takes them.

    Raises:
        ModelLoadError: if there is no such setting, or its value is of another type.

    >>> load_options({"max_length": "512", "trust_remote_code": "true"})
    {'max_length': 512, 'trust_remote_code': True}
    """
    options: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in _KEYS:
            nearest = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(_KEYS)}"
            raise ModelLoadError(f"unknown setting {key!r} of a model: {hint}")
        options[key] = _typed(key, value)
    return options


def _typed(key: str, value: Any) -> Any:
    if key == "weights":
        if isinstance(value, list | dict):
            return value
        raise ModelLoadError(f'weights is {value!r}; write a list or table as JSON, as {{"helpfulness": 0.65}}')
    if key in _NUMBERS:
        try:
            return _NUMBERS[key](value)
        except (TypeError, ValueError):
            raise ModelLoadError(f"{key} is {value!r}; it must be a number") from None
    if key in _TEXTS:
        return str(value)
    if value not in _SWITCHES:
        raise ModelLoadError(f"{key} is {value!r}; it must be true or false")
    return _SWITCHES[value]
