"""The example for TRL, run with TRL: two steps of GRPO on a policy of a few thousand weights."""

import math
from typing import Any

import pytest

from paragone import Client
from paragone.adapters.trl import WinRateCallback
from tests.clients.test_win_rate_callback import Trainer, first_texts
from tests.examples.conftest import load
from tests.repository.documents import ROOT, blocks
from tests.training.policy.tiny_policy import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(save_policy(tmp_path_factory.mktemp("policy")))


# TRL's and torch's own warnings are no faults of the example.
@pytest.mark.filterwarnings("ignore")
def test_two_steps_of_grpo_with_win_rates_and_the_callback(url, policy, tmp_path):
    history = load("trl_grpo").train(url, policy, str(tmp_path), model="gp").state.log_history
    steps = [logs for logs in history if "reward" in logs]
    assert len(steps) == 2
    for logs in steps:
        # Within a group the mean of the win rates is ½, whatever they are: prompts that occur twice are two groups.
        assert logs["reward"] == pytest.approx(0.5, abs=1e-5)
        assert logs["rewards/paragone_win_rate/mean"] == pytest.approx(0.5, abs=1e-5)
        assert logs["paragone/unscored"] == 0
        assert logs["paragone/cyclic_triples"] >= 0
        assert logs["reward_std"] > 0
        assert math.isfinite(logs["grad_norm"])
    (measured,) = [logs for logs in history if "eval_win_rate" in logs]
    assert 0 < measured["eval_win_rate"] < 1
    assert measured["eval_win_rate_unjudged"] == 0
    assert measured["step"] == 2


@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_the_how_to_page_are_one_script(url, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = "".join(blocks(ROOT / "docs" / "how-to" / "judge-for-trl.md", "python"))
    here = {
        "http://127.0.0.1:8000": url,
        'model="judge"': 'model="gp"',
        "Qwen/Qwen3-0.6B": policy,
        "=64": "=16",
        "logging_steps=1": 'logging_steps=1, bf16=False, save_strategy="no", report_to="none"',
    }
    for there, instead in here.items():
        assert there in script
        script = script.replace(there, instead)
    names: dict[str, Any] = {}
    exec(compile(script, "judge-for-trl.md", "exec"), names)
    names["client"].close()
    history = names["trainer"].state.log_history
    assert all({"rewards/paragone_win_rate/mean", "paragone/cyclic_triples"} <= set(logs) for logs in history[:1])
    assert [logs["step"] for logs in history if "eval_win_rate" in logs] == [2]


def test_the_callback_may_compare_with_a_stored_set(url):
    prompts, first = ["Why?", "What is it?"], ["Because it is fun.", "A garden."]
    trainer = Trainer()
    trainer.policy["texts"] = ["No! Let them read.", "It keeps kids fit."]
    with Client(url) as client:
        items = [{"prompt": prompt, "responses": [answer]} for prompt, answer in zip(prompts, first, strict=True)]
        client.add_references("first", items)
        settings = {"references": {"set": "first"}, "generate": first_texts}
        trainer.callback_handler.add_callback(WinRateCallback(client, trainer, prompts=prompts, **settings))
        trainer.event("on_evaluate", ("metrics", {}))
        pairs = zip(prompts, trainer.policy["texts"], first, strict=True)
        right = sum(client.prefer(*pair) for pair in pairs) / 2
    assert trainer.logged == [{"eval_win_rate": pytest.approx(right), "eval_win_rate_unjudged": 0}]
