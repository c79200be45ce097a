"""NVIDIA's chat dialect of reward models: the recorded requests, the reply of each kind, and OpenAI's own client."""

import dataclasses

import pytest

from paragone_models import load_model
from tests.service.conftest import make_model, make_tokenizer, serving

from .conftest import PROMPT, RESPONSES, REWARDS

pytestmark = pytest.mark.anyio

CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSES[0]}]


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"model": "dummy", "temperature": 0, "max_tokens": 1}])
async def test_the_reply_and_its_one_token_are_the_reward(ask_mini, more):
    answer = await ask_mini.post("/v1/chat/completions", json={"messages": CHAT, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "mini-bradley-terry")
    (choice,) = body["choices"]
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"]) == ("reward", pytest.approx(REWARDS[0], abs=1e-4))
    assert choice["message"] == {"role": "assistant", "content": f"reward:{token['logprob']}"}
    assert body["usage"]["prompt_tokens"] == 19


async def test_a_model_that_rates_replies_its_attributes_with_weights_or_without(hosted, tmp_path):
    spec = dataclasses.replace(hosted["ratings"].spec, weights=(0.75, -0.25))
    weighted = load_model(make_model(tmp_path, spec, make_tokenizer(), 3), name="weighted", device="cpu")
    async with serving({"ratings": hosted["ratings"], "weighted": weighted}) as client:
        for model in ("ratings", "weighted"):
            body = {"model": model, "messages": CHAT}
            (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
            found = {token["token"]: token["logprob"] for token in choice["logprobs"]["content"]}
            native = {"model": model, "items": [{"prompt": PROMPT, "response": RESPONSES[0]}]}
            (reward,) = (await client.post("/v1/rewards", json=native)).json()["rewards"]
            assert found == reward["attributes"] != {}
            assert choice["message"]["content"] == ",".join(f"{name}:{value}" for name, value in found.items())


async def test_a_model_that_only_compares_is_no_reward_model(hosted):
    async with serving({"gpm": hosted["gpm"]}, dialects={"scalar": "group"}) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": CHAT})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "reference_required"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "messages must be a list of messages"),
        ({"messages": CHAT[:1]}, 400, "messages must end with the assistant's"),
        ({"messages": []}, 400, "messages must end with the assistant's"),
        ({"messages": [*CHAT[:1], {"role": "assistant", "content": "word " * 2_000}]}, 400, "[dialects] truncation"),
        ({"messages": CHAT, "stream": True}, 400, "stream = false"),
        ({"messages": CHAT, "model": "nobody"}, 404, "[aliases]"),
        ({"messages": CHAT * 5_001}, 413, "messages"),
    ],
)
async def test_bad_input_is_refused_for_good(ask_mini, body, status, said):
    answer = await ask_mini.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


def test_openais_client_reads_answers_and_errors(address):
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="mini-bradley-terry", messages=CHAT)
        (choice,) = answer.choices
        assert float(choice.message.content.removeprefix("reward:")) == pytest.approx(REWARDS[0], abs=1e-4)
        assert choice.logprobs.content[0].logprob == pytest.approx(REWARDS[0], abs=1e-4)
        with pytest.raises(openai.BadRequestError, match="must end with the assistant's") as refused:
            client.chat.completions.create(model="mini-bradley-terry", messages=CHAT[:1])
        assert refused.value.code == "invalid_request"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=CHAT)
