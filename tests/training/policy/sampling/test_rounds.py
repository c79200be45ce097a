"""Drawing responses: the right distribution, tokens that are the policy's own, and draws that no batch changes."""

import numpy as np
import pytest
import torch

from paragone_evaluation.readers import Prompt
from paragone_training.policy.model.logprobs import ResponseLogprobs, frozen_logprobs, padded_sequences
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.rows import stream
from paragone_training.policy.sampling.drawing import Decoding, _choose, sample

TOKENS = [(3, 40, 41, 1, 4), (3, 60, 1, 4), (3, 50, 51, 52, 53, 1, 4)]
PROMPTS = [Prompt(str(number), "", ids) for number, ids in enumerate(TOKENS)]


@pytest.fixture(scope="module")
def policy(policy_folder):
    return load_policy(str(policy_folder))


def streams(*names):
    return [stream(0, name) for name in names]


def test_a_response_does_not_depend_on_the_batch_it_is_drawn_in(policy):
    settings = Decoding(max_new_tokens=20)
    together = sample(policy, PROMPTS, streams(0, 1, 2), settings)
    alone = [sample(policy, [prompt], streams(number), settings)[0] for number, prompt in enumerate(PROMPTS)]

    assert [row.token_ids for row in together] == [row.token_ids for row in alone]


def test_the_samplers_logprob_is_that_of_one_pass_over_the_tokens_it_returns(policy):
    prompts = [PROMPTS[number % 3] for number in range(24)]
    samples = sample(policy, prompts, streams(*range(24)), Decoding(temperature=2.5, max_new_tokens=40))
    items = [(row.prompt_ids, row.token_ids) for row in samples]
    frozen = frozen_logprobs(ResponseLogprobs(policy.model, chunk_tokens=7), items, pad_id=0, batch=5)

    np.testing.assert_allclose([row.sampler_logprob for row in samples], frozen, atol=2e-4)
    # Some end early, so that the batch was cut while it went.
    assert len({len(row.token_ids) for row in samples}) > 2


def test_a_finished_response_ends_with_its_end_token_and_has_no_other(policy):
    samples = sample(policy, [PROMPTS[0]] * 40, streams(*range(40)), Decoding(temperature=3.0, max_new_tokens=30))
    end = policy.tokenizer.eos_token_id
    for row in samples:
        assert (row.token_ids[-1] == end) == row.finished
        assert end not in row.token_ids[:-1]
        assert row.finished or len(row.token_ids) == 30


def test_draws_follow_the_distribution():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    logits = shares.log().expand(2000, 4)
    counts = torch.bincount(_choose(logits, uniform, Decoding()), minlength=4) / 2000
    np.testing.assert_allclose(counts, shares, atol=1e-3)

    cooler = torch.bincount(_choose(logits, uniform, Decoding(temperature=0.5)), minlength=4) / 2000
    np.testing.assert_allclose(cooler, shares**2 / (shares**2).sum(), atol=1e-3)


def test_top_p_and_top_k_keep_the_likeliest_tokens():
    shares = torch.tensor([0.05, 0.5, 0.15, 0.3])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = shares.log().expand(1000, 4)
    nucleus = torch.bincount(_choose(logits, uniform, Decoding(top_p=0.6)), minlength=4) / 1000
    np.testing.assert_allclose(nucleus, [0, 0.625, 0, 0.375], atol=2e-3)
    three = torch.bincount(_choose(logits, uniform, Decoding(top_k=3)), minlength=4) / 1000
    np.testing.assert_allclose(three, [0, 0.5263, 0.1579, 0.3158], atol=2e-3)
    assert set(_choose(logits, uniform, Decoding(top_p=1e-6)).tolist()) == {1}


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_share():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    chosen = _choose(logits, torch.tensor([0.0, 1.0], dtype=torch.float64), Decoding())
    assert chosen.tolist() == [1, 2]


def test_streams_differ_by_every_name():
    first = stream(0, 1, "p", 2).random()
    assert first == stream(0, 1, "p", 2).random()
    assert len({stream(*names).random() for names in ((0, 1, "p", 2), (0, 1, "p", 3), (0, 2, "p", 2), (1,))}) == 4


def test_logprobs_in_chunks_are_those_of_the_whole_and_so_are_their_gradients(policy):
    items = [(TOKENS[0], (40, 41, 42, 1)), (TOKENS[1], (60, 61)), (TOKENS[2], (50, 1))]
    sequences = padded_sequences(items, 0)
    found = []
    for chunk in (1, 3, 1000):
        policy.model.zero_grad()
        values = ResponseLogprobs(policy.model, chunk_tokens=chunk)(sequences)
        values.square().sum().backward()
        gradient = policy.model.get_input_embeddings().weight.grad.clone()
        found.append((values.detach(), gradient))

    by_hand = []
    for prompt, response in items:
        tokens = torch.tensor([[*prompt, *response]])
        table = policy.model(input_ids=tokens).logits[0].log_softmax(dim=-1)
        places = range(len(prompt), tokens.shape[1])
        by_hand.append(sum(table[place - 1, tokens[0, place]] for place in places).item())
    for values, gradient in found:
        np.testing.assert_allclose(values, by_hand, atol=1e-4)
        np.testing.assert_allclose(gradient, found[0][1], rtol=1e-3, atol=1e-3)
    policy.model.zero_grad()


def test_an_empty_response_has_logprob_zero(policy):
    items = [(TOKENS[0], ()), (TOKENS[1], (60, 61))]
    assert frozen_logprobs(ResponseLogprobs(policy.model, chunk_tokens=10), items, pad_id=0, batch=2)[0] == 0.0


def test_a_policy_takes_the_weights_of_a_folder_and_gives_them_back(policy, tmp_path):
    source = policy.source
    weight = policy.model.get_input_embeddings().weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    policy.save(tmp_path / "other", dtype="float32")
    policy.become(source)
    torch.testing.assert_close(weight.detach(), before)
    policy.become(tmp_path / "other")
    torch.testing.assert_close(weight.detach(), before + 1.0)
    policy.become(source)
