"""Turn pydantic's complaint about a request into the error of the wire, without repeating the input."""

from pydantic import ValidationError

from paragone.codes import ErrorCode
from paragone.wire.answers import ErrorDetail

__all__ = ["error_detail"]

_LISTS = ("pairs", "items", "groups")
_LONGEST_PLACE = 8
_LONGEST_NAME = 40
_CODES = {"json_invalid": ErrorCode.INVALID_JSON}


def error_detail(error: ValidationError) -> ErrorDetail:
    """Return the first complaint as code, message and the index of the item at fault.

    Args:
        error: what validating a request of ``paragone.wire`` raised.

    Returns:
        The code is ``invalid_json`` for a body that is no JSON, and ``invalid_request`` for the rest, a lone surrogate
        in a text or a name included: its escape is sound UTF-8.
    """
    complaints = error.errors(include_url=False, include_input=False, include_context=False)
    # A misspelt name explains why the right one is missing, so it is told first.
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    place = first["loc"]
    item = place[1] if len(place) > 1 and place[0] in _LISTS and isinstance(place[1], int) else None
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    where = _written(place)
    return ErrorDetail(
        code=_CODES.get(first["type"], ErrorCode.INVALID_REQUEST),
        message=f"{where}: {message}" if where else message,
        item=item,
    )


def _written(place: tuple[int | str, ...]) -> str:
    """Return a place as ``pairs[3].prompt[0].role``; union tags are left out and the sender's own words are cut."""
    written = ""
    steps = [step for step in place if not (isinstance(step, str) and step.startswith("<"))]
    for step in steps[:_LONGEST_PLACE]:
        if isinstance(step, int):
            written += f"[{step}]"
        else:
            named = step if step.isascii() and step.isidentifier() and len(step) <= _LONGEST_NAME else "(a name)"
            written += f".{named}" if written else named
    return f"{written}…" if len(steps) > _LONGEST_PLACE else written
