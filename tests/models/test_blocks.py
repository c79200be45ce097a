"""Per-block scores, gate scales, the scalar against references, and the loss of preference scores."""

import numpy as np
import pytest
import torch

from paragone_models import load_model, losses, scores
from paragone_models.comparator import Comparator
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem

DRAW = torch.Generator().manual_seed(0)


def test_blocks_sum_to_the_logit_and_flip_with_the_order():
    first, second = torch.randn(4, 6, generator=DRAW), torch.randn(4, 6, generator=DRAW)
    blocks = scores.general_preference_blocks(first, second, temperature=0.2)
    assert blocks.shape == (4, 3)
    torch.testing.assert_close(blocks.sum(-1), scores.general_preference_logit(first, second, temperature=0.2))
    torch.testing.assert_close(scores.general_preference_blocks(second, first, temperature=0.2), -blocks)
    assert blocks[0, 1].item() == pytest.approx(
        ((first[0, 2] * second[0, 3] - first[0, 3] * second[0, 2]) / 0.2).item(), rel=1e-5
    )


def test_blocks_refuse_odd_lengths_other_shapes_and_a_temperature_of_zero():
    with pytest.raises(ValueError, match="even length"):
        scores.general_preference_blocks(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        scores.general_preference_blocks(torch.zeros(2, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="must be positive"):
        scores.general_preference_blocks(torch.zeros(4), torch.zeros(4), temperature=0.0)


def test_gate_scales_sum_to_one_and_are_in_the_representation():
    spec = ModelSpec(kind="general-preference", dimension=4, gate="softmax", normalise=False)
    head = RepresentationHead(8, spec)
    torch.nn.init.normal_(head.prompt_head.weight)
    hidden = torch.randn(3, 2, 8, generator=DRAW)
    scales = head.gate_scales(hidden)
    torch.testing.assert_close(scales.sum(-1), torch.ones(3))
    plain = head.value_head(hidden[:, -1]) * scales.sqrt().repeat_interleave(2, dim=-1)
    torch.testing.assert_close(head(hidden), plain)
    with pytest.raises(ValueError, match=r"hidden must be \[n, 2, H\]"):
        head.gate_scales(hidden[:, :1])
    with pytest.raises(ValueError, match="this bradley-terry head has no gate"):
        RepresentationHead(8, ModelSpec(kind="bradley-terry", dimension=1)).gate_scales(hidden)


def test_a_loaded_model_gives_its_blocks_and_scales():
    model = load_model("builtin:mini-general-preference", device="cpu")
    representations = model.score("Cars in the street?", ["Close it, the air gets cleaner.", "no"]).representations
    blocks = model.blocks(representations[:1], representations[1:])
    assert blocks.sum().item() == pytest.approx(model.logit(representations[:1], representations[1:]).item(), rel=1e-5)
    scales = model.gate_scales(model.encode([EncodeItem((1, 2, 3, 4), ((1, 2), (2, 4)), 2)]))
    assert scales.sum().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="must be equal and end in dimension"):
        model.blocks(torch.zeros(1, 6), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="a bradley-terry model has no 2-blocks"):
        load_model("builtin:mini-bradley-terry", device="cpu").blocks(torch.zeros(1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize(
    "comparator",
    [
        Comparator("general-preference", 6, 0.1),
        Comparator("hybrid", 5, 0.3),
        Comparator("bradley-terry", 1, 2.0),
        Comparator("regression", 2, 0.5, ("x", "y"), (0.7, 0.3)),
        Comparator("helpsteer", 3, 1.0, ("x", "y")),
    ],
    ids=lambda comparator: comparator.kind,
)
def test_one_comparison_with_the_mean_reference_is_the_mean_of_all_comparisons(comparator):
    draw = np.random.default_rng(0)
    values, references = (draw.normal(size=(count, comparator.dimension)) for count in (7, 64))
    every = [np.mean([comparator.logit(value, reference) for reference in references]) for value in values]
    assert np.abs(comparator.mean_logit(values, references) - every).max() < 1e-12


def test_a_mean_over_no_references_is_refused():
    comparator = Comparator("bradley-terry", 1, 1.0)
    with pytest.raises(ValueError, match="R at least 1"):
        comparator.mean_logit(np.zeros((2, 1)), np.zeros((0, 1)))
    with pytest.raises(ValueError, match="do not end in dimension 1"):
        comparator.mean_logit(np.zeros((2, 1)), np.zeros((2, 2)))


def test_the_score_loss_is_half_the_squared_distance_with_the_difference_as_gradient():
    logit = torch.tensor([1.5, -2.0], requires_grad=True)
    target = torch.tensor([0.5, 1.0])
    loss = losses.score_loss(logit, target)
    assert loss.tolist() == [0.5, 4.5]
    loss.sum().backward()
    assert logit.grad.tolist() == [1.0, -3.0]
    assert losses.score_loss(torch.tensor([1e4]), torch.tensor([-1e4])).isfinite().all()
    with pytest.raises(ValueError, match="finite log-odds"):
        losses.score_loss(logit, torch.tensor([0.0, float("inf")]))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        losses.score_loss(logit, torch.zeros(1))
