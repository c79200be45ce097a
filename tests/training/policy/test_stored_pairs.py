"""Offline: preferences of a file in place of sampled responses and an oracle."""

import json

import numpy as np
import pytest

from paragone_evaluation.readers import Pair
from paragone_training.data import group_pairs
from paragone_training.errors import RecipeError
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.plan import describe_plan
from paragone_training.policy.rows import LabelledPair, Response, read_answers, read_json_file, read_rows
from paragone_training.policy.stored_pairs import prompts_of_groups
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.tiny_policy import recipe


@pytest.fixture
def pairs_file(tmp_path):
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"water {n}", "rejected": "go on", "split": "train"} for n in range(4)
    ]
    rows.append({"prompt": "What is 0?", "chosen": "kids learn", "rejected": "go on", "split": "train"})
    rows.append({"prompt": "What is 9?", "chosen": "kids " * 80, "rejected": "go on", "split": "train"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def offline(method, policy_folder, pairs_file, **changes):
    settings = {"oracle": None, "data": {"pairs": [str(pairs_file)], "max_missing_groups": 0.5}}
    return recipe(method, policy_folder, pairs_file, **settings, training__iterations=1, **changes)


@pytest.mark.parametrize("method", ["dpo", "ipo", "sppo", "inpo"])
def test_a_file_of_pairs_is_trained_on_without_an_oracle(method, tmp_path, policy_folder, pairs_file, caplog):
    out = train_policy(offline(method, policy_folder, pairs_file, training__epochs=4.0), tmp_path / "run")

    folder = tmp_path / "run" / "iteration-01"
    start = read_json_file(folder / "step-1" / "start.json")
    assert start["raw_loss"] == pytest.approx(start["raw_closed_form"], rel=1e-3, abs=1e-6)
    history = read_json_file(folder / "step-1" / "history.json")
    assert history[-1]["chosen_log_ratio"] > history[-1]["rejected_log_ratio"]
    pairs = read_rows(folder / "round-1" / "targets.parquet", LabelledPair)
    assert [(pair.prompt_id, pair.chosen, pair.rejected) for pair in pairs[:2]] == [("0", 0, 1), ("0", 2, 1)]
    assert len(pairs) == 5
    # The prompt with two pairs: win rates over the comparisons that exist, with itself.
    if method == "sppo":
        assert (pairs[0].chosen_target, pairs[0].rejected_target) == (0.75, pytest.approx(0.5 / 3))
    assert "left out, its longest response and the prompt have" in caplog.text
    assert (out / "config.json").exists()


def test_stored_responses_are_tokens_as_the_policy_would_draw_them(tmp_path, policy_folder, pairs_file):
    train_policy(offline("dpo", policy_folder, pairs_file), tmp_path / "run")
    folder = tmp_path / "run" / "iteration-01" / "round-1"
    policy = load_policy(str(policy_folder))
    rows = read_rows(folder / "samples.parquet", Response)

    for row in rows:
        assert policy.tokenizer.decode(row.token_ids, skip_special_tokens=True).strip() == row.text.strip()
        assert [token in policy.end_ids for token in row.token_ids] == [False] * (len(row.token_ids) - 1) + [True]
    assert [row.number for row in rows[:4]] == [0, 1, 2, 0]
    first = read_answers(folder / "oracle.parquet")[0].raw
    np.testing.assert_array_equal(first, [[0.5, 1, np.nan], [0, 0.5, 0], [np.nan, 1, 0.5]])


def test_the_plan_counts_stored_pairs(policy_folder, pairs_file):
    plan = describe_plan(offline("dpo", policy_folder, pairs_file))
    assert "5 prompts with 11 stored responses; nothing is sampled" in plan
    assert "at most 6 pairs; 2 optimiser steps" in plan


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dpo", {"training__iterations": 2}, "data.pairs are of one policy, and dpo with training.iterations = 2"),
        ("egpo", {}, "data.pairs are of one policy, and egpo"),
        ("dpo", {"data__prompts": ["x.jsonl"]}, "either prompts, to be answered and judged, or pairs"),
        ("dpo", {"data": {"pairs": []}}, "data.prompts is empty; name at least one file"),
        ("dpo", {"evaluation": {"prompts": ["x.jsonl"]}}, r"\[evaluation\] needs an \[oracle\]"),
        ("dpo", {"data__per_iteration": 3}, "data.per_iteration deals prompts"),
        ("dpo", {"data": {"prompts": ["x.jsonl"]}}, r"\[oracle\] is missing"),
    ],
)
def test_what_stored_pairs_cannot_give_is_refused(method, changes, message, policy_folder, pairs_file):
    settings = {"oracle": None, "data": {"pairs": [str(pairs_file)]}, "training__iterations": 1} | changes
    with pytest.raises(RecipeError, match=message):
        recipe(method, policy_folder, pairs_file, **settings)


def test_prompts_of_stored_pairs_have_their_tools():
    pairs = [Pair("P?", "a", "b", 1.0), Pair("P?", "a", "b", 1.0, tools='[{"name": "weather"}]')]
    assert [prompt.tools for prompt in prompts_of_groups(group_pairs(pairs))] == [None, [{"name": "weather"}]]
