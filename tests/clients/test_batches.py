import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.batches import PREFERENCES, REWARDS, TOURNAMENTS, RequestOptions, merge_answers, parts_of, prompt_hash
from paragone.exceptions import AnswerError, OracleChangedError, RequestError, TextError
from paragone.wire import Message, Pair

USAGE = {"forward_responses": 2, "forward_tokens": 30, "cached_responses": 1, "truncated": 0}


def split(batch, *, route=PREFERENCES, max_items=1000, max_bytes=10**9, **options):
    return parts_of(route, batch, RequestOptions(**options), max_items=max_items, max_bytes=max_bytes)


def reward_answer(rewards, **changes):
    body = {"model": "m", "identity": "i", "fingerprint": "f", "calibrated": False, "usage": USAGE}
    rows = [row if isinstance(row, dict) else {"reward": row} for row in rewards]
    return json.dumps(body | {"rewards": rows} | changes).encode()


def test_a_request_says_only_what_is_not_a_default():
    (part,) = split([("p", "a", "b")])
    assert json.loads(part.body) == {"pairs": [{"prompt": "p", "first": "a", "second": "b"}]}
    (part,) = split(
        [("p", ["a", "b"])],
        route=TOURNAMENTS,
        model="m",
        truncation="error",
        on_error="report",
        return_=["matrix"],
    )
    assert json.loads(part.body) == {
        "model": "m",
        "truncation": "error",
        "on_error": "report",
        "return": ["matrix"],
        "groups": [{"prompt": "p", "responses": ["a", "b"]}],
    }


def test_tuples_dicts_and_wire_types_are_the_same_pair():
    given_as = [
        ("p", "a", "b"),
        ["p", "a", "b"],
        {"prompt": "p", "first": "a", "second": "b"},
        Pair(prompt="p", first="a", second="b"),
    ]
    (part,) = split(given_as)
    assert [tuple(pair.values()) for pair in json.loads(part.body)["pairs"]] == [("p", "a", "b")] * 4


def test_texts_travel_as_they_are():
    texts = ("“é” 日本語 \x00 \\ <|im_end|>", "a\nb", "")
    (part,) = split([texts])
    assert tuple(json.loads(part.body)["pairs"][0].values()) == texts
    assert "日本語".encode() in part.body


def test_an_empty_batch_is_one_request():
    (part,) = split([])
    assert json.loads(part.body) == {"pairs": []}
    assert part.prompt_hash is None


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (("p", "a"), "a tuple of 2 is not (prompt, first, second)"),
        (("p", "a", 5), "a response is a text, a message or a list of messages"),
        ({"prompt": "p", "first": "a", "second": "b", "third": "c"}, "unknown field"),
        (("p", "a", "\ud800"), "lone surrogate"),
    ],
)
def test_a_bad_item_is_refused_before_it_is_sent_and_named(item, words):
    with pytest.raises(RequestError) as caught:
        split([("p", "a", "b"), item])
    assert caught.value.item == 1
    assert words in caught.value.message


def test_a_large_batch_is_split_by_count():
    parts = split([(f"p{place}", "a", "b") for place in range(10)], max_items=4)
    assert [len(part.places) for part in parts] == [4, 4, 2]


def test_a_large_batch_is_split_by_bytes_and_a_giant_travels_alone():
    batch = [("p0", "a" * 100, "b"), ("p1", "a" * 100, "b"), ("p2", "a" * 5000, "b"), ("p3", "a", "b")]
    parts = split(batch, max_bytes=400)
    assert [list(part.places) for part in parts] == [[0, 1], [2], [3]]


def test_siblings_of_one_prompt_stay_in_one_part():
    batch = [(f"p{place % 3}", str(place), "b") for place in range(9)]
    parts = split(batch, max_items=5)
    assert [list(part.places) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_a_family_larger_than_a_part_fills_the_parts():
    batch = [("small", "a", "b")] + [("large", str(place), "b") for place in range(7)]
    parts = split(batch, max_items=3)
    assert [list(part.places) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_an_item_counts_as_its_response_and_references():
    items = [{"prompt": f"p{place}", "response": "r", "references": ["a", "b"]} for place in range(4)]
    assert [len(part.places) for part in split(items, route=REWARDS, max_items=6)] == [2, 2]


def test_the_groups_of_a_part_are_no_more_comparisons_than_a_server_takes():
    # 25 responses are 300 comparisons, and 5 references to each 125 more.
    groups = [{"prompt": f"p{place}", "responses": ["a"] * 25, "references": ["r"] * 5} for place in range(40)]
    parts = split(groups, route=TOURNAMENTS, max_items=10_000)
    assert [len(part.places) for part in parts] == [23, 17]
    assert [len(part.places) for part in split([("p", ["a"] * 200)], route=TOURNAMENTS)] == [1]


def test_a_group_counts_as_its_responses_and_references():
    groups = [
        ("p", ["a"] * 3),
        {"prompt": "q", "responses": ["a"], "references": ["b"] * 2},
        ("r", ["a"] * 9),
        ("s", ["a"]),
    ]
    parts = split(groups, route=TOURNAMENTS, max_items=6)
    assert [list(part.places) for part in parts] == [[0, 1], [2], [3]]


def test_a_text_and_its_one_user_message_are_siblings():
    assert prompt_hash("p") == prompt_hash([Message(role="user", content="p")])
    assert prompt_hash("p") != prompt_hash([Message(role="system", content="p")])
    assert len(prompt_hash("p")) == 32


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(st.sampled_from(["p", "q", "r", "s"]), max_size=40),
    max_items=st.integers(1, 7),
    max_bytes=st.integers(50, 400),
)
def test_however_a_batch_is_split_the_merged_answer_is_in_its_order(prompts, max_items, max_bytes):
    batch = [(prompt, str(place)) for place, prompt in enumerate(prompts)]
    parts = split(batch, route=REWARDS, max_items=max_items, max_bytes=max_bytes)
    assert all(len(part.places) <= max_items for part in parts)
    answers = []
    for part in parts:
        items = json.loads(part.body)["items"]
        answers.append(part.read(reward_answer([float(item["response"]) for item in items])))
    answer = merge_answers(parts, answers)
    assert [row.reward for row in answer.rewards] == [float(place) for place in range(len(prompts))]
    assert answer.usage.forward_tokens == 30 * len(parts)


@pytest.mark.parametrize("name", ["model", "identity", "fingerprint"])
def test_an_oracle_that_changes_within_a_batch_is_an_error(name):
    parts = split([("p", "a"), ("q", "b")], route=REWARDS, max_items=1)
    answers = [
        parts[0].read(reward_answer([1.0])),
        parts[1].read(reward_answer([2.0], **{name: "other"})),
    ]
    with pytest.raises(OracleChangedError, match=f"the {name} changed"):
        merge_answers(parts, answers)


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", reward_answer([None]).replace(b"null", b"NaN"), b"\xff"])
def test_an_answer_that_is_not_in_the_wire_format_is_an_error(content):
    (part,) = split([("p", "a")], route=REWARDS)
    with pytest.raises(AnswerError):
        part.read(content)


@pytest.mark.parametrize("rewards", [[], [1.0, 2.0]])
def test_an_answer_with_another_number_of_rows_is_an_error(rewards):
    (part,) = split([("p", "a")], route=REWARDS)
    with pytest.raises(AnswerError, match="asked for 1 rows"):
        part.read(reward_answer(rewards))


def test_errors_are_numbered_by_the_places_in_the_batch():
    parts = split([("p", "a"), ("q", "b"), ("p", "c")], route=REWARDS, max_items=2)
    assert [list(part.places) for part in parts] == [[0, 2], [1]]
    error = parts[0].renumbered(TextError("items[1]: too long", item=1))
    assert (error.item, error.message) == (2, "items[2]: too long")
    row = {"error": {"code": "empty_prompt", "message": "items[0]: the prompt is empty", "item": 0}}
    reported = parts[1].read(reward_answer([row])).rewards[0].error
    assert (reported.item, reported.message) == (1, "items[1]: the prompt is empty")
