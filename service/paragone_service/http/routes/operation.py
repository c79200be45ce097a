"""The routes that show what is hosted and what a model sees, and those for whoever runs the service."""

import asyncio
import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from paragone.codes import ErrorCode
from paragone.wire import (
    ModelCard,
    ModelInfo,
    ModelLimits,
    ModelsAnswer,
    TokensAnswer,
    TokensRequest,
    Usage,
)
from paragone_service.http.bodies import read_body
from paragone_service.http.calls import answer, call_of
from paragone_service.http.errors import ServiceError
from paragone_service.http.middleware import Drain
from paragone_service.http.openapi_document import (
    health_document,
    inspection_document,
    metrics_document,
    scoring_document,
)
from paragone_service.metrics import Metrics
from paragone_service.registry import Registry
from paragone_service.scoring import answers
from paragone_service.scoring.describing import described
from paragone_service.scoring.request import RequestItem, as_conversations

__all__ = ["check_ready", "health_routes", "inspection_routes"]

# A load balancer asks every few seconds: a busy model is never asked for a canary, an idle one twice a minute.
_FRESH_S = 30.0
_CANARY_TIMEOUT_S = 4.0


def inspection_routes(registry: Registry, limits: ModelLimits) -> APIRouter:
    """Return the routes that show hosted models and tokens.

    Args:
        limits: the server's own, which a model's information repeats.
    """
    router = APIRouter(tags=["inspection"])
    started = int(time.time())

    def all_described() -> list[ModelInfo]:
        alone = [described(hosted, limits) for hosted in registry if registry.pair_source(hosted.name) is None]
        infos = [*alone, *(source.described(limits) for source in registry.pair_sources.values())]
        return sorted(infos, key=lambda info: info.id != registry.default)

    @router.get("/v1/models", **inspection_document(ModelsAnswer))
    async def models() -> ModelsAnswer:
        """Answer what is hosted, the default model first."""
        infos = all_described()
        cards = [ModelCard(id=info.id, created=started, max_model_len=info.limits.max_tokens) for info in infos]
        return ModelsAnswer(models=infos, data=cards)

    @router.get("/v1/models/{model}", **inspection_document(ModelInfo, named=True))
    async def model(model: str) -> ModelInfo:
        """Answer what one hosted model is."""
        source = registry.pair_source(model)
        if source is not None:
            return source.described(limits)
        return described(registry.find(model), limits)

    @router.post("/v1/tokens", **scoring_document(TokensRequest, TokensAnswer))
    async def tokens(request: Request) -> Response:
        """Answer exactly what the model sees of each conversation: text, tokens, read positions, what was cut.

        Nothing is run through the model.
        """
        body, indices, problems = await read_body(request, TokensRequest, "items")
        model = registry.find(body.model)
        conversations = as_conversations(
            [
                (RequestItem(index, item.prompt, item.tools, (item.response,), principle=item.principle), item.response)
                for index, item in zip(indices, body.items, strict=True)
            ]
        )
        readings = await model.read(
            conversations, call_of(request, body.truncation, problems, deadline_s=body.deadline_s)
        )
        rows = answers.tokens(indices, readings, problems)
        if "pieces" in body.return_:
            assert model.model.reader is not None  # it has read these
            await asyncio.to_thread(answers.add_pieces, rows, model.model.reader.tokenizer)
        truncated = sum(1 for row in rows if row.truncated_tokens)
        usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=truncated)
        not_shown = sum(1 for row in rows if not row.shown)
        if not_shown:  # only fields that were set are sent
            usage.not_shown = not_shown
        return answer(model.header, TokensAnswer, usage, problems, tokens=rows)

    return router


async def check_ready(registry: Registry) -> None:
    """Refuse unless every hosted model can answer.

    Raises:
        ServiceError: ``not_ready``, naming the first that cannot.
    """
    # One after the other: models on one device would wait for each other anyway.
    for hosted in registry.all:
        if not await hosted.alive(within_s=_FRESH_S, timeout_s=_CANARY_TIMEOUT_S):
            raise ServiceError(
                ErrorCode.NOT_READY, f"model {hosted.name} has not run a forward lately", retry_after_s=1
            )


def health_routes(registry: Registry, metrics: Metrics, drain: Drain) -> APIRouter:
    """Return the routes for whoever runs the service: liveness, readiness, metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/livez", **health_document("The process answers."))
    async def liveness() -> Response:
        """Answer whether the process runs; restart it if there is no answer."""
        return PlainTextResponse("ok\n")

    @router.get(
        "/readyz", **health_document("Every hosted model can answer.", ErrorCode.NOT_READY, ErrorCode.SHUTTING_DOWN)
    )
    async def readiness() -> Response:
        """Answer whether requests may be sent here.

        Every model must have run a forward in the last 30 seconds; where none was asked for, a small one is run now.
        """
        if drain.begun:
            raise ServiceError(ErrorCode.SHUTTING_DOWN, "the server is shutting down", retry_after_s=1)
        await check_ready(registry)
        return PlainTextResponse("ready\n")

    @router.get("/metrics", **metrics_document())
    async def metrics_text() -> Response:
        """Answer the metrics in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
