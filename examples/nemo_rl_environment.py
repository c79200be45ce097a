"""An environment for NeMo-RL whose reward is the win rate within the generations of a prompt.

Register it as NeMo-RL registers environments, and give it ``{"num_generations": grpo.num_generations_per_prompt}``.
Written against NVIDIA-NeMo/RL at 7ea279abf (2026-08-22): the test repeats its interface, it is not installed there.
"""

import os
from typing import Any

import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

from paragone import Client
from paragone.adapters import nemo_rl


class PreferenceEnvironment(EnvironmentInterface):
    """Judges answers of one turn; with ``ray.remote`` around it, as every environment of NeMo-RL."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.oracle = Client(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"), model=config.get("model"))

    def step(self, message_log_batch: list[Any], metadata: list[Any]) -> EnvironmentReturn:
        """Return the rewards of a batch; every episode ends with its first answer."""
        values = nemo_rl.rewards(self.oracle, message_log_batch, num_generations=self.config["num_generations"])
        size = len(values)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""}] * size,
            metadata=metadata,
            next_stop_strings=[None] * size,
            rewards=torch.tensor(values),
            terminateds=torch.ones(size, dtype=torch.bool),
            answers=[log[-1]["content"] for log in message_log_batch],
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Return the batch as it is, and its mean reward."""
        return batch, {"paragone/mean_reward": float(batch["total_reward"].float().mean())}
