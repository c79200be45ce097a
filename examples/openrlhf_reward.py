"""A reward file for OpenRLHF: ``--reward.remote_url examples/openrlhf_reward.py --data.label_key label``.

The column ``label`` of the data holds the messages and a good answer as JSON; the reward is the probability that the
model prefers the policy's response to that answer. Tried with OpenRLHF 0.11.2 (``openrlhf.utils.agent``).
"""

import json
import os
from typing import Any

from paragone import Client
from paragone.adapters import openrlhf

oracle = Client(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"))


def messages(prompt: str, label: str) -> Any:  # noqa: ARG001 (a templated prompt is of no use to another model)
    """Return what was asked."""
    return json.loads(label)["messages"]


def reference(label: str) -> Any:
    """Return the good answer."""
    return json.loads(label)["answer"]


reward_func = openrlhf.reward_func(oracle, signal="against_label", prompt_of=messages, reference_of=reference)
