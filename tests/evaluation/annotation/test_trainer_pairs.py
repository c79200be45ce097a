"""Pairs for trainers: which two are chosen, and how each trainer's file writes them."""

import json
import math

import pytest

from paragone_evaluation.annotation.kinds import KINDS
from paragone_evaluation.annotation.trainer_pairs import PairSettings, dataset_info, write_pairs
from paragone_evaluation.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def pairs(tmp_path, row, kind="rewards", temperature=1.0, **settings):
    path = tmp_path / "f.pairs.jsonl"
    counts = write_pairs(
        iter([{"row": 0, **row}]), path, KINDS[kind], PairSettings(**settings), temperature=temperature
    )
    return [json.loads(line) for line in path.read_bytes().splitlines()], counts


def contents(made):
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made]


def test_best_and_worst_are_those_of_the_rewards_and_one_without_a_reward_is_neither(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "rewards": [0.5, None, 2.0, -1.0]}
    made, counts = pairs(tmp_path, row, temperature=2.0)
    assert contents(made) == [("c", "d")]
    assert made[0]["margin"] == pytest.approx(1.5)
    assert counts == {"pairs": 1}
    assert pairs(tmp_path, row, margin=1.6, temperature=2.0)[0] == []
    assert len(pairs(tmp_path, row, which="all")[0]) == 3


def test_equal_rewards_and_equal_texts_make_no_pair(tmp_path):
    assert pairs(tmp_path, {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 1.0]}, which="all")[0] == []
    assert pairs(tmp_path, {"prompt": "p", "responses": ["a", "a"], "rewards": [1.0, 0.0]})[0] == []


def test_in_a_circle_all_pairs_go_by_who_beats_whom(tmp_path):
    table = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]
    row = {"prompt": "p", "responses": ["a", "b", "c"], "win_rates": [0.53, 0.47, 0.5], "matrix": table}
    made, _ = pairs(tmp_path, row, "tables", which="all")
    assert set(contents(made)) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert {round(one["margin"], 6) for one in made} == {round(math.log(9), 6), round(math.log(4), 6)}
    certain = {**row, "matrix": [[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]}
    assert all(math.isfinite(one["margin"]) for one in pairs(tmp_path, certain, "tables", which="all")[0])


def test_a_preference_makes_the_pair_of_the_preferred_one(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "probability": 0.2, "logit": -1.4}
    assert contents(pairs(tmp_path, row, "preferences")[0]) == [("b", "a")]


def test_each_trainer_gets_its_own_columns(tmp_path):
    row = {
        "prompt": [SYSTEM, {"role": "user", "content": "p"}],
        "responses": [CALL, "b"],
        "rewards": [1.0, 0.0],
        "tools": TOOLS,
    }
    (trl,), _ = pairs(tmp_path, row)
    assert trl["prompt"] == row["prompt"]
    assert trl["chosen"] == [CALL]
    assert trl["rejected"] == [{"role": "assistant", "content": "b"}]
    assert trl["tools"] == TOOLS
    (axolotl,), _ = pairs(tmp_path, row, format="axolotl")
    assert axolotl["messages"] == row["prompt"]
    assert axolotl["chosen"] == CALL
    (factory,), _ = pairs(tmp_path, row, format="llama-factory")
    assert factory["conversations"] == [{"from": "human", "value": "p"}]
    assert factory["chosen"] == {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'}
    assert factory["rejected"] == {"from": "gpt", "value": "b"}
    assert factory["system"] == "Be brief."
    assert json.loads(factory["tools"]) == TOOLS
    (entry,) = dataset_info(tmp_path / "f.pairs.jsonl").values()
    assert entry["ranking"] is True
    # It reads every column that is named, also where no row has a system message or tools.
    (bare,), _ = pairs(tmp_path, {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0]}, format="llama-factory")
    assert set(entry["columns"].values()) <= set(bare)
    assert (bare["system"], bare["tools"]) == ("", "")


def test_what_a_format_cannot_hold_is_counted_and_not_written(tmp_path):
    turns = [[{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}], "b"]
    row = {"prompt": "p", "responses": turns, "rewards": [1.0, 0.0]}
    assert len(pairs(tmp_path, row)[0]) == 1
    made, counts = pairs(tmp_path, row, format="axolotl")
    assert made == []
    assert counts == {"pairs": 0, "a response is several messages, and the format holds one": 1}
    odd = {**row, "prompt": [{"role": "user", "content": "p"}] * 2, "responses": ["a", "b"]}
    assert pairs(tmp_path, odd, format="llama-factory")[1]["pairs"] == 0


@pytest.mark.parametrize("settings", [{"which": "some"}, {"margin": -1.0}, {"margin": math.nan}, {"format": "verl"}])
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(DataError):
        PairSettings(**settings)
