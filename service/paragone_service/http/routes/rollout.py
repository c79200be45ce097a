"""The routes that load and unload models of a running server, for keys of admins."""

from collections.abc import Callable

from fastapi import APIRouter, Request
from pydantic import ValidationError

from paragone.codes import ErrorCode
from paragone.wire import LoadRequest, ModelInfo
from paragone_service.api_keys import ApiKey
from paragone_service.http.bodies import read_values
from paragone_service.http.errors import ServiceError, from_validation
from paragone_service.http.middleware import SCOPE_KEY
from paragone_service.http.openapi_document import rollout_document
from paragone_service.rollout import Rollout
from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["check_admin", "rollout_routes"]


def rollout_routes(rollout: Rollout, info: Callable[[HostedModel], ModelInfo], *, keyless: bool = False) -> APIRouter:
    """Return the routes.

    Args:
        info: what is said of a hosted model.
        keyless: whether the server has no keys: then what was fitted on it may be unloaded without one.
    """
    router = APIRouter(tags=["rollout"])

    @router.post("/v1/models/{model}:load", **rollout_document(LoadRequest, ModelInfo))
    async def load_model(request: Request, model: str) -> ModelInfo:
        """Load a model beside those that are hosted, and answer once it has taken over; needs the key of an admin.

        It is checked on built-in texts first. Requests under way end on the model that they began with. What is
        refused changes nothing.
        """
        check_admin(request)
        values = await read_values(request)
        try:
            body = LoadRequest.model_validate(values)
        except ValidationError as error:
            raise from_validation(error) from None
        return info(await rollout.load(model, body.source, body.revision))

    @router.post("/v1/models/{model}:unload", **rollout_document(None, ModelInfo))
    async def unload_model(request: Request, model: str) -> ModelInfo:
        """Host a model no more, and answer what it was; needs the key of an admin. Requests under way end first."""
        if not (keyless and model in rollout.made_here):
            check_admin(request)
        return info(await rollout.unload(model))

    return router


def check_admin(request: Request, what: str = "loading and unloading models") -> None:
    """Refuse a request whose key is no admin's.

    Args:
        what: it asks for.

    Raises:
        ServiceError: ``not_allowed``.
    """
    key: ApiKey | None = request.scope.get(SCOPE_KEY)
    if key is None or not key.admin:
        raise ServiceError(ErrorCode.NOT_ALLOWED, f"{what} needs the key of an admin: `paragone key new --admin`")
