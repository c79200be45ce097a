"""SGLang's native ``/classify``, and the routes that it shares with vLLM's API.

{"text": a text or texts} or {"input_ids": …}  ->  [{"embedding": [reward], "meta_info": {…}}]
"""

from collections.abc import Mapping
from typing import Any

from paragone_service.dialects.dialect import Dialect, Endpoint, api_error
from paragone_service.dialects.texts import Question
from paragone_service.dialects.vllm_pooling import classify, embeddings, health, input_items

__all__ = ["SGLANG"]


def _native(body: Any) -> bool:
    return isinstance(body, Mapping) and "input" not in body and ("text" in body or "input_ids" in body)


async def _classify(question: Question) -> list[dict[str, Any]]:
    body = question.body
    texts = body["text"] if body.get("text") is not None else body.get("input_ids")
    items = input_items({**body, "messages": None, "input": texts})
    scalars = await question.scalars(question.rater(body.get("model")), items, "text")
    tokens = scalars.tokens if len(items) <= 1 else None
    return [{"embedding": [reward], "meta_info": {"prompt_tokens": tokens}} for reward in scalars.raw]


SGLANG = Dialect(
    "sglang",
    "SGLang's clients",
    (
        Endpoint("/classify", _classify, claims=_native),
        Endpoint("/v1/classify", classify),
        Endpoint("/v1/embeddings", embeddings),
        Endpoint("/health", health, "GET", reads="nothing", scores=False),
    ),
    api_error,
    patience_s=300.0,
)
