"""The routes that show what is hosted and what a model sees."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from paragone.wire import ModelInfo, ModelsAnswer, TokensAnswer, TokensRequest, Usage
from paragone_service.http.bodies import read_batch
from paragone_service.http.openapi_document import inspection_document, scoring_document
from paragone_service.http.routes.scoring import answer, call_of
from paragone_service.registry import Registry
from paragone_service.scoring import answers
from paragone_service.scoring.request import Asked, as_conversation

__all__ = ["inspection_routes"]


def inspection_routes(registry: Registry) -> APIRouter:
    """Return the routes.

    Args:
        registry: the hosted models.
    """
    router = APIRouter(tags=["inspection"])

    @router.get("/v1/models", **inspection_document(ModelsAnswer))
    async def models() -> ModelsAnswer:
        """Answer what is hosted, the default model first."""
        return ModelsAnswer(models=[registry.info(oracle) for oracle in registry])

    @router.get("/v1/models/{model}", **inspection_document(ModelInfo, named=True))
    async def model(model: str) -> ModelInfo:
        """Answer what one hosted model is."""
        return registry.info(registry.find(model))

    @router.post("/v1/tokens", **scoring_document(TokensRequest, TokensAnswer))
    async def tokens(request: Request) -> Response:
        """Answer exactly what the model sees of each conversation: text, tokens, read positions, what was cut.

        Nothing is run through the model.
        """
        batch = await read_batch(request, TokensRequest, "items")
        wanted = batch.request
        oracle = registry.find(wanted.model)
        call = call_of(request, wanted, "items")
        conversations = [
            as_conversation(Asked(item.prompt, item.tools, (item.response,)), item.response) for item in wanted.items
        ]
        rows = answers.tokens(await oracle.read(conversations, call), call)
        cut = sum(1 for row in rows if not isinstance(row, Exception) and row.truncated_tokens)
        usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=cut)
        return answer(oracle, TokensAnswer, usage, tokens=batch.place(rows))

    return router
