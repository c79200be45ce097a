"""Reading pair files, grouping pairs by prompt, and planning batches."""

import gzip
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paragone_evaluation.readers import Label, Pair, read_pairs
from paragone_models.text.reader import conversation
from paragone_training.data import _plan_epoch, _plan_shape, group_pairs, read_groups, training_pairs
from paragone_training.errors import DataError
from tests.corpora import corpus, needs_corpora
from tests.models import tiny
from tests.training.arguments import pairs, row, write

DATA = Path(__file__).parents[2] / "data"


@needs_corpora
def test_the_corpus_of_arguments_is_what_its_page_says():
    rows = read_pairs(corpus("convincing_pairs"))
    # of 13,601 rows, 11,320 of them for training; nine compare a text with itself and are left out
    assert len(rows) == 13_592
    assert sum(pair.split == "train" for pair in rows) == 11_313
    assert len({pair.question for pair in rows}) == 13
    assert {pair.strength for pair in rows} == {-3, -2, -1, 0, 1, 2, 3}
    # no question is in both splits
    assert len({(pair.question, pair.split) for pair in rows}) == 13


def test_the_shipped_pairs_keep_each_prompt_in_one_split():
    rows = read_pairs(DATA / "everyday_pairs.jsonl")
    assert {pair.strength for pair in rows} == {-3, -2, -1, 0, 1, 2, 3}
    assert len({(pair.prompt, pair.split) for pair in rows}) == len({pair.prompt for pair in rows}) == 64


def test_a_row_keeps_its_fields_and_defaults_what_it_lacks(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [row(group="q1_yes", split="train", reason="why"), row(id="2")])
    one, two = read_pairs(path)
    assert (one.question, one.split, one.reason, one.strength) == ("q1", "train", "why", 1.0)
    assert (two.group, two.split, two.reason) == ("p", None, None)


def test_a_prompt_may_be_messages(tmp_path):
    messages = [{"role": "system", "content": "Hé."}, {"role": "user", "content": "Hé?"}]
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", [row(prompt=messages)]))
    assert pair.prompt_messages == messages


def test_gzip_and_empty_lines_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + json.dumps(row()).encode() + b"\n\n"))
    assert len(read_pairs(path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 4}, "field 'strength' is 4; it must lie in -3 … 3"),
        ({"strength": "1"}, "field 'strength' must be a number from -3 to 3, not '1'"),
        ({"strength": True}, "field 'strength' must be a number from -3 to 3, not True"),
        ({"first": None}, "field 'first' must be text, .*not null"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        ({"prompt": []}, "field 'prompt' must be text or a list of messages"),
        ({"second": "\ud800"}, "field 'second' holds a lone surrogate"),
        ({"id": "1"}, "id '1' is on line 1 already"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, changes, message):
    path = write(tmp_path / "pairs.jsonl", [row(), row(**{"id": "2", **changes})])
    with pytest.raises(DataError, match=rf"(?s)pairs\.jsonl: .*line 2: .*{message}"):
        read_pairs(path)


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path):
    bad = row()
    del bad["second"]
    with pytest.raises(DataError, match="field 'second' is missing; the row has first, id, prompt, strength"):
        read_pairs(write(tmp_path / "pairs.jsonl", [bad]))


def test_a_line_that_is_no_json_or_no_object_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row()) + "\n{\n")
    with pytest.raises(DataError, match="line 2: "):
        read_pairs(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: a row must be a JSON object, not int"):
        read_pairs(path)


def test_a_file_that_is_missing_empty_or_damaged_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        read_pairs(write(tmp_path / "empty.jsonl", []))
    damaged = tmp_path / "cut.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(row()).encode() * 50)[:-12])
    with pytest.raises(DataError, match=r"cannot read .*cut\.jsonl\.gz"):
        read_pairs(damaged)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(DataError, match="line 1: the line is not UTF-8"):
        read_pairs(latin)


def test_rows_of_the_split_and_rows_without_one_are_trained_on():
    rows = [*pairs(1), *pairs(1, split="other"), *pairs(1, split=None)]
    assert len(training_pairs(rows, split="train")) == 18


def test_test_rows_are_refused_unless_forced():
    with pytest.raises(DataError, match=r"marked 'test' and would be trained on.*data\.allow_test_rows"):
        training_pairs(pairs(1, split="test"), split="test")
    assert training_pairs(pairs(1, split="test"), split="test", allow_test_rows=True)


def test_a_split_without_rows_and_a_file_of_ties_are_refused(tmp_path):
    with pytest.raises(DataError, match="no row is marked 'dev'"):
        training_pairs(pairs(1), split="dev")
    ties = read_pairs(write(tmp_path / "f.jsonl", [row(id=name, strength=0) for name in "ab"]))
    with pytest.raises(DataError, match=r"all 2 rows are ties \(.*f\.jsonl:1 to .*f\.jsonl:2\)"):
        training_pairs(ties, split="train")


def test_a_group_holds_each_distinct_response_once_and_every_label():
    rows = [Pair("p", "a", "b", 1.0), Pair("p", "b", "c", -2.0), Pair("q", "a", "b", 3.0), Pair("p", "a", "c", 0.0)]
    one, two = group_pairs(rows)
    assert one.responses == ["a", "b", "c"]
    assert one.labels == [Label(0, 1, 1.0), Label(1, 2, -2.0)]
    assert two.responses == ["a", "b"]


def test_ties_are_kept_on_request_and_identical_responses_never():
    rows = [Pair("p", "a", "b", 0.0), Pair("p", "a", "a", 2.0)]
    assert group_pairs(rows) == []
    (group,) = group_pairs(rows, ties=True)
    assert group.labels == [Label(0, 1, 0.0)]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(2, 20), st.integers(0, 5))
def test_an_epoch_has_every_response_once_within_the_budget_and_always_as_many_batches(sizes, budget, epoch):
    batches = _plan_epoch(sizes, budget, seed=3, epoch=epoch)
    assert len(batches) == len(_plan_shape(sizes, budget))
    assert all(sum(len(part.responses) for part in batch) <= budget for batch in batches)
    seen = Counter((part.group, response) for batch in batches for part in batch for response in part.responses)
    assert seen == Counter((group, response) for group, size in enumerate(sizes) for response in range(size))


def test_a_group_within_the_budget_is_never_cut():
    batches = _plan_epoch([5, 7, 2, 2, 2], 8, seed=0, epoch=0)
    assert sorted(part.group for batch in batches for part in batch) == [0, 1, 2, 3, 4]
    assert len(batches) == 3


def test_a_large_group_is_drawn_anew_every_epoch_so_that_every_pair_meets():
    met = set()
    for epoch in range(40):
        for batch in _plan_epoch([9], 3, seed=0, epoch=epoch):
            for part in batch:
                met |= set(combinations(sorted(part.responses), 2))
    assert met == set(combinations(range(9), 2))


def test_a_plan_depends_on_seed_and_epoch_alone():
    assert _plan_epoch([9, 4], 3, seed=1, epoch=2) == _plan_epoch([9, 4], 3, seed=1, epoch=2)
    assert _plan_epoch([9, 4], 3, seed=1, epoch=2) != _plan_epoch([9, 4], 3, seed=1, epoch=3)
    assert _plan_epoch([9, 4], 3, seed=1, epoch=2) != _plan_epoch([9, 4], 3, seed=2, epoch=2)


def test_a_budget_below_a_pair_is_refused():
    with pytest.raises(ValueError, match="budget is 1; a batch must hold at least the 2 responses"):
        _plan_shape([2], 1)


def test_groups_are_read_together_and_as_each_would_be_alone():
    groups = group_pairs([Pair(f"p{place}", "a", "b" * (place % 5 + 1), 1.0) for place in range(600)])
    reader = tiny.make_reader()
    process, exchanges = reader.template._process, []
    render = process.render

    def counted(renderings, *limits, **options):
        exchanges.append(len(renderings))
        return render(renderings, *limits, **options)

    process.render = counted
    readings = read_groups(groups, reader)
    assert [len(some) for some in readings] == [2] * 600
    assert len(exchanges) < 10  # and not one for each of 600 prompts
    for place in (0, 255, 256, 599):
        assert readings[place] == read_groups([groups[place]], tiny.make_reader())[0]


def test_a_response_that_does_not_fit_is_named_among_many_groups():
    rows = [Pair(f"p{place}", "a", "b", 1.0, file="rows.jsonl", line=place + 1) for place in range(300)]
    rows[280] = Pair("p280", "a", "b " * 600, 1.0, file="rows.jsonl", line=281)
    with pytest.raises(DataError, match=r"rows.jsonl:281 or a row with its prompt: the response needs"):
        read_groups(group_pairs(rows), tiny.make_reader())


def test_several_turns_are_read_as_a_response_as_the_service_reads_them(tmp_path):
    talk = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    longer = [*talk, {"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
    rows = [{"conversation_a": talk, "conversation_b": longer, "winner": "model_a"}]
    groups = group_pairs(read_pairs(write(tmp_path / "f.jsonl", rows)))
    reader = tiny.make_reader()
    assert read_groups(groups, reader) == [reader.read([conversation("p", "a"), conversation("p", longer[1:])])]


def test_a_prompt_with_other_tools_is_another_group():
    tools = ['[{"type": "function"}]', ""]
    groups = group_pairs([Pair("p", "a", "b", 1.0, tools=one) for one in tools])
    assert [(group.pair.tools, len(group.labels)) for group in groups] == [(one, 1) for one in tools]
