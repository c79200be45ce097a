"""NVIDIA's ranking route, under its own path and that of its catalogue: passages are responses to the query.

{"model", "query": {"text"}, "passages": [{"text"}, ...], "truncate"?}  ->  {"rankings": [{"index", "logit"}, ...]}
"""

from collections.abc import Mapping
from typing import Any

from paragone.codes import ErrorCode
from paragone.wire import Truncation
from paragone_service.dialects.dialect import Dialect, Endpoint, own_error
from paragone_service.dialects.texts import Question, check_repeated, checked_list, checked_text, exchange_item
from paragone_service.http.errors import ServiceError

__all__ = ["NVIDIA_RANKING"]

_TRUNCATIONS: Mapping[Any, Truncation | None] = {None: None, "NONE": "error", "END": "prompt", "START": "prompt"}


def _text(value: object, where: str) -> str:
    return checked_text(value.get("text") if isinstance(value, dict) else value, f"{where}.text")


async def _rankings(question: Question) -> dict[str, Any]:
    body = question.body
    model = question.rater(body.get("model") or question.path.get("model"))
    query, passages = _text(body.get("query"), "query"), checked_list(body.get("passages"), "passages")
    if not passages:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "passages is empty: send at least one")
    wanted = body.get("truncate")
    if not isinstance(wanted, str | None) or wanted not in _TRUNCATIONS:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "truncate must be NONE, END or START")
    check_repeated(query, len(passages), "query.text")
    items = [
        exchange_item(index, query, _text(passage, f"passages[{index}]"), ("query.text", f"passages[{index}].text"))
        for index, passage in enumerate(passages)
    ]
    scalars = await question.scalars(model, items, "passages", truncation=_TRUNCATIONS[wanted])
    logits = scalars.raw
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    return {
        "rankings": [{"index": index, "logit": logits[index]} for index in order],
        "usage": {"prompt_tokens": scalars.tokens, "total_tokens": scalars.tokens},
    }


def _error(error: ServiceError) -> tuple[int, Any]:
    """Return an error with the fields of a problem document, which NVIDIA's clients make their message of."""
    status, body = own_error(error)
    return status, {**body, "status": status, "title": error.code}


NVIDIA_RANKING = Dialect(
    "nvidia-ranking",
    "clients of NVIDIA's rerankers",
    (Endpoint("/v1/ranking", _rankings), Endpoint("/v1/retrieval/{model:path}/reranking", _rankings)),
    _error,
)
