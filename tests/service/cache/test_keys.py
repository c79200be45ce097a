"""The cache key: equal for the same conversation, different for any other."""

import itertools

from paragone.wire import Message
from paragone_models.text.pairs import PairText
from paragone_service.cache.keys import conversation_keys, namespace, text_key
from paragone_service.cache.redis_servers import connect

SPACE = b"12345678"


def key(prompt, response, tools=None, space=SPACE):
    return conversation_keys(space, prompt, tools, [response])[0]


def user(content, **more):
    return Message(role="user", content=content, **more)


def assistant(content, **more):
    return Message(role="assistant", content=content, **more)


def test_a_key_is_the_namespace_and_sixteen_bytes():
    assert key("p", "r").startswith(SPACE)
    assert len(key("p", "r")) == 8 + 16


def test_the_parts_of_a_pair_are_hashed_once_and_their_order_counts():
    prompt, first, second = (({"role": role, "content": role},) for role in ("user", "assistant", "tool"))
    parts = {}
    pairs = [PairText(*texts) for texts in itertools.permutations((prompt, first, second))]
    keys = [text_key(SPACE, pair, parts) for pair in pairs]
    assert len(set(keys)) == 6
    assert keys == [text_key(SPACE, pair) for pair in pairs]
    assert len(parts) == 3


def test_a_text_and_its_one_message_form_share_a_key():
    assert (
        key("p", "r")
        == key([user("p")], [assistant("r")])
        == key([user("p")], assistant("r"))
        == key("p", assistant("r"))
    )
    assert key("é", "ü") == key([user("é")], [assistant("ü")])


def test_an_image_counts_by_its_bytes_and_what_is_no_image_by_its_letters():
    def image(url, **fields):
        return key([user([{"type": "image_url", "image_url": {"url": url, **fields}}])], "r")

    one, same, other = "data:image/png;base64,QUJD", "data:;base64,QUJD", "data:image/png;base64,QUJE"
    assert image(one) == image(same) != image(other)
    assert image(one) != image(one, detail="high")
    assert image("https://a") != image("https://b")


def test_fields_that_are_null_count_as_absent():
    assert key([user("p", name=None)], "r") == key("p", "r")


def test_everything_that_is_said_is_part_of_the_key():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    conversations = [
        ("p", "r", None),
        ("p", "", None),
        ("", "pr", None),
        ("pr", "", None),
        ("r", "p", None),
        ("p ", "r", None),
        ([user("p"), assistant("r")], "", None),
        ([user("p")], [assistant("r"), assistant("")], None),
        ([user("p"), assistant("r")], [], None),
        ([], [user("p"), assistant("r")], None),
        ([Message(role="system", content="p")], "r", None),
        ([user("p", name="ada")], "r", None),
        ("p", assistant("r", reasoning_content="hm"), None),
        ("p", assistant("r", tool_calls=[call]), None),
        ("p", assistant(None, tool_calls=[call]), None),
        ("p", [assistant("r", tool_calls=[call]), Message(role="tool", content="4", tool_call_id="1")], None),
        ("p", [assistant("r", tool_calls=[call]), Message(role="tool", content="4", tool_call_id="2")], None),
        ("p", assistant([{"type": "text", "text": "r"}]), None),
        ("p", "r", []),
        ("p", "r", [{"type": "function"}]),
        ("p", "r", [{"type": "function", "x": 1}]),
    ]
    keys = [key(*conversation) for conversation in conversations]
    for (one, first), (other, second) in itertools.combinations(enumerate(keys), 2):
        assert first != second, (conversations[one], conversations[other])


def test_the_order_of_fields_in_a_tool_does_not_matter():
    assert key("p", "r", [{"a": 1, "b": 2}]) == key("p", "r", [{"b": 2, "a": 1}])


def test_siblings_get_the_keys_that_they_would_get_alone():
    responses = ["a", assistant("b"), [assistant("c"), assistant("d")]]
    together = conversation_keys(SPACE, "p", None, responses)
    assert together == [key("p", response) for response in responses]


def test_models_do_not_share_entries():
    assert key("p", "r", space=namespace("ab" * 32)) != key("p", "r", space=namespace("cd" * 32))


def test_numerics_keep_entries_apart_only_where_they_are_given():
    identity = "ab" * 32
    assert namespace(identity) == bytes.fromhex("ab" * 8)
    strict = {namespace(identity, {"dtype": dtype}) for dtype in ("float32", "bfloat16")}
    assert len(strict) == 2
    assert namespace(identity) not in strict


def test_the_keys_of_one_model_fall_under_all_tags_of_a_cluster():
    servers = connect("redis+cluster://localhost:6379")
    keys = [conversation_keys(namespace("ab" * 32), f"prompt {number}", None, ["Yes."])[0] for number in range(1000)]
    parts = list(servers.reads(keys))
    assert len(parts) == len({servers.place(key).partition(b"}")[0] for key in keys}) == 32
    assert max(map(len, parts)) < 3 * 1000 / 32
