"""Other people's columns: translated, or refused with the line."""

import math

import pytest

from paragone_evaluation.readers import ReadOptions, RowAccount, Turns, read_evaluation_set, read_pairs, read_ratings
from paragone_training.data import training_ratings
from paragone_training.errors import DataError
from tests.training.arguments import row, write

HELPSTEER = {"split": "train", "prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -2}
RATED = {
    "prompt": "p",
    "response": "a",
    "helpfulness": 4,
    "correctness": 3,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}
ULTRA = {
    "instruction": "p",
    "completions": [
        {"response": "a", "annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "N/A"}}},
        {"response": "b", "annotations": {"honesty": {"Rating": 2}, "helpfulness": {"Rating": "5"}}},
    ],
}


def conversation(*texts):
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def test_a_negative_strength_of_helpsteer_prefers_response_1(tmp_path):
    rows = [HELPSTEER, HELPSTEER | {"preference_strength": 3, "split": "val", "preference_statement": "why"}]
    one, two = read_pairs(write(tmp_path / "f.jsonl", rows))
    assert (one.first, one.second, one.strength, one.split) == ("a", "b", 2.0, "train")
    assert (two.strength, two.split, two.reason) == (-3.0, "validation", "why")


def test_rows_in_which_neither_response_is_valid_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_evaluation.readers")
    invalid = HELPSTEER | {"preference_strength": -100}
    assert len(read_pairs(write(tmp_path / "f.jsonl", [invalid, HELPSTEER, invalid]))) == 1
    assert "2 rows left out" in caplog.text
    with pytest.raises(DataError, match="no rows to learn from: 1 were read; 1 left out: annotators found neither"):
        read_pairs(write(tmp_path / "g.jsonl", [invalid]))


def test_turns_in_a_helpsteer_prompt_become_messages_alike_in_pairs_and_ratings(tmp_path):
    prompt = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAnd?"
    (pair,) = read_pairs(write(tmp_path / "f.jsonl", [HELPSTEER | {"prompt": prompt}]))
    assert pair.prompt_messages == conversation("Hi", "Hello", "And?")
    (rating,) = read_ratings(write(tmp_path / "g.jsonl", [RATED | {"prompt": prompt}]))
    assert (rating.prompt, rating.messages) == (pair.prompt, True)


def test_chosen_and_rejected_are_texts_or_conversations(tmp_path):
    texts = {"prompt": "p", "chosen": "a", "rejected": "b"}
    one_turn = {"prompt": "ignored", "chosen": conversation("p", "a"), "rejected": conversation("p", "b")}
    turns = {"chosen": conversation("p", "x", "q", "a"), "rejected": conversation("p", "x", "q", "b"), "strength": 3}
    answers = {"prompt": "p", "chosen": conversation("p", "a")[1:], "rejected": conversation("p", "b")[1:]}
    read = read_pairs(write(tmp_path / "f.jsonl", [texts, one_turn, turns, answers]))
    assert [(pair.first, pair.second, pair.strength) for pair in read] == [("a", "b", s) for s in (1.0, 1.0, 3.0, 1.0)]
    assert [pair.prompt_messages for pair in read] == ["p", "p", conversation("p", "x", "q"), "p"]


@pytest.mark.parametrize(
    ("before", "bad", "message"),
    [
        (HELPSTEER, HELPSTEER | {"preference_strength": 4}, "preference_strength is 4; it must lie between -3"),
        (HELPSTEER, HELPSTEER | {"preference_strength": "2"}, "preference_strength is '2'"),
        (HELPSTEER, HELPSTEER | {"response_2": None}, "field 'response_2' must be text, .*not null"),
        (HELPSTEER, row(), "the row has the fields of pairs, and the file began with helpsteer2-preferences"),
        (row(), row(id="2", chosen="x", rejected="y"), "the row mixes two schemas"),
        (HELPSTEER, {"prompt": "p"}, "field 'preference_strength' is missing"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"chosen": conversation("p", "a"), "rejected": conversation("q", "b")},
            "must share every message before their answers",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"chosen": conversation("p"), "rejected": conversation("q")},
            "must end with the assistant's message, not 'user'",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"chosen": "a", "rejected": conversation("p", "b")},
            "field 'chosen' must be text, as the other one is, or a list",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"chosen": "a", "rejected": "b"},
            "there is no prompt: the two texts share no beginning",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "chosen": "a", "rejected": "b", "strength": -1},
            "field 'strength' is -1; it must lie in 0 … 3",
        ),
    ],
)
def test_a_bad_row_of_pairs_is_refused_with_its_line(tmp_path, before, bad, message):
    with pytest.raises(DataError, match=rf"line 2: .*{message}"):
        read_pairs(write(tmp_path / "f.jsonl", [before, bad]))


def test_a_group_has_a_pair_for_each_comparison(tmp_path):
    group = {
        "id": "g", "prompt": "p", "responses": ["a", "b", "c"], "split": "train",
        "comparisons": [
            {"first": 0, "second": 1, "label": "first"},
            {"first": 0, "second": 2, "label": "second"},
            {"first": 1, "second": 2, "label": "tie"},
        ],
    }  # fmt: skip
    pairs = read_pairs(write(tmp_path / "groups.jsonl", [group]))
    assert [(pair.id, pair.first, pair.second, pair.strength) for pair in pairs] == [
        ("g/0-1", "a", "b", 1.0), ("g/0-2", "a", "c", -1.0), ("g/1-2", "b", "c", 0.0),
    ]  # fmt: skip
    assert {pair.split for pair in pairs} == {"train"}


@pytest.mark.parametrize(
    ("comparisons", "message"),
    [
        ([], "'comparisons' must be a list of at least one comparison"),
        (
            [{"first": 0, "second": 1, "label": "neither"}],
            r"comparisons\[0\]\.label is 'neither'; it must be first, second or tie",
        ),
        (
            [{"first": 0, "second": 2, "label": "tie"}],
            r"comparisons\[0\]\.second is 2; it must be the index of one of 2 responses",
        ),
    ],
)
def test_a_bad_comparison_is_refused_with_its_line(tmp_path, comparisons, message):
    rows = [{"prompt": "p", "responses": ["a", "b"], "comparisons": comparisons}]
    with pytest.raises(DataError, match=rf"line 1: .*{message}"):
        read_pairs(write(tmp_path / "groups.jsonl", rows))


def test_helpsteer_ratings_are_its_five_columns_and_minus_a_hundred_is_no_rating(tmp_path):
    one, two = read_ratings(write(tmp_path / "f.jsonl", [RATED, RATED | {"complexity": -100}]))
    assert one.ratings == {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 0}
    assert "complexity" not in two.ratings
    assert len(two.ratings) == 4


def test_ultrafeedback_has_a_row_of_ratings_per_completion(tmp_path):
    one, two = read_ratings(write(tmp_path / "f.jsonl", [ULTRA]))
    assert (one.prompt, one.response, one.ratings) == ("p", "a", {"honesty": 4.0})
    assert (two.response, two.ratings) == ("b", {"honesty": 2.0, "helpfulness": 5.0})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "p", "response": "a"}, "field 'ratings' is missing"),
        ({"prompt": "p", "response": "a", "ratings": {}}, "'ratings' must be an object with a number per attribute"),
        ({"prompt": "p", "response": "a", "ratings": {"x": "4"}}, "field 'ratings.x' must be a number, or null"),
        ({"prompt": "p", "response": "a", "ratings": {"x": float("nan")}}, "field 'ratings.x' must be a number"),
        ({"prompt": "p", "response": 1, "ratings": {"x": 4}}, "field 'response' must be text"),
        (RATED, "has the fields of helpsteer2, and the file began with ratings"),
        (ULTRA, "has the fields of ultrafeedback, and the file began with ratings"),
        ({"id": "1", "prompt": "p", "response": "a", "ratings": {"x": 1}}, "id '1' is on line 1 already"),
    ],
)
def test_a_bad_row_of_ratings_is_refused_with_its_line(tmp_path, bad, message):
    good = {"id": "1", "prompt": "p", "response": "a", "ratings": {"x": 1}}
    with pytest.raises(DataError, match=rf"line 2: .*{message}"):
        read_ratings(write(tmp_path / "f.jsonl", [good, bad]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completions": "x"}, "field 'completions' must be a list"),
        ({"completions": [{"response": "a"}]}, r"completions\[0\] must be an object with a response and annotations"),
        ({"completions": [{"response": "a", "annotations": {"x": 4}}]}, r"completions\[0\]\.x must be an object"),
        ({"completions": [{"response": "a", "annotations": {"x": {"Rating": "good"}}}]}, "Rating is 'good'"),
        (
            {"completions": [{"response": "a", "annotations": {"x": {"Rating": 6}}}]},
            r"x\.Rating is 6; it must be a number from 1 to 5, or N/A",
        ),
    ],
)
def test_a_bad_row_of_ultrafeedback_is_refused_with_its_line(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"line 1: .*{message}"):
        read_ratings(write(tmp_path / "f.jsonl", [ULTRA | change]))


@pytest.mark.parametrize("value", [5, -1, True, "4", float("nan")])
def test_a_rating_of_helpsteer_out_of_range_is_refused_with_its_line(tmp_path, value):
    with pytest.raises(DataError, match=r"line 2: correctness is .*; it must be a number from 0 to 4, or -100"):
        read_ratings(write(tmp_path / "f.jsonl", [RATED, RATED | {"correctness": value}]))


def test_ratings_of_the_test_split_other_attributes_and_no_rows_are_refused(tmp_path):
    rows = read_ratings(write(tmp_path / "f.jsonl", [RATED | {"split": "test"}, RATED | {"split": "train"}]))
    assert len(training_ratings(rows, ["verbosity"], split="train")) == 1
    with pytest.raises(DataError, match=r"marked 'test' and would be trained on.*data\.allow_test_rows"):
        training_ratings(rows, ["verbosity"], split="test")
    assert len(training_ratings(rows, ["verbosity"], split="test", allow_test_rows=True)) == 1
    with pytest.raises(DataError, match=r"no row of data\.ratings rates wit; rated are coherence"):
        training_ratings(rows, ["wit"], split="train")
    with pytest.raises(DataError, match="is marked 'dev'"):
        training_ratings(rows, ["verbosity"], split="dev")
    with pytest.raises(DataError, match="has no rows"):
        read_ratings(write(tmp_path / "empty.jsonl", []))


def pairs_of(tmp_path, rows, **options):
    account = RowAccount()
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows), options=ReadOptions(**options), account=account)
    return pairs, account


@pytest.mark.parametrize(
    ("stated", "strength"),
    [
        ({"margin": 0.0}, 0.01),
        ({"margin": "1.5"}, 1.5),
        ({"margin": 7}, 3.0),
        ({"margin": None, "score_chosen": 8.5, "score_rejected": 6.5}, 2.0),
        ({"chosen-rating": 5.0, "rejected-rating": 5.0}, 0.01),
        ({"chosen_reward": 1.0, "rejected_reward": 3.0}, 0.01),
        ({"score_chosen": 8.5}, 1.0),
    ],
)
def test_margins_and_scores_say_how_strongly_and_the_columns_which_one(tmp_path, stated, strength):
    ((pair,), account) = pairs_of(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b", **stated}])
    assert (pair.first, pair.strength) == ("a", strength)
    assert sum(account.strengths.values()) == (strength != 1.0)


def test_it_is_said_what_strengths_are_read_from(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_evaluation.readers")
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": at} for at in (1, 2)]
    _, account = pairs_of(tmp_path, rows)
    assert account.describe_strengths() == ["2 pairs have a strength, read from: margin"]
    assert "2 pairs have a strength, read from: margin" in caplog.text


def test_votes_are_compared_by_their_ratio(tmp_path):
    row = {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 2, "score_B": 10}
    ((few,), _) = pairs_of(tmp_path, [row])
    assert few.strength == pytest.approx(-math.log2(5))
    ((none,), account) = pairs_of(tmp_path, [row | {"score_A": -3}])
    assert (none.strength, account.strengths) == (-1.0, {})


def test_rankings_are_compared_all_with_all_or_with_their_neighbours(tmp_path):
    row = {"prompt": "p", "answers": [{"answer": text, "rank": rank} for text, rank in (("c", 5), ("a", 1), ("b", 2))]}
    pairs, _ = pairs_of(tmp_path, [row])
    assert [(pair.first, pair.second, pair.strength) for pair in pairs] == [("a", "b", 1), ("a", "c", 3), ("b", "c", 3)]
    pairs, _ = pairs_of(tmp_path, [row], rankings="neighbours")
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("b", "c")]
    with pytest.raises(DataError, match="rankings is 'some'; it must be one of all, neighbours"):
        ReadOptions(rankings="some")


def test_the_safer_response_is_another_one_than_the_better(tmp_path):
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    assert [pairs_of(tmp_path, [row], attribute=name)[0][0].strength for name in (None, "better", "safer")] == [
        1,
        1,
        -1,
    ]
    with pytest.raises(DataError, match="attribute is 'nicer'; this file has better, safer"):
        pairs_of(tmp_path, [row], attribute="nicer")


def test_pairs_of_ratings_are_of_one_attribute_and_ties_within_the_gap(tmp_path):
    rated = [("a", 4, 0), ("b", 3, 4), ("c", 1, 4)]
    rows = [RATED | {"response": text, "helpfulness": good, "verbosity": long} for text, good, long in rated]
    rows.append(RATED | {"prompt": "alone"})

    def read(**options):
        pairs, account = pairs_of(tmp_path, rows, **options)
        return [(pair.first + pair.second, pair.strength) for pair in pairs], account

    pairs, account = read()
    assert pairs == [("ab", 1), ("ac", 3), ("bc", 2)]
    assert account.strengths == {"ratings of helpfulness": 3}
    (left,) = account.left_out()
    assert (left.lines, left.reason) == ((4,), "its prompt has one response with a helpfulness, and a pair needs two")
    assert read(gap=1)[0] == [("ab", 0), ("ac", 3), ("bc", 2)]
    assert read(attribute="verbosity")[0] == [("ab", -3), ("ac", -3), ("bc", 0)]
    with pytest.raises(DataError, match="gap is -1; it must be 0 or a positive number"):
        read(gap=-1)


def test_responses_that_nobody_else_was_rated_beside_make_no_pair_and_the_file_says_so(tmp_path):
    rows = [{"prompt": prompt, "completion": "a", "label": True} for prompt in "pq"]
    with pytest.raises(DataError, match="2 left out: its prompt has one response with a label, and a pair needs two"):
        pairs_of(tmp_path, rows)


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "both_bad", "Tie"])
def test_ties_of_the_arena_and_two_bad_ones_decide_nothing(tmp_path, winner):
    sides = {f"conversation_{side}": conversation("p", f"answer {side}") for side in "ab"}
    assert pairs_of(tmp_path, [sides | {"winner": winner}])[0][0].strength == 0


def test_turns_that_part_early_are_a_response_of_several_messages(tmp_path):
    sides = {"conversation_a": conversation("p", "x", "q", "a"), "conversation_b": conversation("p", "y", "q", "b")}
    ((pair,), _) = pairs_of(tmp_path, [sides | {"winner": "model_b"}])
    assert (pair.prompt, pair.strength) == ("p", -1)
    assert isinstance(pair.first, Turns)
    assert pair.first.messages == conversation("p", "x", "q", "a")[1:]
    ((pair,), _) = pairs_of(tmp_path, [sides | {"winner": "model_b", "turn": 1}])
    assert (pair.first, pair.second) == ("x", "y")


def test_a_prompt_is_not_read_twice_and_one_that_goes_before_is_read(tmp_path):
    def prompt(before, shared):
        sides = {"chosen": [*shared, *conversation("", "a")[1:]], "rejected": [*shared, *conversation("", "b")[1:]]}
        return pairs_of(tmp_path, [sides | {"prompt": before}])[0][0].prompt_messages

    system = {"role": "system", "content": "s"}
    assert prompt("p", conversation("p")) == "p"
    assert prompt(conversation("p"), conversation("p")) == "p"
    assert prompt([system, *conversation("p")], conversation("p")) == [system, *conversation("p")]
    assert prompt(conversation("p", "x"), conversation("q")) == conversation("p", "x", "q")
    assert prompt([system, *conversation("p")], []) == [system, *conversation("p")]


def test_texts_that_begin_with_their_prompt_are_told_by_the_first_rows_together(tmp_path):
    row = {"prompt": "Say tea", "chosen": "Say tea. I would", "rejected": "Say tea? no"}
    pairs, _ = pairs_of(tmp_path, [row, row | {"chosen": "Say tea, and more", "prompt": "Say tea"}])
    assert [pair.first for pair in pairs] == [". I would", ", and more"]
    other = {"prompt": "Name one", "chosen": "Tea", "rejected": "No"}
    pairs, _ = pairs_of(tmp_path, [row, other])  # the first one repeats its prompt by chance
    assert [pair.first for pair in pairs] == ["Say tea. I would", "Tea"]


def test_texts_without_a_prompt_are_parted_where_a_sentence_ends(tmp_path):
    row = {"chosen": "Is it tea? I would say so.", "rejected": "Is it tea? I would not."}
    ((pair,), _) = pairs_of(tmp_path, [row])
    assert (pair.prompt, pair.first, pair.second) == ("Is it tea?", "I would say so.", "I would not.")


def test_names_alone_tell_no_layout(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    others = {"completions": 3, "responses": "x", "response": None, "label": "A>B", "pair_id": 1, "subset": "mine",
              "messages": [], "ratings": {"x": 1}, "preference_strength": None, "comparisons": "none"}  # fmt: skip
    ((read,), _) = pairs_of(tmp_path, [others | pair])
    assert (read.prompt, read.first, read.second) == ("p", "a", "b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": conversation("p", "x"), "chosen": "a", "rejected": "b"}, "ends with a message of 'assistant'"),
        ({"prompt": "[{'role': 'user', 'content': 'p'}]", "chosen": "a", "rejected": "b"}, "text that is not JSON"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
            "a part of type 'image': only texts are read",
        ),
        ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "'user' without content"),
        (
            {"instruction": "p", "output": [{"from": "function_call", "value": "f("}, "b"]},
            "value is not JSON with a name",
        ),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "c"}, "it must be model_a, model_b, tie or"),
    ],
)
def test_what_no_template_would_read_as_it_is_meant_is_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"line 1: .*{message}"):
        pairs_of(tmp_path, [row])


def test_an_orca_pair_whose_status_is_tie_is_a_tie_whatever_its_columns_are_called(tmp_path):
    orca = {"system": "s", "input": "p", "chosen": "a", "rejected": "b", "rating": [9.0, 9.0], "chosen_score": 9.0}
    rows = [orca | {"status": status} for status in ("unchanged", "tie", "swapped", None)]
    read, _ = pairs_of(tmp_path, rows)
    assert [pair.strength for pair in read] == [1, 0, 1, 1]
    data = read_evaluation_set(tmp_path / "pairs.jsonl")
    assert list(data.outcome) == [1, 0.5, 1, 1]


def test_lists_of_texts_in_cells_are_benchmarks_where_their_other_columns_are(tmp_path):
    listed = {"prompt": "p", "chosen": '["a"]', "rejected": '["b", "c"]'}
    data = read_evaluation_set(write(tmp_path / "f.jsonl", [listed | {"subset": "Safety"}]))
    assert (data.layout, list(data.responses)) == ("rewardbench2", ["a", "b", "c"])
    # An answer that is a list is a text, unless the row is a benchmark's.
    ((pair,), _) = pairs_of(tmp_path, [listed | {"subset": "mine"}])
    assert (pair.first, pair.second) == ('["a"]', '["b", "c"]')
    for name, beside in (("rejected", {"domain": "chat"}), ("chosen", {"subset": "x", "num_correct": 1})):
        with pytest.raises(DataError, match=f"'{name}' holds a list of texts in a text that is not JSON"):
            pairs_of(tmp_path, [listed | {name: "['a', \"b\", 'c']"} | beside])


def test_calls_tools_and_their_results_are_read_as_templates_expect_them(tmp_path):
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"q": "tea"}}'}
    row = {
        "conversations": [{"from": "human", "value": "p"}, call, {"from": "observation", "value": "4"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": call,
        "tools": '[{"type": "function"}]',
    }
    ((pair,), _) = pairs_of(tmp_path, [row])
    calls = {
        "role": "assistant", "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"q": "tea"}}}],
    }  # fmt: skip
    assert pair.prompt_messages == [*conversation("p"), calls, {"role": "tool", "content": "4"}]
    assert (pair.first, pair.second.messages, pair.tools) == ("a", [calls], '[{"type": "function"}]')
