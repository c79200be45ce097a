"""The SFT term: by hand, its gradient beside a method's, and what it leaves alone."""

import math

import pytest
import torch
from torch import nn

from paragone_training import losses
from paragone_training.policy.gradient import _PairLoss
from paragone_training.policy.methods.dpo import Dpo
from paragone_training.policy.methods.sppo import Sppo
from paragone_training.policy.passes import PairPasses
from paragone_training.policy.rows import TrainingPair

CHOSEN, TOKENS = torch.tensor([-12.0, -7.0]), torch.tensor([4.0, 2.0])


def test_the_sft_term_is_the_negative_log_likelihood_a_token_of_the_preferred_response():
    assert losses.sft_loss(CHOSEN, TOKENS, torch.tensor([1.0, 0.7])).tolist() == [12.0 / 4, 7.0 / 2]


def test_of_a_tie_no_response_is_learnt():
    assert losses.sft_loss(CHOSEN, TOKENS, torch.tensor([0.5, 0.5])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({0: torch.zeros(3)}, "shapes differ"), ({1: torch.tensor([4.0, 0.0])}, "without a token")],
)
def test_what_has_no_likelihood_a_token_is_refused(changes, message):
    arguments = dict(enumerate((CHOSEN, TOKENS, torch.ones(2)))) | changes
    with pytest.raises(ValueError, match=message):
        losses.sft_loss(*arguments.values())


class Table(nn.Module):
    """A network whose log-probabilities are its weights."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, _sequences: object) -> torch.Tensor:
        return self.values


@pytest.mark.parametrize("raw", [False, True])
def test_its_gradient_joins_that_of_the_method_by_its_weight(raw):
    # A decided pair and a tie; base and reference at -3 and -5.
    pairs = [TrainingPair((1,), (2, 3, 4), (5,), (1.0, 1.0, 0.0, -3.0, -5.0, -3.0, -5.0))]
    pairs += [TrainingPair((1,), (6,), (7,), (0.5, 0.5, 0.5, -3.0, -5.0, -3.0, -5.0))]
    passes = PairPasses(pairs, size=2, step=2, pad_id=0, seed=0)
    batch = passes.collated(pairs)
    network = Table([-2.0, -3.0, -5.0, -5.0])
    method = Sppo(eta=4.0)
    loss = _PairLoss(method, scale=0.01, raw=raw, sft=0.3)
    value = loss.share(network, batch, loss.counts(batch))
    value.backward()

    # ½[(a - eta/2)² + (b + eta/2)²] with a = 1 and b = 0; the tie asks for 0 and has it.
    weight = 1.0 if raw else 0.01
    method_loss = 0.5 * ((1 - 2) ** 2 + (0 + 2) ** 2)
    assert value.item() == pytest.approx((weight * method_loss + 0.3 * 2 / 3) / 2)
    expected = [(weight * (1 - 2) - 0.3 / 3) / 2, 0.0, weight * (0 + 2) / 2, 0.0]
    assert network.values.grad is not None
    assert network.values.grad.tolist() == pytest.approx(expected)
    shown = loss.means()
    assert shown["loss"] == pytest.approx(value.item() * (0.01 if raw else 1.0))
    assert shown["raw_loss"] == pytest.approx(method_loss / 2)


def test_dpo_pushes_a_chosen_response_that_the_term_alone_would_hold():
    pairs = [TrainingPair((1,), (2, 3), (5,), (1.0, 0.0, 0.0, -3.0, -5.0, -3.0, -5.0))]
    batch = PairPasses(pairs, size=1, step=1, pad_id=0, seed=0).collated(pairs)
    network = Table([-3.0, -5.0])
    loss = _PairLoss(Dpo(beta=0.1), scale=1.0, raw=False, sft=2.0)
    loss.share(network, batch, (1,)).backward()
    assert network.values.grad is not None
    assert network.values.grad.tolist() == pytest.approx([-0.1 * 0.5 - 2.0 / 2, 0.1 * 0.5])
    assert math.isfinite(loss.means()["loss"])
