"""infinity's routes, as infinity_client asks them: ``raw_scores`` tells its bodies from vLLM's at the same paths."""

import time
from collections.abc import Mapping
from typing import Any

from paragone_service.dialects.dialect import Dialect, Endpoint, api_error
from paragone_service.dialects.texts import Question, checked_flag
from paragone_service.dialects.vllm_pooling import answer_head, health, input_items, ranked

__all__ = ["INFINITY"]

_LABEL = "LABEL_0"


def _claims(body: Any) -> bool:
    return isinstance(body, Mapping) and "raw_scores" in body and "texts" not in body


def _raw(body: Mapping[str, Any]) -> bool:
    return checked_flag(body.get("raw_scores"), "raw_scores")


async def _classify(question: Question) -> dict[str, Any]:
    raw = _raw(question.body)
    model = question.rater(question.body.get("model"))
    scalars = await question.scalars(model, input_items({**question.body, "messages": None}), "input")
    return {
        **answer_head("classify", model.name, "classify"),
        "data": [[{"score": number, "label": _LABEL}] for number in (scalars.raw if raw else scalars.activated)],
        "usage": {"prompt_tokens": scalars.tokens, "total_tokens": scalars.tokens},
    }


async def _rerank(question: Question) -> dict[str, Any]:
    model, best, scalars = await ranked(question, activated=not _raw(question.body))
    shown = question.body.get("return_documents") is True
    return {
        **answer_head("rerank", model, "rerank"),
        "results": [
            {"index": index, "relevance_score": number, "document": text if shown else None}
            for index, number, text in best
        ],
        "usage": {"prompt_tokens": scalars.tokens, "total_tokens": scalars.tokens},
    }


async def _models(question: Question) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            {
                "id": hosted.name,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "infinity",
                "backend": "torch",
                "stats": {
                    "queue_fraction": min(1.0, hosted.scheduler.queue_tokens / hosted.scheduler.max_queue_tokens),
                    "queue_absolute": hosted.scheduler.queue_items,
                    "results_pending": hosted.scheduler.queue_items,
                    "batch_size": hosted.scheduler.max_batch_tokens,
                },
                "capabilities": ["classify", "rerank"],
            }
            for hosted in question.registry
        ],
    }


INFINITY = Dialect(
    "infinity",
    "infinity_client",
    (
        Endpoint("/classify", _classify, claims=_claims),
        Endpoint("/rerank", _rerank, claims=_claims),
        Endpoint("/models", _models, "GET", reads="nothing", scores=False),
        Endpoint("/health", health, "GET", reads="nothing", scores=False),
    ),
    api_error,
)
