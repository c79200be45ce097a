"""Scores: by hand, by symmetry, and against the operator of the published general preference models."""

import math

import pytest
import torch

from paragone_models import scores

COUNTS = [1, 2, 5]


def published_operator(first, second, gate=None):
    """v_c R^T v_r with the block-diagonal R of the published code, each block times its gate weight. [B, 2k] -> [B]"""
    blocks = first.shape[-1] // 2
    weights = torch.ones(first.shape[0], blocks) if gate is None else gate
    rotations = torch.zeros(first.shape[0], 2 * blocks, 2 * blocks)
    for block in range(blocks):
        rotations[:, 2 * block, 2 * block + 1] = -weights[:, block]
        rotations[:, 2 * block + 1, 2 * block] = weights[:, block]
    return torch.einsum("bi,bji,bj->b", first, rotations, second)


def test_a_bradley_terry_logit_is_the_difference_of_the_rewards():
    logit = scores.bradley_terry_logit(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]))
    assert logit.tolist() == [2.0 - 0.5, -1.0 - 1.0]


def test_a_temperature_divides_a_bradley_terry_logit():
    logit = scores.bradley_terry_logit(torch.tensor([3.0]), torch.tensor([1.0]), temperature=4.0)
    assert logit.tolist() == [(3.0 - 1.0) / 4.0]


def test_a_general_preference_logit_by_hand():
    first, second = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    expected = ((1 * 6 - 2 * 5) + (3 * 8 - 4 * 7)) / 0.5
    assert scores.general_preference_logit(first, second, temperature=0.5).item() == pytest.approx(expected)


def test_vectors_of_reward_and_one_score_the_difference_of_the_rewards():
    logit = scores.general_preference_logit(torch.tensor([0.7, 1.0]), torch.tensor([-0.2, 1.0]), temperature=1.0)
    assert logit.item() == pytest.approx(0.9)


def test_unit_vectors_a_third_of_a_turn_apart_beat_each_other_in_a_circle():
    angles = torch.tensor([0.0, 120.0, 240.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    raw = scores.general_preference_matrix(vectors, temperature=1.0)
    root = math.sin(math.radians(120))
    assert root == pytest.approx(0.8660254)
    expected = torch.tensor([[0, root, -root], [-root, 0, root], [root, -root, 0]])
    torch.testing.assert_close(raw, expected, atol=1e-6, rtol=0)
    probability = torch.sigmoid(scores.general_preference_logit(vectors[0], vectors[1]))
    assert probability.item() == pytest.approx(0.99982669, abs=1e-7)


@pytest.mark.parametrize("blocks", COUNTS)
def test_the_logit_equals_the_published_operator(blocks):
    torch.manual_seed(blocks)
    first, second = torch.randn(7, 2 * blocks), torch.randn(7, 2 * blocks)
    ours = scores.general_preference_logit(first, second)
    torch.testing.assert_close(ours, published_operator(first, second) / 0.1, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("blocks", COUNTS)
def test_a_gate_enters_once_when_both_vectors_carry_its_root(blocks):
    torch.manual_seed(blocks)
    first, second = torch.randn(7, 2 * blocks), torch.randn(7, 2 * blocks)
    gate = torch.softmax(torch.randn(7, blocks), dim=-1)
    root = gate.sqrt().repeat_interleave(2, dim=-1)
    ours = scores.general_preference_logit(first * root, second * root, temperature=1.0)
    torch.testing.assert_close(ours, published_operator(first, second, gate), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", COUNTS)
def test_the_matrix_is_antisymmetric_to_the_bit_and_equals_the_pairs(blocks):
    torch.manual_seed(blocks)
    vectors = torch.randn(9, 2 * blocks)
    matrix = scores.general_preference_matrix(vectors)
    assert torch.equal(matrix, -matrix.T)
    assert torch.equal(matrix.diagonal(), torch.zeros(9))
    pairs = scores.general_preference_logit(
        vectors[:, None].expand(9, 9, -1), vectors[None].expand(9, 9, -1), temperature=0.1
    )
    torch.testing.assert_close(matrix, pairs, atol=1e-4, rtol=1e-5)


def test_the_default_temperature_of_vectors_is_a_tenth():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert scores.general_preference_logit(first, second).item() == pytest.approx(10.0)
    assert scores.general_preference_matrix(torch.stack([first, second]))[0, 1].item() == pytest.approx(10.0)
    assert scores.general_preference_matrix(torch.stack([first, second]), temperature=2.0)[0, 1].item() == 0.5


def test_a_hybrid_logit_is_the_sum_of_both_terms():
    first, second = torch.tensor([2.0, 1.0, 3.0]), torch.tensor([0.5, 4.0, 5.0])
    expected = ((2.0 - 0.5) + (1 * 5 - 3 * 4)) / 2.0
    assert scores.hybrid_logit(first, second, temperature=2.0).item() == pytest.approx(expected)


def test_scores_are_float32_whatever_comes_in():
    half = torch.tensor([0.1, 0.3], dtype=torch.bfloat16)
    assert scores.general_preference_logit(half, half).dtype == torch.float32
    assert scores.bradley_terry_logit(half, half).dtype == torch.float32
    assert scores.general_preference_matrix(half[None].double()).dtype == torch.float32


def test_extreme_vectors_give_finite_scores():
    huge = torch.tensor([1e4, -1e4])
    assert torch.isfinite(scores.general_preference_logit(huge, -huge)).all()
    assert torch.isfinite(scores.bradley_terry_logit(huge, -huge)).all()


@pytest.mark.parametrize("score", [scores.bradley_terry_logit, scores.general_preference_logit, scores.hybrid_logit])
def test_shapes_are_never_broadcast(score):
    with pytest.raises(ValueError, match="nothing is broadcast"):
        score(torch.zeros(2, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    ("score", "size"),
    [(scores.bradley_terry_logit, 3), (scores.general_preference_logit, 4), (scores.hybrid_logit, 3)],
)
def test_a_temperature_that_is_not_positive_is_refused(score, size, temperature):
    with pytest.raises(ValueError, match="must be positive"):
        score(torch.zeros(2, size), torch.zeros(2, size), temperature=temperature)
    with pytest.raises(ValueError, match="must be positive"):
        scores.general_preference_matrix(torch.zeros(2, 2), temperature=temperature)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 5)])
def test_odd_vectors_are_refused(shape):
    with pytest.raises(ValueError, match="even length"):
        scores.general_preference_logit(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2)])
def test_a_matrix_needs_one_row_per_response(shape):
    with pytest.raises(ValueError, match=r"\[K, 2k\]"):
        scores.general_preference_matrix(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (1,), (2, 4)])
def test_a_hybrid_vector_has_an_odd_length(shape):
    with pytest.raises(ValueError, match="odd length"):
        scores.hybrid_logit(torch.zeros(shape), torch.zeros(shape))
