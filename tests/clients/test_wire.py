import json

import pytest
from pydantic import ValidationError

from paragone import wire
from paragone.codes import ErrorCode
from paragone.wire import (
    CohortRequest,
    ItemError,
    Message,
    Pair,
    Preference,
    PreferencesAnswer,
    PreferencesRequest,
    RewardsRequest,
    TokensRequest,
    TournamentsRequest,
    error_detail,
)

REQUESTS = [PreferencesRequest, RewardsRequest, TokensRequest, TournamentsRequest]
PAIR = {"prompt": "TV or books?", "first": "Books.", "second": "TV."}
USAGE = {"forward_responses": 0, "forward_tokens": 0, "cached_responses": 0, "truncated": 0}
ANSWER = {"model": "m", "identity": "i", "fingerprint": "f", "calibrated": False, "usage": USAGE}


def refusal(request, body):
    """Return what a body is refused with."""
    with pytest.raises(ValidationError) as caught:
        request.model_validate(body)
    return error_detail(caught.value)


def pair_refusal(**changes):
    return refusal(PreferencesRequest, {"pairs": [PAIR, PAIR | changes]})


@pytest.mark.parametrize("request_type", [*REQUESTS, CohortRequest])
def test_the_example_of_each_request_is_valid(request_type):
    examples = request_type.model_json_schema()["examples"]
    assert examples
    for example in examples:
        request_type.model_validate_json(json.dumps(example))


@pytest.mark.parametrize("request_type", [*REQUESTS, CohortRequest])
def test_every_field_of_a_request_is_described(request_type):
    schema = request_type.model_json_schema()
    for described in (schema, *schema["$defs"].values()):
        for name, field in described.get("properties", {}).items():
            assert field.get("description"), f"{described['title']}.{name}"


@pytest.mark.parametrize("name", [name for name in wire.__all__ if name.endswith(("Answer", "Info"))])
def test_every_field_of_an_answer_is_described_or_is_a_described_type(name):
    for field_name, field in getattr(wire, name).model_fields.items():
        assert field.description or field.annotation.__doc__, f"{name}.{field_name}"


@pytest.mark.parametrize(
    ("request_type", "asked"), list(zip(REQUESTS, ["pairs", "items", "items", "groups"], strict=True))
)
def test_an_empty_batch_is_valid(request_type, asked):
    assert getattr(request_type.model_validate({asked: []}), asked) == []


def test_a_group_of_one_is_valid_and_a_group_of_none_is_not():
    TournamentsRequest.model_validate({"groups": [{"prompt": "a", "responses": ["b"]}]})
    detail = refusal(TournamentsRequest, {"groups": [{"prompt": "a", "responses": []}]})
    assert (detail.item, detail.message.partition(":")[0]) == (0, "groups[0].responses")


def test_references_are_absent_or_some_but_never_none_at_all():
    detail = refusal(TournamentsRequest, {"groups": [{"prompt": "a", "responses": ["b"], "references": []}]})
    assert detail.item == 0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "a text",
        {"role": "assistant", "content": "a message"},
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "4"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "a part"}]}],
    ],
)
def test_a_response_is_a_text_a_message_or_messages(response):
    pair = Pair.model_validate(PAIR | {"first": response})
    assert pair.model_dump(mode="json", exclude_unset=True)["first"] == response


def test_python_objects_and_json_give_the_same_request():
    body = {"pairs": [PAIR | {"prompt": [{"role": "user", "content": "é"}], "tools": [{"a": [1, None]}]}], "model": "m"}
    assert PreferencesRequest.model_validate(body) == PreferencesRequest.model_validate_json(json.dumps(body))


@pytest.mark.parametrize("request_type", REQUESTS)
def test_an_unknown_field_of_a_request_is_refused_by_name(request_type):
    detail = refusal(request_type, {"pears": []})
    assert (detail.code, detail.message) == (ErrorCode.INVALID_REQUEST, "pears: unknown field")


def test_an_unknown_field_of_an_item_is_refused_with_its_place():
    detail = pair_refusal(third="x")
    assert (detail.item, detail.message) == (1, "pairs[1].third: unknown field")


def test_return_is_spelt_without_the_underscore():
    assert RewardsRequest.model_validate({"items": [], "return": ["representation"]}).return_ == ["representation"]
    assert refusal(RewardsRequest, {"items": [], "return_": []}).message == "return_: unknown field"


def test_an_unknown_role_is_refused_with_its_place():
    detail = pair_refusal(prompt=[{"role": "boss", "content": "hi"}])
    assert detail.code == ErrorCode.INVALID_REQUEST
    assert detail.message.startswith("pairs[1].prompt[0].role: ")


@pytest.mark.parametrize("prompt", [5, None, b"bytes", {"role": "user", "content": "one message is not a list"}])
def test_a_prompt_of_another_type_is_refused_in_one_sentence(prompt):
    assert pair_refusal(prompt=prompt).message == "pairs[1].prompt: a prompt is a text or a list of messages"


SECRET = "secret-words"
LONE = f"{SECRET}\ud800"


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": LONE},
        {"first": LONE},
        {"second": {"role": "assistant", "content": LONE}},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": LONE}]}]},
        {"prompt": [{"role": "user", "content": "x", "name": LONE}]},
        {"prompt": [{"role": "assistant", "tool_calls": [{"function": {"arguments": [LONE]}}]}]},
        {"prompt": [{"role": "assistant", "reasoning_content": LONE}]},
        {"tools": [{"description": LONE}]},
        {"tools": [{LONE: "x"}]},
    ],
)
def test_a_lone_surrogate_is_refused_wherever_it_is_and_not_repeated(changes):
    detail = pair_refusal(**changes)
    assert (detail.code, detail.item) == (ErrorCode.INVALID_REQUEST, 1)
    assert SECRET not in detail.message


def test_a_lone_surrogate_in_a_name_of_a_field_is_refused():
    assert pair_refusal(**{LONE: "x"}).code == ErrorCode.INVALID_REQUEST


def test_a_lone_surrogate_in_the_model_is_refused():
    assert refusal(PreferencesRequest, {"pairs": [], "model": LONE}).code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("changes", [{"prompt": 5.25}, {"first": [{"role": SECRET}]}, {"tools": SECRET}])
def test_no_refusal_repeats_the_input(changes):
    with pytest.raises(ValidationError) as caught:
        PreferencesRequest.model_validate({"pairs": [PAIR | changes]})
    for text in (str(caught.value), error_detail(caught.value).message):
        assert SECRET not in text
        assert "5.25" not in text


def test_a_name_that_the_sender_made_up_is_not_repeated_if_it_is_long_or_odd():
    assert pair_refusal(**{"x" * 1000: 1}).message == "pairs[1].(a name): unknown field"
    assert pair_refusal(**{"<script>": 1}).message == "pairs[1]: unknown field"


def test_numbers_that_json_cannot_carry_are_refused_inside_tools():
    assert "NaN" in pair_refusal(tools=[{"maximum": float("nan")}]).message


def test_a_body_that_is_no_json_is_named_so():
    with pytest.raises(ValidationError) as caught:
        PreferencesRequest.model_validate_json(b'{"pairs": [')
    assert error_detail(caught.value).code == ErrorCode.INVALID_JSON


def test_depth_is_refused_and_the_place_is_cut():
    tool: dict[str, object] = {}
    for _ in range(900):
        tool = {"a": tool}
    assert len(pair_refusal(tools=[tool]).message) < 200


def test_a_content_part_holds_what_its_type_says():
    assert Message.model_validate({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})
    detail = pair_refusal(prompt=[{"role": "user", "content": [{"type": "text"}]}])
    assert detail.message == "pairs[1].prompt[0].content[0]: a content part of type 'text' needs the field 'text'"


def test_an_answer_ignores_what_a_newer_server_adds():
    row = {"probability": 0.8, "logit": 1.4, "first_reward": None, "second_reward": None, "confidence": 1}
    answer = PreferencesAnswer.model_validate({**ANSWER, "preferences": [row], "region": "eu"})
    assert answer.preferences[0] == Preference(probability=0.8, logit=1.4, first_reward=None, second_reward=None)


def test_an_error_in_the_place_of_a_row_is_an_item_error_even_where_all_else_is_optional():
    error = {"error": {"code": "empty_prompt", "message": "pairs[0]: the prompt is empty", "item": 0}}
    for name, answer in (("preferences", wire.PreferencesAnswer), ("rewards", wire.RewardsAnswer)):
        rows = getattr(answer.model_validate({**ANSWER, name: [error]}), name)
        assert isinstance(rows[0], ItemError)
        assert rows[0].error.code is ErrorCode.EMPTY_PROMPT


def test_a_code_of_a_newer_server_stays_a_text():
    assert wire.ErrorDetail.model_validate({"code": "too_warm", "message": "m"}).code == "too_warm"


@pytest.mark.parametrize("probability", [float("nan"), 1.5, -0.1, None, float("inf")])
def test_a_probability_that_is_none_cannot_be_put_into_an_answer(probability):
    with pytest.raises(ValidationError):
        Preference(probability=probability, logit=0.0, first_reward=None, second_reward=None)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_cannot_be_put_into_an_answer(reward):
    with pytest.raises(ValidationError):
        wire.Reward(reward=reward)


def test_unset_fields_are_not_written_and_null_scalars_are():
    row = Preference(probability=0.5, logit=0.0, first_reward=None, second_reward=None)
    assert row.model_dump(exclude_unset=True) == {
        "probability": 0.5,
        "logit": 0.0,
        "first_reward": None,
        "second_reward": None,
    }
    assert wire.Reward(reward=1.0).model_dump(exclude_unset=True) == {"reward": 1.0}


def test_a_list_inside_an_item_is_refused_at_its_first_bad_element():
    bad = {"prompt": [{}] * 1000, "response": [{}] * 1000, "references": [7] * 1000, "tools": [7] * 1000}
    with pytest.raises(ValidationError) as caught:
        RewardsRequest.model_validate({"items": [bad]})
    assert caught.value.error_count() == 4


def test_references_belong_to_rewards_alone():
    item = {"prompt": "p", "response": "r", "references": ["a"]}
    assert RewardsRequest.model_validate({"items": [item], "return": ["blocks"]}).items[0].references == ["a"]
    detail = refusal(TokensRequest, {"items": [{"prompt": "p", "response": "r"}, item]})
    assert (detail.code, detail.item) == (ErrorCode.INVALID_REQUEST, 1)
    assert refusal(RewardsRequest, {"items": [{**item, "references": []}]}).item == 0


SDK_MESSAGE = {
    "content": "yes", "refusal": None, "role": "assistant", "annotations": [], "audio": None, "function_call": None,
    "tool_calls": None, "provider_specific_fields": {}, "name": "",
}  # fmt: skip


def test_what_an_sdk_left_null_or_empty_in_a_message_says_nothing():
    plain = wire.Message(role="assistant", content="yes")
    assert wire.Message.model_validate(SDK_MESSAGE) == plain
    assert wire.Message.model_validate_json(json.dumps(SDK_MESSAGE)) == plain
    assert wire.canonical_turns(wire.Message(role="assistant", content="yes", tool_calls=[]), "assistant") == (
        wire.canonical_turns("yes", "assistant")
    )
    part = {"type": "text", "text": "", "annotations": [], "cache_control": None}
    assert wire.Message(role="user", content=[part]).content == [wire.ContentPart(type="text", text="")]
    assert wire.Message(role="user", content="").content == ""


@pytest.mark.parametrize("field", [{"annotations": ["a"]}, {"audio": 0}, {"refusal": "no"}, {"parsed": False}])
def test_what_an_sdk_did_say_and_no_model_reads_is_refused(field):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        wire.Message.model_validate({**SDK_MESSAGE, **field})
