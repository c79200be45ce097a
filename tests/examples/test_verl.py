"""The example for verl, loaded and called as verl 0.9.1's reward loop does.

verl needs an older transformers than we do, so its ``DataProto`` is a small class here with the same indexing. The same
calls were made once with verl's own ``RewardLoopWorker``.
"""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from paragone import Client
from paragone.exceptions import ParagoneError, TextError
from tests.examples.conftest import load
from tests.models.tiny import make_tokenizer

PROMPTS = [[{"role": "user", "content": "Should every school have a garden?"}], [{"role": "user", "content": "Why?"}]]
RESPONSES = [["It keeps kids fit.", "Because it is fun.", "No! Let them read."], ["a", "a", "long " * 300]]
LENGTH = 24


class Data:
    """Rows with tensors and other fields; a slice has rows, and an index is a row."""

    def __init__(self, batch, non_tensor_batch, meta_info=None):
        self.batch, self.non_tensor_batch, self.meta_info = batch, non_tensor_batch, meta_info or {}

    def __getitem__(self, place):
        batch = {name: rows[place] for name, rows in self.batch.items()}
        return Data(batch, {name: rows[place] for name, rows in self.non_tensor_batch.items()}, self.meta_info)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def row(tokenizer, prompt, response, uid, *, split="train", length=LENGTH):
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    length = max(length, len(ids))
    padded = torch.full((1, length), tokenizer.pad_token_id)
    padded[0, : len(ids)] = torch.tensor(ids)
    mask = torch.zeros(1, 5 + length, dtype=torch.int64)
    mask[0, 2 : 5 + len(ids)] = 1
    fields = {
        "raw_prompt": [prompt],
        "uid": [uid],
        "data_source": ["here"],
        "reward_model": [{"ground_truth": RESPONSES[0][0]}],
        "extra_info": [{"split": split}],
    }
    return Data({"prompts": torch.ones(1, 5), "responses": padded, "attention_mask": mask}, fields)


def config(**reward):
    rollout = SimpleNamespace(n=3)
    return SimpleNamespace(
        actor_rollout_ref=SimpleNamespace(rollout=rollout), reward=SimpleNamespace(**{"num_workers": 1} | reward)
    )


@pytest.fixture
def manager(tokenizer, url):  # noqa: ARG001 (the example asks it)
    return load("verl_reward").RewardManager(config=config(), tokenizer=tokenizer, compute_score=None)


async def scored(manager, rows):
    return await asyncio.gather(*(manager.run_single(one) for one in rows), return_exceptions=True)


def test_two_steps_of_two_groups_get_win_rates(manager, tokenizer, url):
    with Client(url) as client:
        right = client.tournament(PROMPTS[0], RESPONSES[0]).win_rates
    for step in range(2):
        rows = [
            row(tokenizer, prompt, response, f"group {number} of step {step}")
            for responses in zip(*RESPONSES, strict=True)
            for number, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True))
        ]
        outcomes = asyncio.run(scored(manager, rows))
        assert [told["reward_score"] for told in outcomes[::2]] == pytest.approx(right)
        # Two equal responses have ½ each; the one that is too long has no score, and takes nothing from theirs.
        assert [told["reward_score"] for told in outcomes[1:4:2]] == [0.5, 0.5]
        assert [told["reward_extra_info"]["rank"] for told in outcomes[1:4:2]] == [1, 1]
        assert isinstance(outcomes[5], TextError)


@pytest.mark.parametrize("signal", ["rank", "anchor"])
def test_another_signal_of_the_group_may_be_the_score(tokenizer, url, signal):
    class Signals(load("verl_reward").RewardManager):
        pass

    Signals.signal = signal
    rows = [row(tokenizer, PROMPTS[0], response, f"for {signal}") for response in RESPONSES[0]]
    outcomes = asyncio.run(scored(Signals(config(), tokenizer), rows))
    with Client(url) as client:
        truth = [RESPONSES[0][0]]
        right = client.tournament(PROMPTS[0], RESPONSES[0], references=truth, signal=signal).signal
    assert [told["reward_score"] for told in outcomes] == pytest.approx(right)


def test_a_group_that_comes_again_is_a_new_attempt(manager, tokenizer):
    for responses in (RESPONSES[0], ["x", "yy", "zzz"]):
        rows = [row(tokenizer, PROMPTS[0], response, "the same group") for response in responses]
        assert all(0 < told["reward_score"] < 1 for told in asyncio.run(scored(manager, rows)))


@pytest.mark.parametrize("told_by", ["split", "meta_info"])
def test_validation_has_no_group_and_waits_for_none(manager, tokenizer, url, told_by):
    one = row(tokenizer, PROMPTS[0], RESPONSES[0][1], "alone", split="test" if told_by == "split" else "train")
    one.meta_info = {"validate": True} if told_by == "meta_info" else {}
    (told,) = asyncio.run(scored(manager, [one]))
    with Client(url) as client:
        assert told["reward_score"] == pytest.approx(client.prefer(PROMPTS[0], RESPONSES[0][1], RESPONSES[0][0]))
    assert set(told["reward_extra_info"]) == {"score", "logit"}


def test_validation_may_be_held_against_a_stored_set(manager, tokenizer, url):
    with Client(url) as client:
        client.add_references("baseline", [{"prompt": PROMPTS[0], "responses": RESPONSES[0][:2]}])
        manager.reference_set = "baseline"
        (told,) = asyncio.run(scored(manager, [row(tokenizer, PROMPTS[0], "No!", "alone", split="val")]))
        right = client.tournament(PROMPTS[0], ["No!"], references=RESPONSES[0][:2]).win_rates
    assert [told["reward_score"]] == pytest.approx(right)


def test_what_a_sample_lacks_is_named(manager, tokenizer):
    for name in ("raw_prompt", "uid"):
        one = row(tokenizer, PROMPTS[0], "a", "group")
        del one.non_tensor_batch[name]
        (error,) = asyncio.run(scored(manager, [one]))
        assert isinstance(error, KeyError)
        assert name in str(error)
    one = row(tokenizer, PROMPTS[0], "a", "alone", split="test")
    one.non_tensor_batch["reward_model"] = [{"ground_truth": None}]
    (error,) = asyncio.run(scored(manager, [one]))
    assert "no ground truth" in str(error)


def test_a_group_that_does_not_become_whole_says_what_it_may_be(manager, tokenizer):
    manager.deadline_s = 0.05
    (error,) = asyncio.run(scored(manager, [row(tokenizer, PROMPTS[0], "a", "lonely")]))
    assert isinstance(error, ParagoneError)
    assert error.code == "cohort_incomplete"
    assert "extra_info['split']" in error.__notes__[0]


def test_win_rates_need_one_worker_and_scalars_do_not(tokenizer, url):  # noqa: ARG001
    kind = load("verl_reward").RewardManager
    with pytest.raises(ValueError, match=r"set reward\.num_workers=1"):
        kind(config(num_workers=8), tokenizer, None)

    class Scalars(kind):
        signal = "reward"
        model = "bt"

    manager = Scalars(config(num_workers=8), tokenizer, None)
    (told,) = asyncio.run(scored(manager, [row(tokenizer, PROMPTS[0], "a", "group")]))
    assert set(told["reward_extra_info"]) == {"score"}


def test_scores_stand_at_the_last_token_of_each_response(manager, tokenizer):
    rows = [row(tokenizer, PROMPTS[0], response, "group") for response in RESPONSES[0]]
    batch = {name: torch.cat([one.batch[name] for one in rows]) for name in rows[0].batch}
    placed = manager.assemble_rm_scores(Data(batch, {}), [0.25, 0.5, 0.75])
    assert placed.dtype == torch.float32
    assert placed.sum(dim=1).tolist() == [0.25, 0.5, 0.75]
    ends = [len(tokenizer(response, add_special_tokens=False)["input_ids"]) - 1 for response in RESPONSES[0]]
    assert placed.argmax(dim=1).tolist() == ends


def test_the_plain_function_asks_one_sample_at_a_time(url):
    extra_info = {"prompt": PROMPTS[0], "num_turns": 1, "rollout_reward_scores": {}}
    module = load("verl_reward")
    with module.compute_score.args[0]:
        told = module.compute_score(
            data_source="here", solution_str="a", ground_truth=RESPONSES[0][0], extra_info=extra_info
        )
    with Client(url) as client:
        assert told["score"] == pytest.approx(client.prefer(PROMPTS[0], "a", RESPONSES[0][0]))
