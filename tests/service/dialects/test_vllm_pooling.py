"""vLLM's routes of pooling models, as vLLM's own examples, verl, openai and litellm ask them."""

import base64
import json
import math
import struct

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS, chatml, plain, rendered

pytestmark = pytest.mark.anyio

TEXTS = [rendered(PROMPT, response) for response in RESPONSES[:2]]
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSES[0]}]
ACTIVATED = [1 / (1 + math.exp(-reward)) for reward in REWARDS]


async def ask(client, path, **body):
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
async def test_a_class_is_the_sigmoid_or_the_logit_as_the_flag_says(ask_mini, path):
    answer = await ask(ask_mini, path, model="mini-bradley-terry", input=TEXTS)
    assert [row["probs"] for row in answer["data"]] == [[pytest.approx(number, abs=1e-4)] for number in ACTIVATED]
    assert answer["data"][0] == {"index": 0, "label": "LABEL_0", "probs": answer["data"][0]["probs"], "num_classes": 1}
    assert (answer["object"], answer["model"]) == ("list", "mini-bradley-terry")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 19 + 15
    again = await ask(ask_mini, path, model="mini-bradley-terry", input=TEXTS)
    assert again["usage"] == answer["usage"]  # of what was read, and not of what was run
    verl = await ask(ask_mini, path, model="/models/mini-bradley-terry", input=TEXTS[0], use_activation=False)
    assert verl["data"][-1]["probs"][-1] == pytest.approx(REWARDS[0], abs=1e-4)


async def test_a_conversation_and_token_ids_are_the_text(ask_mini, mini):
    tokenizer = mini["mini-bradley-terry"].reader.tokenizer
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    rewards = []
    for body in ({"messages": CHAT}, {"input": ids[0]}, {"input": ids}, {"input": TEXTS[0], "user": "nobody knows it"}):
        answer = await ask(ask_mini, "/classify", **body, use_activation=False)
        rewards.append(answer["data"][0]["probs"][0])
    assert rewards == [pytest.approx(REWARDS[0], abs=1e-4)] * 4


async def test_what_an_sdk_dumps_beside_a_message_is_left_out(ask_mini):
    chat = [
        {"role": "user", "content": [{"type": "text", "text": PROMPT}], "name": None},
        {**CHAT[1], "refusal": None, "annotations": [], "audio": None, "function_call": None},
    ]
    answer = await ask(ask_mini, "/classify", messages=chat, use_activation=False)
    assert answer["data"][0]["probs"] == [pytest.approx(REWARDS[0], abs=1e-4)]


async def test_pooling_and_embeddings_give_the_reward_as_floats_or_base64(ask_mini):
    for path, name in (("/pooling", "data"), ("/v1/embeddings", "embedding")):
        floats = await ask(ask_mini, path, input=TEXTS, encoding_format="float")
        assert [row[name] for row in floats["data"]] == [[pytest.approx(reward, abs=1e-4)] for reward in REWARDS]
        coded = await ask(ask_mini, path, input=TEXTS, encoding_format="base64")
        decoded = [struct.unpack("<f", base64.b64decode(row[name]))[0] for row in coded["data"]]
        assert decoded == [row[name][0] for row in floats["data"]]
    chat = await ask(ask_mini, "/pooling", messages=CHAT, task="classify", use_activation=True)
    assert chat["data"] == [{"index": 0, "object": "pooling", "data": [pytest.approx(ACTIVATED[0], abs=1e-4)]}]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_scores_are_of_one_query_and_many_documents_or_of_pairs(ask_mini, path):
    one = await ask(ask_mini, path, queries=PROMPT, documents=RESPONSES[0])
    assert one["data"] == [{"index": 0, "object": "score", "score": pytest.approx(ACTIVATED[0], abs=1e-4)}]
    many = await ask(ask_mini, path, text_1=PROMPT, text_2=RESPONSES[:2], use_activation=False)
    pairs = await ask(ask_mini, path, queries=[PROMPT] * 2, documents=RESPONSES[:2], use_activation=False)
    for answer in (many, pairs):
        assert [row["score"] for row in answer["data"]] == pytest.approx(REWARDS, abs=1e-4)


async def test_a_ranking_is_sorted_and_cut_and_has_its_documents(ask_mini):
    answer = await ask(ask_mini, "/rerank", model="dummy", query=PROMPT, documents=["lol no", *RESPONSES[:2]], top_n=2)
    assert answer["results"] == [
        {"index": 1, "relevance_score": pytest.approx(ACTIVATED[0], abs=1e-4), "document": {"text": RESPONSES[0]}},
        {"index": 0, "relevance_score": pytest.approx(ACTIVATED[1], abs=1e-4), "document": {"text": "lol no"}},
    ]
    assert answer["id"].startswith("rerank-")
    bare = await ask(ask_mini, "/v1/rerank", query=PROMPT, documents=RESPONSES[:2], return_documents=False, top_n=0)
    assert [set(row) for row in bare["results"]] == [{"index", "relevance_score"}] * 2


async def test_the_form_of_documents_is_a_setting_where_clients_ask_alike(mini):
    async with serving(mini, dialects={"rerank_document": "text"}) as client:
        answer = await ask(client, "/rerank", query=PROMPT, documents=RESPONSES[:1], return_documents=True)
    assert answer["results"][0]["document"] == RESPONSES[0]


async def test_tokens_are_what_the_model_would_read(ask_last, last):
    tokenizer = last["last"].reader.tokenizer
    answer = await ask(ask_last, "/tokenize", prompt="Hello, my name is", return_token_strs=True)
    ids = tokenizer("Hello, my name is")["input_ids"]
    assert answer == {"tokens": ids, "count": len(ids), "max_model_len": 64,
                      "token_strs": tokenizer.convert_ids_to_tokens(ids)}  # fmt: skip
    chat = await ask(ask_last, "/tokenize", messages=[{**CHAT[0], "content": "Hi"}, {**CHAT[1], "content": "no"}])
    assert chat["tokens"] == tokenizer("<|endoftext|>" + chatml(("user", "Hi"), ("assistant", "no")))["input_ids"][1:]


async def test_a_model_that_averages_tokenizes_any_text(ask_mini):
    assert (await ask(ask_mini, "/tokenize", prompt="Hello"))["count"] > 0


async def test_clients_cut_texts_themselves_and_say_which_side(ask_last, last):
    model = last["last"]
    ids = model.reader.tokenizer("abc " * 100, add_special_tokens=False)["input_ids"]
    bos = model.reader.tokenizer.bos_token_id
    assert len(ids) > 64
    for side, expected in (("left", [bos, *ids[-9:]]), ("right", [bos, *ids[:9]])):
        body = {"input": "abc " * 100, "truncate_prompt_tokens": 10, "truncation_side": side, "use_activation": False}
        answer = await ask(ask_last, "/classify", **body)
        assert answer["data"][0]["probs"] == [pytest.approx(plain(model, expected), abs=1e-5)]
        assert answer["usage"]["prompt_tokens"] == 10
    answer = await ask(ask_last, "/classify", input=ids, truncate_prompt_tokens=-1, use_activation=False)
    assert answer["data"][0]["probs"] == [pytest.approx(plain(model, [bos, *ids[-63:]]), abs=1e-5)]


async def test_messages_that_no_answer_ends_are_rendered_and_read_at_their_last_token(ask_last, last):
    model = last["last"]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    bos = model.reader.tokenizer.bos_token_id
    for messages, written in ((turns, (("system", "Be kind."), ("user", "Hi"))), (turns[1:], (("user", "Hi"),))):
        ids = [bos, *model.reader.tokenizer(chatml(*written), add_special_tokens=False)["input_ids"]]
        answer = await ask(ask_last, "/pooling", messages=messages)
        assert answer["data"][0]["data"] == [pytest.approx(plain(model, ids), abs=1e-5)]
        assert answer["usage"]["prompt_tokens"] == len(ids)
    cut = await ask(ask_last, "/pooling", messages=turns, truncate_prompt_tokens=4)
    assert cut["usage"]["prompt_tokens"] == 4


async def test_health_version_and_models_are_as_their_clients_read_them(ask_mini):
    assert ((await ask_mini.get("/health")).status_code, (await ask_mini.get("/health")).json()) == (200, {})
    assert set((await ask_mini.get("/version")).json()) == {"version"}
    models = (await ask_mini.get("/v1/models")).json()
    assert models["object"] == "list"
    assert models["data"][0]["id"] == models["models"][0]["id"] == "mini-bradley-terry"
    assert models["data"][0]["object"] == "model"


BAD = [
    ("/classify", {}, 400, "input must be a list"),
    ("/classify", {"input": []}, 400, "input is empty"),
    ("/classify", {"input": ""}, 400, "input[0]: the text is empty"),
    ("/classify", {"input": [[]]}, 400, "the text is empty"),
    ("/classify", {"input": {"a": 1}}, 400, "input must be a list"),
    ("/classify", {"input": [1.5]}, 400, "input[0] must be a text"),
    ("/classify", {"input": [1, "a"]}, 400, "input[0] must be a text"),
    ("/classify", {"input": [-1]}, 400, "input[0] must be a text"),
    ("/classify", {"input": [10**6]}, 400, "a token id is not in"),
    ("/classify", {"input": [10**30]}, 400, "input[0] must be a text"),
    ("/classify", {"input": TEXTS, "use_activation": "no"}, 400, "use_activation"),
    ("/classify", {"input": TEXTS, "model": "nobody"}, 404, "[aliases]"),
    ("/classify", {"input": TEXTS, "model": 3}, 400, "model must be a text"),
    ("/classify", {"input": ["a"] * 10_001}, 413, "the limit is 10000"),
    ("/classify", {"input": TEXTS, "truncate_prompt_tokens": "all"}, 400, "truncate_prompt_tokens"),
    ("/classify", {"input": TEXTS, "truncation_side": "up"}, 400, "truncation_side"),
    ("/classify", {"input": rendered(PROMPT, "word " * 2_000)}, 400, "[dialects] truncation"),
    ("/classify", {"messages": []}, 400, "messages must end with the assistant's"),
    ("/classify", {"messages": CHAT[:1]}, 400, "where its last response begins"),
    ("/tokenize", {"messages": CHAT[:1]}, 400, "messages must end with the assistant's"),
    ("/classify", {"messages": "hi"}, 400, "messages must be a list"),
    ("/classify", {"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages[0].role"),
    ("/pooling", {"input": TEXTS, "encoding_format": "bytes"}, 400, "encoding_format"),
    ("/pooling", {"input": TEXTS, "task": "token_classify"}, 400, "none for each token"),
    ("/v1/embeddings", {"input": TEXTS, "encoding_format": 3}, 400, "encoding_format"),
    ("/score", {"queries": ["a", "b"], "documents": ["c"] * 3}, 400, "2 queries for 3 documents"),
    ("/score", {"queries": "a", "documents": []}, 400, "documents is empty"),
    ("/score", {"queries": "a", "documents": [{"content": []}]}, 400, "documents[0] must be a text"),
    ("/rerank", {"query": "a", "documents": []}, 400, "documents is empty"),
    ("/rerank", {"query": ["a"], "documents": ["b"]}, 400, "query must be a text"),
    ("/rerank", {"query": "a", "documents": ["b"], "top_n": "two"}, 400, "top_n"),
    ("/rerank", {"query": "a", "documents": ["b"] * 10_001}, 413, "the limit is 10000"),
    ("/score", {"queries": "é" * 6_401, "documents": ["b"] * 10_000}, 413, "queries is read once for each of 10000"),
    ("/tokenize", {}, 400, "prompt must be a text"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), BAD)
async def test_bad_input_is_refused_for_good_as_openais_clients_read_it(ask_mini, path, body, status, said):
    answer = await ask_mini.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
