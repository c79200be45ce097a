"""A held-out share of files without splits: the same prompts for every command, whatever the order of the rows."""

import hashlib
import random

import pytest

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers import (
    HELD_OUT,
    ReadOptions,
    check_holdout,
    is_held_out,
    read_evaluation_set,
    read_pairs,
    read_ratings,
)
from tests.evaluation.conftest import write

PROMPTS = [f"Question {number}: tea or coffee?" for number in range(60)]


def hashed(prompt):
    """Return the hash of a prompt as a number between 0 and 1."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16) / 16**16


def by_hand(share):
    return {prompt for prompt in PROMPTS if hashed(prompt) < share}


def pairs(**fields):
    """Two rows for every prompt, not beside each other."""
    return [
        {"prompt": prompt, "chosen": f"Tea, of course {turn}.", "rejected": f"Sand {turn}.", **fields}
        for turn in range(2)
        for prompt in PROMPTS
    ]


def held_out_by_training(rows, path, share):
    return {row.prompt for row in read_pairs(write(path, rows), options=ReadOptions(holdout=share)) if row.split}


def evaluated(rows, path, share):
    made = read_evaluation_set(write(path, rows), options=ReadOptions(holdout=share))
    return {prompt for prompt, _ in made.prompts}, made


def test_training_and_evaluation_hold_out_the_same_prompts_in_any_order(tmp_path):
    rows, shuffled = pairs(), random.Random(0).sample(pairs(), 120)
    for share in (0.2, 0.5):
        expected = by_hand(share)
        assert held_out_by_training(rows, tmp_path / "a.jsonl", share) == expected
        assert held_out_by_training(shuffled, tmp_path / "b.jsonl", share) == expected
        for order in (rows, shuffled, [*rows, {"prompt": "One more?", "chosen": "a", "rejected": "b"}]):
            prompts, made = evaluated(order, tmp_path / "c.jsonl", share)
            assert prompts - {"One more?"} == expected
            assert (made.split, made.holdout) == (None, share)
    assert by_hand(0.2) < by_hand(0.5)


def test_no_prompt_is_on_both_sides_and_every_row_is_on_one(tmp_path):
    made = read_pairs(write(tmp_path / "a.jsonl", pairs()), options=ReadOptions(holdout=0.3))
    sides = [{row.prompt for row in made if (row.split == HELD_OUT) is side} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert len(made) == 120
    _, evaluation = evaluated(pairs(), tmp_path / "b.jsonl", 0.3)
    (left,) = evaluation.left_out
    assert len(evaluation.case) + left.count == 120
    assert left.reason == "not of the held-out share, 0.3 of the prompts"


def test_every_layout_of_the_same_prompts_has_the_same_share(tmp_path):
    expected, reading = by_hand(0.25), ReadOptions(holdout=0.25)
    rated = [
        {"prompt": prompt, "response": text, "ratings": {"care": care}}
        for prompt in PROMPTS
        for text, care in (("Tea.", 4), ("Sand.", 0))
    ]
    file = write(tmp_path / "rated.jsonl", rated)
    assert {row.prompt for row in read_ratings(file, options=reading) if row.split} == expected
    assert {prompt for prompt, _ in read_evaluation_set(file, options=reading).prompts} == expected
    groups = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "responses": ["Tea.", "Coffee.", "Sand."],
            "comparisons": [{"first": 0, "second": 2, "label": "first"}],
        }
        for prompt in PROMPTS
    ]
    assert held_out_by_training(groups, tmp_path / "groups.jsonl", 0.25) == expected


def test_what_the_file_groups_is_on_one_side(tmp_path):
    rows = [
        {"prompt": f"{stance} {prompt}", "chosen": "Tea.", "rejected": "Sand.", "group": f"{number}_{stance}"}
        for number, prompt in enumerate(PROMPTS)
        for stance in ("pro", "con")
    ]
    made = read_pairs(write(tmp_path / "a.jsonl", rows), options=ReadOptions(holdout=0.3))
    sides = [{row.question for row in made if (row.split == HELD_OUT) is side} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert sides[0] == {str(number) for number in range(60) if is_held_out(str(number), 0.3)}
    prompts, _ = evaluated(rows, tmp_path / "b.jsonl", 0.3)
    assert prompts == {row.prompt for row in made if row.split == HELD_OUT}


def test_a_share_of_many_prompts_is_about_that_share():
    taken = sum(is_held_out(f"prompt {number}", 0.1) for number in range(20_000))
    assert 0.09 < taken / 20_000 < 0.11


def test_rows_marked_train_are_shared_and_other_splits_keep_theirs(tmp_path):
    marked = [{**row, "split": "train"} for row in pairs()]
    other = [{"prompt": f"Other {number}?", "chosen": "a", "rejected": "b", "split": "val"} for number in range(9)]
    assert evaluated(marked + other, tmp_path / "a.jsonl", 0.2)[0] == by_hand(0.2)
    made = read_pairs(write(tmp_path / "b.jsonl", marked + other), options=ReadOptions(holdout=0.2))
    assert {row.split for row in made if row.prompt.startswith("Other")} == {"validation"}
    assert {row.prompt for row in made if row.split == HELD_OUT} == by_hand(0.2)


def test_a_file_that_marks_what_is_held_out_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", [*pairs(), {**pairs()[0], "split": "test"}])
    for read in (read_pairs, read_evaluation_set):
        with pytest.raises(DataError, match=r"line 121: the row is marked 'test'.*leave holdout out"):
            read(file, options=ReadOptions(holdout=0.2))


def test_too_few_prompts_are_refused_with_what_would_do(tmp_path):
    few = [row for row in pairs() if row["prompt"] in PROMPTS[:12]]
    ordered = sorted(map(hashed, PROMPTS[:12]))
    with pytest.raises(DataError, match="holds out too few prompts: 2, and an evaluation needs at least 5"):
        evaluated(few, tmp_path / "a.jsonl", (ordered[1] + ordered[2]) / 2)
    with pytest.raises(DataError, match="holds out too few prompts: 0,"):
        evaluated(few, tmp_path / "a.jsonl", ordered[0] / 2)
    with pytest.raises(DataError, match=r"none of its 24 rows is in the held-out share, 0\.5 of the prompts"):
        evaluated([{**row, "split": "val"} for row in few], tmp_path / "a.jsonl", 0.5)
    check_holdout(0.1, held_out=5, left=45)
    with pytest.raises(DataError, match=r"holds out 4 of 50 prompts and leaves 46.*take holdout = 0.2,"):
        check_holdout(0.1, held_out=4, left=46)
    with pytest.raises(DataError, match="hold nothing out of so few"):
        check_holdout(0.5, held_out=4, left=4)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(DataError, match="must be a share of the prompts below 1"):
        ReadOptions(holdout=share)
