"""The routes for whoever runs the service: liveness, readiness, metrics."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError
from paragone_service.http.middleware import Drain
from paragone_service.http.openapi_document import health_document, metrics_document
from paragone_service.metrics import Metrics
from paragone_service.registry import Registry

__all__ = ["health_routes"]

_FRESH_S = 30.0
_CANARY_TIMEOUT_S = 10.0


def health_routes(registry: Registry, metrics: Metrics, drain: Drain) -> APIRouter:
    """Return the routes.

    Args:
        registry: the hosted models.
        metrics: what ``/metrics`` shows.
        drain: whether the server is shutting down.
    """
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
        for oracle in registry:
            if not await oracle.alive(within_s=_FRESH_S, timeout_s=_CANARY_TIMEOUT_S):
                raise ServiceError(
                    ErrorCode.NOT_READY, f"model {oracle.name} has not run a forward lately", retry_after_s=1
                )
        return PlainTextResponse("ready\n")

    @router.get("/metrics", **metrics_document())
    async def metrics_text() -> Response:
        """Answer the metrics in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
