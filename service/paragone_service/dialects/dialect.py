"""What a dialect is, and how one request finds the dialect that answers it.

A dialect is another server's way to be asked: some routes, the answers that its clients read, and the errors that they
understand. Several may share a path; then the body says which one it is in. Every known path has a route, also where
its dialects are off: the error says what to set.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paragone.codes import ErrorCode
from paragone_service.dialects.settings import DialectSettings
from paragone_service.dialects.texts import Question
from paragone_service.http.bodies import read_bytes, read_values
from paragone_service.http.errors import HTTP_STATUS, SCOPE_SHAPE, ErrorShape, ErrorShapes, ServiceError
from paragone_service.http.overload import Foreign
from paragone_service.registry import Registry

__all__ = ["Dialect", "Endpoint", "api_error", "dialect_routes", "error_shapes", "own_error", "scoring_paths"]


@dataclass(frozen=True)
class Endpoint:
    """One route of a dialect.

    Attributes:
        path: as Starlette writes it; ``{name}`` stands for a part that is ``question.path["name"]``.
        answer: returns what is answered, as plain values that become JSON, or a response.
        claims: whether a body is in this dialect, where several share the path; None takes every one. The dialects are
            asked in the order in which they stand in ``DIALECTS``.
        reads: what the body is: JSON, bytes as they came, or nothing.
        scores: whether it asks for work of a device, and so may be refused unparsed under load.
    """

    path: str
    answer: Callable[[Question], Awaitable[Any]]
    method: Literal["GET", "POST"] = "POST"
    claims: Callable[[Any], bool] | None = None
    reads: Literal["json", "bytes", "nothing"] = "json"
    scores: bool = True


@dataclass(frozen=True)
class Dialect:
    """One dialect.

    Attributes:
        name: what ``--dialects`` calls it.
        client: whose it is, for messages.
        error: status and body of an error, as its clients read it.
        below: the path below which errors are its own where no route is: its clients build their paths of names.
        patience_s: for how long its clients wait for an answer. Those of trainers send all they have at once and give
            up after a few tries: to let them wait serves them better than to send them away.
    """

    name: str
    client: str
    endpoints: tuple[Endpoint, ...]
    error: ErrorShape
    patience_s: float = 60.0
    below: str | None = None


def own_error(error: ServiceError) -> tuple[int, Any]:
    """Return an error in our own shape, with FastAPI's beside it: for clients that read neither."""
    return HTTP_STATUS[error.code], {
        "error": error.detail().model_dump(exclude_unset=True),
        "detail": error.message,
    }


_KINDS = {400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}


def api_error(error: ServiceError) -> tuple[int, Any]:
    """Return an error as OpenAI's API and the servers after it write it; what cannot be read is 400 there.

    ``detail`` stands beside it for clients of FastAPI's own shape, as Jina's are.
    """
    status = 400 if HTTP_STATUS[error.code] == 422 else HTTP_STATUS[error.code]
    kind = _KINDS.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    body = {"message": error.message, "type": kind, "param": None, "code": error.code}
    return status, {"error": body, "detail": error.message}


_Candidate = tuple[Dialect, Endpoint]


def _by_path(dialects: Sequence[Dialect]) -> dict[tuple[str, str], list[_Candidate]]:
    paths: dict[tuple[str, str], list[_Candidate]] = {}
    for dialect in dialects:
        for endpoint in dialect.endpoints:
            paths.setdefault((endpoint.method, endpoint.path), []).append((dialect, endpoint))
    return paths


def dialect_routes(dialects: Sequence[Dialect], settings: DialectSettings, registry: Registry) -> list[Route]:
    """Return a route for every path of the dialects, those that are off included."""
    return [
        Route(path, _answering(path, candidates, settings, registry), methods=[method], include_in_schema=False)
        for (method, path), candidates in _by_path(dialects).items()
    ]


def error_shapes(dialects: Sequence[Dialect], on: Sequence[str]) -> ErrorShapes:
    """Return which paths answer errors in whose shape, before it is known who asks."""
    shapes: dict[str, ErrorShape] = {}
    known = [(dialect, endpoint) for dialect in dialects for endpoint in dialect.endpoints]
    # Of several on one path the first that is on, and of these the one that takes every body.
    for dialect, endpoint in sorted(known, key=lambda both: (both[0].name not in on, both[1].claims is not None)):
        shapes.setdefault(endpoint.path, dialect.error)
    below = {dialect.below: dialect.error for dialect in dialects if dialect.below is not None}
    return ErrorShapes(shapes, below)


def scoring_paths(dialects: Sequence[Dialect], on: Sequence[str]) -> dict[str, Foreign]:
    """Return the paths of dialects that are on at which work for a device is asked for."""
    found = {}
    for (method, path), candidates in _by_path([dialect for dialect in dialects if dialect.name in on]).items():
        foreign = _foreign(candidates)
        if foreign is not None and method == "POST" and "{" not in path:
            found[path] = foreign
    return found


def _foreign(candidates: Sequence[_Candidate]) -> Foreign | None:
    # Before the body is read nobody knows which one it is: the most patient counts.
    patience = [dialect.patience_s for dialect, endpoint in candidates if endpoint.scores]
    return Foreign(max(patience)) if patience else None


def _answering(
    path: str, candidates: Sequence[_Candidate], settings: DialectSettings, registry: Registry
) -> Callable[[Request], Awaitable[Response]]:
    route = SimpleNamespace(path=path)
    spoken = [(dialect, endpoint) for dialect, endpoint in candidates if dialect.name in settings.on]

    async def answer(request: Request) -> Response:
        request.scope["route"] = route  # for metrics and log, as FastAPI's own routes do
        if not spoken:
            raise _off(path, candidates)
        body = await _body(request, spoken)
        dialect, endpoint = next(
            ((dialect, endpoint) for dialect, endpoint in spoken if endpoint.claims is None or endpoint.claims(body)),
            spoken[-1],
        )
        request.scope[SCOPE_SHAPE] = dialect.error
        question = Question(request, body, registry, settings, dialect.patience_s)
        answered = await endpoint.answer(question)
        if isinstance(answered, Response):
            return answered
        return Response(to_json(answered), media_type="application/json", headers=question.headers)

    return answer


async def _body(request: Request, spoken: Sequence[_Candidate]) -> Any:
    reads = {endpoint.reads for _, endpoint in spoken}
    if reads == {"nothing"}:
        return None
    foreign = _foreign(spoken)
    if "bytes" in reads:
        return await read_bytes(request, foreign=foreign)
    values = await read_values(request, foreign=foreign)
    if not isinstance(values, Mapping):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "the body must be a JSON object")
    return values


def _off(path: str, candidates: Sequence[_Candidate]) -> ServiceError:
    names = list(dict.fromkeys(dialect.name for dialect, _ in candidates))
    clients = ", ".join(dict.fromkeys(dialect.client for dialect, _ in candidates))
    either = " or ".join(f"--dialects {name}" for name in names)
    return ServiceError(
        ErrorCode.DIALECT_OFF,
        f"{path} is asked by {clients}, and this server does not answer them: start it with {either} (or with all)",
    )
