"""All methods by name: from a recipe's words and numbers to a method, and what each refuses of the other sections."""

import dataclasses

from paragone_training.errors import RecipeError
from paragone_training.policy.methods.dpo import Dpo
from paragone_training.policy.methods.egpo import Egpo
from paragone_training.policy.methods.gpo import Gpo
from paragone_training.policy.methods.inpo import Inpo
from paragone_training.policy.methods.ipo import Ipo
from paragone_training.policy.methods.method import Method
from paragone_training.policy.methods.omwu import Omwu
from paragone_training.policy.methods.sppo import Sppo

__all__ = ["METHODS", "check_needs", "knobs", "method_of"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (Sppo, Gpo, Inpo, Egpo, Omwu, Dpo, Ipo)}


def method_of(name: str, **numbers: float | None) -> Method:
    """Return a method with its numbers; None stands for a number that is not given.

    Raises:
        RecipeError: if there is no such method, or a number is missing, another method's, or out of its range.
    """
    if name not in METHODS:
        raise RecipeError(f"method is {name!r}; it must be one of {', '.join(METHODS)}")
    kind = METHODS[name]
    fields = {field.name: field for field in _fields(kind)}
    # None is "not given", since a recipe has the numbers of all methods as fields.
    chosen = {knob: value for knob, value in numbers.items() if value is not None}
    for knob in chosen:
        if knob not in fields:
            # The message says whose number it is: most often the method's name is what is wrong.
            owners = [other for other, kind in METHODS.items() if knob in {field.name for field in _fields(kind)}]
            raise RecipeError(
                f"{name} has no loss.{knob}; its numbers are {', '.join(fields)}, and "
                f"loss.{knob} is for {', '.join(owners)}: remove it"
            )
    for knob, field in fields.items():
        if knob not in chosen and field.default is dataclasses.MISSING:
            raise RecipeError(f"{name} needs loss.{knob}; its numbers are {', '.join(fields)}")
    try:
        return kind(**chosen)
    except ValueError as error:
        raise RecipeError(f"[loss] of {name}: {error}") from error


def check_needs(method: Method, *, labels: str, ties: str, win_rates: str, reference: str) -> None:
    """Refuse targets and a reference that a method cannot use.

    Raises:
        RecipeError: if a setting is not one of the method's; the message names those that are.
    """
    needs, name = method.needs, method.name
    # Refused and not ignored: who sets it believes that it matters.
    if needs.pairs and win_rates != "with-self":
        own = " and ".join(other for other, kind in METHODS.items() if not kind.needs.pairs)
        raise RecipeError(f"targets.win_rates is for {own}; {name} is trained on pairs: remove it")
    if labels not in needs.labels:
        known = " or ".join(map(repr, needs.labels))
        raise RecipeError(f"{name} has no {labels} labels: set targets.labels to {known}")
    if ties not in needs.ties:
        raise RecipeError(f"{name} has no label for a tie: set targets.ties = {' or '.join(map(repr, needs.ties))}")
    if reference not in needs.references:
        known = " or ".join(map(repr, needs.references))
        free = ", ".join(other for other, kind in METHODS.items() if reference in kind.needs.references)
        raise RecipeError(
            f"{name} starts from the policy that gave the responses: set reference.policy = {known} "
            f"(a KL to another reference is for {free})"
        )


def knobs() -> dict[str, tuple[str, float | None]]:
    """Return the meaning, method by method, and the default of each number that some method has; None: it has none."""
    texts: dict[str, dict[str, list[str]]] = {}
    defaults: dict[str, float | None] = {}
    for name, kind in METHODS.items():
        for field in _fields(kind):
            # Methods that mean the same share one line of the table of settings.
            texts.setdefault(field.name, {}).setdefault(field.metadata["help"], []).append(name)
            defaults[field.name] = None if field.default is dataclasses.MISSING else field.default
    return {
        knob: ("; ".join(f"{', '.join(names)}: {text}" for text, names in meanings.items()), defaults[knob])
        for knob, meanings in texts.items()
    }


def _fields(kind: type[Method]) -> tuple[dataclasses.Field[float], ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type] # a Protocol cannot say that it is a dataclass
