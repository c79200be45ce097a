"""Errors of the service: one exception that carries a wire code, the total table from code to HTTP status, and bodies.

No message repeats what a client sent, except the names of unknown fields, models and paths, made printable and cut.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paragone.codes import ErrorCode
from paragone.wire import ErrorDetail, ItemError, error_detail

__all__ = [
    "HTTP_STATUS",
    "SCOPE_CODE",
    "SCOPE_SHAPE",
    "ClientGoneError",
    "ErrorShape",
    "ErrorShapes",
    "ServiceError",
    "answer_within",
    "error_response",
    "from_validation",
    "install_handlers",
    "printable",
    "refuse",
]

logger = logging.getLogger("paragone.service")

SCOPE_CODE = "paragone.code"
"""Key of an ASGI scope under which the code is kept that its request was refused with."""

SCOPE_SHAPE = "paragone.error_shape"
"""Key of an ASGI scope under which the ``ErrorShape`` of its request is kept, once it is known who asks."""

HTTP_STATUS: Mapping[ErrorCode, int] = MappingProxyType(
    {
        ErrorCode.INVALID_HTTP: 400,
        ErrorCode.INVALID_JSON: 400,
        ErrorCode.INVALID_ENCODING: 400,
        ErrorCode.INCOMPATIBLE_VERSION: 400,
        ErrorCode.MISSING_KEY: 401,
        ErrorCode.WRONG_KEY: 403,
        ErrorCode.NOT_ALLOWED: 403,
        ErrorCode.NOT_FOUND: 404,
        ErrorCode.UNKNOWN_ID: 404,
        ErrorCode.UNKNOWN_MODEL: 404,
        ErrorCode.DIALECT_OFF: 404,
        ErrorCode.METHOD_NOT_ALLOWED: 405,
        ErrorCode.REQUEST_TIMEOUT: 408,
        ErrorCode.REFERENCE_UNKNOWN: 404,
        ErrorCode.REFERENCE_MISSING: 422,
        ErrorCode.REFERENCE_STALE: 409,
        ErrorCode.MODEL_REFUSED: 409,
        ErrorCode.COHORT_CONFLICT: 409,
        ErrorCode.COHORT_SUPERSEDED: 409,
        ErrorCode.BODY_TOO_LARGE: 413,
        ErrorCode.TOO_MANY_ITEMS: 413,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
        ErrorCode.UNKNOWN_HOST: 421,
        ErrorCode.INVALID_REQUEST: 422,
        ErrorCode.EMPTY_PROMPT: 422,
        ErrorCode.UNSUPPORTED_CONTENT: 422,
        ErrorCode.RESPONSE_TOO_LONG: 422,
        ErrorCode.CONVERSATION_TRUNCATED: 422,
        ErrorCode.PREFERENCES_UNAVAILABLE: 422,
        ErrorCode.TEXT_UNAVAILABLE: 422,
        ErrorCode.RETURN_UNAVAILABLE: 422,
        ErrorCode.REFERENCE_REQUIRED: 422,
        ErrorCode.QUOTA_EXCEEDED: 429,
        ErrorCode.HEADERS_TOO_LARGE: 431,
        ErrorCode.ENGINE_FAILED: 500,
        ErrorCode.NON_FINITE_SCORE: 500,
        ErrorCode.INTERNAL_ERROR: 500,
        # Not 502, at which clients ask again at once: the judge was asked several times already.
        ErrorCode.JUDGE_UNPARSED: 500,
        ErrorCode.JUDGE_UNFINISHED: 500,
        ErrorCode.JUDGE_REFUSED: 500,
        ErrorCode.JUDGE_FAILED: 500,
        ErrorCode.JUDGE_UNAVAILABLE: 503,
        ErrorCode.COHORT_LOST: 503,
        ErrorCode.OVERLOADED: 503,
        ErrorCode.TOO_MANY_CONNECTIONS: 503,
        ErrorCode.ENGINE_UNAVAILABLE: 503,
        ErrorCode.NOT_READY: 503,
        ErrorCode.SHUTTING_DOWN: 503,
        ErrorCode.COHORT_INCOMPLETE: 504,
        ErrorCode.DEADLINE_EXCEEDED: 504,
    }
)
"""Which HTTP status each code has. Total: a test holds it against the enum."""


class ServiceError(Exception):
    """Refuse a request, or one item of it, with a code of the wire contract.

    Attributes:
        code: the stable name of what went wrong.
        message: for people.
        item: index of the item at fault, None where the whole request is.
        response: index of the response at fault within a group, None where it is not one of its responses.
        reference: index of the reference at fault within the item, None where it is none.
        opponent: index within a group of what the response was compared with, None where no comparison is at fault.
        retry_after_s: when to try again, in whole seconds, or None.
        ids: with ``unknown_id``, the ids that are not known.
        headers: further response headers that belong to this error.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        item: int | None = None,
        response: int | None = None,
        reference: int | None = None,
        opponent: int | None = None,
        retry_after_s: int | None = None,
        ids: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.item = item
        self.response = response
        self.reference = reference
        self.opponent = opponent
        self.retry_after_s = retry_after_s
        self.ids = None if ids is None else list(ids)
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def at(
        self,
        item: int,
        message: str | None = None,
        *,
        response: int | None = None,
        reference: int | None = None,
        opponent: int | None = None,
    ) -> "ServiceError":
        """Return the same error, pointing at one item or at a text of it, perhaps with another message."""
        # A copy: the same error may stand for many items, as when a batch fails.
        return ServiceError(
            self.code,
            message or self.message,
            item=item,
            response=response,
            reference=reference,
            opponent=opponent,
            retry_after_s=self.retry_after_s,
            ids=self.ids,
            headers=self.headers,
        )

    def detail(self) -> ErrorDetail:
        """Return the wire form, without the fields that say nothing here."""
        detail = ErrorDetail(code=self.code, message=self.message)
        for name in ("item", "response", "reference", "opponent", "ids"):
            value = getattr(self, name)
            if value is not None:  # only fields that were set are sent
                setattr(detail, name, value)
        return detail

    def in_place(self, item: int) -> ItemError:
        """Return what stands in the place of item ``item`` of an answer that reports errors."""
        return ItemError(
            error=self.at(item, response=self.response, reference=self.reference, opponent=self.opponent).detail()
        )


class ClientGoneError(Exception):
    """Stop working on a request whose client has closed the connection; nobody reads the answer."""


ErrorShape = Callable[[ServiceError], tuple[int, Any]]
"""How some routes answer an error: its status, and a body as plain values."""


class ErrorShapes:
    """Find out in whose shape a path answers errors.

    Args:
        shapes: by path, as Starlette writes it; paths that are not here answer in ours.
        below: by the beginnings of further paths.
    """

    def __init__(
        self, shapes: Mapping[str, ErrorShape], below: Mapping[str, ErrorShape] = MappingProxyType({})
    ) -> None:
        self._below = below
        self._exact = {path: shape for path, shape in shapes.items() if "{" not in path}
        self._patterns = [(compile_path(path)[0], shape) for path, shape in shapes.items() if "{" in path]

    def of(self, path: str) -> ErrorShape | None:
        """Return the shape of a path, None for ours."""
        shape = self._exact.get(path)
        if shape is not None:
            return shape
        matching = (shape for pattern, shape in self._patterns if pattern.match(path))
        return next(matching, next((shape for begun, shape in self._below.items() if path.startswith(begun)), None))


def _shape_of(scope: Scope) -> ErrorShape | None:
    known: ErrorShape | None = scope.get(SCOPE_SHAPE)
    if known is not None or "app" not in scope:
        return known
    shapes: ErrorShapes | None = getattr(scope["app"].state, "error_shapes", None)
    return None if shapes is None else shapes.of(scope["path"])


def error_response(error: ServiceError, shape: ErrorShape | None = None) -> Response:
    """Return the HTTP answer of an error: status from the table, our body, ``Retry-After`` where it helps.

    Args:
        shape: gives another status and body.
    """
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if shape is None:
        status, body = HTTP_STATUS[error.code], {"error": error.detail().model_dump(exclude_unset=True)}
    else:
        status, body = shape(error)
    return Response(to_json(body), status_code=status, media_type="application/json", headers=headers)


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error, and keep its code in the scope."""
    scope[SCOPE_CODE] = error.code
    await error_response(error, _shape_of(scope))(scope, receive, send)


async def answer_within(
    limit: AbstractAsyncContextManager[object],
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    over: Callable[[], bool],
    error: Callable[[], ServiceError],
) -> None:
    """Pass a request on inside a limit of time, and refuse it if that ends before its answer has begun.

    Args:
        over: whether it was this limit that ended.
        error: what the request is refused with.

    Raises:
        TimeoutError: after the beginning of an answer, or if it is somebody else's.
    """
    answered = False

    async def watch(message: Message) -> None:
        nonlocal answered
        answered = True
        await send(message)

    try:
        async with limit:
            await app(scope, receive, watch)
    except TimeoutError:
        if answered or not over():
            raise  # half an answer cannot be taken back; and a timeout of somebody else is not this limit's
        await refuse(error(), scope, receive, send)


def printable(text: str, *, limit: int = 64) -> str:
    """Return a short, quoted, ASCII form of a name that a client sent, safe to log and to encode."""
    # Escaped like this a name can neither forge a line of a log nor break a header.
    return ascii(text if len(text) <= limit else text[:limit] + "…")


def from_validation(error: ValidationError) -> ServiceError:
    """Turn the first thing that a wire type refused into an error that names the place and the item."""
    detail = error_detail(error)
    # One at a time, and the number of the others: a long list of complaints helps nobody, and costs the server.
    further = error.error_count() - 1
    more = f" (and {further} more)" if further else ""
    return ServiceError(
        ErrorCode.INVALID_REQUEST,
        f"{detail.message}{more}",
        item=detail.item,
        response=detail.response,
        reference=detail.reference,
    )


def install_handlers(app: FastAPI) -> None:
    """Make every error that FastAPI or a route raises answer in our shape."""
    # Errors of middleware do not come here: they are outside of the app that these belong to, and answer themselves.
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_request_validation)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    request.scope[SCOPE_CODE] = error.code
    return error_response(error, _shape_of(request.scope))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = printable(request.url.path)
    headers: dict[str, Any] = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{request.method} is not allowed on {path}; use {allowed}"
        refusal = ServiceError(ErrorCode.METHOD_NOT_ALLOWED, message, headers=headers)
    elif error.status_code == 404:
        hint = getattr(request.app.state, "elsewhere", {}).get(request.url.path, "the routes are listed at /docs")
        refusal = ServiceError(ErrorCode.NOT_FOUND, f"there is nothing at {path}; {hint}")
    else:
        logger.error("unexpected HTTP exception %s on %s", error.status_code, path)
        # Starlette raises 404 and 405 alone; anything else is a bug of ours, and no code of the contract fits it.
        refusal = ServiceError(ErrorCode.INTERNAL_ERROR, "the server failed; see its log")
    return await _on_service_error(request, refusal)


async def _on_request_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_service_error(request, ServiceError(ErrorCode.INVALID_REQUEST, "the request is not valid"))
