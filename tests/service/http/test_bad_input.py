"""Every bad input that the service knows: the status, the code, and a message that helps. Nothing is echoed."""

import json

import pytest

from paragone_service.http.bodies import MAX_GROUP, MAX_ITEMS
from paragone_service.http.counting import MAX_DEPTH, MAX_NODES, MAX_PARTS, MAX_VALUES, check_values
from paragone_service.http.errors import ServiceError
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
PAIR = {"prompt": "p", "first": "a", "second": "b"}
GOOD = {"pairs": [PAIR]}


def pairs(**changes):
    return {"pairs": [PAIR, {**PAIR, **changes}]}


REFUSALS = [
    ("an empty prompt", pairs(prompt=""), 422, "empty_prompt", "pairs[1]: the prompt is empty", 1),
    ("a prompt of spaces", pairs(prompt=" \n"), 422, "empty_prompt", "pairs[1]: the prompt is empty", 1),
    ("no messages", pairs(prompt=[]), 422, "empty_prompt", "pairs[1]: the prompt is empty", 1),
    ("an unknown role", pairs(prompt=[{"role": "robot", "content": "x"}]), 422, "invalid_request",
     "pairs[1].prompt[0].role: Input should be 'system', 'developer', 'user', 'assistant' or 'tool'", 1),
    ("an unknown field", {"pears": [], **GOOD}, 422, "invalid_request", "pears: unknown field", None),
    ("an unknown field of an item", pairs(third="c"), 422, "invalid_request", "pairs[1].third: unknown field", 1),
    ("a missing field", {"pairs": [{"prompt": "p", "first": "a"}]}, 422, "invalid_request",
     "pairs[0].second: Field required", 0),
    ("a number for a text", pairs(first=5), 422, "invalid_request",
     "pairs[1].first: a response is a text, a message or a list of messages", 1),
    ("an unknown field of a message", pairs(first={"role": "assistant", "content": "x", "audio": "y"}), 422,
     "invalid_request", "pairs[1].first.audio: unknown field", 1),
    ("an object for the list", {"pairs": {}}, 422, "invalid_request", "pairs: Input should be a valid list", None),
    ("a list for the body", [], 422, "invalid_request", "Input should be a valid dictionary", None),
    ("an unknown model", {"model": "judge", **GOOD}, 404, "unknown_model",
     "model 'judge' is not hosted here; these are: gpm, bt, ratings, mute", None),
    ("an unknown policy", {"truncation": "silent", **GOOD}, 422, "invalid_request", "truncation: ", None),
    ("a response over the limit", pairs(second="word " * 400), 422, "response_too_long", "the limit is 256", 1),
    ("a conversation over the limit", {"truncation": "error", **pairs(prompt="word " * 400)}, 422,
     "conversation_truncated", "the limit is 256", 1),
    ("an image", pairs(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), 422,
     "unsupported_content", "pairs[1]: this model reads text", 1),
    ("tools that the template cannot show", pairs(tools=[{"type": "function"}]), 422, "unsupported_content",
     "pairs[1]: this model's chat template has no place for tools", 1),
    ("preferences of ratings without weights", {"model": "ratings", **GOOD}, 422, "preferences_unavailable",
     "model ratings: this regression model rates helpful, verbose and has no weights", None),
    ("text for a model without a tokenizer", {"model": "mute", **GOOD}, 422, "text_unavailable",
     "model mute was loaded from a folder without a tokenizer", None),
    ("10,001 pairs", {"pairs": [PAIR] * (MAX_ITEMS + 1)}, 413, "too_many_items",
     "10001 pairs in one request; the limit is 10000", None),
    ("10,000 bad pairs", {"pairs": [{}] * MAX_ITEMS}, 422, "invalid_request", "pairs[0].prompt: Field required", 0),
    ("10,001 bad pairs", {"pairs": [{}] * (MAX_ITEMS + 1)}, 413, "too_many_items", "10001 pairs", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "status", "code", "message", "item"), REFUSALS, ids=[r[0] for r in REFUSALS])
async def test_is_refused(client, name, body, status, code, message, item):
    response = await client.post("/v1/preferences", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error.get("item")) == (status, code, item), (name, error)
    assert message in error["message"]
    assert (await client.post("/v1/preferences", json=GOOD)).status_code == 200  # and the next request is answered


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": [{"role": "user", "content": [{}] * MAX_PARTS}]},
        {"first": {"role": "user", "content": [{}] * (MAX_PARTS + 1)}},
        {"tools": [[]] * (MAX_PARTS + 1)},
    ],
)
async def test_more_parts_than_can_be_checked_are_refused_before_they_are(client, changes):
    response = await client.post("/v1/preferences", json=pairs(**changes))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "too_many_items")
    assert "200001 messages, parts, tools and responses in one request; the limit is 200000" in error["message"]


@pytest.mark.parametrize("messages", [[{"role": "user", "content": ""}] * 2000, [{}] * 190_000, [5] * 190_000])
async def test_more_messages_than_a_conversation_has_are_refused_by_their_count(hosted, messages):
    async with serving(hosted) as client:
        for side in ("prompt", "first", "second"):
            response = await client.post("/v1/preferences", json=pairs(**{side: messages}))
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["item"]) == (413, "too_many_items", 1)
            assert f"pairs[1]: {len(messages) + 1} messages in one conversation; the limit is 2000" in error["message"]
    async with serving(hosted, max_messages=3) as client:
        two = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        assert (await client.post("/v1/preferences", json=pairs(prompt=two))).status_code == 200
        assert (await client.post("/v1/preferences", json=pairs(prompt=two, first=two))).status_code == 413


def nested(depth: int):
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"tools": [{"a": {"b": [1] * MAX_NODES}}]}, 413, "pairs[1]: more than 200000 values in the tools"),
        ({"tools": [{"a": [{}] * MAX_NODES}]}, 413, "200000"),
        ({"first": {"role": "assistant", "tool_calls": [{"a": [1] * MAX_NODES}]}}, 413, "more than 200000 values"),
        ({"first": [{"role": "assistant", "content": [{"type": "file", "file": {"a": [1] * MAX_NODES}}]}]}, 413,
         "more than 200000 values"),
        ({"tools": [nested(MAX_DEPTH)]}, 422, "pairs[1]: an object nested more than 64 deep"),
        ({"tools": [nested(MAX_DEPTH - 1)]}, 422, "no place for tools"),
    ],
)  # fmt: skip
async def test_an_object_that_is_too_large_or_too_deep_is_refused_before_it_is_looked_at(
    client, changes, status, message
):
    response = await client.post("/v1/preferences", json=pairs(**changes))
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


async def test_values_are_counted_before_they_are_parsed(client):
    body = b'{"tools":[{"a":{"b":[' + b"1," * 8_000_000 + b"1]}}]}"
    response = await client.post("/v1/preferences", content=body, headers=JSON)
    assert response.status_code == 413
    assert "8000005 JSON values in one request; the limit is 1000000" in response.json()["error"]["message"]


@pytest.mark.parametrize("text", [",[{" * MAX_VALUES, 'a\\"b,' * MAX_VALUES, "\\" * 10 + ",," * MAX_VALUES])
def test_letters_inside_texts_are_no_values(text):
    check_values(json.dumps({"pairs": [{"prompt": text, "first": "a", "second": '"'}]}).encode())
    with pytest.raises(ServiceError, match="JSON values"):
        check_values(json.dumps({"prompt": text, "tools": [[]] * MAX_VALUES}).encode())


async def test_a_refused_request_runs_nothing(client):
    body = {"pairs": [PAIR] * 20 + [{**PAIR, "prompt": ""}]}
    assert (await client.post("/v1/preferences", json=body)).status_code == 422
    metrics = (await client.get("/metrics")).text
    assert 'paragone_batch_size_count{model="gpm"}' not in metrics


BODIES = [
    ("no body", b"", 400, "invalid_json", "the body is not JSON: expecting value at line 1, column 1"),
    ("half a body", b'{"pairs": [', 400, "invalid_json", "the body is not JSON: expecting value at line 1, column 12"),
    ("a text that does not end", b'{"pairs": ["x', 400, "invalid_json", "unterminated string starting at line 1"),
    ("NaN", b'{"pairs": [NaN]}', 400, "invalid_json", "NaN is not a JSON number"),
    ("nesting without end", b"[" * 100_000, 400, "invalid_json", "nested too deeply"),
    ("invalid UTF-8", b'{"pairs": [{"prompt": "\xff", "first": "a", "second": "b"}]}', 400, "invalid_encoding",
     "the body is not UTF-8: byte 23 fits no character"),
    ("UTF-16", json.dumps(GOOD).encode("utf-16"), 400, "invalid_encoding", "the body is not UTF-8: byte 0"),
    ("a lone surrogate", b'{"pairs": [{"prompt": "\\ud800", "first": "a", "second": "b"}]}', 422, "invalid_request",
     "pairs[0].prompt: the text holds a lone surrogate"),
    ("a lone surrogate in a name", b'{"pairs": [{"\\ud800": 1, "prompt": "p", "first": "a", "second": "b"}]}', 422,
     "invalid_request", "pairs[0]"),
    ("a lone surrogate in the model's name", b'{"model": "\\udfff", "pairs": []}', 422, "invalid_request", "model: "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "status", "code", "message"), BODIES, ids=[body[0] for body in BODIES])
async def test_a_body_that_cannot_be_read_is_refused(client, name, body, status, code, message):
    response = await client.post("/v1/preferences", content=body, headers=JSON)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), (name, error)
    assert message in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_said_to_be_json_is_refused(client, headers):
    response = await client.post("/v1/preferences", content=json.dumps(GOOD), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.x+json"])
async def test_json_is_known_by_any_of_its_names(client, kind):
    response = await client.post("/v1/preferences", content=json.dumps(GOOD), headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize("text", ["grüß dich", "日本語", "\U0001f600", "\x00\x7f", "\ufeff", "a\u2028b"])
async def test_every_text_that_utf8_can_carry_is_read(client, text):
    response = await client.post("/v1/preferences", json=pairs(prompt="p " + text, first=text))
    assert response.status_code == 200, response.text


async def test_no_refusal_repeats_what_was_sent(client):
    secret = "s3cr3t" * 20
    bodies = [
        pairs(prompt={"x": secret}),
        pairs(prompt=[{"role": secret, "content": "x"}]),
        pairs(**{secret + "é": 1}),
        pairs(second=secret * 100),
        pairs(prompt=[{"role": "user", "content": [{"type": "text", "texts": secret}]}]),
        {"truncation": secret, "pairs": []},
        {"pairs": secret},
    ]
    for body in bodies:
        response = await client.post("/v1/preferences", json=body)
        assert response.status_code == 422
        assert secret[:24] not in response.text, response.text


async def test_a_body_over_the_limit_is_refused_before_it_is_read(hosted):
    async with serving(hosted, max_body_mb=0.001) as client:
        response = await client.post("/v1/preferences", json=pairs(prompt="x" * 2000))
        assert response.status_code == 413
        assert response.json()["error"] == {
            "code": "body_too_large",
            "message": "the body is over the limit of 1000 bytes: split the request, or raise --max-body-mb",
        }


async def test_a_body_without_a_length_is_counted(hosted):
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b" " * 100

    async with serving(hosted, max_body_mb=0.001) as client:
        response = await client.post("/v1/preferences", content=endless(), headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


async def test_a_group_beyond_what_a_lottery_can_be_found_for_is_refused(client):
    response = await client.post(
        "/v1/tournaments", json={"groups": [{"prompt": "p", "responses": ["a"] * (MAX_GROUP + 1)}]}
    )
    assert response.status_code == 413
    assert response.json()["error"]["message"].startswith("groups[0]: 257 responses in one group; the limit is 256")
    group = {"prompt": "p", "responses": ["a"] * 250}
    response = await client.post("/v1/tournaments", json={"groups": [group] * 82})
    assert response.status_code == 413
    assert "20500 responses and references in one request; the limit is 20000" in response.json()["error"]["message"]


async def test_a_group_without_responses_is_refused(client):
    response = await client.post("/v1/tournaments", json={"groups": [{"prompt": "p", "responses": []}]})
    assert (response.status_code, response.json()["error"]["item"]) == (422, 0)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/preference", 404, "not_found"),
        ("GET", "/v1/preferences", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_address_is_refused_in_our_shape(client, method, path, status, code):
    response = await client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    if status == 405:
        assert response.headers["allow"]
