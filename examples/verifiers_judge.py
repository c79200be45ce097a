"""A judge plugin for verifiers and prime-rl.

Put this folder on PYTHONPATH, and into the run's config

    [[env.taskset.task.judges]]
    id = "verifiers_judge"
    signal = "against_reference"   # or "reward"

Tried with verifiers 0.4.0.
"""

import os
from typing import Literal

import verifiers.v1 as vf

from paragone import AsyncClient
from paragone.adapters import verifiers

__all__ = ["ParagoneJudge"]

oracle = AsyncClient(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"))


class ParagoneJudgeConfig(vf.JudgeConfig):
    """What the run's config may say."""

    id: vf.ID = "verifiers_judge"
    signal: Literal["reward", "against_reference"] = "reward"
    reference_field: str = "answer"
    oracle_model: str | None = None


class ParagoneJudge(vf.Judge[float, ParagoneJudgeConfig]):
    """Scores the last reply; a failure fails the rollout."""

    async def score(self, task: vf.TaskData, trace: vf.Trace) -> float:
        """Return the reward, or the probability that the reply is preferred to the task's answer."""
        return await verifiers.score(
            oracle,
            task,
            trace,
            signal=self.config.signal,
            reference_field=self.config.reference_field,
            model=self.config.oracle_model,
        )
