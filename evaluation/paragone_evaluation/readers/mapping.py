"""Files in a layout of their own, by a mapping of our fields to their columns: ``prompt=question,first=a,second=b``.

| fields | read as |
|---|---|
| ``prompt`` | a prompt for a policy |
| ``prompt, chosen, rejected`` (``strength``) | pairs |
| ``prompt, first, second`` and ``label`` or ``strength`` | pairs |
| ``prompt, response, ratings.NAME`` | ratings |

``id``, ``split``, ``group``, ``subset``, ``tools`` and ``reason`` may be mapped too, and are read under their own names
otherwise. A column may be a path into an object or a list, as ``input.messages`` or ``answers.0.text``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.rows import BadRowError, Fields

__all__ = ["ColumnMap", "parse_map"]

_COMMON = ("id", "split", "group", "subset", "tools", "reason")
_NEEDED = ("prompt", "chosen", "rejected", "first", "second", "response", "strength", "label")
_UNJUDGED = ("responses",)
_LABELS = ("label.first", "label.second", "label.tie")
_RATINGS = "ratings."
# What files call the winner, in lower case. 0 and 1 are not among them: some count from 0, and to others 1 is "yes".
_WORDS = {
    "first": ("first", "a", "model_a", "response_a", "answer_a", "left", "a>b"),
    "second": ("second", "b", "model_b", "response_b", "answer_b", "right", "b>a", "a<b"),
    "tie": ("tie", "tie (bothbad)", "both", "neither", "draw", "equal", "same", "a=b"),
}


def parse_map(words: Sequence[str]) -> dict[str, str]:
    """Return the mapping of ``--map``: our fields and the file's columns, joined by ``=`` and parted by commas.

    Raises:
        DataError: if a piece has no ``=`` or a field is named twice.
    """
    pieces = [piece.strip() for word in words for piece in word.split(",") if piece.strip()]
    names: dict[str, str] = {}
    for piece in pieces:
        field, equals, column = (part.strip() for part in piece.partition("="))
        if not (equals and field and column):
            raise DataError(f"--map has {piece!r}; write FIELD=COLUMN, as prompt=question")
        if field in names:
            raise DataError(f"--map names {field!r} twice: leave one of them out")
        names[field] = column
    return names


class ColumnMap:
    """Reads a file's columns as the fields of our own layouts.

    Args:
        names: our fields and the file's columns.
        unjudged: responses need no rating, strength or label beside them.

    Raises:
        DataError: if a field is unknown or one is missing beside the others.
    """

    def __init__(self, names: Mapping[str, str], *, unjudged: bool = False) -> None:
        known = (*_NEEDED, *(_UNJUDGED if unjudged else ()), *_COMMON, *_LABELS)
        for field in names:
            if field not in known and not field.startswith(_RATINGS):
                raise DataError(f"map has the field {field!r}; known are {', '.join(known)} and {_RATINGS}NAME")
        _check_together(names, judged=not unjudged)
        self._columns = {field: names[field] for field in (*_NEEDED, *_UNJUDGED) if field in names and field != "label"}
        self._common = {field: names.get(field, field) for field in _COMMON}
        self._mapped = set(names)
        self._ratings = {field.removeprefix(_RATINGS): names[field] for field in names if field.startswith(_RATINGS)}
        self._label = names.get("label")
        self._outcomes = _outcomes(names) if self._label else {}

    def apply(self, fields: Fields) -> Fields:
        """Return a row's values under our names.

        Raises:
            BadRowError: if a column is missing, or a label says nothing that is known.
        """
        made: Fields = {field: _value(fields, column) for field, column in self._columns.items()}
        if "strength" in made:
            made["strength"] = _number(made["strength"])
        for field, column in self._common.items():
            # Those that are not mapped are there or not; one that is mapped may still be null.
            value = _value(fields, column) if field in self._mapped else fields.get(column)
            if value is not None:
                made[field] = value
        if self._ratings:
            made["ratings"] = {name: _number(_value(fields, column)) for name, column in self._ratings.items()}
        if self._label is None:
            return made
        label = self._outcome(_value(fields, self._label))
        made["responses"] = [made.pop("first"), made.pop("second")]
        made["comparisons"] = [{"first": 0, "second": 1, "label": label}]
        return made

    def _outcome(self, value: Any) -> str:
        outcome = self._outcomes.get(_word(value))
        if outcome is None:
            raise BadRowError(
                f"the label in column {self._label!r} is {str(value)[:40]!r}; say what it means: "
                "map label.first, label.second and label.tie to the values that stand for them"
            )
        return outcome


def _check_together(names: Mapping[str, str], *, judged: bool) -> None:
    """Refuse fields of which no row can be made."""
    rated = any(field.startswith(_RATINGS) for field in names)
    needed = {
        "chosen": ("prompt", "rejected"), "rejected": ("prompt", "chosen"), "first": ("prompt", "second"),
        "second": ("prompt", "first"), "response": ("prompt",), "label": ("first", "second"),
        **dict.fromkeys(_LABELS, ("label",)),
    }  # fmt: skip
    for field, others in needed.items():
        if field in names and (missing := [other for other in others if other not in names]):
            raise DataError(f"map has {field!r} and not {' or '.join(map(repr, missing))}: name the column of each")
    if (rated and "response" not in names) or (judged and rated != ("response" in names)):
        raise DataError("map needs response together with ratings.NAME: name the columns of both")
    if "first" in names and (judged or "label" in names) and ("label" in names) == ("strength" in names):
        raise DataError("map has first and second: name the column of either label or strength beside them")
    if "prompt" not in names:
        raise DataError("map has no 'prompt': name its column")


def _outcomes(names: Mapping[str, str]) -> dict[str, str]:
    """Return what the values of a label column mean."""
    if any(label in names for label in _LABELS):
        stated = [(label.removeprefix("label."), names[label]) for label in _LABELS if label in names]
        return {_word(value): outcome for outcome, values in stated for value in values.split("|")}
    words = {word: outcome for outcome, known in _WORDS.items() for word in known}
    # Many files write the winner as the name of its column.
    return words | {_word(names["first"]): "first", _word(names["second"]): "second"}


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def _number(value: Any) -> Any:
    """Return the number that a text writes, as cells of a CSV file do; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _value(fields: Fields, column: str) -> Any:
    if column in fields:
        return fields[column]
    value: Any = fields
    for step in column.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise BadRowError(f"column {column!r} is missing; the row has {', '.join(sorted(map(str, fields)))}")
    return value
