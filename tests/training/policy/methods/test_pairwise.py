"""The one regression: its settings are the published methods, its weights sum to 1, its frozen columns stay frozen."""

import math

import pytest
import torch

from paragone_training import losses
from paragone_training.losses import FrozenColumn, PairwiseSetting

CHOSEN, REJECTED, BASE_CHOSEN, BASE_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = COLUMNS = tuple(
    -50 * torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
)
PREFERENCE = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)


def test_the_residual_is_the_log_ratio_less_the_weighted_columns_less_the_gain_times_the_label():
    third = (CHOSEN * 0.9, REJECTED * 1.1)
    columns = (
        FrozenColumn(0.2, REFERENCE_CHOSEN, REFERENCE_REJECTED),
        FrozenColumn(0.5, BASE_CHOSEN, BASE_REJECTED),
        FrozenColumn(0.3, *third),
    )
    residual = losses.regression_residual(CHOSEN, REJECTED, columns, PREFERENCE - 0.5, gain=2.0)

    expected = (
        (CHOSEN - REJECTED)
        - 0.2 * (REFERENCE_CHOSEN - REFERENCE_REJECTED)
        - 0.5 * (BASE_CHOSEN - BASE_REJECTED)
        - 0.3 * (third[0] - third[1])
        - 2.0 * (PREFERENCE - 0.5)
    )
    torch.testing.assert_close(residual, expected)


def test_with_all_policies_equal_the_residual_is_exactly_minus_gain_times_label_even_in_float32():
    chosen, rejected = (1000 * torch.rand(2, 100, generator=torch.Generator().manual_seed(1))).neg()
    label = torch.linspace(-0.5, 0.5, 100)
    columns = (FrozenColumn(1 / 3, chosen, rejected), FrozenColumn(2 / 3, chosen, rejected))

    assert torch.equal(losses.regression_residual(chosen, rejected, columns, label, gain=3.0), -3.0 * label)


def test_swapping_a_pair_and_its_label_negates_the_residual():
    column = (FrozenColumn(1.0, BASE_CHOSEN, BASE_REJECTED),)
    swapped = (FrozenColumn(1.0, BASE_REJECTED, BASE_CHOSEN),)
    label = PREFERENCE - 0.5

    first = losses.regression_residual(CHOSEN, REJECTED, column, label, gain=2.0)
    torch.testing.assert_close(losses.regression_residual(REJECTED, CHOSEN, swapped, -label, gain=2.0), -first)


def test_inpo_egpo_and_omwu_are_the_same_regression_where_the_step_is_one_over_eta():
    inpo, egpo = losses.inpo_setting(eta=0.5, tau=0.1), losses.egpo_setting(step=2.0, tau=0.1)

    assert egpo.reference_weight == pytest.approx(inpo.reference_weight)
    assert egpo.gain == pytest.approx(inpo.gain)
    assert losses.omwu_setting(step=2.0, tau=0.1) == egpo
    torch.testing.assert_close(
        losses.pairwise_loss(*COLUMNS, setting=egpo, preference=PREFERENCE),
        losses.inpo_loss(*COLUMNS, eta=0.5, tau=0.1, preference=PREFERENCE),
    )


def test_nash_mp_weighs_the_iterate_with_the_proximal_shrinkage_and_shrinks_its_gain_alike():
    setting = losses.nash_mp_setting(step=2.0, tau=0.1)

    shrinkage = 1 / (1 + 2.0 * 0.1)
    assert setting.base_weight == pytest.approx(shrinkage)
    assert setting.gain == pytest.approx(shrinkage * 2.0)


def test_ipo_is_the_regression_on_the_reference_alone():
    setting = losses.ipo_setting(tau=0.25)

    assert setting == PairwiseSetting(reference_weight=1.0, gain=4.0)
    torch.testing.assert_close(
        losses.pairwise_loss(*COLUMNS, setting=setting),
        losses.ipo_loss(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, tau=0.25),
    )


def test_omwu_without_kl_does_not_look_at_the_reference():
    setting = losses.omwu_setting(step=1.0, tau=0.0)
    elsewhere = (*COLUMNS[:4], COLUMNS[4] * 2, COLUMNS[5] * 3)

    assert torch.equal(
        losses.pairwise_loss(*COLUMNS, setting=setting), losses.pairwise_loss(*elsewhere, setting=setting)
    )


def test_only_the_policy_in_training_receives_a_gradient():
    policy = CHOSEN.clone().requires_grad_()
    losses.inpo_loss(policy, *COLUMNS[1:], eta=0.5, tau=0.1).sum().backward()

    assert policy.grad is not None
    assert all(column.grad is None for column in COLUMNS)


def test_weights_that_do_not_sum_to_one_are_refused():
    column = (FrozenColumn(0.9, BASE_CHOSEN, BASE_REJECTED),)
    with pytest.raises(ValueError, match=r"must sum to 1, not 0\.9"):
        losses.regression_residual(CHOSEN, REJECTED, column, PREFERENCE - 0.5, gain=1.0)


@pytest.mark.parametrize("label", [0.51, -0.6, math.nan])
def test_a_label_outside_half_is_refused(label):
    column = (FrozenColumn(1.0, BASE_CHOSEN, BASE_REJECTED),)
    labels = torch.tensor([0.0, 0.0, 0.0, label])
    with pytest.raises(ValueError, match=r"label must lie in \[-0.5, 0.5\]"):
        losses.regression_residual(CHOSEN, REJECTED, column, labels, gain=1.0)


def test_columns_of_another_shape_are_refused():
    for index in range(6):
        with pytest.raises(ValueError, match="shapes differ"):
            losses.pairwise_loss(
                *(column[:2] if position == index else column for position, column in enumerate(COLUMNS)),
                setting=losses.ipo_setting(tau=1.0),
            )
    with pytest.raises(ValueError, match="one number per response is needed"):
        losses.regression_residual(
            CHOSEN[None], REJECTED[None], (FrozenColumn(1.0, CHOSEN[None], REJECTED[None]),), CHOSEN[None], gain=1.0
        )


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_step_that_is_not_positive_is_refused(value):
    for call in (
        lambda: losses.egpo_setting(step=value, tau=0.1),
        lambda: losses.omwu_setting(step=value, tau=0.1),
        lambda: losses.nash_mp_setting(step=value, tau=0.1),
        lambda: losses.inpo_setting(eta=value, tau=0.0),
        lambda: losses.ipo_setting(tau=value),
        lambda: PairwiseSetting(reference_weight=0.5, gain=value),
        lambda: losses.regression_residual(CHOSEN, REJECTED, (), PREFERENCE, gain=value),
    ):
        with pytest.raises(ValueError, match="must be positive and finite, not"):
            call()


@pytest.mark.parametrize("tau", [0.6, -0.1, math.nan])
def test_a_step_that_overshoots_the_reference_is_refused(tau):
    for setting in (losses.egpo_setting, losses.omwu_setting):
        with pytest.raises(ValueError, match=r"step \* tau must lie in \[0, 1\].*lower the step"):
            setting(step=2.0, tau=tau)


def test_a_negative_or_infinite_tau_of_nash_mp_is_refused():
    for tau in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tau must be finite and not negative"):
            losses.nash_mp_setting(step=2.0, tau=tau)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_reference_weight_outside_zero_to_one_is_refused(weight):
    with pytest.raises(ValueError, match=r"reference_weight must lie in \[0, 1\]"):
        PairwiseSetting(reference_weight=weight, gain=1.0)
