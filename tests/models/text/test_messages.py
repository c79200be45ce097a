"""Conversations in one form, and what is no message."""

import pytest

from paragone_models.errors import TextError
from paragone_models.text.messages import plain_text, strip_reasoning
from paragone_models.text.reader import conversation

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}


def test_a_string_prompt_is_one_user_message_and_a_string_response_one_assistant_message():
    assert conversation("Why?", "Because.") == conversation([USER], ASSISTANT) == conversation([USER], [ASSISTANT])


def test_an_empty_list_of_tools_is_no_tools():
    assert conversation("Why?", "Because.", []).tools is None
    assert conversation("Why?", "Because.", [{"name": "look"}]).tools == ({"name": "look"},)


def test_text_parts_are_joined_and_empty_fields_dropped():
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
        "name": None,
        "tool_calls": [],
        "reasoning_content": "",
    }
    assert plain_text(message) == {"role": "user", "content": "one two"}


@pytest.mark.parametrize("content", [None, "", []])
def test_no_content_is_an_empty_text(content):
    assert plain_text({"role": "assistant", "content": content})["content"] == ""
    assert plain_text({"role": "assistant"})["content"] == ""


@pytest.mark.parametrize(
    "message",
    [
        "Why?",
        {"content": "Why?"},
        {"role": 3, "content": "Why?"},
        {"role": "user", "content": 3},
        {"role": "user", "content": ["Why?"]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
    ],
)
def test_what_is_no_text_message_is_refused(message):
    with pytest.raises(TextError) as caught:
        plain_text(message)
    assert caught.value.code == "unsupported_content"


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        ("<think>hm</think>\n\nYes.", "Yes."),
        ("\n<think>hm\nhm</think>Yes.", "Yes."),
        ("hm</think>Yes.", "Yes."),
        ("<think>hm, never done", ""),
        ("<think></think>", ""),
        ("Yes.", "Yes."),
        ("", ""),
        ("<think>a</think>b<think>c</think>d", "b<think>c</think>d"),
    ],
)
def test_reasoning_is_what_stands_before_its_closing_tag(content, rest):
    stripped = strip_reasoning({"role": "assistant", "content": content, "reasoning_content": "hm"})
    assert stripped == {"role": "assistant", "content": rest}
