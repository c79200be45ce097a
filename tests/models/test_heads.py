"""The head, against an independent computation of the published general preference forward."""

import pytest
import torch

from paragone_models import scores
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec
from tests.models.tiny import HIDDEN

ATTRIBUTES = ("helpful", "verbose")
SPECS = {
    "bradley-terry": ModelSpec(kind="bradley-terry", dimension=1),
    "regression": ModelSpec(kind="regression", dimension=2, attributes=ATTRIBUTES),
    "helpsteer": ModelSpec(kind="helpsteer", dimension=3, attributes=ATTRIBUTES),
    "general-preference": ModelSpec(kind="general-preference", dimension=6, normalise=True),
    "gated": ModelSpec(kind="general-preference", dimension=6, normalise=True, gate="softmax"),
    "hybrid": ModelSpec(kind="hybrid", dimension=5, normalise=True, gate="softmax"),
}


def random_head(spec: ModelSpec, seed: int = 0) -> RepresentationHead:
    torch.manual_seed(seed)
    head = RepresentationHead(HIDDEN, spec)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def test_a_reward_is_the_head_applied_to_the_read():
    head = random_head(SPECS["bradley-terry"])
    hidden = torch.randn(4, 1, HIDDEN)
    torch.testing.assert_close(head(hidden)[:, 0], hidden[:, 0] @ head.value_head.weight[0])


def test_a_normalised_vector_has_length_one():
    vectors = random_head(SPECS["general-preference"])(torch.randn(4, 1, HIDDEN))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))


def test_a_vector_keeps_its_length_where_the_spec_says_so():
    spec = ModelSpec(kind="general-preference", dimension=6)
    head = random_head(spec)
    hidden = torch.randn(4, 1, HIDDEN)
    torch.testing.assert_close(head(hidden), hidden[:, 0] @ head.value_head.weight.T)


def test_a_gate_multiplies_each_block_by_the_root_of_its_softmax_weight():
    head = random_head(SPECS["gated"])
    hidden = torch.randn(4, 2, HIDDEN)
    gate = torch.softmax(hidden[:, 0] @ head.prompt_head.weight.T, dim=-1)
    raw = hidden[:, 1] @ head.value_head.weight.T
    expected = raw / raw.norm(dim=-1, keepdim=True)
    for block in range(3):
        expected[:, 2 * block : 2 * block + 2] *= gate[:, block : block + 1] ** 0.5
    torch.testing.assert_close(head(hidden), expected)


def test_scores_are_bounded_by_the_largest_gate_weight():
    head = random_head(SPECS["gated"])
    prompt = torch.randn(1, HIDDEN).expand(64, HIDDEN)
    vectors = head(torch.stack([prompt, torch.randn(64, HIDDEN)], dim=1))
    largest = torch.softmax(prompt[:1] @ head.prompt_head.weight.T, dim=-1).max()
    assert scores.general_preference_matrix(vectors, temperature=1.0).abs().max() <= largest + 1e-6


def test_only_the_vector_of_a_hybrid_is_normalised_and_gated():
    head = random_head(SPECS["hybrid"])
    hidden = torch.randn(4, 2, HIDDEN)
    values = head(hidden)
    torch.testing.assert_close(values[:, 0], hidden[:, 1] @ head.value_head.weight[0])
    torch.testing.assert_close(values[:, 1:].square().sum(-1), head_gate_sum(head, hidden))


def head_gate_sum(head, hidden):
    """Sum of squares of a gated unit vector: each block's share of the length times its weight."""
    raw = hidden[:, 1] @ head.value_head.weight[1:].T
    unit = raw / raw.norm(dim=-1, keepdim=True)
    gate = torch.softmax(hidden[:, 0] @ head.prompt_head.weight.T, dim=-1)
    return sum(gate[:, block] * unit[:, 2 * block : 2 * block + 2].square().sum(-1) for block in range(2))


def test_a_gate_of_one_block_changes_nothing():
    spec = ModelSpec(kind="general-preference", dimension=2, gate="softmax")
    head = random_head(spec)
    hidden = torch.randn(4, 2, HIDDEN)
    torch.testing.assert_close(head(hidden), hidden[:, 1] @ head.value_head.weight.T)


@pytest.mark.parametrize("name", SPECS)
def test_representations_are_float32_for_any_backbone_and_under_autocast(name):
    head = random_head(SPECS[name])
    hidden = torch.randn(3, head.reads, HIDDEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(hidden)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(hidden))
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_a_gate_weight_that_underflows_has_a_finite_gradient():
    head = random_head(SPECS["gated"])
    with torch.no_grad():
        head.prompt_head.weight.mul_(1e3)
    hidden = torch.randn(4, 2, HIDDEN, requires_grad=True)
    head(hidden).square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(head.prompt_head.weight.grad).all()


def test_a_zero_vector_stays_zero():
    head = random_head(SPECS["general-preference"])
    assert torch.equal(head(torch.zeros(2, 1, HIDDEN)), torch.zeros(2, 6))


def test_a_new_head_starts_small_without_bias():
    torch.manual_seed(0)
    head = RepresentationHead(HIDDEN, SPECS["gated"])
    assert head.value_head.bias is None
    assert 0.5 < head.value_head.weight.std().item() * (HIDDEN + 1) < 1.5


@pytest.mark.parametrize("shape", [(2, HIDDEN), (2, 1, HIDDEN), (2, 3, HIDDEN)])
def test_another_number_of_reads_is_refused(shape):
    with pytest.raises(ValueError, match=r"hidden must be \[n, 2, H\]"):
        random_head(SPECS["gated"])(torch.zeros(shape))
