"""What the OpenAPI document says: requests, answers and errors of every route, each with an example.

Routes read their bodies themselves, so the request schemas are put into the document here.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.responses import PlainTextResponse

from paragone.codes import ErrorCode
from paragone.wire import (
    CohortAnswer,
    CohortRequest,
    ErrorBody,
    FileAnswer,
    HeadAnswer,
    HeadRequest,
    LoadRequest,
    ModelInfo,
    ModelsAnswer,
    PreferencesAnswer,
    PreferencesRequest,
    ReferenceSet,
    ReferenceSetsAnswer,
    ReferencesRequest,
    RewardsAnswer,
    RewardsRequest,
    RunAnswer,
    RunReport,
    RunsAnswer,
    RunSummary,
    TokensAnswer,
    TokensRequest,
    TournamentsAnswer,
    TournamentsRequest,
)
from paragone_service.http.errors import HTTP_STATUS

__all__ = [
    "cohort_document",
    "describe_routes",
    "file_document",
    "head_document",
    "health_document",
    "inspection_document",
    "metrics_document",
    "reference_document",
    "references_document",
    "report_document",
    "run_document",
    "scoring_document",
]

_TITLE = "Paragone"
_DESCRIPTION = """\
Reward and preference models as a service: how probable is it that the first of two responses is preferred?

* The first response is the one whose win is measured, in every route.
* Batches are the normal case, up to 10,000 items; an empty batch has an empty answer.
* One bad item refuses the request and is named, unless `"on_error": "report"` puts an error in its place.
* A prompt over the model's limit is cut from the left and the answer says so; `"truncation": "error"` refuses it.
* Every answer has the headers `x-request-id`, `x-tokenize-ms`, `x-queue-ms`, `x-inference-ms` and `x-total-ms`.
* Answers have the server's version in `x-paragone-version`; a request may have its client's.
* Errors are `{"error": {"code", "message", "item"?}}`; no failure ever becomes a number.
"""
_SCHEMAS = "#/components/schemas/"
_OWN: tuple[type[BaseModel], ...] = (
    CohortRequest,
    HeadRequest,
    LoadRequest,
    PreferencesRequest,
    ReferencesRequest,
    RewardsRequest,
    RunReport,
    TokensRequest,
    TournamentsRequest,
    ErrorBody,
)

_KEY = (ErrorCode.MISSING_KEY, ErrorCode.WRONG_KEY, ErrorCode.UNKNOWN_HOST, ErrorCode.INCOMPATIBLE_VERSION)
_DOOR = (ErrorCode.INVALID_HTTP, ErrorCode.HEADERS_TOO_LARGE, ErrorCode.REQUEST_TIMEOUT, ErrorCode.TOO_MANY_CONNECTIONS)
_ALWAYS = (*_KEY, *_DOOR, ErrorCode.QUOTA_EXCEEDED, ErrorCode.INTERNAL_ERROR, ErrorCode.SHUTTING_DOWN)
_TEXT = (
    ErrorCode.INVALID_REQUEST,
    ErrorCode.EMPTY_PROMPT,
    ErrorCode.UNSUPPORTED_CONTENT,
    ErrorCode.RESPONSE_TOO_LONG,
    ErrorCode.CONVERSATION_TRUNCATED,
    ErrorCode.TEXT_UNAVAILABLE,
)
# What any body of JSON may meet.
_JSON = (
    ErrorCode.INVALID_JSON,
    ErrorCode.INVALID_ENCODING,
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.TOO_MANY_ITEMS,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.DEADLINE_EXCEEDED,
)
_BODY = (*_JSON, ErrorCode.UNKNOWN_MODEL)
_FORWARD = (
    ErrorCode.ENGINE_FAILED,
    ErrorCode.NON_FINITE_SCORE,
    ErrorCode.OVERLOADED,
    ErrorCode.ENGINE_UNAVAILABLE,
)

# What a judge on another server may fail with.
_JUDGE = (
    ErrorCode.JUDGE_UNPARSED,
    ErrorCode.JUDGE_UNFINISHED,
    ErrorCode.JUDGE_REFUSED,
    ErrorCode.JUDGE_FAILED,
    ErrorCode.JUDGE_UNAVAILABLE,
)
_COHORT = (
    ErrorCode.COHORT_CONFLICT,
    ErrorCode.COHORT_SUPERSEDED,
    ErrorCode.COHORT_INCOMPLETE,
    ErrorCode.COHORT_LOST,
)
# What a request may meet that names a reference set.
_REFERENCES = (
    ErrorCode.REFERENCE_UNKNOWN,
    ErrorCode.REFERENCE_MISSING,
    ErrorCode.REFERENCE_STALE,
    ErrorCode.NOT_READY,
)

_ANSWERED = {
    "model": "mini-general-preference",
    "identity": "9f3c1a5be0d24c7788f1a6b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6",
    "fingerprint": "b41e7c2d9a0f4e6688aabbccddeeff00",
    "calibrated": False,
}
_COLD = {"forward_responses": 3, "forward_tokens": 143, "cached_responses": 0, "truncated": 0}
_MODEL = {
    "id": "mini-general-preference",
    "kind": "general-preference",
    "source": "builtin:mini-general-preference",
    "revision": None,
    "identity": _ANSWERED["identity"],
    "fingerprint": _ANSWERED["fingerprint"],
    "numerics": {"dtype": "float32", "torch": "2.13.0"},
    "limits": {"max_tokens": 512, "max_items": 10000, "max_body_bytes": 64000000},
    "temperature": 0.1,
    "calibrated": False,
    "attributes": [],
    "weights": None,
    "dimension": 8,
    "domain": "short arguments on questions of public debate",
    "demonstration": True,
    "engine": "local",
    "batching": "packed",
    "max_batch_tokens": 4096,
    "max_batch_tokens_reason": "the default on cpu",
    "devices": [{"name": "cpu", "serves": True, "max_batch_tokens": 4096}],
    "pooling": "mean",
    "special_tokens": "escape",
    "reasoning": "keep",
}
_SET = {
    "name": "policy-0",
    "model": "mini-general-preference",
    "identity": _ANSWERED["identity"],
    "items": 512,
    "responses": 2048,
    "created": 1795959600.0,
    "expires": 1796564400.0,
}
_RUN = {
    "name": "judge",
    "kind": "model",
    "state": "running",
    "stage": "step 20 of 120",
    "unit": "steps",
    "done": 20.0,
    "total": 120.0,
    "rate": 0.5,
    "left_s": 200.0,
    "heard": 1795959600.0,
    "since_s": 1.5,
}
_FILE = {
    "name": "pairs.jsonl",
    "layout": "pairs",
    "why": "told by what its columns hold: prompt, first, second, strength; strengths: strength, -3 to 3",
    "count": 193,
    "read": 192,
    "left_out": [{"reason": "the line is not JSON: Expecting value at column 1", "rows": 1, "lines": [12]}],
    "prompts": 64,
    "responses": 256,
    "pairs": 192,
    "decided": 184,
    "ties": 8,
    "duplicates": 0,
    "contradictions": 0,
    "identical": 0,
    "first_preferred": 0.48,
    "longer_preferred": 0.49,
    "rated": 0,
    "ratings": {},
    "splits": {"train": 144, "test": 48},
    "offset": 0,
    "not_shown": 0,
    "rows": [
        {
            "line": 1,
            "id": "1",
            "prompt": [{"role": "user", "content": "Is sport fun?"}],
            "responses": ["Yes, with others.", "Yes."],
            "labels": [{"first": 0, "second": 1, "strength": 2.0}],
            "ratings": [],
            "tools": [],
        }
    ],
}
_EXAMPLES: Mapping[type[BaseModel], dict[str, Any]] = {
    PreferencesAnswer: {
        **_ANSWERED,
        "preferences": [{"probability": 0.81, "logit": 1.45, "first_reward": None, "second_reward": None}],
        "usage": {**_COLD, "forward_responses": 2},
    },
    RewardsAnswer: {
        **_ANSWERED,
        "model": "mini-bradley-terry",
        "rewards": [{"reward": 0.62, "attributes": {}, "representation": [0.62], "truncated_tokens": 0}],
        "usage": {**_COLD, "forward_responses": 1},
    },
    TournamentsAnswer: {
        **_ANSWERED,
        "tournaments": [
            {
                "win_rates": [0.61, 0.48, 0.41],
                "ranking": [0, 1, 2],
                "condorcet_winner": 0,
                "copeland": [2, 0, -2],
                "cyclic_triples": 0,
                "nash": [1.0, 0.0, 0.0],
                "matrix": [[0.5, 0.65, 0.68], [0.35, 0.5, 0.59], [0.32, 0.41, 0.5]],
            }
        ],
        "usage": _COLD,
    },
    FileAnswer: _FILE,
    HeadAnswer: {
        "model": {**_MODEL, "id": "mine", "kind": "bradley-terry", "dimension": 1, "temperature": 1.0},
        "base": "mini-general-preference",
        "folder": "/srv/models/mine",
        "temporary": False,
        "pairs": 36,
        "prompts": 36,
        "penalties": {"reward": 0.1},
        "agreement": {
            "pairs": 12,
            "prompts": 12,
            "new": {"share": 0.833, "low": 0.552, "high": 0.953},
            "old": {"share": 0.583, "low": 0.32, "high": 0.807},
            "difference": {"value": 0.25, "low": -0.058, "high": 0.502},
            "only_new": 4,
            "only_old": 1,
        },
        "usage": {**_COLD, "forward_responses": 96, "forward_tokens": 4210},
    },
    RunSummary: _RUN,
    RunsAnswer: {"runs": [_RUN]},
    RunAnswer: {
        **_RUN,
        "numbers": {"loss": 0.41},
        "lines": ["12:03:20 step 20 of 120: loss 0.41"],
        "series": {"loss": [[10.0, 0.62], [20.0, 0.41]]},
    },
    ReferenceSet: _SET,
    ReferenceSetsAnswer: {"references": [_SET]},
    CohortAnswer: {
        **_ANSWERED,
        "win_rate": 0.61,
        "rank": 1,
        "size": 4,
        "present": 4,
        "missing": [],
        "unscored": [{"slot": 2, "code": "response_too_long", "message": "the response has 600 tokens, …"}],
        "usage": {**_COLD, "forward_responses": 1, "forward_tokens": 48},
    },
    TokensAnswer: {
        **_ANSWERED,
        "tokens": [
            {
                "text": "<|user|>Is sport fun?<|assistant|>Yes.<|end|>",
                "token_ids": [1, 57, 210, 88, 31, 2, 604, 14, 3],
                "reads": [[5, 9]],
                "prompt_length": 5,
                "truncated_tokens": 0,
                "truncated_messages": 0,
            }
        ],
        "usage": {"forward_responses": 0, "forward_tokens": 0, "cached_responses": 0, "truncated": 0},
    },
    ModelsAnswer: {
        "object": "list",
        "data": [
            {"id": _MODEL["id"], "object": "model", "created": 1764374400, "owned_by": "paragone", "max_model_len": 512}
        ],
        "models": [_MODEL],
    },
    ModelInfo: _MODEL,
}


def scoring_document(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document a route that reads a batch."""
    runs = (*_FORWARD, *_JUDGE) if answer is not TokensAnswer else ()
    compares = (ErrorCode.PREFERENCES_UNAVAILABLE,) if answer is not TokensAnswer else ()
    returns = (ErrorCode.RETURN_UNAVAILABLE,) if answer in (RewardsAnswer, PreferencesAnswer) else ()
    named = (ErrorCode.UNKNOWN_ID,) if answer is PreferencesAnswer else ()
    stored = _REFERENCES if answer in (RewardsAnswer, TournamentsAnswer) else ()
    return _body_document(request, answer, *compares, *returns, *named, *stored, *runs)


def cohort_document(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document the route of cohorts."""
    return _body_document(request, answer, ErrorCode.PREFERENCES_UNAVAILABLE, *_FORWARD, *_COHORT, *_REFERENCES)


def references_document(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document the route that stores a reference set."""
    return _body_document(request, answer, ErrorCode.PREFERENCES_UNAVAILABLE, *_FORWARD, ErrorCode.NOT_READY)


def reference_document(answer: type[BaseModel], *, named: bool = False) -> dict[str, Any]:
    """Return what FastAPI needs to document a route that shows or deletes reference sets."""
    unknown = (ErrorCode.REFERENCE_UNKNOWN,) if named else ()
    return {
        "response_model": answer,
        "responses": _errors(*unknown, ErrorCode.NOT_READY, *_ALWAYS),
    }


def report_document(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document the route that takes a report of a run."""
    return _read_document(request, answer, ErrorCode.INVALID_REQUEST, *_JSON)


def run_document(answer: type[BaseModel], *, named: bool = False) -> dict[str, Any]:
    """Return what FastAPI needs to document a route that shows runs."""
    unknown = (ErrorCode.NOT_FOUND,) if named else ()
    return {"response_model": answer, "responses": _errors(*unknown, *_ALWAYS)}


def _body_document(request: type[BaseModel], answer: type[BaseModel], *codes: ErrorCode) -> dict[str, Any]:
    return _read_document(request, answer, *_BODY, *_TEXT, *codes)


def _read_document(request: type[BaseModel], answer: type[BaseModel], *codes: ErrorCode) -> dict[str, Any]:
    examples = request.model_config.get("json_schema_extra")
    assert isinstance(examples, dict)
    example = examples["examples"]
    assert isinstance(example, list)
    content = {"schema": {"$ref": f"{_SCHEMAS}{request.__name__}"}, "example": example[0]}
    return {
        "response_model": answer,
        "responses": _errors(*codes, *_ALWAYS),
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": content}}},
    }


def inspection_document(answer: type[BaseModel], *, named: bool = False) -> dict[str, Any]:
    """Return what FastAPI needs to document a route that only shows something, perhaps of a named model."""
    unknown = (ErrorCode.UNKNOWN_MODEL,) if named else ()
    return {"response_model": answer, "responses": _errors(*unknown, *_ALWAYS)}


def rollout_document(request: type[BaseModel] | None, answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document a route that loads or unloads a model."""
    if request is not None:
        return _body_document(request, answer, ErrorCode.NOT_ALLOWED, ErrorCode.MODEL_REFUSED)
    codes = (ErrorCode.UNKNOWN_MODEL, ErrorCode.NOT_ALLOWED, ErrorCode.MODEL_REFUSED)
    return {"response_model": answer, "responses": _errors(*codes, *_ALWAYS)}


def file_document(query: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document the route whose body is a file, and whose query says how it is read."""
    described = query.model_json_schema()
    needed = described.get("required", ())
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": name in needed,
            "schema": schema,
            "description": schema["description"],
        }
        for name, schema in described["properties"].items()
    ]
    codes = (
        *(ErrorCode.INVALID_REQUEST, ErrorCode.BODY_TOO_LARGE, ErrorCode.DEADLINE_EXCEEDED, ErrorCode.NOT_FOUND),
        ErrorCode.OVERLOADED,
    )
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "response_model": answer,
        "responses": _errors(*codes, *_ALWAYS),
        "openapi_extra": {"parameters": parameters, "requestBody": {"required": True, "content": content}},
    }


def head_document(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return what FastAPI needs to document the route that fits heads."""
    codes = (ErrorCode.NOT_ALLOWED, ErrorCode.MODEL_REFUSED, ErrorCode.RETURN_UNAVAILABLE)
    return _body_document(request, answer, *codes, *_FORWARD)


def health_document(description: str, *codes: ErrorCode) -> dict[str, Any]:
    """Return what FastAPI needs to document a health check; it needs no key."""
    return {
        "responses": {200: _text(description, "ok\n"), **_errors(*codes)},
        "response_class": PlainTextResponse,
        "openapi_extra": {"security": []},
    }


def metrics_document() -> dict[str, Any]:
    """Return what FastAPI needs to document the metrics."""
    example = 'paragone_requests_total{route="/v1/preferences",status="200"} 1.0\n'
    return {
        "responses": {200: _text("Prometheus' text format.", example), **_errors(*_KEY)},
        "response_class": PlainTextResponse,
    }


def describe_routes(app: FastAPI) -> None:
    """Give an application its OpenAPI document; it is made once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=_TITLE, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    own_types: list[tuple[type[BaseModel], JsonSchemaMode]] = [(wire, "validation") for wire in _OWN]
    _, own = models_json_schema(own_types, ref_template=f"{_SCHEMAS}{{model}}")
    schemas.update(own["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own error, which is never sent
        schemas.pop(name, None)
    examples = {wire.__name__: example for wire, example in _EXAMPLES.items()}  # put in here: FastAPI drops nulls
    for operations in document["paths"].values():
        for operation in operations.values():
            refusal = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(refusal):
                del operation["responses"]["422"]
            content = operation["responses"]["200"]["content"].get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").removeprefix(_SCHEMAS)
            if name in examples:
                content["example"] = examples[name]
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `--api-key` or `--api-key-file`; also taken as the password of HTTP Basic. "
            "A server without one answers everybody, on loopback only.",
        }
    }
    document["security"] = [{"bearer": []}]
    return document


def _errors(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors by status: which codes it may mean, one example each."""
    # Several codes share a status, and OpenAPI has one response for each status: codes become its examples.
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in sorted(codes, key=lambda code: (HTTP_STATUS[code], code)):
        response = by_status.setdefault(
            HTTP_STATUS[code],
            {"content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}ErrorBody"}, "examples": {}}}},
        )
        examples = response["content"]["application/json"]["examples"]
        examples[code.value] = {"value": {"error": {"code": code.value, "message": "…"}}}
        response["description"] = ", ".join(f"`{name}`" for name in examples)
    return by_status


def _text(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"example": example}}}
