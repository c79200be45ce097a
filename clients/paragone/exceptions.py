"""What the client raises: one small tree, each branch also the standard exception that it refines.

    ParagoneError (Exception)
    ├── RequestError (ValueError)             the request is at fault: change it, do not repeat it
    │   ├── TextError                         a prompt or a response that the model cannot take
    │   ├── TooLargeError                     more items or bytes than the server accepts
    │   └── UnsupportedError                  the model has no such answer (no preferences, no text)
    ├── UnknownModelError (LookupError)       no model of that name is hosted there
    ├── UnknownIdError (LookupError)          an id stands for nothing (any more): send the responses in full
    ├── UnknownReferencesError (LookupError)  no reference set of that name is stored there (any more)
    ├── UnknownRouteError (LookupError)       the address is not this API's
    ├── KeyRefusedError (PermissionError)     no key, or the wrong one
    ├── QuotaExceededError (RuntimeError)     this key has spent its share
    ├── VersionError (RuntimeError)           client and server are of different major versions
    ├── UnavailableError (ConnectionError)    no answer, or: overloaded, not ready, engine away
    ├── DeadlineError (TimeoutError)          no answer in time
    ├── ServerError (RuntimeError)            the server's own fault
    │   └── NonFiniteScoreError (ArithmeticError)   the model computed NaN or an infinity
    ├── AnswerError (RuntimeError)            an answer that is not in the wire format
    └── OracleChangedError (RuntimeError)     the parts of one batch were answered by different models

All are picklable and carry ``code``, ``message``, ``item``, ``response``, ``reference``, ``status``, ``request_id``,
``retry_after_s`` and ``ids``.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from paragone.codes import ErrorCode
from paragone.wire import ErrorDetail, ItemError, Tournament

__all__ = [
    "EXCEPTIONS",
    "AnswerError",
    "DeadlineError",
    "KeyRefusedError",
    "NonFiniteScoreError",
    "OracleChangedError",
    "ParagoneError",
    "QuotaExceededError",
    "RequestError",
    "ServerError",
    "TextError",
    "TooLargeError",
    "UnavailableError",
    "UnknownIdError",
    "UnknownModelError",
    "UnknownReferencesError",
    "UnknownRouteError",
    "UnsupportedError",
    "VersionError",
    "checked",
    "exception_class",
    "exception_for",
]

Row = TypeVar("Row")


class ParagoneError(Exception):
    """Any failure to get an answer.

    Attributes:
        message: what went wrong, for people.
        code: the wire's name for it; None where the failure is the client's own finding.
        item: index of the pair, item or group at fault, in the batch as it was given to the client.
        response: index in its group of the response at fault; None where it is none.
        reference: index in its item or group of the reference at fault; None where it is none.
        status: the HTTP status, if there was an answer.
        request_id: the ``x-request-id`` that was sent, or the one that the server answered with.
        retry_after_s: when the server wants to be asked again, in seconds.
        ids: the ids that the server does not know; empty for other failures.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        item: int | None = None,
        response: int | None = None,
        reference: int | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        ids: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.item = item
        self.response = response
        self.reference = reference
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.ids = list(ids)

    def __str__(self) -> str:
        details = [
            str(self.code) if self.code else "",
            f"HTTP {self.status}" if self.status else "",
            # Without an answer there may be no log that knows the request.
            f"request {self.request_id}" if self.request_id and self.status else "",
        ]
        shown = ", ".join(detail for detail in details if detail)
        return f"{self.message} ({shown})" if shown else self.message

    # Exception's own would call the class with ``args`` alone and lose all keywords; worker processes pickle errors.
    def __reduce__(self) -> tuple[object, ...]:
        names = ("code", "item", "response", "reference", "status", "request_id", "retry_after_s", "ids")
        return _rebuilt, (type(self), self.message, {name: getattr(self, name) for name in names})


def _rebuilt(kind: type[ParagoneError], message: str, details: Mapping[str, Any]) -> ParagoneError:
    return kind(message, **details)


# Each class is also the standard exception that it refines: code that has never heard of Paragone can catch it.
class RequestError(ParagoneError, ValueError):
    """The request is at fault: change it, do not repeat it."""


class TextError(RequestError):
    """A prompt or a response is one that the model cannot take."""


class TooLargeError(RequestError):
    """The request holds more items or bytes than the server accepts."""


class UnsupportedError(RequestError):
    """The model has no such answer: no preferences without weights, no text without a tokenizer."""


class UnknownModelError(ParagoneError, LookupError):
    """No model of that name is hosted there."""


class UnknownIdError(ParagoneError, LookupError):
    """An id stands for nothing that the server knows, or not any more: send the responses in full."""


class UnknownReferencesError(ParagoneError, LookupError):
    """No reference set of that name is stored there (any more)."""


class UnknownRouteError(ParagoneError, LookupError):
    """The address is not one of this API's."""


class KeyRefusedError(ParagoneError, PermissionError):
    """The key is missing or wrong."""


class QuotaExceededError(ParagoneError, RuntimeError):
    """The key has spent its share for now."""


class VersionError(ParagoneError, RuntimeError):
    """Client and server are of different major versions, and do not understand each other."""


class UnavailableError(ParagoneError, ConnectionError):
    """There is no server, or it is overloaded, not ready yet, shutting down, or without what runs its models."""


class DeadlineError(ParagoneError, TimeoutError):
    """There was no answer in time."""


class ServerError(ParagoneError, RuntimeError):
    """The server is at fault."""


class NonFiniteScoreError(ServerError, ArithmeticError):
    """The model computed NaN or an infinity."""


class AnswerError(ParagoneError, RuntimeError):
    """The answer is not in the wire format."""


class OracleChangedError(ParagoneError, RuntimeError):
    """The parts of one batch were answered by different models, or by one model with different settings."""


# Total, and a test holds it to that: a code that is missing here would turn an error into a KeyError.
EXCEPTIONS: Mapping[ErrorCode, type[ParagoneError]] = MappingProxyType(
    {
        ErrorCode.INVALID_JSON: RequestError,
        ErrorCode.INVALID_ENCODING: RequestError,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE: RequestError,
        ErrorCode.INCOMPATIBLE_VERSION: VersionError,
        ErrorCode.INVALID_REQUEST: RequestError,
        ErrorCode.EMPTY_PROMPT: TextError,
        ErrorCode.UNSUPPORTED_CONTENT: TextError,
        ErrorCode.RESPONSE_TOO_LONG: TextError,
        ErrorCode.CONVERSATION_TRUNCATED: TextError,
        ErrorCode.PREFERENCES_UNAVAILABLE: UnsupportedError,
        ErrorCode.RETURN_UNAVAILABLE: UnsupportedError,
        ErrorCode.REFERENCE_REQUIRED: UnsupportedError,
        ErrorCode.TEXT_UNAVAILABLE: UnsupportedError,
        ErrorCode.TOO_MANY_ITEMS: TooLargeError,
        ErrorCode.BODY_TOO_LARGE: TooLargeError,
        ErrorCode.INVALID_HTTP: RequestError,
        ErrorCode.HEADERS_TOO_LARGE: TooLargeError,
        ErrorCode.REQUEST_TIMEOUT: DeadlineError,
        ErrorCode.COHORT_CONFLICT: RequestError,
        ErrorCode.COHORT_SUPERSEDED: RequestError,
        ErrorCode.COHORT_INCOMPLETE: DeadlineError,
        ErrorCode.COHORT_LOST: UnavailableError,
        ErrorCode.REFERENCE_UNKNOWN: UnknownReferencesError,
        ErrorCode.REFERENCE_MISSING: RequestError,
        ErrorCode.REFERENCE_STALE: RequestError,
        ErrorCode.UNKNOWN_ID: UnknownIdError,
        ErrorCode.UNKNOWN_MODEL: UnknownModelError,
        ErrorCode.NOT_FOUND: UnknownRouteError,
        ErrorCode.DIALECT_OFF: UnknownRouteError,
        ErrorCode.METHOD_NOT_ALLOWED: UnknownRouteError,
        ErrorCode.UNKNOWN_HOST: UnknownRouteError,
        ErrorCode.MISSING_KEY: KeyRefusedError,
        ErrorCode.WRONG_KEY: KeyRefusedError,
        ErrorCode.NOT_ALLOWED: KeyRefusedError,
        ErrorCode.MODEL_REFUSED: RequestError,
        ErrorCode.QUOTA_EXCEEDED: QuotaExceededError,
        ErrorCode.OVERLOADED: UnavailableError,
        ErrorCode.TOO_MANY_CONNECTIONS: UnavailableError,
        ErrorCode.ENGINE_UNAVAILABLE: UnavailableError,
        ErrorCode.NOT_READY: UnavailableError,
        ErrorCode.SHUTTING_DOWN: UnavailableError,
        ErrorCode.DEADLINE_EXCEEDED: DeadlineError,
        ErrorCode.ENGINE_FAILED: ServerError,
        ErrorCode.NON_FINITE_SCORE: NonFiniteScoreError,
        ErrorCode.INTERNAL_ERROR: ServerError,
        ErrorCode.JUDGE_UNPARSED: ServerError,
        ErrorCode.JUDGE_UNFINISHED: ServerError,
        ErrorCode.JUDGE_REFUSED: ServerError,
        ErrorCode.JUDGE_FAILED: ServerError,
        ErrorCode.JUDGE_UNAVAILABLE: UnavailableError,
    }
)

# For answers without a code that we know: those of proxies, of other servers, of newer versions of ours.
_BY_STATUS: Mapping[int, type[ParagoneError]] = MappingProxyType(
    {
        401: KeyRefusedError,
        403: KeyRefusedError,
        404: UnknownRouteError,
        405: UnknownRouteError,
        408: DeadlineError,
        413: TooLargeError,
        421: UnknownRouteError,
        429: QuotaExceededError,
        431: TooLargeError,
        502: UnavailableError,
        503: UnavailableError,
        504: DeadlineError,
    }
)


def exception_class(code: str | None, status: int | None = None) -> type[ParagoneError]:
    """Return the class for an error code; for a code of a newer server, and for none, go by the HTTP status.

    Args:
        code: the error's name on the wire, if there was one.
        status: the HTTP status, if there was an answer.
    """
    known = _known(code)
    if known is not None:
        return EXCEPTIONS[known]
    if status is None:
        return ParagoneError
    # A code of a newer server: its status still says whose fault it was.
    by_family = RequestError if 400 <= status < 500 else ServerError if status >= 500 else AnswerError
    return _BY_STATUS.get(status, by_family)


def _known(code: str | None) -> ErrorCode | None:
    try:
        return None if code is None else ErrorCode(code)
    except ValueError:
        return None


def exception_for(
    detail: ErrorDetail,
    *,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> ParagoneError:
    """Return the exception for an error of the wire; the caller raises it."""
    return exception_class(detail.code, status)(
        detail.message,
        code=detail.code,
        item=detail.item,
        response=detail.response,
        reference=detail.reference,
        status=status,
        request_id=request_id,
        retry_after_s=retry_after_s,
        ids=detail.ids or (),
    )


def checked(rows: Iterable[Row | ItemError]) -> list[Row]:
    """Return the rows of an answer if none of them is an error, nor a tournament that lacks a response or a reference.

    Args:
        rows: the list of an answer, say ``answer.preferences``.

    Raises:
        ParagoneError: the first error among the rows, as its own class.
    """
    answered: list[Row] = []
    for row in rows:
        if isinstance(row, ItemError):
            raise exception_for(row.error)  # the first is enough; whoever wants all of them looks at the rows
        if isinstance(row, Tournament) and row.errors:
            raise exception_for(row.errors[0])
        answered.append(row)
    return answered
