"""OpenRLHF's /get_reward: the recorded requests of its versions, and the three ways to read its texts."""

import json
import math

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS, chatml, plain, rendered

pytestmark = pytest.mark.anyio

QUERIES = [rendered(PROMPT, response) for response in RESPONSES[:2]]
PROMPTS = [f"<|user|>{PROMPT}<|end|><|assistant|>"] * 2


@pytest.mark.parametrize(
    "body",
    [
        {"query": QUERIES},  # 0.5
        {"query": QUERIES, "prompts": PROMPTS, "labels": ["a label"] * 2},  # 0.6 to 0.9
        {"query": QUERIES, "prompts": [PROMPT] * 2, "labels": [None] * 2},  # without a chat template: see below
    ],
)
async def test_every_version_reads_the_rewards_of_the_native_route(ask_mini, body):
    if body.get("prompts") == [PROMPT] * 2:
        body = {**body, "query": [PROMPT + response for response in RESPONSES[:2]]}
    response = await ask_mini.post("/get_reward", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["rewards"] == pytest.approx(REWARDS, abs=1e-4)
    assert answer["scores"] == pytest.approx([1 / (1 + math.exp(-reward)) for reward in REWARDS], abs=1e-4)
    assert answer["extra_logs"] == {"paragone": answer["rewards"]}


async def test_lists_of_one_and_empty_ones_are_answered(ask_mini):
    one = await ask_mini.post("/get_reward", json={"query": QUERIES[:1], "prompts": PROMPTS[:1], "labels": ["x"]})
    assert one.json()["rewards"] == pytest.approx(REWARDS[:1], abs=1e-4)
    none = await ask_mini.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert (none.status_code, none.json()) == (200, {"rewards": [], "scores": [], "extra_logs": {"paragone": []}})


async def test_a_raw_text_has_one_beginning_and_is_read_at_its_last_token(last):
    model = last["last"]
    bos, eos = model.reader.tokenizer.bos_token_id, model.reader.tokenizer.eos_token_id
    text = chatml(("user", PROMPT), ("assistant", "lol no")).removesuffix("<|im_end|>\n")
    ids = model.reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    for mode, ending in (("raw", []), ("raw+eos", [eos])):
        expected = plain(model, [bos, *ids, *ending])
        async with serving(last, dialects={"openrlhf": mode}) as client:
            queries = [text, f"<|endoftext|>{text}", f"<|endoftext|><|endoftext|>{text}"]
            if mode == "raw+eos":
                queries.append(f"{text}<|im_end|>")
            answer = await client.post("/get_reward", json={"query": queries, "prompts": [PROMPT] * len(queries)})
            assert answer.json()["rewards"] == pytest.approx([expected] * len(queries), abs=1e-5)


# Prompt and response stand where the sign is.
TEMPLATES = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{p}<|im_end|>\n"
    "<|im_start|>assistant\n§<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{p}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n§<|eot_id|>",
    "gemma": "<bos><start_of_turn>system\nBe brief.<end_of_turn>\n<start_of_turn>user\n{p}<end_of_turn>\n"
    "<start_of_turn>model\n§<end_of_turn><eos>",
    "phi": "<|system|>\nBe brief.<|end|>\n<|user|>\n{p}<|end|>\n<|assistant|>\n§<|end|>",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{p} [/INST] §</s>",
}


@pytest.mark.parametrize("family", TEMPLATES)
async def test_another_familys_template_is_taken_apart_and_the_models_own_is_used(ask_mini, family):
    before, end = TEMPLATES[family].replace("{p}", PROMPT).split("§")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    native = await ask_mini.post("/v1/rewards", json={"items": [{"prompt": turns, "response": "lol no"}]})
    # The second prompt is not what its query begins with: the query alone is taken apart.
    body = {"query": [f"{before}lol no{end}"] * 2, "prompts": [before, "another text"]}
    answer = await ask_mini.post("/get_reward", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rewards"] == [native.json()["rewards"][0]["reward"]] * 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 422, "a JSON object"),
        ({}, 422, "query must be a list"),
        ({"query": "one text"}, 422, "query must be a list"),
        ({"query": [3]}, 422, "query[0] must be a text"),
        ({"query": ["a"], "prompts": ["a", "b"]}, 422, "2 prompts for 1 queries"),
        ({"query": ["a"], "prompts": [""]}, 422, "does not begin with its prompt"),
        ({"query": ["<|odd|>a"], "prompts": ["<|odd|>"]}, 422, "chat template that is not known here"),
        ({"query": ["no mark of a response"]}, 422, "does not show where its last response begins"),
        ({"query": [""]}, 422, "query[0]: the text is empty"),
        ({"query": [rendered(PROMPT, "word " * 2_000)]}, 422, "[dialects] truncation"),
        ({"query": ["a"] * 10_001}, 413, "the limit is 10000"),
        ({"query": ["\ud800"]}, 422, "lone surrogate"),
    ],
)
async def test_bad_input_is_refused_for_good_and_said_why(ask_mini, body, status, said):
    answer = await ask_mini.post("/get_reward", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]
    assert said in answer.json()["detail"]
