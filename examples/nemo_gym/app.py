"""A resources server for NeMo Gym that asks a Paragone service: copy this folder to ``resources_servers/paragone``.

The reward of a rollout is its mean win probability within its group. The group forms at the service, so this server
keeps no state: it may have several workers, and stored rollouts can be scored again. A failure of the judge is what Gym
has for it, a row that is masked; a failure of the group is 409 or 503, and bad coordinates are 422, as in
``genrm_compare``. Tried with NeMo Gym 0.7.0.
"""

from typing import Any, ClassVar, Literal

from fastapi import HTTPException
from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    ReverifyMode,
    SimpleResourcesServer,
)
from nemo_gym.judge import JudgeError
from pydantic import ConfigDict, Field, PrivateAttr

from paragone import AsyncClient, ParagoneError
from paragone.adapters import nemo_gym
from paragone.wire import Shaping


class ParagoneConfig(BaseResourcesServerConfig):
    """What ``configs/paragone.yaml`` may set."""

    REVERIFY_MODE: ClassVar[ReverifyMode] = ReverifyMode.STATELESS

    name: str = "paragone"
    oracle_url: str | list[str]
    oracle_api_key: str | None = None
    oracle_model: str | None = None
    oracle_retry_s: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    score: Literal["win_rate", "rank", "nash", "elimination", "acyclic", "baseline", "reward"] = "win_rate"
    shaping: Shaping | None = None
    num_rollouts_per_prompt: int = Field(default=1, ge=1)
    cohort_collection_timeout_s: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    on_missing: Literal["fail", "score-present"] = "fail"


class ParagoneVerifyRequest(BaseVerifyRequest):
    """A rollout, with all columns of its task."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class ParagoneVerifyResponse(BaseVerifyResponse):
    """The request again, with its reward."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class ParagoneResourcesServer(SimpleResourcesServer):
    """Asks the service for each rollout."""

    ray_enabled: ClassVar[bool] = False

    config: ParagoneConfig
    _scorer: nemo_gym.Scorer = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Make the client; it opens no connection yet."""
        super().model_post_init(context)
        config = self.config
        self._scorer = nemo_gym.Scorer(
            AsyncClient(
                config.oracle_url,
                api_key=config.oracle_api_key,
                model=config.oracle_model,
                retry_s=config.oracle_retry_s,
            ),
            score=config.score,
            shaping=config.shaping,
            size=config.num_rollouts_per_prompt,
            deadline_s=config.cohort_collection_timeout_s,
            on_missing=config.on_missing,
        )

    async def verify(self, body: ParagoneVerifyRequest) -> ParagoneVerifyResponse:
        """Return the rollout with its reward."""
        row = body.model_dump(mode="json", by_alias=True)
        try:
            scored = await self._scorer(row)
        except ParagoneError as error:
            status = nemo_gym.cohort_status(error)
            if status is None:
                raise JudgeError(f"{type(error).__name__}: {error}") from error
            raise HTTPException(status, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return ParagoneVerifyResponse(**(row | scored))


if __name__ == "__main__":
    ParagoneResourcesServer.run_webserver()
