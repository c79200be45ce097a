"""A causal language model trained with the real training step on a task that can be enumerated: where does it land?

Six tokens, and a response is one token: the policy is a distribution over six responses. The pairs are all ordered
pairs, each as often as independent draws give it, so that what is tested is the step and not sampling noise. Stated
tolerance: 2e-3 in probability, after Adam in float32, through transformers' Trainer.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from transformers import Qwen3Config, Qwen3ForCausalLM

from paragone_training import games
from paragone_training.policy.gradient import train_step
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model.logprobs import ResponseLogprobs, frozen_logprobs
from paragone_training.policy.model.weights import Policy, load_tokenizer
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair
from tests.training.games.matrices import random_game

SIZE = 6
GAME = random_game(SIZE, 33)[0]
REFERENCE = np.array([0.30, 0.10, 0.15, 0.20, 0.05, 0.20])
UNIFORM = np.full(SIZE, 1 / SIZE)
PROMPT = (1, 2)
TOLERANCE = 2e-3
TRAINING = PolicyTrainingSection(
    epochs=300, pairs_per_step=100, pairs_per_pass=100, learning_rate=0.03, warmup=0.02, max_gradient_norm=0.0
)


@pytest.fixture
def policy(policy_folder):
    """A policy that is uniform over its six tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=SIZE,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return Policy(model, load_tokenizer(str(policy_folder)), "toy")


def shares(policy):
    items = [(PROMPT, (token,)) for token in range(SIZE)]
    network = ResponseLogprobs(policy.model, chunk_tokens=4)
    return np.exp(frozen_logprobs(network, items, pad_id=0, batch=SIZE))


def train(policy, folder, method, source, *, base, reference=REFERENCE, targets=None):
    """Take the regression from ``base`` on pairs drawn from ``source``, a distribution of tenths."""
    counts = np.rint(10 * source).astype(int) if not np.array_equal(source, UNIFORM) else np.ones(SIZE, dtype=int)
    own = np.zeros(SIZE) if targets is None else targets
    pairs = []
    for first in range(SIZE):
        for second in range(SIZE):
            if first != second:
                columns = (*np.log(base[[first, second]]), *np.log(reference[[first, second]]))
                pair = TrainingPair(
                    PROMPT, (first,), (second,), (GAME[first, second], own[first], own[second], *columns)
                )
                pairs += [pair] * int(counts[first] * counts[second])
    train_step(policy, pairs, folder, method=method, training=TRAINING, lora=None, raw=False, dtype="float32", seed=0)
    return shares(policy)


def tenths(distribution):
    """Return the nearest distribution of whole tenths, none of them 0."""
    counts = np.maximum(np.rint(10 * distribution), 1)
    counts[counts.argmax()] += 10 - counts.sum()
    return counts / 10


def own_minimiser(target):
    """Return the minimiser of E_{y ~ uniform} (log pi/uniform - target)²; see test_toy_policy."""

    def ratios(multiplier):
        return np.array(
            [
                brentq(lambda r, goal=goal: r + multiplier / 2 * np.exp(r) - goal, min(goal, 0) - 60, goal)
                for goal in target
            ]
        )

    multiplier = brentq(lambda lam: float(UNIFORM @ np.exp(ratios(lam))) - 1.0, 0.0, 1e4, xtol=1e-12)
    return UNIFORM * np.exp(ratios(multiplier))


def test_the_sppo_step_lands_on_the_minimiser_of_its_own_loss_and_not_on_hedge(policy, tmp_path):
    rates, eta = GAME @ UNIFORM, 4.0
    landed = train(policy, tmp_path, method_of("sppo", eta=eta), UNIFORM, base=UNIFORM, targets=rates)

    np.testing.assert_allclose(landed, own_minimiser(eta * (rates - 0.5)), atol=TOLERANCE)
    assert np.abs(landed - games.sppo_update(UNIFORM, GAME, eta=eta)).max() > 5 * TOLERANCE


def test_the_gpo_step_lands_on_the_minimiser_of_its_own_loss(policy, tmp_path):
    scores = np.log(GAME / GAME.T) @ UNIFORM
    landed = train(policy, tmp_path, method_of("gpo", beta=0.8), UNIFORM, base=UNIFORM, targets=scores)

    np.testing.assert_allclose(landed, own_minimiser(scores / 0.8), atol=TOLERANCE)


def test_the_inpo_step_lands_on_the_closed_form(policy, tmp_path):
    landed = train(policy, tmp_path, method_of("inpo", eta=0.4, tau=0.1), UNIFORM, base=UNIFORM)

    np.testing.assert_allclose(landed, games.inpo_update(UNIFORM, GAME, REFERENCE, eta=0.4, tau=0.1), atol=TOLERANCE)


def test_the_two_egpo_steps_land_on_the_extragradient_closed_form(policy, tmp_path):
    method = method_of("egpo", step=2.0, tau=0.1)
    half = train(policy, tmp_path / "1", method, UNIFORM, base=UNIFORM)
    np.testing.assert_allclose(
        half, games.mirror_update(UNIFORM, UNIFORM, GAME, REFERENCE, step=2.0, tau=0.1), atol=TOLERANCE
    )

    # The second regression starts from the first iterate again, on pairs of the half step.
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    drawn = tenths(half)
    full = train(policy, tmp_path / "2", method, drawn, base=UNIFORM)
    expected = games.mirror_update(UNIFORM, drawn, GAME, REFERENCE, step=2.0, tau=0.1)
    np.testing.assert_allclose(full, expected, atol=TOLERANCE)
    assert np.abs(full - half).max() > 5 * TOLERANCE


def test_the_two_omwu_steps_land_on_the_optimistic_closed_form(policy, tmp_path):
    method = method_of("omwu", step=1.5, tau=0.1)
    played = train(policy, tmp_path / "1", method, UNIFORM, base=UNIFORM)
    drawn = tenths(played)

    # b_1 was uniform: from it to b_2, then from b_2 to the next policy to play, both on pairs of what was played.
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    base = train(policy, tmp_path / "2", method, drawn, base=UNIFORM)
    exact_base = games.mirror_update(UNIFORM, drawn, GAME, REFERENCE, step=1.5, tau=0.1)
    np.testing.assert_allclose(base, exact_base, atol=TOLERANCE)
    final = train(policy, tmp_path / "3", method, drawn, base=base)
    exact = games.mirror_update(base, drawn, GAME, REFERENCE, step=1.5, tau=0.1)
    np.testing.assert_allclose(final, exact, atol=TOLERANCE)
    by_name = games.omwu_step(drawn, UNIFORM, GAME, REFERENCE, step=1.5, tau=0.1)[0]
    np.testing.assert_allclose(final, by_name, atol=2 * TOLERANCE)
