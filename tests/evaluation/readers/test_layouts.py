"""Other people's columns: translated, or refused with the line."""

import pytest

from paragone_evaluation.readers import read_pairs, read_ratings
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
