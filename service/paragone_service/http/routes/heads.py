"""The route that fits a head, for keys of admins; on a server without any key, for whoever can ask it."""

from collections.abc import Callable

from fastapi import APIRouter, Request

from paragone.wire import HeadAnswer, HeadRequest, ModelInfo
from paragone_service.fitting.heads import HeadFitting
from paragone_service.http.bodies import read_body
from paragone_service.http.calls import call_of
from paragone_service.http.openapi_document import head_document
from paragone_service.http.routes.rollout import check_admin
from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["head_routes"]


def head_routes(fitting: HeadFitting, info: Callable[[HostedModel], ModelInfo], *, keyless: bool) -> APIRouter:
    """Return the route.

    Args:
        info: what is said of a hosted model.
        keyless: whether the server has no keys; then it listens on loopback alone.
    """
    router = APIRouter(tags=["rollout"])

    @router.post("/v1/heads", **head_document(HeadRequest, HeadAnswer))
    async def fit_head(request: Request) -> HeadAnswer:
        """Fit a head to pairs on the frozen backbone of a hosted model, host it beside that one, and compare the two.

        Seconds for some hundred pairs. The new model shares the old one's memory. Needs the key of an admin, unless
        the server has no keys.
        """
        if not keyless:
            check_admin(request, "fitting heads")
        body, _, problems = await read_body(request, HeadRequest, "pairs")
        fitted = await fitting.fit(body, call_of(request, body.truncation, problems))
        return HeadAnswer(
            model=info(fitted.hosted),
            base=fitted.base,
            folder=str(fitted.folder),
            temporary=fitting.temporary,
            pairs=fitted.pairs,
            prompts=fitted.prompts,
            penalties=fitted.penalties,
            agreement=fitted.agreement,
            usage=fitted.usage,
        )

    return router
