"""From the bytes of a body to a request of the wire contract, within the limits of one request.

The body is parsed once in Rust and validated as Python values, which measures faster than pydantic's own JSON mode and
lets items be counted before they are validated. Nothing here repeats what a client sent.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from paragone.codes import ErrorCode
from paragone.wire import CohortRequest, Group
from paragone.wire import Response as WireResponse
from paragone_service.http.counting import check_counts, check_values
from paragone_service.http.errors import ServiceError, from_validation
from paragone_service.http.middleware import SCOPE_ASKED
from paragone_service.http.overload import Foreign, unparsed_refusal
from paragone_service.registry import Registry
from paragone_service.scoring.request import Problems, Row

__all__ = [
    "MAX_GROUP",
    "MAX_ITEMS",
    "MAX_RESPONSES",
    "SCOPE_BODY_BYTES",
    "check_groups",
    "check_total",
    "parsed",
    "read_body",
    "read_bytes",
    "read_member",
    "read_values",
]

MAX_ITEMS = 10_000
"""Pairs, items or groups in one request."""
MAX_RESPONSES = 20_000
"""Responses and references of all groups or items of one request: as many as the largest list of pairs has."""
MAX_GROUP = 256
"""Responses of one group: the maximal lottery of more takes too long (5 s for 512, a minute for
1,024); it is found beside the event loop."""

SCOPE_BODY_BYTES = "paragone.body_bytes"
"""Key of an ASGI scope under which the length of its request's body is kept."""
_LARGE = 1 << 20
"""Bytes of a body that is counted beside the event loop, and not on it."""

Wire = TypeVar("Wire", bound=BaseModel)
_RESPONSE: TypeAdapter[Any] = TypeAdapter(WireResponse, config=ConfigDict(hide_input_in_errors=True))


async def read_member(request: Request) -> tuple[CohortRequest, ServiceError | None]:
    """Read and validate the body of a member of a cohort.

    Returns:
        The request, and what is wrong with its response if that alone is: then the response is an empty one, and the
        member can be told apart from one that never comes.

    Raises:
        ServiceError: as ``read_values``; ``too_many_items``, or ``invalid_request`` for what the wire type refuses.
    """
    values = await read_values(request)
    asked = request.scope[SCOPE_ASKED] = _asked(values, 1, request.app.state.registry)
    if request.app.state.log_texts:
        asked["request"] = values
    if not isinstance(values, dict) or "response" not in values:
        return _member(values, request), None
    try:
        return _member(values, request), None
    except ServiceError as error:
        return _member({**values, "response": ""}, request), error


def _member(values: Any, request: Request) -> CohortRequest:
    try:
        check_counts([values], "member", max_messages=request.app.state.max_messages)
    except ServiceError as error:  # this request has no list whose items could be named
        raise ServiceError(error.code, error.message.removeprefix("member[0]: ")) from None
    try:
        return CohortRequest.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None


async def read_bytes(request: Request, *, foreign: Foreign | None = None) -> bytes:
    """Read the body of a request.

    Args:
        foreign: of a dialect's request.

    Raises:
        ServiceError: ``overloaded``, if the request would wait for too long.
    """
    body = b"".join([chunk async for chunk in request.stream()])  # request.body() would keep the bytes
    refusal = unparsed_refusal(request.scope, body, request.app.state.registry, foreign=foreign)
    if refusal is not None:
        raise refusal
    request.scope[SCOPE_BODY_BYTES] = len(body)
    return body


async def read_values(request: Request, *, foreign: Foreign | None = None) -> Any:
    """Return the JSON of a request's body, not validated.

    Args:
        foreign: as for ``read_bytes``.

    Raises:
        ServiceError: ``overloaded``, if the request would wait for too long; ``unsupported_media_type``,
            ``invalid_encoding``, ``invalid_json`` or ``too_many_items``.
    """
    _check_media_type(request)
    return await parsed(await read_bytes(request, foreign=foreign))


async def parsed(body: bytes) -> Any:
    """Return the JSON of bytes, not validated.

    Raises:
        ServiceError: ``invalid_encoding``, ``invalid_json`` or ``too_many_items``.
    """
    if len(body) > _LARGE:
        await asyncio.to_thread(check_values, body)
    else:
        check_values(body)
    return _parse(body)


async def read_body(
    request: Request, wire: type[Wire], list_field: Literal["pairs", "items", "groups"]
) -> tuple[Wire, list[int], Problems]:
    """Read and validate the body of a request.

    Args:
        list_field: the name of its list.

    Returns:
        The request with its valid items only, their places in the list as it was sent, and the problems of the others.

    Raises:
        ServiceError: ``overloaded``, if it would wait for too long; ``unsupported_media_type``, ``invalid_encoding``,
            ``invalid_json``, ``too_many_items``, or ``invalid_request`` for what the wire type refuses (of single items
            only where errors are not reported).
    """
    values = await read_values(request)
    items = values.get(list_field) if isinstance(values, dict) else None
    if not isinstance(items, list):
        items = []
    asked = request.scope[SCOPE_ASKED] = _asked(values, len(items), request.app.state.registry)
    if request.app.state.log_texts:
        asked["request"] = values
    if len(items) > MAX_ITEMS:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS, f"{len(items)} {list_field} in one request; the limit is {MAX_ITEMS}: split them"
        )
    # Before validation, which makes an object of every part.
    check_counts(items, list_field, max_messages=request.app.state.max_messages)
    try:
        valid = wire.model_validate(values)
    except ValidationError as error:
        refusal = from_validation(error)
        # Only an item's own error can stand in its place, and only where the request (not valid so far) asks for it.
        if refusal.item is None or values.get("on_error") != "report":
            raise refusal from None
        return _valid_items(values, items, wire, list_field)
    report = getattr(valid, "on_error", "refuse") == "report"
    return valid, list(range(len(items))), Problems(list_field, report, by_member=list_field == "groups")


def _asked(values: Any, items: int, registry: Registry) -> dict[str, Any]:
    """Return what the log says of a request; a name that is no model's is a client's text, and stays out."""
    model = values.get("model") if isinstance(values, dict) else None
    names = registry.names
    named = registry.default if model is None else model if isinstance(model, str) and model in names else None
    return {"model": named, "items": items}


def check_groups(groups: Sequence[Group]) -> None:
    """Refuse groups that are too large, alone or together.

    Raises:
        ServiceError: ``too_many_items``.
    """
    for index, group in enumerate(groups):
        if len(group.responses) > MAX_GROUP:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS,
                f"groups[{index}]: {len(group.responses)} responses in one group; the limit is {MAX_GROUP}: hold "
                "smaller groups against the same references",
                item=index,
            )
    check_total(sum(len(group.responses) + len(group.listed) for group in groups))


def check_total(responses: int) -> None:
    """Refuse more responses and references than one request may have.

    Raises:
        ServiceError: ``too_many_items``.
    """
    if responses > MAX_RESPONSES:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"{responses} responses and references in one request; the limit is {MAX_RESPONSES}: split it",
        )


def _valid_items(
    values: dict[str, Any], items: list[Any], wire: type[Wire], list_field: str
) -> tuple[Wire, list[int], Problems]:
    """Validate item by item: the slow way, taken when one is not valid and the others shall be answered."""
    problems = Problems(list_field, report=True, by_member=list_field == "groups")
    valid: dict[int, Any] = {}
    for index, item in enumerate(items):
        readable = _readable(index, item, problems) if problems.by_member else item
        try:
            wire.model_validate({**values, list_field: [readable]})
        except ValidationError as error:
            refusal = from_validation(error)
            if refusal.item is None:
                raise refusal from None
            # Validated alone it was item 0; its true place is where the error will stand.
            message = refusal.message.replace(f"{list_field}[0]", "", 1).lstrip(".: ")
            problems.add(
                index,
                ServiceError(refusal.code, message, response=refusal.response, reference=refusal.reference),
            )
            problems.members.pop(index, None)
        else:
            valid[index] = readable
    try:
        rest = wire.model_validate({**values, list_field: list(valid.values())})
    except ValidationError as error:  # the request's own: beside an item's error it was not the first
        raise from_validation(error) from None
    return rest, list(valid), problems


def _readable(index: int, group: Any, problems: Problems) -> Any:
    """Return a group without responses and references that cannot be read; each of these becomes a problem of its own.

    In its place stands one that can be read: places keep their numbers, and the same text is not run twice.
    """
    if not isinstance(group, dict) or not isinstance(group.get("responses"), list):
        return group
    responses, references = group["responses"], group.get("references")
    faults = {place: _fault(text) for place, text in enumerate(responses)}
    sound = next((text for place, text in enumerate(responses) if faults[place] is None), None)
    if sound is None:
        return group
    readable = {
        **group,
        "responses": [text if faults[place] is None else sound for place, text in enumerate(responses)],
    }
    rows = [(Row(index, place, b""), faults[place]) for place in faults]
    if isinstance(references, list):
        theirs = [_fault(text) for text in references]
        pairs = zip(references, theirs, strict=True)
        readable["references"] = [text if fault is None else sound for text, fault in pairs]
        rows += [
            (Row(index, len(responses) + place, b"", reference=place), fault) for place, fault in enumerate(theirs)
        ]
    for row, fault in rows:
        if fault is not None:
            problems.add_row(row, fault)
    return readable


def _fault(text: Any) -> ServiceError | None:
    """Return why a response cannot be read, None if it can."""
    try:
        _RESPONSE.validate_python(text)
    except ValidationError as error:
        return from_validation(error)
    return None


def _check_media_type(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ServiceError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, "the body must be JSON: send it with content-type: application/json"
        )
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8"):
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "JSON is UTF-8: send it with charset=utf-8 or without one")
    # A megabyte of zeros is a gigabyte unpacked: the limit on the body would mean nothing.
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read: send it uncompressed")


def _parse(body: bytes) -> Any:
    try:
        # Only the names of fields are cached: hardly any text comes twice.
        return from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        pass
    # Either no JSON, or JSON with a lone surrogate, whose place only the wire types can name.
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ServiceError(
            ErrorCode.INVALID_ENCODING, f"the body is not UTF-8: byte {error.start} fits no character"
        ) from None
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ServiceError(ErrorCode.INVALID_JSON, f"the body is not JSON: {_reason(error)} at {place}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ServiceError(ErrorCode.INVALID_JSON, f"the body is not JSON: {reason}") from None


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg[:1].lower() + error.msg[1:].removesuffix(" at")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
