"""What a template makes of messages: a call's arguments in its form, and what it leaves out is told."""

import json
import re

import pytest

from paragone_models.errors import TextError
from paragone_models.text.probes import leaves_out
from paragone_models.text.reader import Reading, TextReader, conversation
from tests.models import tiny

LOOP = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{% set c = c.function if c.function is defined else c %}CALL {{ c.name }} BODY{% endfor %}<|im_end|>\n{% endfor %}"
)
DUMPED = LOOP.replace("BODY", "{{ c.arguments | tojson }}")
NAMED = LOOP.replace("BODY", "{% for k, v in c.arguments | items %} {{ k }}={{ v }}{% endfor %}")
CONCATENATED = LOOP.replace("BODY", "{{ '<' + c.arguments + '>' }}")
WRITTEN = LOOP.replace("BODY", "{{ c.arguments }}")
EITHER = LOOP.replace(
    "BODY", "{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}"
)
# Mistral's: every call wants its answer, and an id of nine characters.
STRICT = (
    "{% if messages[-1].tool_calls %}{{ raise_exception('a call without an answer') }}{% endif %}"
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
    "{% endif %}{% endfor %}{% endfor %}" + DUMPED
)
ARGUMENTS = {"city": "Rome", "days": [1, 2.5], "ünit": "°C", "deep": {"a": None}}
THOUGHTLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
# Qwen3's: thoughts of the last turn only.
EARLIER_CUT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)


def read(reader: TextReader, arguments: object, response: object = "yes") -> Reading | TextError:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    prompt = [
        {"role": "user", "content": "is it hot"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "21"},
    ]
    return reader.read([conversation(prompt, response)])[0]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DUMPED, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (STRICT, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (EITHER, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (NAMED, "city=Rome days=[1, 2.5] ünit=°C deep={'a': None}"),
        (CONCATENATED, "<" + json.dumps(ARGUMENTS, ensure_ascii=False) + ">"),
        (WRITTEN, json.dumps(ARGUMENTS, ensure_ascii=False)),
    ],
)
def test_one_call_is_one_text_in_whichever_form_its_arguments_come(source, expected):
    reader = tiny.make_reader(source, max_length=1000)
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)):
        assert f"CALL weather {expected}" in read(reader, arguments).text.replace("weather  ", "weather ")


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
@pytest.mark.parametrize(("source", "expected"), [(DUMPED, "{}"), (NAMED, ""), (CONCATENATED, "<{}>"), (EITHER, "{}")])
def test_a_call_without_arguments_has_an_empty_object(source, expected, arguments):
    assert f"CALL weather {expected}<|im_end|>" in read(tiny.make_reader(source), arguments).text


@pytest.mark.parametrize("arguments", ['{"city": "Ro', "[1]", "3", '{"a": NaN}', "[" * 100_000])
def test_arguments_that_are_no_object_are_refused_or_judged_as_they_were_written(arguments):
    for source in (DUMPED, NAMED, STRICT):
        refused = read(tiny.make_reader(source, max_length=10_000), arguments)
        assert isinstance(refused, TextError)
        assert "are a text that is no JSON object" in str(refused)
    for source in (CONCATENATED, WRITTEN, EITHER):
        if len(arguments) < 100:
            assert arguments in read(tiny.make_reader(source), arguments).text


def test_a_special_token_behind_the_escapes_of_an_argument_stays_text():
    text = json.dumps({"city": "<|im_end|>"}).replace("<", "\\u003c")
    for source in (DUMPED, CONCATENATED, EITHER):
        reading = read(tiny.make_reader(source), text)
        assert reading.token_ids.count(tiny.MARKS.index("<|im_end|>")) == 4


@pytest.mark.parametrize(
    ("source", "notes"),
    [
        (tiny.CHATML, []),
        (DUMPED, []),
        (CONCATENATED, []),
        (THOUGHTLESS, ["thoughts of a response", "thoughts of earlier turns"]),
        (EARLIER_CUT, ["thoughts of earlier turns"]),
        (LOOP.replace("BODY", ""), ["arguments of tool calls"]),
        (
            tiny.CHATML.replace("message in messages", "message in messages if message.role != 'system'"),
            ["system mess"],
        ),
        ("{{ raise_exception('only in threes') }}", ["can be read: .*only in threes"]),
        (None, ["there is no chat template"]),
    ],
)
def test_what_a_template_leaves_out_is_known_when_it_is_loaded(source, notes):
    found = tiny.make_reader(source).template.notes
    assert len(found) == len(notes)
    for sentence, note in zip(found, notes, strict=True):
        assert re.search(note, sentence), found


def test_nobody_misses_thoughts_that_the_model_is_not_to_read():
    assert len(tiny.make_reader(THOUGHTLESS, reasoning="strip").template.notes) == 1


@pytest.mark.parametrize(
    ("source", "response", "shown"),
    [
        (THOUGHTLESS, "<think>it is July</think>yes", False),
        (THOUGHTLESS, "<think></think>yes", True),
        (THOUGHTLESS, "yes", True),
        (tiny.CHATML, "<think>it is July</think>yes", True),
        (tiny.LLAMA, "  yes \n", True),
        (tiny.CHATML.replace("message['content']", "message['content'] | replace('\n\n', '\n')"), "a\n\nb", False),
        (tiny.CHATML.replace("message['content']", "message['content'][:40]"), "long " * 20, False),
    ],
)
def test_a_reading_says_whether_all_words_are_in_it(source, response, shown):
    reader = tiny.make_reader(source)
    assert reader.read([conversation("is it hot", response)])[0].shown is shown


def test_thoughts_that_were_to_be_stripped_are_not_missed():
    reader = tiny.make_reader(THOUGHTLESS, reasoning="strip")
    assert reader.read([conversation("is it hot", "<think>it is July</think>yes")])[0].shown


def test_without_a_template_several_turns_do_not_show_who_speaks():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    one, several = tiny.make_reader(None).read([conversation("a", "b"), conversation(turns, "d")])
    assert (one.shown, several.shown) == (True, False)


def test_a_calls_arguments_are_missed_too():
    assert read(tiny.make_reader(DUMPED), ARGUMENTS).shown
    assert read(tiny.make_reader(NAMED), {"city": "Rome"}).shown
    assert not read(tiny.make_reader(LOOP.replace("BODY", "")), {"city": "Rome"}).shown


def test_words_may_move_and_be_written_as_json():
    messages = [{"role": "user", "content": "second"}, {"role": "system", "content": 'fi"rst\n☃'}]
    assert not leaves_out(messages, 'fi\\"rst\\n☃ second')
    assert not leaves_out(messages, 'second fi\\"rst\\n\\u2603')
    assert leaves_out(messages, "second first")
    many = [{"role": "tool", "content": f'say "{number}"'} for number in range(1_000)]
    assert not leaves_out(many, "".join(json.dumps(message["content"]) for message in many))
