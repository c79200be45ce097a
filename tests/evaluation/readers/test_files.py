"""One pass over a file: containers, ids, splits, what is left out, and that no file ends in a traceback."""

import bz2
import contextlib
import copy
import gzip
import json
import lzma
import random
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers import Turns, read_evaluation_set, read_pairs, read_prompts, read_ratings
from tests.evaluation.readers.test_every_command import COMPARED, RATED, cases
from tests.training.arguments import row, write

PACKED = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}
TURN = [{"role": "user", "content": "p"}]
DOORS = (read_pairs, read_ratings, read_evaluation_set, lambda path: read_prompts([path], split="train"))


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def refused(path, match):
    for door in (read_pairs, read_evaluation_set):
        with pytest.raises(DataError, match=match):
            door(path)


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz", "parquet", "json"])
def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path, ending):
    whole, path = tmp_path / "whole", tmp_path / (f"f.jsonl.{ending}" if ending in PACKED else f"f.{ending}")
    rows = [row(id=str(number)) for number in range(200)]
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    else:
        text = json.dumps(rows) if ending == "json" else "".join(json.dumps(one) + "\n" for one in rows)
        pack = {**PACKED, "json": bytes}[ending]
        whole.write_bytes(pack(text.encode()))
    path.write_bytes(whole.read_bytes()[:-9])
    refused(path, rf"cannot read .*{path.name}")


def test_a_csv_cell_may_hold_newlines_and_a_number_that_is_a_text(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('prompt,first,second,strength\n"two\nlines",42,1e3,2\np,"[1]","{}",-1\nq,a,b,x\n')
    with pytest.raises(DataError, match="line 5: field 'strength' must be a number from -3 to 3, not 'x'"):
        read_pairs(path)
    path.write_text(path.read_text().replace(",x", ",0,more"))
    with pytest.raises(DataError, match="line 5: the row has more cells than the header, which has 4"):
        read_pairs(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    first, second = read_pairs(path)
    assert (first.prompt, first.first, first.second, first.strength) == ("two\nlines", "42", "1e3", 2.0)
    assert (second.first, second.second, second.id) == ("[1]", "{}", "4")


def test_a_row_without_an_id_is_called_by_its_line(tmp_path):
    bare = {"prompt": "p", "first": "a", "second": "b", "strength": 1}
    path = write(tmp_path / "f.jsonl", [bare, {**bare, "id": "x"}, bare])
    assert [pair.id for pair in read_pairs(path)] == ["1", "x", "3"]
    assert [case.id for case in read_evaluation_set(path).cases] == ["1", "x", "3"]


def test_a_prompt_of_one_message_is_the_same_prompt_as_its_text(tmp_path):
    path = write(tmp_path / "f.jsonl", [row(), row(id="2", prompt=TURN, second="c")])
    assert [pair.prompt_messages for pair in read_pairs(path)] == ["p", "p"]
    assert len(read_evaluation_set(path).prompts) == 1
    assert [prompt.content for prompt in read_prompts([path], split="train")] == ["p"]


def test_a_conversation_that_repeats_the_prompt_is_read_once_and_one_that_goes_on_whole(tmp_path):
    sides = [TURN, [{"role": "system", "content": "s"}, *TURN], [said("x"), {"role": "user", "content": "q"}]]
    rows = [
        {"prompt": TURN, "chosen": [*before, said("a")], "rejected": [*before, said("b")]} for before in sides
    ]  # fmt: skip
    path = write(tmp_path / "f.jsonl", rows)
    prompts = ["p", sides[1], [*TURN, *sides[2]]]
    assert [pair.prompt_messages for pair in read_pairs(path)] == prompts
    found = [prompt if isinstance(prompt, str) else list(prompt) for prompt, _ in read_evaluation_set(path).prompts]
    assert found == prompts


def test_pairs_of_one_text_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_evaluation.readers")
    path = write(tmp_path / "f.jsonl", [row(), row(id="2", second="a"), row(id="3", first=[said("a")], second="a")])
    assert [pair.id for pair in read_pairs(path)] == ["1"]
    assert "2 rows left out: the two responses that are compared are the same" in caplog.text
    (left,) = read_evaluation_set(path).left_out
    assert (left.count, left.lines) == (2, (2, 3))
    refused(write(path, [row(second="a")]), "1 left out: the two responses that are compared are the same")


def test_a_group_without_a_name_before_the_underscore_is_a_question_of_its_own(tmp_path):
    path = write(
        tmp_path / "f.jsonl", [row(group="_x"), row(id="2", prompt="q", group="_y"), row(id="3", prompt="a_b")]
    )
    assert [pair.question for pair in read_pairs(path)] == ["_x", "_y", "a_b"]
    assert read_evaluation_set(path).clusters("question")[1] == 3


def test_a_response_with_tool_calls_is_evaluated_and_trained_on(tmp_path):
    calls = said(None, tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}])
    path = write(tmp_path / "f.jsonl", [row(first=calls)])
    assert read_evaluation_set(path).responses[0] == calls
    (pair,) = read_pairs(path)
    assert isinstance(pair.first, Turns)
    assert pair.first.messages == [calls]
    assert not isinstance(pair.second, Turns)


def test_nulls_of_a_table_are_no_fields(tmp_path):
    rows = [
        {
            "prompt": [{**TURN[0], "name": None}],
            "first": "a",
            "second": "b",
            "strength": 1,
            "chosen": None,
            "ratings": None,
        },
        {"prompt": [{"role": "user", "content": "q", "name": "n"}], "first": "a", "second": "b", "strength": -1},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    first, second = read_pairs(tmp_path / "f.parquet")
    assert (first.prompt_messages, second.prompt_messages) == ("p", rows[1]["prompt"])


def test_compared_files_are_not_taken_for_rated_ones(tmp_path):
    compared = write(tmp_path / "f.jsonl", [row()])
    with pytest.raises(DataError, match=r"it has responses that people compared \(layout pairs\)"):
        read_ratings(compared)


def test_prompts_are_read_once_and_their_ids_are_theirs_alone(tmp_path):
    rows = [{"id": 7, "prompt": "p"}, {"prompt": "q"}, {"prompt": TURN}, {"id": "t", "prompt": "r", "split": "test"}]
    one, two = write(tmp_path / "f.jsonl", rows), write(tmp_path / "g.jsonl", [{"id": 7, "prompt": "s"}])
    assert [(prompt.id, prompt.content) for prompt in read_prompts([one], split="train")] == [("7", "p"), ("1", "q")]
    with pytest.raises(DataError, match=r"1 row of 5 .*\n  line g\.jsonl:1: id '7' belongs to another prompt already"):
        read_prompts([one, two], split="train")
    with pytest.raises(DataError, match="no prompt whose split is 'train'"):
        read_prompts([write(two, [{"prompt": "p", "split": "test"}])], split="train")


@pytest.mark.parametrize(
    "value", [10**400, [[[["x"]]]], {"role": "user"}, "\ud800", True, -1e308, [None], [{"role": {}}], "", "9" * 300]
)
def test_no_value_of_any_field_ends_in_a_traceback(tmp_path, value):
    for make in [*COMPARED.values(), *RATED.values()]:
        (made,) = [make(case) for case in cases()[:1]]
        for good in made if isinstance(made, list) else [made[0]]:
            for name in good:
                write(tmp_path / "f.jsonl", [good | {name: value}])
                read_or_refuse(tmp_path / "f.jsonl")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["user", "-100", "A>B"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "first", "label", "Rating", "response"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*COMPARED, *RATED]), JSON, st.integers(0, 2**20))
def test_mutated_rows_are_read_or_refused(layout, value, seed):
    made = {**COMPARED, **RATED}[layout](cases()[0])
    rows = copy.deepcopy(made if isinstance(made, list) else [made[0]])
    place = random.Random(seed)
    target = place.choice(rows)
    # Go down at random, and put the value somewhere.
    while True:
        key = place.choice(list(target) if isinstance(target, dict) else range(len(target)))
        below = target[key]
        if not isinstance(below, dict | list) or not below or place.random() < 0.3:
            break
        target = below
    target[key] = value
    with tempfile.TemporaryDirectory() as folder:
        read_or_refuse(write(Path(folder) / "f.jsonl", rows))


def read_or_refuse(path):
    for door in DOORS:
        with contextlib.suppress(DataError):
            door(path)
