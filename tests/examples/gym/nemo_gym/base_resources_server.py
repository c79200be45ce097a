"""Configuration, bodies and routes of a resources server."""

from enum import StrEnum
from typing import Any, ClassVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from nemo_gym.judge import judge_failsafe


class ReverifyMode(StrEnum):
    STATELESS = "stateless"
    UNSUPPORTED = "unsupported"
    UNKNOWN = "unknown"


class BaseResourcesServerConfig(BaseModel):
    model_config = ConfigDict(extra="allow")
    REVERIFY_MODE: ClassVar[ReverifyMode] = ReverifyMode.UNKNOWN

    host: str
    port: int
    entrypoint: str
    name: str
    num_workers: int | None = None


class BaseVerifyRequest(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    responses_create_params: dict[str, Any]
    capture_rollout_id: str | None = Field(default=None, alias="_ng_rollout_id", exclude=True)
    response: dict[str, Any]


class BaseVerifyResponse(BaseVerifyRequest):
    reward: float
    mask_sample: bool = False
    failure_kind: str | None = None
    failure_reason: str | None = None


class SimpleResourcesServer(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    ray_enabled: ClassVar[bool] = True

    config: BaseResourcesServerConfig
    server_client: Any

    def setup_webserver(self):
        app = FastAPI()
        app.post("/verify")(judge_failsafe(self.verify))
        app.get("/reverify_mode")(self.get_reverify_mode)
        return app

    async def get_reverify_mode(self) -> ReverifyMode:
        return self.config.REVERIFY_MODE
