"""The example for slime, called as slime's rollouts call it; slime itself has no package that installs here."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from paragone import Client
from tests.examples.conftest import load

MESSAGES = [{"role": "user", "content": "Should every school have a garden?"}]
RESPONSES = ["It keeps kids fit.", "Because it is fun, and they learn to work in teams.", "No! Let them read."]


@dataclass
class Arguments:
    """What ``rm_hub`` reads of slime's arguments."""

    group_rm: bool


@dataclass
class Sample:
    """The fields of slime's ``Sample`` that matter here."""

    prompt: str
    response: str
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None


def sample(response, label=None):
    return Sample(f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>", response, label, {"messages": MESSAGES})


async def generate_and_rm_group(rm, args, group):
    """Set the rewards as ``sglang_rollout.generate_and_rm_group`` does with ``--group-rm``."""
    rewards = await rm(args, group)
    for one, reward in zip(group, rewards, strict=False):
        one.reward = reward
    return group


def test_two_groups_get_their_win_rates_and_evaluation_its_probabilities(url):
    example = load("slime_reward")

    async def steps():
        args = Arguments(group_rm=True)
        groups = [[sample(response) for response in RESPONSES], [sample(response) for response in RESPONSES[:2]]]
        await asyncio.gather(*(generate_and_rm_group(example.reward, args, group) for group in groups))
        evaluated = await example.evaluate(Arguments(group_rm=False), sample(RESPONSES[0], label=RESPONSES[1]))
        return groups, evaluated

    groups, evaluated = asyncio.run(steps())
    with Client(url) as client:
        for group in groups:
            right = client.tournament(MESSAGES, [one.response for one in group]).win_rates
            assert [one.reward for one in group] == right
        assert evaluated == pytest.approx(client.prefer(MESSAGES, RESPONSES[0], RESPONSES[1]))
