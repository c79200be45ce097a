"""The example for OpenRLHF, loaded and called as ``openrlhf.utils.agent`` of 0.11.2 does, which has run it once."""

import asyncio
import importlib.util
import json

import pytest

from paragone import Client
from tests.examples.conftest import EXAMPLES

MESSAGES = [{"role": "user", "content": "Should every school have a garden?"}]
TEMPLATED = "<|im_start|>user\nShould every school have a garden?<|im_end|>\n<|im_start|>assistant\n"
LABEL = json.dumps({"messages": MESSAGES, "answer": "It keeps kids fit."})


def loaded():
    spec = importlib.util.spec_from_file_location("reward_func", str(EXAMPLES / "openrlhf_reward.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def executed(reward_func, response):
    """Return reward, scores and logs of a sample as ``SingleTurnAgentExecutor`` takes them."""
    query = TEMPLATED + response + "<|im_end|>"
    try:
        (info,) = await asyncio.gather(asyncio.to_thread(reward_func, [query], [TEMPLATED], [LABEL]))
    except Exception:  # noqa: BLE001 (as the host does)
        return None, None, {}
    return info.get("rewards"), info.get("scores"), info.get("extra_logs")


def test_two_samples_get_their_probabilities_against_the_label(url, caplog):
    module, responses = loaded(), ["Because it is fun.", "No! Let them read."]

    async def steps():
        asked = [*responses, "long " * 500]
        return await asyncio.gather(*(executed(module.reward_func, response) for response in asked))

    with module.oracle:
        *scored, too_long = asyncio.run(steps())
    with Client(url) as client:
        for response, (reward, score, logs) in zip(responses, scored, strict=True):
            right = client.prefer(MESSAGES, response, "It keeps kids fit.")
            assert reward == score == logs["paragone"] == pytest.approx(right)
    assert too_long == (None, None, {})
    assert "samples have no reward" in caplog.text
