"""The policy losses against expressions written by hand, finite differences, and a second derivation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from paragone_training import losses

CHOSEN = torch.tensor([-41.5, -20.25, -7.0], dtype=torch.float64)
REJECTED = torch.tensor([-44.0, -18.5, -9.75], dtype=torch.float64)
REFERENCE_CHOSEN = torch.tensor([-42.0, -21.0, -6.5], dtype=torch.float64)
REFERENCE_REJECTED = torch.tensor([-43.0, -19.0, -9.0], dtype=torch.float64)
CURRENT_CHOSEN = torch.tensor([-41.75, -20.5, -7.25], dtype=torch.float64)
CURRENT_REJECTED = torch.tensor([-43.5, -18.75, -9.25], dtype=torch.float64)
WON = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
LOST = torch.tensor([0.1, 0.35, 0.45], dtype=torch.float64)
PREFERENCE = torch.tensor([0.95, 0.6, 0.5], dtype=torch.float64)

FOUR = (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
SPPO = (*FOUR, WON, LOST)
GPO = (*FOUR, WON - 0.5, LOST - 0.5)
INPO = (CHOSEN, REJECTED, CURRENT_CHOSEN, CURRENT_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)


def sppo(*columns: Tensor, eta: float = 3.0) -> Tensor:
    return losses.sppo_loss(*columns, eta=eta)


def gpo(*columns: Tensor, beta: float = 0.4) -> Tensor:
    return losses.gpo_loss(*columns, beta=beta)


def inpo(*columns: Tensor, eta: float = 0.3, tau: float = 0.1, preference: Tensor | None = None) -> Tensor:
    return losses.inpo_loss(*columns, eta=eta, tau=tau, preference=preference)


def soft_inpo(*columns: Tensor) -> Tensor:
    return inpo(*columns, preference=PREFERENCE.to(columns[0].device))


def ipo(*columns: Tensor, tau: float = 0.2) -> Tensor:
    return losses.ipo_loss(*columns, tau=tau)


def dpo(*columns: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    return losses.dpo_loss(*columns, beta=beta, label_smoothing=label_smoothing)


def smoothed_dpo(*columns: Tensor) -> Tensor:
    return dpo(*columns, label_smoothing=0.2)


def egpo(*columns: Tensor) -> Tensor:
    return losses.pairwise_loss(*columns, setting=losses.egpo_setting(step=2.0, tau=0.1), preference=PREFERENCE)


EVERY_LOSS = [
    pytest.param(sppo, SPPO, id="sppo"),
    pytest.param(gpo, GPO, id="gpo"),
    pytest.param(inpo, INPO, id="inpo"),
    pytest.param(soft_inpo, INPO, id="inpo, soft"),
    pytest.param(ipo, FOUR, id="ipo"),
    pytest.param(dpo, FOUR, id="dpo"),
    pytest.param(smoothed_dpo, FOUR, id="dpo, smoothed"),
    pytest.param(egpo, INPO, id="egpo"),
]
PAIRWISE = [case for case in EVERY_LOSS if case.id not in ("sppo", "gpo")]


def test_the_sppo_loss_is_half_the_squared_distance_of_each_log_ratio_from_its_target():
    first = losses.sppo_loss(*SPPO, eta=3.0)[0].item()

    a, b = -41.5 - -42.0, -44.0 - -43.0
    assert first == pytest.approx(0.5 * ((a - 3.0 * (0.9 - 0.5)) ** 2 + (b - 3.0 * (0.1 - 0.5)) ** 2))


def test_the_gpo_loss_is_half_the_squared_distance_of_each_log_ratio_from_score_over_beta():
    columns = (*FOUR, torch.tensor([2.0, 0.0, 1.0]), torch.tensor([-3.0, 0.5, 1.0]))
    first = losses.gpo_loss(*columns, beta=0.4)[0].item()

    assert first == pytest.approx(0.5 * ((0.5 - 2.0 / 0.4) ** 2 + (-1.0 - -3.0 / 0.4) ** 2))


def test_the_inpo_loss_is_the_squared_distance_of_the_mixed_log_ratio_from_half_the_step():
    first = losses.inpo_loss(*INPO, eta=0.3, tau=0.1)[0].item()

    policy, reference, current = -41.5 - -44.0, -42.0 - -43.0, -41.75 - -43.5
    mixed = policy - (0.1 / 0.3) * reference - (1 - 0.1 / 0.3) * current
    assert first == pytest.approx((mixed - 1 / (2 * 0.3)) ** 2)


def test_the_soft_inpo_loss_has_the_target_of_twice_the_probability_minus_one_over_twice_eta():
    first = losses.inpo_loss(*INPO, eta=0.3, tau=0.1, preference=PREFERENCE)[0].item()

    mixed = 2.5 - (0.1 / 0.3) * 1.0 - (1 - 0.1 / 0.3) * 1.75
    assert first == pytest.approx((mixed - (2 * 0.95 - 1) / (2 * 0.3)) ** 2)


def test_the_ipo_loss_is_the_squared_distance_of_the_log_ratio_from_half_over_tau():
    assert losses.ipo_loss(*FOUR, tau=0.2)[0].item() == pytest.approx((0.5 - -1.0 - 1 / (2 * 0.2)) ** 2)


def test_the_dpo_loss_is_the_cross_entropy_of_the_scaled_log_ratio():
    logit = 0.1 * (0.5 - -1.0)
    plain, smoothed = losses.dpo_loss(*FOUR, beta=0.1), losses.dpo_loss(*FOUR, beta=0.1, label_smoothing=0.2)

    assert plain[0].item() == pytest.approx(math.log(1 + math.exp(-logit)))
    assert smoothed[0].item() == pytest.approx(
        0.8 * math.log(1 + math.exp(-logit)) + 0.2 * math.log(1 + math.exp(logit))
    )


@pytest.mark.parametrize("loss", [sppo, gpo])
def test_the_losses_of_single_responses_do_not_care_which_one_is_called_chosen(loss):
    columns = SPPO if loss is sppo else GPO
    swapped = tuple(columns[index] for index in (1, 0, 3, 2, 5, 4))

    assert torch.equal(loss(*columns), loss(*swapped))


def test_a_soft_pair_has_the_same_loss_in_either_order():
    swapped = tuple(INPO[index] for index in (1, 0, 3, 2, 5, 4))

    torch.testing.assert_close(inpo(*INPO, preference=PREFERENCE), inpo(*swapped, preference=1 - PREFERENCE))


def test_a_hard_label_is_the_soft_label_one():
    assert torch.equal(inpo(*INPO), inpo(*INPO, preference=torch.ones(3, dtype=torch.float64)))


def test_the_smoothed_dpo_loss_is_the_mean_over_which_of_the_two_orders_is_right():
    swapped = tuple(FOUR[index] for index in (1, 0, 3, 2))

    torch.testing.assert_close(dpo(*FOUR, label_smoothing=0.2), 0.8 * dpo(*FOUR) + 0.2 * dpo(*swapped))


@pytest.mark.parametrize(("loss", "columns"), PAIRWISE)
def test_a_pairwise_loss_does_not_change_when_a_prompt_is_twice_as_likely(loss, columns):
    shifted = (columns[0] + 5.0, columns[1] + 5.0, *columns[2:])

    torch.testing.assert_close(loss(*shifted), loss(*columns))


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_the_gradient_agrees_with_finite_differences(loss, columns):
    chosen, rejected = columns[0].clone().requires_grad_(), columns[1].clone().requires_grad_()

    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, *columns[2:]), (chosen, rejected), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_from_the_reference_the_gradient_asks_for_more_of_the_chosen_and_less_of_the_rejected(loss, columns):
    chosen, rejected = REFERENCE_CHOSEN.clone().requires_grad_(), REFERENCE_REJECTED.clone().requires_grad_()
    frozen = (REFERENCE_CHOSEN, REFERENCE_REJECTED)
    targets = columns[4:] if loss in (sppo, gpo) else frozen[: len(columns) - 4]
    loss(chosen, rejected, *frozen, *targets)[0].backward()

    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad[0] < 0 < rejected.grad[0]


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_log_ratios_of_ten_thousand_nats_give_finite_losses_and_gradients(loss, columns, size):
    chosen = torch.full((3,), size, requires_grad=True)
    rejected = torch.full((3,), -size, requires_grad=True)
    values = loss(chosen, rejected, *(column.float() for column in columns[2:]))
    values.sum().backward()

    assert torch.isfinite(values).all()
    for column in (chosen, rejected):
        assert column.grad is not None
        assert torch.isfinite(column.grad).all()


@pytest.mark.parametrize(
    ("loss", "columns", "knob", "values"),
    [
        (sppo, SPPO, "eta", (1.0, 1000.0)),
        (gpo, GPO, "beta", (1.0, 0.001)),
        (inpo, INPO, "eta", (0.3, 0.4)),
        (inpo, INPO, "tau", (0.1, 0.0)),
        (inpo, INPO, "preference", (None, PREFERENCE)),
        (ipo, FOUR, "tau", (0.1, 0.2)),
        (dpo, FOUR, "beta", (0.1, 0.2)),
        (dpo, FOUR, "label_smoothing", (0.0, 0.1)),
    ],
)
def test_no_knob_is_ignored(loss, columns, knob, values):
    first, second = (loss(*columns, **{knob: value}) for value in values)

    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_no_column_is_ignored(loss, columns):
    for index in range(len(columns)):
        changed = [*columns[:index], columns[index] * 0.9, *columns[index + 1 :]]
        assert not torch.allclose(loss(*changed), loss(*columns)), index


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_half_precision_columns_are_computed_in_float32(loss, columns):
    values = loss(*(column.bfloat16() for column in columns))

    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values, loss(*(column.bfloat16().double() for column in columns)).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_a_frozen_column_stored_in_float64_does_not_widen_the_loss(loss, columns):
    assert loss(columns[0].float(), columns[1].float(), *columns[2:]).dtype == torch.float32


@pytest.mark.parametrize(("loss", "columns"), EVERY_LOSS)
def test_columns_of_different_length_are_refused_and_never_broadcast(loss, columns):
    for index in range(len(columns)):
        changed = [*columns[:index], columns[index][:1], *columns[index + 1 :]]
        with pytest.raises(ValueError, match="shapes differ"):
            loss(*changed)


@pytest.mark.parametrize(("loss", "columns"), [case for case in EVERY_LOSS if case.id not in ("inpo, soft", "egpo")])
def test_log_probabilities_per_token_are_refused(loss, columns):
    with pytest.raises(ValueError, match="one number per response is needed"):
        loss(*(column.reshape(3, 1) for column in columns))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_is_refused(value):
    for call in (
        lambda: sppo(*SPPO, eta=value),
        lambda: gpo(*GPO, beta=value),
        lambda: inpo(*INPO, eta=value),
        lambda: ipo(*FOUR, tau=value),
        lambda: dpo(*FOUR, beta=value),
        lambda: losses.sppo_scale(eta=value),
        lambda: losses.gpo_scale(beta=value),
        lambda: losses.gpo_scale(beta=1.0, largest_score=value),
    ):
        with pytest.raises(ValueError, match="must be positive and finite, not"):
            call()


@pytest.mark.parametrize("tau", [0.31, -0.1, math.nan])
def test_a_reference_weight_outside_its_range_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau must lie in \[0, eta\] = \[0, 0.3\]"):
        inpo(*INPO, eta=0.3, tau=tau)


@pytest.mark.parametrize("smoothing", [-0.1, 0.6, math.nan])
def test_a_label_smoothing_outside_zero_to_half_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0.5\]"):
        dpo(*FOUR, label_smoothing=smoothing)


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_a_win_rate_or_preference_that_is_no_probability_is_refused_and_so_is_a_missing_one(bad):
    broken = torch.tensor([0.5, bad, 0.5])
    with pytest.raises(ValueError, match=r"chosen_win_rate must lie in \[0, 1\].*leave missing comparisons out"):
        sppo(*FOUR, broken, LOST)
    with pytest.raises(ValueError, match=r"rejected_win_rate must lie in \[0, 1\]"):
        sppo(*FOUR, WON, broken)
    with pytest.raises(ValueError, match=r"preference must lie in \[0, 1\]"):
        inpo(*INPO, preference=broken)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_missing_or_infinite_score_is_refused(bad):
    broken = torch.tensor([0.5, bad, 0.5])
    with pytest.raises(ValueError, match="a score is NaN or infinite"):
        gpo(*FOUR, broken, LOST)
    with pytest.raises(ValueError, match="a score is NaN or infinite"):
        gpo(*FOUR, WON, broken)


def test_the_raw_losses_start_at_their_published_values():
    level = (REFERENCE_CHOSEN, REFERENCE_REJECTED) * 3
    four = level[:4]

    won, lost = torch.full((3,), 0.9), torch.full((3,), 0.1)
    assert losses.sppo_loss(*four, won, lost, eta=1000.0)[0].item() == pytest.approx(0.5 * 2 * 0.4**2 * 1e6, rel=1e-6)
    assert losses.inpo_loss(*level, eta=0.005, tau=0.005 / 3)[0].item() == pytest.approx(1e4)
    assert losses.ipo_loss(*four, tau=0.1)[0].item() == pytest.approx(25.0)
    assert losses.dpo_loss(*four, beta=0.1, label_smoothing=0.1)[0].item() == pytest.approx(math.log(2))
    assert losses.gpo_loss(*four, won, -won, beta=0.001)[0].item() == pytest.approx(0.81e6, rel=1e-6)


def test_with_all_policies_equal_the_scaled_losses_start_at_a_quarter_or_below():
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(2, 500, generator=generator)
    logprob = -100 * torch.rand(2, 500, generator=generator)
    columns = (*logprob, *logprob, *logprob)

    for eta in (0.005, 1.0, 1000.0):
        assert (losses.sppo_loss(*columns[:4], *rates, eta=eta) * losses.sppo_scale(eta=eta)).max() <= 0.25
        scores = 7.0 * (2 * rates - 1)
        scale = losses.gpo_scale(beta=eta, largest_score=7.0)
        assert (losses.gpo_loss(*columns[:4], *scores, beta=eta) * scale).max() <= 0.25
        inpo_scale = losses.inpo_setting(eta=eta, tau=eta / 3).scale
        raw = losses.inpo_loss(*columns, eta=eta, tau=eta / 3)
        torch.testing.assert_close(raw * inpo_scale, torch.full((500,), 0.25))
        soft = losses.inpo_loss(*columns, eta=eta, tau=eta / 3, preference=rates[0])
        torch.testing.assert_close(soft * inpo_scale, (rates[0] - 0.5) ** 2)
        torch.testing.assert_close(
            losses.ipo_loss(*columns[:4], tau=eta) * losses.ipo_setting(tau=eta).scale, torch.full((500,), 0.25)
        )


def test_the_scales_are_the_squares_that_the_methods_are_reported_with():
    assert losses.sppo_scale(eta=1000.0) == pytest.approx(1e-6)
    assert losses.gpo_scale(beta=0.001) == pytest.approx(1e-6)
    assert losses.gpo_scale(beta=0.001, largest_score=5.0) == pytest.approx(1e-8)
    assert losses.inpo_setting(eta=0.005, tau=0.001).scale == pytest.approx(0.005**2)
    assert losses.ipo_setting(tau=0.1).scale == pytest.approx(0.01)


def test_inpo_with_tau_equal_to_eta_is_ipo_and_ignores_the_current_policy():
    torch.testing.assert_close(inpo(*INPO, eta=0.2, tau=0.2), ipo(*FOUR, tau=0.2))


def test_every_loss_agrees_with_a_second_derivation_on_random_numbers():
    """Written from the formulas in another form: expanded squares, base-2 logarithms, numpy."""
    draw = np.random.default_rng(7)
    c, r, rc, rr, kc, kr = draw.normal(-60, 20, size=(6, 200))
    pw, pl, p = draw.uniform(size=(3, 200))
    tensors = [torch.from_numpy(values) for values in (c, r, rc, rr, kc, kr)]
    reference, current = tensors[2:4], tensors[4:6]
    rates = [torch.from_numpy(values) for values in (pw, pl)]
    eta, tau, beta, eps = 0.7, 0.2, 0.3, 0.15

    a, b = c - rc, r - rr
    sppo_expected = 0.5 * (a**2 + b**2) - eta * (a * pw + b * pl) + 0.5 * eta * (a + b)
    sppo_expected += 0.5 * eta**2 * (pw**2 - pw + pl**2 - pl + 0.5)
    h = (c - r) - tau / eta * (rc - rr) - (1 - tau / eta) * (kc - kr)
    hard = h**2 - h / eta + 1 / (4 * eta**2)
    # E over the label: P (h - t)^2 + (1 - P) (h + t)^2 differs from the soft loss by the label's variance.
    sampled = p * (h - 0.5 / eta) ** 2 + (1 - p) * (h + 0.5 / eta) ** 2 - p * (1 - p) / eta**2
    odds = np.exp2(beta * (a - b) * np.log2(np.e))
    dpo_expected = (1 - eps) * np.log1p(1 / odds) + eps * np.log1p(odds)

    def close(actual: Tensor, expected: np.ndarray) -> None:
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-8)

    close(losses.sppo_loss(*tensors[:2], *reference, *rates, eta=eta), sppo_expected)
    close(losses.inpo_loss(*tensors[:2], *current, *reference, eta=eta, tau=tau), hard)
    close(
        losses.inpo_loss(*tensors[:2], *current, *reference, eta=eta, tau=tau, preference=torch.from_numpy(p)), sampled
    )
    close(losses.dpo_loss(*tensors[:2], *reference, beta=beta, label_smoothing=eps), dpo_expected)
    close(losses.ipo_loss(*tensors[:2], *reference, tau=tau), (a - b) ** 2 - (a - b) / tau + 1 / (4 * tau**2))
    close(
        losses.gpo_loss(*tensors[:2], *reference, *[8 * (rate - 0.5) for rate in rates], beta=beta),
        ((beta * a - 8 * pw + 4) ** 2 + (beta * b - 8 * pl + 4) ** 2) / (2 * beta**2),
    )
