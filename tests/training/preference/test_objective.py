"""The loss in force: each name against the pure losses, and what it says about itself."""

import math

import pytest
import torch

from paragone_models import losses
from paragone_training.preference.objective import Objective

REWARDS = torch.tensor([[1.0], [-0.5], [0.25]])
PAIRS = torch.tensor([[0, 1], [0, 2], [1, 2]])
STRENGTH = torch.tensor([3.0, -1.0, 2.0])
CHOSEN = torch.tensor([1.0, 0.25, -0.5])
REJECTED = torch.tensor([-0.5, 1.0, 0.25])


def test_regular_margin_and_scaled_are_the_pure_losses_with_the_preferred_response_chosen():
    strength = STRENGTH.abs()
    expected = {
        "regular": losses.bradley_terry_loss(CHOSEN, REJECTED),
        "margin": losses.margin_bradley_terry_loss(CHOSEN, REJECTED, strength),
        "scaled": losses.scaled_bradley_terry_loss(CHOSEN, REJECTED, strength),
    }
    for name, loss in expected.items():
        torch.testing.assert_close(Objective("bradley-terry", 1.0, name).losses(REWARDS, PAIRS, STRENGTH), loss)


def test_the_temperature_divides_rewards_and_margin():
    expected = losses.bradley_terry_loss(CHOSEN / 2, REJECTED / 2, margin=0.25)
    found = Objective("bradley-terry", 2.0, "regular", margin=0.5).losses(REWARDS, PAIRS, STRENGTH)
    torch.testing.assert_close(found, expected)


def test_general_preference_losses_are_the_pure_ones_and_scale_with_strength():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.1]]), dim=-1)
    chosen, rejected = vectors[[0, 2, 1]], vectors[[1, 0, 2]]
    expected = losses.general_preference_loss(chosen, rejected, temperature=0.1, margin=0.2)
    regular = Objective("general-preference", 0.1, "regular", margin=0.2)
    torch.testing.assert_close(regular.losses(vectors, PAIRS, STRENGTH), expected)
    plain = losses.general_preference_loss(chosen, rejected, temperature=0.1)
    scaled = Objective("general-preference", 0.1, "scaled").losses(vectors, PAIRS, STRENGTH)
    torch.testing.assert_close(scaled, plain * STRENGTH.abs())


def test_a_soft_label_is_a_half_plus_a_sixth_of_the_strength_and_at_most_the_certainty():
    strength = torch.tensor([3.0, 0.0, -1.0])
    logit = torch.tensor([1.5, 0.75, -0.75])
    target = torch.tensor([0.9, 0.5, 1 / 3])
    expected = -target * torch.log(torch.sigmoid(logit)) - (1 - target) * torch.log(torch.sigmoid(-logit))
    found = Objective("bradley-terry", 1.0, "soft", certainty=0.9).losses(REWARDS, PAIRS, strength)
    torch.testing.assert_close(found, expected)


def test_a_tie_at_equal_rewards_costs_log_two_under_soft_labels():
    loss = Objective("bradley-terry", 1.0, "soft").losses(torch.zeros(2, 1), torch.tensor([[0, 1]]), torch.zeros(1))
    assert loss.item() == pytest.approx(math.log(2))


def test_a_tie_is_refused_by_the_losses_that_have_no_label_for_it():
    with pytest.raises(ValueError, match="a tie has no label under the scaled loss"):
        Objective("bradley-terry", 1.0, "scaled").losses(REWARDS, PAIRS, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Objective("bradley-terry", 1.0), "regular bradley-terry loss: -log sigmoid((r1 - r2))"),
        (
            Objective("general-preference", 0.1, "regular", margin=0.2),
            "regular general-preference loss: -log sigmoid((s(v1, v2) - 0.2) / 0.1)",
        ),
        (
            Objective("bradley-terry", 1.0, "soft"),
            "soft bradley-terry loss: cross-entropy of sigmoid((r1 - r2)) with 1/2 + strength/6, at most 0.95",
        ),
    ],
)
def test_a_loss_states_its_formula(objective, words):
    assert objective.describe() == words


def test_hybrid_losses_are_those_of_the_summed_logit():
    hybrids = torch.tensor([[1.0, 1.0, 2.0], [-0.5, 0.5, -1.0], [0.25, -1.0, 0.1]])
    chosen, rejected = hybrids[[0, 2, 1]], hybrids[[1, 0, 2]]
    skew = chosen[:, 1] * rejected[:, 2] - chosen[:, 2] * rejected[:, 1]
    lead = (chosen[:, 0] - rejected[:, 0] + skew) / 0.5
    regular = Objective("hybrid", 0.5, margin=0.2).losses(hybrids, PAIRS, STRENGTH)
    torch.testing.assert_close(regular, -torch.log(torch.sigmoid(lead - 0.4)))
    scaled = Objective("hybrid", 0.5, "scaled").losses(hybrids, PAIRS, STRENGTH)
    torch.testing.assert_close(scaled, -STRENGTH.abs() * torch.log(torch.sigmoid(lead)))
    assert Objective("hybrid", 0.5).describe() == ("regular hybrid loss: -log sigmoid((r1 - r2 + s(v1, v2)) / 0.5)")


def test_a_score_target_is_the_log_odds_of_the_soft_label():
    strength = torch.tensor([3.0, 0.0, -1.0])
    logit = torch.tensor([1.5, 0.75, -0.75])
    target = torch.tensor([math.log(9.0), 0.0, -math.log(2.0)])
    found = Objective("bradley-terry", 1.0, "score", certainty=0.9).losses(REWARDS, PAIRS, strength)
    torch.testing.assert_close(found, (logit - target).square() / 2)


def test_a_regression_model_compares_merged_attributes_and_needs_weights_for_it():
    rated = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    pairs = torch.tensor([[0, 1]])
    assert Objective("regression", 0.5, weights=(0.75, -0.25)).logits(rated, pairs).tolist() == [1.0]
    with pytest.raises(ValueError, match="rates and does not compare"):
        Objective("regression", 0.5).logits(rated, pairs)


def test_centring_adds_the_squared_sum_of_the_rewards_as_trl_does():
    plain = Objective("bradley-terry", 1.0).losses(REWARDS, PAIRS, STRENGTH)
    centred = Objective("bradley-terry", 1.0, centre=0.01)
    # TRL: loss += center_rewards_coefficient * mean((rewards_chosen + rewards_rejected) ** 2)
    expected = plain.mean() + 0.01 * ((CHOSEN + REJECTED) ** 2).mean()
    torch.testing.assert_close(centred.losses(REWARDS, PAIRS, STRENGTH).mean(), expected)
    assert centred.describe().endswith(", plus 0.01 x (r1 + r2)^2")
    hybrid = torch.cat([REWARDS, torch.randn(3, 2)], dim=1)
    extra = Objective("hybrid", 0.1, centre=0.5).losses(hybrid, PAIRS, STRENGTH)
    extra = extra - Objective("hybrid", 0.1).losses(hybrid, PAIRS, STRENGTH)
    torch.testing.assert_close(extra, 0.5 * (CHOSEN + REJECTED) ** 2)
    with pytest.raises(ValueError, match="shape"):
        losses.centring_loss(torch.zeros(2), torch.zeros(3))


def test_a_smoothed_label_is_wrong_with_its_share():
    smooth = Objective("bradley-terry", 2.0, margin=0.5, label_smoothing=0.1)
    lead = (CHOSEN - REJECTED - 0.5) / 2
    expected = -0.9 * torch.log(torch.sigmoid(lead)) - 0.1 * torch.log(torch.sigmoid(-lead))
    torch.testing.assert_close(smooth.losses(REWARDS, PAIRS, STRENGTH), expected)
    assert "(0.9 log sigmoid((" in smooth.describe()
