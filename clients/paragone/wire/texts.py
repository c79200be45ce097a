"""The small types that all wire types are made of: texts, JSON objects, numbers, and the two kinds of base.

Texts are checked for lone surrogates here, because Python strings can hold them and ``str.encode`` fails on them much
later, deep inside a server.
"""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict
from pydantic_core import PydanticCustomError

__all__ = ["Answered", "Asked", "Count", "Finite", "JsonObject", "Probability", "Text"]


def _well_formed(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError(
                "lone_surrogate", "the text holds a lone surrogate, which no UTF-8 can carry: replace or remove it"
            ) from None
    return text


def _well_formed_object(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the object unchanged if all its texts, at any depth, are well formed and its numbers are finite."""
    waiting: list[JsonValue] = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            _well_formed(part)
        elif isinstance(part, dict):
            waiting.extend(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise PydanticCustomError("finite_number", "the object holds NaN or an infinity, which JSON cannot carry")
    return value


Text = Annotated[str, Strict(), AfterValidator(_well_formed)]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_well_formed_object)]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Asked(BaseModel):
    """What a request is made of: unknown fields are refused, and errors do not repeat the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Answered(BaseModel):
    """What an answer is made of: unknown fields are ignored, so that a newer server does not break an older client."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
