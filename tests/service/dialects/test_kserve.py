"""KServe's V2 protocol: tritonclient in JSON and binary, the recorded requests of NeMo-Aligner's scripts, errors."""

import json

import numpy as np
import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS, plain, rendered

pytestmark = pytest.mark.anyio

TEXTS = [rendered(PROMPT, response) for response in RESPONSES[:2]]
INFER = "/v2/models/mini-bradley-terry/infer"


def sentences(texts=TEXTS, **more):
    return {"inputs": [{"name": "sentences", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}], **more}


def binary(texts, outputs):
    """Return body and header of a request as tritonclient writes it."""
    tail = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    tensor = {"name": "sentences", "shape": [len(texts), 1], "datatype": "BYTES"}
    head = {"id": "0", "inputs": [{**tensor, "parameters": {"binary_data_size": len(tail)}}]}
    head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    written = json.dumps(head).encode()
    return written + tail, {"Inference-Header-Content-Length": str(len(written))}


@pytest.mark.parametrize("path", [INFER, "/v2/models/reward_model/infer", "/v2/models/a/b/versions/1/infer"])
async def test_json_is_answered_in_json(mini, path):
    async with serving(mini, aliases={"a/b": "mini-bradley-terry"}) as client:
        asked = sentences(outputs=[{"name": "rewards", "parameters": {"binary_data": False}}])
        answer = await client.post(path, content=json.dumps(asked))  # tritonclient names no content type
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("rewards", "FP32", [2, 1])
    assert output["data"] == pytest.approx(REWARDS, abs=1e-4)


async def test_binary_is_answered_in_binary(ask_mini):
    body, headers = binary(TEXTS, ["rewards", "exceeded"])
    answer = await ask_mini.post(INFER, content=body, headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    head = json.loads(answer.content[:length])
    assert (head["id"], [output["parameters"]["binary_data_size"] for output in head["outputs"]]) == ("0", [8, 2])
    assert np.frombuffer(answer.content[length : length + 8], "<f4") == pytest.approx(REWARDS, abs=1e-4)
    assert answer.content[length + 8 :] == b"\0\0"


async def test_tokens_are_read_as_they_are_and_texts_that_are_cut_are_named(last):
    model = last["last"]
    bos = model.reader.tokenizer.bos_token_id
    tokens = [[bos, 5, 6, 7], [bos, 8, 0, 0]]
    asked = {
        "inputs": [
            {"name": "tokens", "shape": [2, 4], "datatype": "INT64", "data": tokens},
            {"name": "sequence_lengths", "shape": [2, 1], "datatype": "INT64", "data": [[4], [2]]},
        ]
    }
    async with serving(last) as client:
        answer = (await client.post("/v2/models/last/infer", json=asked)).json()
        rewards, exceeded = answer["outputs"]
        assert rewards["data"] == pytest.approx([plain(model, tokens[0]), plain(model, tokens[1][:2])], abs=1e-5)
        assert exceeded["data"] == [False, False]
        long = sentences(["short", "word " * 100])
        refused = await client.post("/v2/models/last/infer", json=long)
        assert refused.status_code == 422
        named = {**long, "outputs": [{"name": "rewards"}, {"name": "exceeded"}]}
        cut = await client.post("/v2/models/last/infer", json=named)
        assert cut.json()["outputs"][1]["data"] == [False, True]


async def test_health_metadata_and_configuration(ask_mini):
    for path in ("health/live", "health/ready", "models/reward_model/ready"):
        assert (await ask_mini.get(f"/v2/{path}")).status_code == 200
    assert (await ask_mini.get("/v2")).json()["name"] == "paragone"
    metadata = (await ask_mini.get("/v2/models/reward_model")).json()
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["rewards", "exceeded"]
    config = (await ask_mini.get("/v2/models/reward_model/config")).json()
    assert config["max_batch_size"] > 0
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["input"] == [{"name": "sentences", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert (await ask_mini.get("/v2/models/nobody/ready")).status_code == 404


def tensor(**changes):
    return {"inputs": [{**sentences()["inputs"][0], **changes}]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 422, "a list of inputs"),
        ({}, 422, "a list of inputs"),
        ({"inputs": []}, 422, "must hold sentences"),
        ({"inputs": [3]}, 422, "inputs[0] must be an object"),
        (tensor(shape=[3, 1]), 422, "inputs[0] has 2 elements, and its shape 3"),
        (tensor(shape="2"), 422, "shape must be a list of at most 8 sizes"),
        (tensor(shape=[-1]), 422, "shape must be a list of at most 8 sizes"),
        (tensor(shape=[10**3000, 10**3000]), 422, "shape must be a list of at most 8 sizes"),
        (tensor(shape=[1] * 9), 422, "shape must be a list of at most 8 sizes"),
        ({"inputs": sentences()["inputs"] * 2}, 422, "inputs[1] has the name of another one"),
        (sentences(id="\ud800"), 422, "id holds a lone surrogate"),
        (tensor(datatype="FP32"), 422, "datatype must be BYTES"),
        (tensor(data=[1, 2]), 422, "sentences must hold texts"),
        (tensor(data=[], shape=[0, 1]), 422, "sentences is empty"),
        (tensor(parameters={"binary_data_size": 8}), 422, "more bytes than came"),
        (sentences(outputs=[{"name": "logits"}]), 422, "outputs[0] must be one of rewards, exceeded"),
        (sentences(outputs=3), 422, "outputs must be a list"),
        (sentences(["a"] * 10_001), 413, "the limit is 10000"),
        ("no JSON", 400, "not JSON"),
    ],
)
async def test_errors_are_one_text(ask_mini, body, status, said):
    answer = await ask_mini.post(INFER, content=body if isinstance(body, str) else json.dumps(body))
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert said in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/systemsharedmemory/status"])
async def test_what_is_not_there_is_said_in_one_text_too(ask_mini, path):
    answer = await ask_mini.post(path, json={})
    assert answer.status_code == 404
    assert f"there is nothing at '{path}'" in answer.json()["error"]


async def test_what_lies_behind_the_json_must_be_whole(ask_mini):
    body, headers = binary(["ab"], ["rewards"])
    for content, more, said in [
        (body[:-1], {}, "more bytes than came"),
        (body.replace(b"\x02\0\0\0", b"\x09\0\0\0"), {}, "behind the end of its tensor"),
        (body[:-2] + b"\xff\xff", {}, "not UTF-8"),
        (body, {"Inference-Header-Content-Length": "-1"}, "must be the number of bytes"),
        (body, {"Inference-Header-Content-Length": "99999"}, "must be the number of bytes"),
        (body, {"Inference-Header-Content-Length": "9" * 5_000}, "must be the number of bytes"),
        (body + b"more", {}, "4 bytes behind the JSON belong to no tensor"),
        (body, {"Content-Encoding": "gzip"}, "uncompressed"),
    ]:
        answer = await ask_mini.post(INFER, content=content, headers={**headers, **more})
        assert 400 <= answer.status_code < 500
        assert said in answer.json()["error"]


def test_tritonclient_reads_answers_and_errors(address):
    import tritonclient.http as triton

    with triton.InferenceServerClient(address.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("reward_model")
        given = triton.InferInput("sentences", [2, 1], "BYTES")
        for binary_data in (True, False):
            given.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=object), binary_data)
            for outputs in ([triton.InferRequestedOutput("rewards", binary_data)], None):
                answer = client.infer("reward_model", [given], outputs=outputs)
                assert answer.as_numpy("rewards")[:, 0] == pytest.approx(REWARDS, abs=1e-4)
        assert answer.as_numpy("exceeded").tolist() == [[False], [False]]
        with pytest.raises(triton.InferenceServerException, match="nobody"):
            client.infer("nobody", [given])
