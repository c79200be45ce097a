"""Rewards for verl: win rates within the rollouts of a prompt, by a reward manager.

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=examples/verl_reward.py
    reward.reward_manager.name=RewardManager
    reward.num_workers=1

A manager sees what was asked and which samples belong together. Validation has no groups: there a sample is compared
with its ground truth; let ``extra_info["split"]`` of those data say ``test``. Tried with verl 0.9.1.
"""

import os

from paragone import AsyncClient, Client
from paragone.adapters import verl

URL = os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000")


class RewardManager(verl.RewardManager):
    """Win rates in training, probabilities against the ground truth in validation."""

    client = AsyncClient(URL)
    alone = "against_ground_truth"


# Instead, for reward.custom_reward_function.path, where extra_info keeps the prompt: one sample at a time, no groups.
compute_score = verl.compute_score(Client(URL), signal="against_ground_truth")
