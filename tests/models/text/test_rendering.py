"""Templates in their own process: the text that transformers gives, and limits that hold whatever a template does."""

import os
import re
import signal
import threading

import pytest

from paragone_models.errors import TextError
from paragone_models.text.rendering import StoppedError, TemplateProcess, Turn, TurnEndedError
from tests.models import tiny

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
# The sandbox bounds a range, and not what a loop in a loop costs.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
# A hundredth of a second, or a few.
SLOW = "{% for a in range(500) %}{% for b in range(500) %}{% endfor %}{% endfor %}"
IF_ASKED = "{% for m in messages %}{% if 'go' in m.content %}BODY{% endif %}{{ m.content }}{% endfor %}"


def process_of(*sources: str, **options) -> TemplateProcess:
    return TemplateProcess(sources, {}, most_characters=10_000, **{"processor_s": 0.3, **options})


def talk(content: str):
    return (0, [{"role": "user", "content": content}], None)


@pytest.mark.parametrize(
    "source",
    [
        tiny.CHATML,
        tiny.LLAMA,
        tiny.TOOLS,
        tiny.ALTERNATING,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}",
        "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{{ n.k }}{% continue %}{% endfor %}",
        "{{ dict(a=1) }}{{ messages | tojson(indent=2) }}{{ messages[-1].reasoning_content }}{{ documents is none }}",
        "{{ messages }}{{ tools is none }}{{ add_generation_prompt }}{{ {'b': '<', 'a': 'é'} | tojson(sort_keys=1) }}",
        "  {% if true %}\n  x\n  {% endif %}\n{{- pad_token }}",
    ],
)
@pytest.mark.parametrize(
    "extra", [{}, {"thinking": "hm"}, {"tool_calls": [{"function": {"name": "l", "arguments": {}}}]}]
)
def test_a_text_is_the_one_that_transformers_renders(source, extra):
    tokenizer = tiny.make_tokenizer(source)
    messages = [MESSAGES[0], {**MESSAGES[1], **extra, "content": "Bé ☃ <b>"}]
    tools = [{"type": "function", "function": {"name": "look"}}]
    process = TemplateProcess([source], tokenizer.special_tokens_map, most_characters=10_000)
    for given in (None, tools):
        expected = tokenizer.apply_chat_template(messages, tools=given, tokenize=False)
        assert process.render([(0, messages, given)]) == [expected]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ENDLESS, "more than 0.3 s"),
        ("{{ 'x' * 900000000000 }}", "memory"),
        ("{{ (m.content * 100000000) | list | length }}", "memory|more than 0.3 s"),
        ("{% for a in range(99999) %}0123456789{% endfor %}", "more than 10000 characters"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "depth"),
        ("{{ '%0999999999d' | format(loop.index) | length }}", "memory|more than 0.3 s"),
        (
            "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "memory|0.3 s",
        ),
    ],
)
def test_a_template_without_an_end_is_stopped_for_the_conversation_that_asked_for_it(body, reason):
    process = process_of(IF_ASKED.replace("BODY", body))
    before, stopped, after = process.render([talk("one"), talk("go"), talk("two")])
    assert (before, after) == ("one", "two")
    assert isinstance(stopped, StoppedError)
    assert stopped.code == "unsupported_content"
    assert re.search(f"chat template was stopped: .*({reason})", str(stopped)), stopped


@pytest.mark.parametrize(
    "body",
    ["{{ 1 // 0 }}", "{{ none.deeper.still }}", "{{ raise_exception('no') }}", "{{ ''.__class__.mro() }}", "{% if %}"],
)
def test_a_template_that_breaks_refuses_with_its_reason(body):
    refused = process_of(body).render([talk("go")])[0]
    assert isinstance(refused, TextError)
    assert not isinstance(refused, StoppedError)
    assert "refuses these messages: " in str(refused)


def test_a_call_ends_in_time_by_the_clock_too():
    process = process_of(ENDLESS, processor_s=60, batch_s=0.5)
    results = process.render([talk("one"), talk("two")])
    assert ["take too long" in str(result) for result in results] == [True, True]


def test_a_process_that_somebody_ended_is_replaced():
    process = process_of(tiny.CHATML)
    first = process.render([talk("one")])
    os.kill(process._child._process.pid, signal.SIGKILL)
    assert process.render([talk("one"), talk("two")])[0] == first[0]


def test_a_process_ends_with_the_model():
    process = process_of(tiny.CHATML)
    process.render([talk("one")])
    child = process._child._process
    del process
    assert child.poll() is not None


def test_threads_get_their_own_answers():
    process = process_of("{{ messages[0].content }}")
    wrong: list[object] = []

    def ask(name: int) -> None:
        for turn in range(30):
            texts = [f"{name} {turn} {place}" for place in range(5)]
            if process.render([talk(text) for text in texts]) != texts:
                wrong.append(texts)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_conversations_go_in_several_exchanges():
    process = process_of("{{ messages[0].content | length }}", processor_s=5)
    texts = ["x" * (index % 7) for index in range(300)] + ["y" * 9_000_000]
    assert process.render([talk(text) for text in texts]) == [str(len(text)) for text in texts]


def test_what_is_no_json_is_refused_and_half_a_character_is_kept():
    process = process_of("{{ messages[0].content }}")
    refused, text = process.render([(0, [{"role": "user", "content": "a", "name": object()}], None), talk("\ud800")])
    assert isinstance(refused, TextError)
    assert "no JSON" in str(refused)
    assert text == "\ud800"


def test_a_turn_that_is_over_begins_no_further_conversation():
    process = process_of(IF_ASKED.replace("BODY", SLOW), processor_s=5)
    turn = Turn(0.003)
    talks = [talk("one"), talk("go"), talk("go"), talk("two")]
    assert process.render(talks, turn) == ["one", "go"]
    assert turn.over
    assert turn.used_s >= 0.003
    assert process.render(talks[2:], turn) == ["go"]  # the first always, for else nothing would ever be read
    assert process.render(talks[2:], turn, least=2) == ["go", "two"]
    assert process.render(talks[3:]) == ["two"]


def test_a_turn_that_is_ended_stops_what_is_rendered_and_the_next_goes_on():
    process = process_of(IF_ASKED.replace("BODY", ENDLESS), processor_s=60)
    turn = Turn()
    threading.Timer(0.2, turn.end).start()
    with pytest.raises(TurnEndedError):
        process.render([talk("go"), talk("two")], turn)
    assert process.render([talk("one")]) == ["one"]


def test_what_begins_with_a_prompt_that_takes_too_long_is_not_tried():
    process, turn = process_of(IF_ASKED.replace("BODY", ENDLESS)), Turn()
    talks = [talk("go"), talk("go on"), talk("go away"), talk("one"), talk("one two"), talk("one go"), talk("one")]
    results = process.render(talks, turn, prompts={0, 3})
    assert [isinstance(result, StoppedError) for result in results] == [True] * 3 + [False] * 2 + [True, False]
    assert turn.used_s == pytest.approx(0.6, abs=0.1)  # two limits, and not four
