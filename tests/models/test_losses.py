"""Losses: by hand, by symmetry, by finite differences, at the edges, each knob, each refusal, and published numbers."""

import math

import pytest
import torch

from paragone_models import losses

B = 5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs(seed: int = 0, shape: tuple[int, ...] = (B,)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


STRENGTH = torch.tensor([1.0, 2.0, 3.0, 0.0, 1.0])
TARGET = torch.tensor([1.0, 0.0, 0.5, 0.25, 0.9])
MASK = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
# Every loss as a function of two tensors of one shape.
LOSSES = {
    "bradley-terry": (lambda a, b: losses.bradley_terry_loss(a, b, margin=0.3), (B,)),
    "margin": (lambda a, b: losses.margin_bradley_terry_loss(a, b, STRENGTH), (B,)),
    "scaled": (lambda a, b: losses.scaled_bradley_terry_loss(a, b, STRENGTH), (B,)),
    "regression": (lambda a, b: losses.regression_loss(a, b, mask=MASK), (B, 3)),
    "general-preference": (lambda a, b: losses.general_preference_loss(a, b, temperature=0.7, margin=0.2), (B, 4)),
    "soft": (lambda a, b: losses.preference_loss(a - b, TARGET), (B,)),
}


def test_the_bradley_terry_loss_by_hand():
    loss = losses.bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(-math.log(sigmoid(2.0 - 0.5)))


def test_a_margin_is_a_lead_that_the_chosen_one_must_have():
    loss = losses.bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), margin=1.0)
    assert loss.item() == pytest.approx(-math.log(sigmoid(2.0 - 0.5 - 1.0)))


def test_the_margin_loss_takes_its_lead_from_the_strength():
    loss = losses.margin_bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([3.0]))
    assert loss.item() == pytest.approx(-math.log(sigmoid(2.0 - 0.5 - 3.0)))


def test_the_scaled_loss_counts_a_pair_by_its_strength():
    loss = losses.scaled_bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([3.0]))
    assert loss.item() == pytest.approx(-3.0 * math.log(sigmoid(2.0 - 0.5)))


def test_the_regression_loss_averages_over_the_labelled_attributes_alone():
    predicted, target = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 4.0, 9.0]])
    loss = losses.regression_loss(predicted, target, mask=torch.tensor([[1, 1, 0]]))
    assert loss.item() == pytest.approx(((1.0 - 0.0) ** 2 + (2.0 - 4.0) ** 2) / 2)


def test_the_general_preference_loss_by_hand():
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 0.9]])
    score = 1.0 * 0.9 - 2.0 * 0.3
    loss = losses.general_preference_loss(chosen, rejected, temperature=0.5, margin=0.1)
    assert loss.item() == pytest.approx(-math.log(sigmoid((score - 0.1) / 0.5)), rel=1e-6)


def test_the_soft_loss_by_hand():
    loss = losses.preference_loss(torch.tensor([0.8]), torch.tensor([0.3]))
    assert loss.item() == pytest.approx(-0.3 * math.log(sigmoid(0.8)) - 0.7 * math.log(sigmoid(-0.8)))


def test_the_loss_of_unit_vectors_has_the_published_floor():
    angles = torch.tensor([0.0, 120.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    loss = losses.general_preference_loss(vectors[:1], vectors[1:])
    assert loss.item() == pytest.approx(1.733e-4, abs=2e-7)
    wrong = losses.general_preference_loss(vectors[1:], vectors[:1])
    assert wrong.item() == pytest.approx(8.660254 + 1.733e-4, abs=1e-5)


def test_swapping_a_pair_adds_the_logit_to_its_loss():
    chosen, rejected = pairs()
    difference = losses.bradley_terry_loss(rejected, chosen) - losses.bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(difference, chosen - rejected)
    one, two = pairs(1, (B, 4))
    score = losses.general_preference_loss(two, one) - losses.general_preference_loss(one, two)
    skew = (one[:, 0::2] * two[:, 1::2] - one[:, 1::2] * two[:, 0::2]).sum(-1)
    torch.testing.assert_close(score, skew / 0.1, atol=1e-4, rtol=1e-5)


def test_a_reward_that_all_responses_gain_changes_no_loss():
    chosen, rejected = pairs()
    for loss in ("bradley-terry", "margin", "scaled"):
        function = LOSSES[loss][0]
        torch.testing.assert_close(function(chosen + 2, rejected + 2), function(chosen, rejected))


def test_turning_both_vectors_by_one_angle_changes_no_loss():
    one, two = pairs(2, (B, 2))
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    before = losses.general_preference_loss(one, two)
    torch.testing.assert_close(losses.general_preference_loss(one @ turn.T, two @ turn.T), before, atol=1e-4, rtol=1e-4)


def test_a_certain_soft_label_gives_the_hard_loss_and_a_flipped_one_that_of_the_swapped_pair():
    first, second = pairs()
    hard = losses.bradley_terry_loss(first, second)
    torch.testing.assert_close(losses.preference_loss(first - second, torch.ones(B)), hard)
    flipped = losses.preference_loss(first - second, torch.zeros(B))
    torch.testing.assert_close(flipped, losses.bradley_terry_loss(second, first))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_agrees_with_finite_differences(name):
    function, shape = LOSSES[name]
    values = [tensor.requires_grad_() for tensor in pairs(3, shape)]
    gradients = torch.autograd.grad(function(*values).sum(), values)
    step = 1e-2
    for which, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        for position in range(value.numel()):
            bump = torch.zeros(value.numel())
            bump[position] = step
            bump = bump.reshape(shape)
            above = [tensor.detach() + bump * (place == which) for place, tensor in enumerate(values)]
            below = [tensor.detach() - bump * (place == which) for place, tensor in enumerate(values)]
            slope = (function(*above).double().sum() - function(*below).double().sum()) / (2 * step)
            assert gradient.flatten()[position].item() == pytest.approx(slope.item(), abs=2e-3, rel=5e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_values_give_finite_losses_and_gradients(name, sign):
    function, shape = LOSSES[name]
    values = [torch.full(shape, 1e4 * sign).requires_grad_(), torch.full(shape, -1e4 * sign).requires_grad_()]
    loss = function(*values)
    gradients = torch.autograd.grad(loss.sum(), values)
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_one_float32_loss_per_example(name):
    function, shape = LOSSES[name]
    loss = function(*(tensor.bfloat16() for tensor in pairs(4, shape)))
    assert (loss.shape, loss.dtype) == ((B,), torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_none_has_no_losses(name):
    if name in ("bradley-terry", "general-preference"):
        shape = (0, *LOSSES[name][1][1:])
        assert LOSSES[name][0](torch.zeros(shape), torch.zeros(shape)).shape == (0,)


def test_an_example_without_labels_has_loss_zero_and_gradient_zero():
    predicted = torch.randn(2, 3, requires_grad=True)
    loss = losses.regression_loss(predicted, torch.full((2, 3), float("nan")), mask=torch.zeros(2, 3))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert predicted.grad is not None
    assert torch.equal(predicted.grad, torch.zeros(2, 3))


def test_what_stands_under_a_zero_mask_is_never_read():
    predicted = torch.randn(1, 3, requires_grad=True)
    target = torch.tensor([[1.0, float("nan"), float("inf")]])
    loss = losses.regression_loss(predicted, target, mask=torch.tensor([[True, False, False]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx((predicted[0, 0].item() - 1.0) ** 2)
    assert predicted.grad is not None
    assert predicted.grad[0, 1:].tolist() == [0.0, 0.0]


def test_no_knob_is_ignored():
    chosen, rejected = pairs()
    one, two = pairs(5, (B, 4))
    plain = losses.bradley_terry_loss(chosen, rejected)
    assert (losses.bradley_terry_loss(chosen, rejected, margin=1.0) > plain).all()
    weaker = losses.margin_bradley_terry_loss(chosen, rejected, torch.ones(B))
    assert (losses.margin_bradley_terry_loss(chosen, rejected, torch.full((B,), 2.0)) > weaker).all()
    doubled = losses.scaled_bradley_terry_loss(chosen, rejected, torch.full((B,), 2.0))
    torch.testing.assert_close(doubled, 2 * plain)
    tenth = losses.general_preference_loss(one, two)
    assert not torch.allclose(losses.general_preference_loss(one, two, temperature=1.0), tenth)
    assert (losses.general_preference_loss(one, two, margin=1.0) > tenth).all()
    torch.testing.assert_close(losses.general_preference_loss(one, two, temperature=0.1, margin=0.0), tenth)
    all_labels, some = torch.ones(B, 4), torch.ones(B, 4)
    some[:, 0] = 0
    assert not torch.allclose(
        losses.regression_loss(one, two, mask=all_labels), losses.regression_loss(one, two, mask=some)
    )
    assert not torch.allclose(losses.preference_loss(chosen, TARGET), losses.preference_loss(chosen, 1 - TARGET))


@pytest.mark.parametrize("name", ["bradley-terry", "margin", "scaled", "regression", "general-preference"])
def test_shapes_are_never_broadcast(name):
    function, shape = LOSSES[name]
    with pytest.raises(ValueError, match="nothing is broadcast"):
        function(torch.zeros(shape), torch.zeros(1, *shape[1:]))


def test_a_strength_or_target_of_another_shape_is_refused():
    chosen, rejected = pairs()
    for loss in (losses.margin_bradley_terry_loss, losses.scaled_bradley_terry_loss):
        with pytest.raises(ValueError, match="shapes differ"):
            loss(chosen, rejected, torch.ones(1))
    with pytest.raises(ValueError, match="shapes differ"):
        losses.preference_loss(chosen, torch.ones(1))
    with pytest.raises(ValueError, match="shapes differ"):
        losses.regression_loss(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(2, 1))


@pytest.mark.parametrize("loss", [losses.margin_bradley_terry_loss, losses.scaled_bradley_terry_loss])
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_negative_or_not_finite_is_refused(loss, strength):
    with pytest.raises(ValueError, match="strength must be finite and not negative"):
        loss(torch.zeros(1), torch.zeros(1), torch.tensor([strength]))


@pytest.mark.parametrize("target", [-0.1, 1.1, float("nan")])
def test_a_target_that_is_no_probability_is_refused(target):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        losses.preference_loss(torch.zeros(1), torch.tensor([target]))


def test_ratings_without_an_attribute_axis_are_refused():
    with pytest.raises(ValueError, match=r"\[B, A\]"):
        losses.regression_loss(torch.zeros(3), torch.zeros(3), mask=torch.ones(3))


def test_odd_vectors_and_a_temperature_of_zero_are_refused():
    with pytest.raises(ValueError, match="even length"):
        losses.general_preference_loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must be positive"):
        losses.general_preference_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=0.0)
