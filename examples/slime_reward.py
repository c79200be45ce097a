"""Rewards for slime and miles: ``--group-rm --custom-rm-path slime_reward.reward`` (this folder on PYTHONPATH).

Evaluation has no groups: in ``--eval-config`` give its data sets ``custom_rm_path: slime_reward.evaluate``, where the
label of a sample is the reference answer. With ``--apply-chat-template`` a prompt is a templated text: keep the
messages in ``metadata["messages"]``.

Written against THUDM/slime at 624b824a (2026-08-21): its calls are repeated by the test, it is not installed there.
"""

import os
from typing import Any

from paragone import AsyncClient
from paragone.adapters import slime

oracle = AsyncClient(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"))


def asked(sample: Any) -> Any:
    """Return the messages that the data set keeps beside a templated prompt, or the prompt."""
    return (sample.metadata or {}).get("messages", sample.prompt)


reward = slime.custom_rm(oracle, prompt_of=asked)
evaluate = slime.eval_rm(oracle, signal="against_label", prompt_of=asked)
