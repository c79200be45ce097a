"""Hugging Face text classification, ``POST /`` and ``/predict``, and ``/rerank`` of its text-embeddings-inference.

| body | answer |
|---|---|
| ``inputs``: a text, with ``parameters`` (the Hub's clients) | ``[[{"label", "score"}]]`` |
| ``inputs``: texts, with ``parameters`` | ``[[{…}], [{…}], …]`` |
| ``inputs``: a text, or a pair of prompt and response (text-embeddings-inference) | ``[{"label", "score"}]`` |
| ``inputs``: lists of one text or two | ``[[{…}], …]`` |
| ``query, texts`` | ``[{"index", "score", "text"?}, …]``, the best first |

Scores are sigmoids unless ``function_to_apply`` is ``none`` or ``raw_scores`` is true.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone.wire import Truncation
from paragone_service.dialects.dialect import Dialect, Endpoint
from paragone_service.dialects.raters import Scalars
from paragone_service.dialects.texts import (
    Question,
    check_repeated,
    checked_flag,
    checked_list,
    checked_text,
    exchange_item,
    rendered_item,
)
from paragone_service.http.errors import HTTP_STATUS, SCOPE_CODE, ServiceError, error_response
from paragone_service.scoring.request import RequestItem

__all__ = ["HUGGINGFACE"]

_LABEL = "LABEL_0"


async def _classified(question: Question) -> list[Any]:
    body = question.body
    inputs = body.get("inputs")
    nested = body.get("parameters") is not None
    raw = _raw(body, body["parameters"]) if nested else checked_flag(body.get("raw_scores"), "raw_scores")
    items, many = _of_hub(inputs) if nested else _of_embeddings_inference(inputs)
    scores = _chosen(await _scored(question, items, "inputs"), raw=raw)
    classes = [{"label": _LABEL, "score": score} for score in scores]
    return [[one] for one in classes] if many or nested else classes


def _of_hub(inputs: Any) -> tuple[list[RequestItem], bool]:
    texts = [inputs] if isinstance(inputs, str) else checked_list(inputs, "inputs")
    if not texts:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "inputs is empty: send at least one text")
    return [
        rendered_item(index, checked_text(text, f"inputs[{index}]"), "inputs") for index, text in enumerate(texts)
    ], True


def _of_embeddings_inference(inputs: Any) -> tuple[list[RequestItem], bool]:
    """Return the items of inputs, and whether they are a list of inputs, and not one."""
    if isinstance(inputs, str):
        return [rendered_item(0, checked_text(inputs, "inputs"), "inputs")], False
    rows = checked_list(inputs, "inputs")
    if not rows:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "inputs is empty: send at least one text")
    if all(isinstance(row, str) for row in rows):
        return [_single_or_pair(0, rows, "inputs")], False
    return [_single_or_pair(index, row, f"inputs[{index}]") for index, row in enumerate(rows)], True


def _single_or_pair(index: int, texts: Any, where: str) -> RequestItem:
    if isinstance(texts, list) and len(texts) == 1:
        return rendered_item(index, checked_text(texts[0], f"{where}[0]"), "inputs")
    if not isinstance(texts, list) or len(texts) != 2:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"{where} must be a text, or a list of a prompt and a response; lists of these are many",
        )
    return exchange_item(index, checked_text(texts[0], f"{where}[0]"), texts[1], (f"{where}[0]", f"{where}[1]"))


def _raw(body: Mapping[str, Any], parameters: Any) -> bool:
    if not isinstance(parameters, Mapping):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "parameters must be an object")
    function = parameters.get("function_to_apply")
    if function == "softmax":
        raise ServiceError(
            ErrorCode.INVALID_REQUEST, "a softmax of one score is always 1: set function_to_apply to sigmoid or none"
        )
    if function not in (None, "none", "sigmoid"):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "function_to_apply must be sigmoid or none")
    return function == "none" or checked_flag(body.get("raw_scores"), "raw_scores")


async def _scored(question: Question, items: list[RequestItem], where: str) -> Scalars:
    truncation: Truncation | None = "prompt" if checked_flag(question.body.get("truncate"), "truncate") else None
    return await question.scalars(question.rater(question.body.get("model")), items, where, truncation=truncation)


def _chosen(scalars: Scalars, *, raw: bool) -> Sequence[float]:
    return scalars.raw if raw else scalars.activated


async def _rerank(question: Question) -> list[dict[str, Any]]:
    body = question.body
    query, texts = checked_text(body.get("query"), "query"), checked_list(body.get("texts"), "texts")
    if not texts:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "texts is empty: send at least one")
    raw, shown = (
        checked_flag(body.get("raw_scores"), "raw_scores"),
        checked_flag(body.get("return_text"), "return_text"),
    )
    check_repeated(query, len(texts), "query")
    items = [exchange_item(index, query, text, ("query", f"texts[{index}]")) for index, text in enumerate(texts)]
    scalars = await _scored(question, items, "texts")
    scores = _chosen(scalars, raw=raw)
    order = sorted(range(len(texts)), key=lambda index: -scalars.raw[index])
    return [{"index": index, "score": scores[index], **({"text": texts[index]} if shown else {})} for index in order]


def _has_texts(body: Any) -> bool:
    return isinstance(body, Mapping) and "texts" in body


async def _nothing(question: Question) -> Response:
    """Answer a browser at the root, no client of this dialect: as any path at which there is nothing."""
    error = ServiceError(ErrorCode.NOT_FOUND, "there is nothing at '/'; the routes are listed at /docs")
    question.request.scope[SCOPE_CODE] = error.code
    return error_response(error)


_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Overloaded"}


def _error(error: ServiceError) -> tuple[int, Any]:
    """Return an error as text-embeddings-inference writes it; the Hub's clients read ``error``, a text."""
    status = HTTP_STATUS[error.code]
    kind = _TYPES.get(status, "Validation" if status < 500 else "Backend")
    return status, {"error": error.message, "error_type": kind, "code": error.code}


HUGGINGFACE = Dialect(
    "huggingface",
    "clients of the Hugging Face Hub and of text-embeddings-inference",
    (
        Endpoint("/", _classified),
        Endpoint("/", _nothing, "GET", reads="nothing", scores=False),
        Endpoint("/predict", _classified),
        Endpoint("/rerank", _rerank, claims=_has_texts),
    ),
    _error,
)
