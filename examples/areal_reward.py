"""Rewards for AReaL's workflows: ``RLVRWorkflow(reward_fn="areal_reward.reward", ...)``, this folder on PYTHONPATH.

Rows have ``messages`` and, for ``signal="against_reference"``, ``answer``. Written against AReaL 1.0.4: its calls are
repeated by the test, it is not installed there.
"""

import os
from collections.abc import Sequence
from typing import Any

from paragone import Client
from paragone.adapters import areal

# AReaL makes a reward of 0 of what takes 15 seconds: give up before.
oracle = Client(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"), timeout_s=12)
score = areal.reward_fn(oracle, signal="against_reference")


def reward(
    prompt: str, completions: str, prompt_ids: Sequence[int], completion_ids: Sequence[int], **columns: Any
) -> float:
    """Return the probability that the completion is preferred to the row's answer."""
    return score(prompt, completions, prompt_ids, completion_ids, **columns)
