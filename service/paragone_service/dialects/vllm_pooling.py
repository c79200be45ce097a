"""vLLM's routes of pooling models: classify, pooling, score, rerank, embeddings, tokenize; verl asks these too.

A reward is one logit, so ``probs``, ``data`` and ``embedding`` hold one number each. ``use_activation`` says whether it
is the logit itself or its sigmoid; without it each route does what vLLM's does for such a model.
"""

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import Truncation
from paragone_service.dialects.dialect import Dialect, Endpoint, api_error
from paragone_service.dialects.raters import Scalars
from paragone_service.dialects.texts import (
    Question,
    chat_item,
    check_repeated,
    checked_flag,
    checked_list,
    checked_text,
    exchange_item,
    rendered_item,
)
from paragone_service.http.errors import ServiceError
from paragone_service.http.routes.operation import check_ready
from paragone_service.scoring.request import RequestItem

__all__ = ["VLLM", "answer_head", "classify", "embeddings", "health", "input_items", "ranked", "usage_of"]

_LABEL = "LABEL_0"


def answer_head(kind: str, model: str, shape: str = "list") -> dict[str, Any]:
    """Return what every answer of this API begins with."""
    return {"id": f"{kind}-{secrets.token_hex(16)}", "object": shape, "created": int(time.time()), "model": model}


def usage_of(scalars: Scalars) -> dict[str, Any]:
    """Return the tokens of a request: those that were read, also where the cache had the answer."""
    return {
        "prompt_tokens": scalars.tokens,
        "total_tokens": scalars.tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def input_items(body: Mapping[str, Any]) -> list[RequestItem]:
    """Return the items of ``input`` (texts, or lists of token ids) or of ``messages``, one conversation.

    Raises:
        ServiceError: ``invalid_request``, if there is neither, or nothing in it.
    """
    if body.get("messages") is not None:
        return [chat_item(0, body["messages"], tools=body.get("tools"))]
    texts = body.get("input")
    if isinstance(texts, str) or (isinstance(texts, list) and texts and isinstance(texts[0], int)):
        texts = [texts]
    texts = checked_list(texts, "input")
    if not texts:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "input is empty: send at least one text")
    most, start = _cut(body)
    return [rendered_item(index, one, "input", most_tokens=most, start=start) for index, one in enumerate(texts)]


def _cut(body: Mapping[str, Any]) -> tuple[int | None, bool]:
    most, side = body.get("truncate_prompt_tokens"), body.get("truncation_side")
    if most is not None and (type(most) is not int or most < -1 or most == 0):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "truncate_prompt_tokens must be a number of tokens, or -1")
    if side not in (None, "left", "right"):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "truncation_side must be left or right")
    return (most if most and most > 0 else None), side == "right"


def _activated(body: Mapping[str, Any], default: bool) -> bool:
    return checked_flag(body.get("use_activation", body.get("activation")), "use_activation", default=default)


async def _asked(question: Question) -> list[RequestItem]:
    """Return the items of ``input`` or ``messages``, where the last message may be anybody's.

    As in vLLM, messages that no answer ends are rendered by the template and read like a rendered text.
    """
    messages = question.body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") == "assistant":
        return input_items(question.body)
    answered = chat_item(0, [*messages, {"role": "assistant", "content": ""}], tools=question.body.get("tools"))
    reading = await question.reading(question.hosted(question.body.get("model")), answered, "messages")
    most, start = _cut(question.body)
    ids = reading.token_ids[: reading.prompt_length]
    return [rendered_item(0, ids, "messages", most_tokens=most, start=start)]


async def _scored(question: Question, items: list[RequestItem], where: str) -> tuple[str, Scalars]:
    body = question.body
    model = question.rater(body.get("model"))
    # A limit of its own means that the client wants its texts cut, and from there on the server may.
    truncation: Truncation | None = "prompt" if body.get("truncate_prompt_tokens") is not None else None
    return model.name, await question.scalars(model, items, where, truncation=truncation)


async def classify(question: Question) -> dict[str, Any]:
    """Answer ``/classify``."""
    activated = _activated(question.body, default=True)
    model, scalars = await _scored(question, await _asked(question), "input")
    numbers = scalars.activated if activated else scalars.raw
    data = [
        {"index": index, "label": _LABEL, "probs": [number], "num_classes": 1} for index, number in enumerate(numbers)
    ]
    return {**answer_head("classify", model), "data": data, "usage": usage_of(scalars)}


def _encoded(number: float, form: object) -> list[float] | str:
    """Return a vector of one number as its client wants it."""
    if form in (None, "float"):
        return [number]
    if form == "base64":
        return base64.b64encode(np.array([number], dtype="<f4").tobytes()).decode()
    raise ServiceError(ErrorCode.INVALID_REQUEST, "encoding_format must be float or base64")


async def _pooling(question: Question) -> dict[str, Any]:
    body = question.body
    if str(body.get("task") or "").startswith("token"):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "this server has one number a text, and none for each token")
    form, activated = body.get("encoding_format"), _activated(body, default=False)
    _encoded(0.0, form)
    model, scalars = await _scored(question, await _asked(question), "input")
    numbers = scalars.activated if activated else scalars.raw
    data = [
        {"index": index, "object": "pooling", "data": _encoded(number, form)} for index, number in enumerate(numbers)
    ]
    return {**answer_head("pool", model), "data": data, "usage": usage_of(scalars)}


async def embeddings(question: Question) -> dict[str, Any]:
    """Answer ``/v1/embeddings``: vectors of one number, the reward."""
    form = question.body.get("encoding_format")
    _encoded(0.0, form)
    model, scalars = await _scored(question, await _asked(question), "input")
    data = [
        {"index": index, "object": "embedding", "embedding": _encoded(number, form)}
        for index, number in enumerate(scalars.raw)
    ]
    return {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": scalars.tokens, "total_tokens": scalars.tokens},
    }


def _side(body: Mapping[str, Any], *names: str) -> tuple[str, list[Any]]:
    name = next((name for name in names if body.get(name) is not None), names[0])
    value = body.get(name)
    texts = [value] if isinstance(value, str) else checked_list(value, name)
    if not texts:
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{name} is empty: send at least one text")
    return name, texts


async def _score(question: Question) -> dict[str, Any]:
    body = question.body
    first, queries = _side(body, "queries", "text_1", "data_1")
    second, documents = _side(body, "documents", "items", "text_2", "data_2")
    if len(queries) not in (1, len(documents)):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST, f"{len(queries)} {first} for {len(documents)} {second}: send one, or as many"
        )
    if len(queries) == 1:
        check_repeated(queries[0], len(documents), first)
        queries = queries * len(documents)
    items = [
        exchange_item(index, checked_text(query, f"{first}[{index}]"), document, ("", f"{second}[{index}]"))
        for index, (query, document) in enumerate(zip(queries, documents, strict=True))
    ]
    activated = _activated(body, default=True)
    model, scalars = await _scored(question, items, second)
    numbers = scalars.activated if activated else scalars.raw
    data = [{"index": index, "object": "score", "score": number} for index, number in enumerate(numbers)]
    return {**answer_head("score", model), "data": data, "usage": usage_of(scalars)}


async def ranked(question: Question, *, activated: bool) -> tuple[str, list[tuple[int, float, str]], Scalars]:
    """Score ``documents`` as responses to ``query``.

    Returns:
        The model's name; place, number and text of the documents, the best first, ``top_n`` of them; what was scored.

    Raises:
        ServiceError: ``invalid_request``, if either is missing, or ``top_n`` is no number.
    """
    body = question.body
    query = checked_text(body.get("query"), "query")
    documents = checked_list(body.get("documents"), "documents")
    if not documents:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "documents is empty: send at least one")
    texts = [
        checked_text(one.get("text") if isinstance(one, dict) else one, f"documents[{index}]")
        for index, one in enumerate(documents)
    ]
    top = body.get("top_n")
    if top is not None and (type(top) is not int or top < 0):
        raise ServiceError(ErrorCode.INVALID_REQUEST, "top_n must be a number of documents")
    check_repeated(query, len(texts), "query")
    items = [exchange_item(index, query, text, ("query", f"documents[{index}]")) for index, text in enumerate(texts)]
    model, scalars = await _scored(question, items, "documents")
    numbers = scalars.activated if activated else scalars.raw
    # By the logit: sigmoids of great ones are equal.
    order = sorted(range(len(texts)), key=lambda index: -scalars.raw[index])
    return model, [(index, numbers[index], texts[index]) for index in order[: top or None]], scalars


async def _rerank(question: Question) -> dict[str, Any]:
    model, best, scalars = await ranked(question, activated=_activated(question.body, default=True))
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": number} for index, number, _ in best]
    if question.body.get("return_documents") is not False:
        as_text = question.settings.rerank_document == "text"
        for result, (_, _, text) in zip(results, best, strict=True):
            result["document"] = text if as_text else {"text": text}
    return {**answer_head("rerank", model, "rerank"), "results": results, "usage": usage_of(scalars)}


async def _tokenize(question: Question) -> dict[str, Any]:
    body = question.body
    model = question.hosted(body.get("model"))
    if body.get("messages") is not None:
        item = chat_item(0, body["messages"], tools=body.get("tools"))
    else:
        item = rendered_item(0, checked_text(body.get("prompt"), "prompt"), "prompt", tokens_only=True)
    reading = await question.reading(model, item, "prompt")
    answer = {
        "count": len(reading.token_ids),
        "max_model_len": model.model.spec.max_length,
        "tokens": reading.token_ids,
        "token_strs": None,
    }
    if body.get("return_token_strs") is True and model.model.reader is not None:
        answer["token_strs"] = model.model.reader.tokenizer.convert_ids_to_tokens(reading.token_ids)
    return answer


async def health(question: Question) -> dict[str, Any]:
    """Answer whether every model can answer."""
    await check_ready(question.registry)
    return {}


async def _version(question: Question) -> dict[str, Any]:  # noqa: ARG001 (an endpoint has it)
    return {"version": version("paragone")}


def _both(path: str) -> Sequence[str]:
    return path, f"/v1{path}"


VLLM = Dialect(
    "vllm",
    "vLLM's and verl's clients",
    (
        *(Endpoint(path, classify) for path in _both("/classify")),
        Endpoint("/pooling", _pooling),
        *(Endpoint(path, _score) for path in _both("/score")),
        *(Endpoint(path, _rerank) for path in _both("/rerank")),
        Endpoint("/v1/embeddings", embeddings),
        Endpoint("/tokenize", _tokenize, scores=False),
        Endpoint("/health", health, "GET", reads="nothing", scores=False),
        Endpoint("/version", _version, "GET", reads="nothing", scores=False),
    ),
    api_error,
    patience_s=300.0,
)
