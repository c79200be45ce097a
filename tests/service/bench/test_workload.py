"""Texts to measure with: real passages of the wanted lengths, or the user's own."""

import gzip
import json
from dataclasses import replace

import pytest

from paragone_models import load_model
from paragone_service.bench import BenchError
from paragone_service.bench.workload import TextGroup, from_file, made_up, readings


@pytest.fixture(scope="module")
def model():
    return load_model("builtin:mini-bradley-terry", device="cpu")


def test_passages_have_the_wanted_number_of_tokens_and_a_seed_repeats_them(model):
    tokenizer = model.reader.tokenizer
    groups = made_up(tokenizer, 3, responses=4, lengths=(20, 40), seed=1)
    assert groups == made_up(tokenizer, 3, responses=4, lengths=(20, 40), seed=1)
    assert groups != made_up(tokenizer, 3, responses=4, lengths=(20, 40), seed=2)
    assert [len(group.responses) for group in groups] == [4, 4, 4]
    for group in groups:
        for text in (group.prompt, *group.responses):
            # stripping a passage's ends and cutting words in two may change a token or so
            assert 14 <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 44


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "p", "responses": ["a", "b", "c"]}],
        [{"prompt": "p", "first": "a", "second": "b"}, {"prompt": "p", "first": "a", "second": "c"}],
        [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "c", "rejected": "a"}],
    ],
)
def test_a_file_gives_the_distinct_responses_of_a_prompt(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert from_file(path, 1) == [TextGroup("p", ("a", "b", "c"))]


def test_a_file_of_any_layout_and_container_is_read(tmp_path, model):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"prompt;first;second;strength\nWhy?;a;b;-1\nWhy?;b;c;2\n"))
    assert from_file(path, 1) == [TextGroup("Why?", ("a", "b", "c"))]
    talk = [{"role": "user", "content": "Why?"}]
    rows = [
        {
            "chosen": [*talk, {"role": "assistant", "content": text}],
            "rejected": [*talk, {"role": "assistant", "content": "no"}],
        }
        for text in ("a", "b")
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    (group,) = from_file(path, 1)
    assert group == TextGroup("Why?", ("a", "no", "b"))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    turns = [*talk, {"role": "assistant", "content": "Hm."}, *talk]
    path.write_text(json.dumps([{"prompt": turns, "responses": ["a", "b"], "tools": tools}]))
    (group,) = from_file(path, 1)
    assert (group.prompt, group.tools) == (turns, tools)
    assert len(readings([replace(group, tools=None)], model.reader)[0]) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 1, "responses": ["a", "b"]}', "line 1: field 'prompt' must be text"),
        ('{"prompt": "p", "first": "a"}', "line 1: field 'second' is missing"),
        ("nonsense", "line 1: the line is not JSON"),
        ('{"prompt": "p", "responses": ["a"]}', "0 prompts with two responses or more; 1 groups are wanted"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BenchError, match=message):
        from_file(path, 1)


def test_a_text_that_the_model_refuses_stops_the_measurement(model):
    assert [len(read) for read in readings([TextGroup("Why?", ("Because.", "No."))], model.reader)] == [2]
    with pytest.raises(BenchError, match="refuses a text of the workload"):
        readings([TextGroup("", ("Because.", "No."))], model.reader)
