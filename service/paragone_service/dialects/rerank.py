"""cohere's and Jina's ``/v1/rerank`` and ``/v2/rerank``: documents are responses, and the query is their prompt.

    {"model", "query", "documents": [...], "top_n"?, "return_documents"?}
        ->  {"results": [{"index", "relevance_score", "document"?}], "meta", "usage"}

vLLM's clients ask ``/v1/rerank`` in the same words, and find all that they read in this answer too.
"""

from typing import Any

from paragone_service.dialects.dialect import Dialect, Endpoint, api_error
from paragone_service.dialects.texts import Question
from paragone_service.dialects.vllm_pooling import answer_head, ranked, usage_of
from paragone_service.http.errors import ServiceError

__all__ = ["RERANK"]


async def _reranked(question: Question, version: str, *, documents: bool) -> dict[str, Any]:
    # A flag of vLLM's clients; cohere's and Jina's know none.
    model, best, scalars = await ranked(question, activated=question.body.get("use_activation") is not False)
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": number} for index, number, _ in best]
    if documents:
        for result, (_, _, text) in zip(results, best, strict=True):
            result["document"] = {"text": text}
    return {
        **answer_head("rerank", model, "rerank"),
        "results": results,
        "usage": usage_of(scalars),
        "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
    }


async def _first(question: Question) -> dict[str, Any]:
    return await _reranked(question, "1", documents=question.body.get("return_documents") is not False)


async def _second(question: Question) -> dict[str, Any]:
    return await _reranked(question, "2", documents=question.body.get("return_documents") is True)


def _error(error: ServiceError) -> tuple[int, Any]:
    """Return an error that cohere's clients read by ``message``, Jina's by ``detail``, and vLLM's by ``error``."""
    status, body = api_error(error)
    return status, {**body, "message": error.message}


RERANK = Dialect(
    "rerank",
    "cohere's and Jina's clients",
    (Endpoint("/v1/rerank", _first), Endpoint("/v2/rerank", _second)),
    _error,
)
