"""The examples with environments, and those asked for one response at a time, called as their hosts call them."""

import asyncio
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

from paragone import Client
from tests.examples import hosts
from tests.examples.conftest import EXAMPLES, load

PROMPT = "Should every school have a garden?"
TURN = [{"role": "user", "content": PROMPT}]
RESPONSES = ["It keeps kids fit.", "Because it is fun, and they learn to work in teams.", "No! Let them read."]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    hosts.install(monkeypatch)


@pytest.fixture
def right(url):
    """The tournament among the responses, and the probability that the first beats the second."""
    with Client(url) as client:
        return client.tournament(TURN, RESPONSES), client.prefer(TURN, RESPONSES[0], RESPONSES[1])


class Trace:
    """What verifiers' trace has of rewards and errors."""

    def __init__(self, reply):
        self.last_reply, self.has_error, self.rewards, self.metrics = reply, False, {}, {}

    @property
    def reward(self):
        return sum(self.rewards.values())

    def record_reward(self, name, value, weight=1.0):
        self.rewards[name] = value * weight

    def record_error(self, error):
        raise AssertionError(error)


def test_verifiers_has_a_judge_and_an_environment(right):
    task = SimpleNamespace(prompt=PROMPT, system_prompt=None, answer=RESPONSES[1])
    plugin = load("verifiers_judge")
    judge = plugin.ParagoneJudge(plugin.ParagoneJudgeConfig(signal="against_reference"))
    assert asyncio.run(judge.score(task, Trace(RESPONSES[0]))) == right[1]
    assert plugin.__all__ == ["ParagoneJudge"]  # a plugin is found by it

    episode = SimpleNamespace(traces=[Trace(response) for response in RESPONSES])
    asyncio.run(load("verifiers_win_rates").WinRateEnv().finalize(SimpleNamespace(data=task), episode))
    assert [trace.rewards["win_rate"] for trace in episode.traces] == right[0].win_rates
    assert [trace.metrics["best"] for trace in episode.traces].index(1.0) == right[0].ranking[0]


def test_tinker_has_groups_that_are_one_tournament(right):
    example = load("tinker_preferences")
    dataset = example.PreferenceDataset(preference_model=example.judge, policy_renderer=lambda one: one)
    builder = dataset._labeled_comparison_to_env_group(TURN)
    group = [(response, True) for response in RESPONSES]
    for _ in range(2):
        rewards = asyncio.run(builder.compute_group_rewards(group, []))
    balance = [2 * (3 * rate - 0.5) / 2 - 1 for rate in right[0].win_rates]
    assert [reward for reward, _ in rewards] == pytest.approx(balance)
    assert sum(balance) == pytest.approx(0)


def test_areals_workers_get_the_function_by_its_name(right, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(sys.modules, "areal_reward", load("areal_reward"))
    monkeypatch.setattr(sys.modules["areal_reward"].reward, "__module__", "areal_reward")
    call = partial(sys.modules["areal_reward"].reward, "…", f"{RESPONSES[0]}<|im_end|>", [1], [2])
    assert len(pickle.dumps(call)) < 200  # no client in it
    with ProcessPoolExecutor(max_workers=1) as pool:
        assert pool.submit(call, messages=TURN, answer=RESPONSES[1]).result() == right[1]


def test_skyrl_has_an_environment_of_one_turn(right):
    made = load("skyrl_env").PreferenceEnv(env_config={}, extras={"reward_spec": {"ground_truth": RESPONSES[1]}})
    assert made.init(TURN) == (TURN, {})
    output = made.step(RESPONSES[0])
    made.client.close()
    assert (output["reward"], output["done"], output["observations"]) == (right[1], True, [])


def test_nemo_rl_has_an_environment_for_whole_groups(right):
    made = load("nemo_rl_environment").PreferenceEnvironment({"num_generations": 3})
    logs = [[*TURN, {"role": "assistant", "content": response}] for response in RESPONSES]
    answer = made.step(logs, [None] * 3)
    made.oracle.close()
    assert answer.rewards.tolist() == pytest.approx(right[0].win_rates)
    assert (answer.answers, answer.terminateds.tolist()) == (RESPONSES, [True] * 3)
    batch = {"total_reward": answer.rewards}
    assert made.global_post_process_and_metrics(batch)[1]["paragone/mean_reward"] == pytest.approx(0.5)
