"""The routes that show what is hosted and what a model sees, and those for whoever runs the service."""

import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from paragone.codes import ErrorCode
from paragone.wire import (
    DeviceInfo,
    ModelCard,
    ModelInfo,
    ModelLimits,
    ModelsAnswer,
    TokensAnswer,
    TokensRequest,
    Usage,
)
from paragone_service.http.bodies import MAX_ITEMS, read_body
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
from paragone_service.pairs.source import PairSource
from paragone_service.registry import Registry
from paragone_service.scoring import answers
from paragone_service.scoring.devices import Device
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import RequestItem, as_conversations

__all__ = ["check_ready", "health_routes", "inspection_routes", "model_info"]

# A load balancer asks every few seconds: a busy model is never asked for a canary, an idle one twice a minute.
_FRESH_S = 30.0
_CANARY_TIMEOUT_S = 4.0


def inspection_routes(registry: Registry, *, max_body_bytes: int) -> APIRouter:
    """Return the routes that show hosted models and tokens.

    Args:
        max_body_bytes: the server's limit, which a model's information repeats.
    """
    router = APIRouter(tags=["inspection"])
    started = int(time.time())

    def described() -> list[ModelInfo]:
        sources = [_compares(source, max_body_bytes) for source in registry.pair_sources.values()]
        infos = [*(model_info(hosted, max_body_bytes) for hosted in registry), *sources]
        return sorted(infos, key=lambda info: info.id != registry.default)

    @router.get("/v1/models", **inspection_document(ModelsAnswer))
    async def models() -> ModelsAnswer:
        """Answer what is hosted, the default model first."""
        infos = described()
        cards = [ModelCard(id=info.id, created=started, max_model_len=info.limits.max_tokens) for info in infos]
        return ModelsAnswer(models=infos, data=cards)

    @router.get("/v1/models/{model}", **inspection_document(ModelInfo, named=True))
    async def model(model: str) -> ModelInfo:
        """Answer what one hosted model is."""
        source = registry.pair_source(model)
        if source is not None:
            return _compares(source, max_body_bytes)
        return model_info(registry.find(model), max_body_bytes)

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
        truncated = sum(1 for row in rows if row.truncated_tokens)
        usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=truncated)
        not_shown = sum(1 for row in rows if not row.shown)
        if not_shown:  # only fields that were set are sent
            usage.not_shown = not_shown
        return answer(model.header, TokensAnswer, usage, problems, tokens=rows)

    return router


def _compares(source: PairSource, max_body_bytes: int) -> ModelInfo:
    return source.described(ModelLimits(max_tokens=0, max_items=MAX_ITEMS, max_body_bytes=max_body_bytes))


def model_info(hosted: HostedModel, max_body_bytes: int) -> ModelInfo:
    """Return what is said of a hosted model.

    Args:
        max_body_bytes: the server's limit.
    """
    model, spec, budget = hosted.model, hosted.model.spec, hosted.model.budget
    max_batch_tokens, reason = hosted.scheduler.max_batch_tokens, budget.reason
    if max_batch_tokens < budget.tokens:  # the scheduler has lowered it since the model was loaded
        reason = f"the device had not enough memory for {budget.tokens}"
    return ModelInfo(
        id=hosted.name,
        kind=model.kind,
        cyclic=spec.rules.has_vector,
        source=model.provenance.source,
        revision=model.provenance.revision,
        identity=model.identity,
        fingerprint=model.fingerprint,
        numerics=model.provenance.numerics,
        limits=ModelLimits(max_tokens=model.spec.max_length, max_items=MAX_ITEMS, max_body_bytes=max_body_bytes),
        temperature=spec.temperature,
        calibrated=spec.calibrated,
        attributes=list(spec.attributes),
        weights=None if spec.weights is None else list(spec.weights),
        aggregation=spec.aggregation,
        dimension=spec.dimension,
        domain=spec.domain,
        demonstration=spec.demonstration,
        engine=hosted.engine.name,
        batching=model.local.batching,
        max_batch_tokens=max_batch_tokens,
        max_batch_tokens_reason=reason,
        devices=[_device(device) for device in hosted.scheduler.devices],
        pooling=spec.pooling,
        special_tokens=spec.special_tokens,
        reasoning=spec.reasoning,
        not_shown=model.reader.template.notes if model.reader is not None else [],
    )


def _device(device: Device) -> DeviceInfo:
    trouble = device.trouble()
    info = DeviceInfo(name=device.name, serves=not trouble, max_batch_tokens=device.max_batch_tokens)
    if trouble:  # only fields that were set are sent
        info.problem = trouble
    return info


async def check_ready(registry: Registry) -> None:
    """Refuse unless every hosted model can answer.

    Raises:
        ServiceError: ``not_ready``, naming the first that cannot.
    """
    # One after the other: models on one device would wait for each other anyway.
    for hosted in (*registry, *registry.pair_sources.values()):
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
