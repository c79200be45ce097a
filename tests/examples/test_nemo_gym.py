"""The resources server for NeMo Gym, through its routes, on a stand-in for Gym's base class (see ``gym``).

The same requests were sent once to the folder on NeMo Gym 0.7.0 itself.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml

from paragone import Client
from paragone.wire import Shaping
from tests.examples.conftest import EXAMPLES

FOLDER = EXAMPLES / "nemo_gym"
PROMPT = [{"role": "user", "content": "Should every school have a garden?"}]
ANSWERS = ["It keeps kids fit.", "Because it is fun.", "No! Let them read."]


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "gym"))
    spec = importlib.util.spec_from_file_location("paragone_resources_server", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "nemo_gym"]:
        monkeypatch.delitem(sys.modules, name)


def server(module, url, **settings):
    shipped = yaml.safe_load((FOLDER / "configs" / "paragone.yaml").read_text())
    fields = shipped["paragone"]["resources_servers"]["paragone"] | {"oracle_url": url, "num_rollouts_per_prompt": 3}
    config = module.ParagoneConfig(host="127.0.0.1", port=1, name="paragone", **(fields | settings))
    return module.ParagoneResourcesServer(config=config, server_client=SimpleNamespace())


def rollout(answer, slot, **columns):
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": answer, "annotations": []}],
    }
    reasoning = {"id": "r", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    response = {
        "id": "response",
        "created_at": 0,
        "model": "policy",
        "object": "response",
        "output": [reasoning, message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    row = {"responses_create_params": {"input": PROMPT}, "response": response, "_ng_rollout_index": slot}
    return row | columns


async def verified(server, rows):
    transport = httpx2.ASGITransport(server.setup_webserver())
    async with httpx2.AsyncClient(transport=transport, base_url="http://gym") as client:
        return await asyncio.gather(*(client.post("/verify", json=row) for row in rows))


def rewards(answers):
    assert [answer.status_code for answer in answers] == [200] * len(answers), answers[0].text
    return [answer.json()["reward"] for answer in answers]


@pytest.fixture
def right(url):
    with Client(url) as client:
        return client.tournament(PROMPT, ANSWERS).win_rates


def test_two_steps_get_win_rates_whether_or_not_the_caller_names_groups(app, url, right):
    gym = server(app, url)
    for step in range(2):
        for names in ({"_ng_group_id": f"step {step}", "_ng_group_attempt": 1}, {"_ng_task_index": 7}):
            rows = [rollout(answer + "!" * step, slot, **names) for slot, answer in enumerate(ANSWERS)]
            answers = asyncio.run(verified(gym, rows))
            assert sum(rewards(answers)) == pytest.approx(1.5)
            if step == 0:
                assert rewards(answers) == pytest.approx(right)
            for row, answer in zip(rows, answers, strict=True):
                told = answer.json()
                assert {name: told[name] for name in names} == names
                assert told["response"]["output"][1] == row["response"]["output"][1]
                assert told["paragone_present"] == 3
                assert not told["mask_sample"]


def test_another_signal_of_the_group_may_be_the_reward(app, url):
    with Client(url) as client:
        shaping = {"answer_length_penalty": 0.1}
        right = client.tournament(PROMPT, ANSWERS, signal="rank", shaping=Shaping(**shaping)).signal
    gym = server(app, url, score="rank", shaping=shaping)
    rows = [rollout(answer, slot, _ng_group_id="shaped ranks") for slot, answer in enumerate(ANSWERS)]
    assert rewards(asyncio.run(verified(gym, rows))) == pytest.approx(right)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_rollouts_per_prompt": 1}, "num_rollouts_per_prompt"),
        ({"shaping": {"reasoning_bonus": 0.1}}, "reasoning is not sent"),
        ({"score": "baseline", "shaping": {"style_penalty": 0.1}}, "shaping changes a group's signal"),
    ],
)
def test_settings_that_mean_nothing_are_refused_at_the_start(app, url, settings, said):
    with pytest.raises(ValueError, match=said):
        server(app, url, **settings)


def test_stored_rollouts_are_scored_again_with_the_same_result(app, url):
    rows = [rollout(answer, slot, _ng_group_id="stored") for slot, answer in enumerate(ANSWERS)]
    first, again = (rewards(asyncio.run(verified(server(app, url), rows))) for _ in range(2))
    assert first == again

    async def mode():
        transport = httpx2.ASGITransport(server(app, url).setup_webserver())
        async with httpx2.AsyncClient(transport=transport, base_url="http://gym") as client:
            return (await client.get("/reverify_mode")).json()

    assert asyncio.run(mode()) == "stateless"


def test_a_rollout_that_cannot_be_judged_is_masked_and_the_others_are_scored(app, url):
    texts = [*ANSWERS[:2], "long " * 500]
    rows = [rollout(text, slot, _ng_group_id="one too long") for slot, text in enumerate(texts)]
    *scored, masked = asyncio.run(verified(server(app, url), rows))
    assert sum(rewards(scored)) == pytest.approx(1.0)
    told = masked.json()
    assert told["mask_sample"] is True
    assert told["failure_kind"] == "judge_failed"
    assert "TextError" in told["failure_reason"]


def test_a_service_that_is_away_masks_too(app):
    gym = server(app, "http://127.0.0.1:9", oracle_retry_s=0)
    (answer,) = asyncio.run(verified(gym, [rollout("a", 0)]))
    assert answer.json()["mask_sample"] is True


@pytest.mark.parametrize("slot", [None, 3, -1])
def test_bad_coordinates_are_422(app, url, slot):
    (answer,) = asyncio.run(verified(server(app, url), [rollout("a", slot, _ng_group_id="bad")]))
    assert answer.status_code == 422
    assert "_ng_rollout_index" in answer.text


def test_failures_of_the_group_have_their_status(app, url):
    gym = server(app, url, cohort_collection_timeout_s=0.05)
    (answer,) = asyncio.run(verified(gym, [rollout("a", 0, _ng_group_id="lonely")]))
    assert answer.status_code == 503
    rows = [rollout(answer, slot, _ng_group_id="newest", _ng_group_attempt=2) for slot, answer in enumerate(ANSWERS)]
    rewards(asyncio.run(verified(server(app, url), rows)))
    (answer,) = asyncio.run(verified(server(app, url), [rollout("a", 0, _ng_group_id="newest")]))
    assert answer.status_code == 409


def test_a_baseline_and_a_scalar_need_no_group(app, url):
    create = {"input": "Why?", "metadata": {"baseline_response": ANSWERS[0]}}
    row = rollout(ANSWERS[1], None) | {"responses_create_params": create}
    (against,) = rewards(asyncio.run(verified(server(app, url, score="baseline", num_rollouts_per_prompt=1), [row])))
    (scalar,) = rewards(asyncio.run(verified(server(app, url, score="reward", oracle_model="bt"), [row])))
    with Client(url) as client:
        assert against == pytest.approx(client.prefer("Why?", ANSWERS[1], ANSWERS[0]))
        assert scalar == client.rewards([("Why?", ANSWERS[1])], model="bt").rewards[0].reward
    (answer,) = asyncio.run(verified(server(app, url, score="baseline"), [rollout("a", 0)]))
    assert answer.status_code == 422
