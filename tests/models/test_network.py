"""Where hidden states are read, and which backbones need a mask."""

import pytest
import torch
from transformers import AutoConfig

from paragone_models.network import PreferenceNetwork, RepresentationHead, gather_reads
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import read_plan
from tests.models import tiny

LAST = ModelSpec(kind="bradley-terry", dimension=1)
MEAN = ModelSpec(kind="bradley-terry", dimension=1, pooling="mean")
GATED = ModelSpec(kind="general-preference", dimension=4, gate="softmax")
GATED_MEAN = ModelSpec(kind="general-preference", dimension=4, gate="softmax", pooling="mean")


@pytest.mark.parametrize(
    ("spec", "plan"),
    [(LAST, ((9, 10),)), (MEAN, ((4, 10),)), (GATED, ((3, 4), (9, 10))), (GATED_MEAN, ((3, 4), (4, 10)))],
)
def test_a_plan_reads_the_prompt_for_the_gate_and_the_response_for_the_value(spec, plan):
    assert read_plan(spec, 4, 10) == plan


def test_the_gate_of_an_empty_prompt_reads_the_first_token():
    assert read_plan(GATED, 0, 10) == ((0, 1), (9, 10))


def test_an_encoder_is_read_at_its_first_token():
    assert read_plan(LAST, 4, 10, first_token=True) == ((0, 1),)


@pytest.mark.parametrize("prompt_length", [-1, 11])
def test_a_prompt_that_does_not_fit_its_sequence_is_refused(prompt_length):
    with pytest.raises(ValueError, match="must lie between 0 and the 10 tokens"):
        read_plan(LAST, prompt_length, 10)


def test_mean_pooling_needs_a_response():
    with pytest.raises(ValueError, match="mean pooling needs tokens after the prompt, and all 10"):
        read_plan(MEAN, 10, 10)
    assert read_plan(LAST, 10, 10) == ((9, 10),)


def test_a_read_of_one_position_is_that_hidden_state():
    hidden = torch.randn(2, 5, 3)
    reads = torch.tensor([[[0, 1], [4, 5]], [[2, 3], [1, 2]]])
    expected = torch.stack([hidden[0, [0, 4]], hidden[1, [2, 1]]])
    assert torch.equal(gather_reads(hidden, reads), expected)


def test_a_read_of_several_positions_is_their_mean():
    hidden = torch.randn(2, 5, 3)
    reads = torch.tensor([[[0, 1], [1, 5]], [[0, 2], [2, 3]]])
    gathered = gather_reads(hidden, reads)
    torch.testing.assert_close(gathered[0, 1], (hidden[0, 1] + hidden[0, 2] + hidden[0, 3] + hidden[0, 4]) / 4)
    torch.testing.assert_close(gathered[1, 0], (hidden[1, 0] + hidden[1, 1]) / 2)


def test_a_mean_has_the_same_bits_beside_any_neighbour():
    hidden = torch.randn(3, 50, 8)
    reads = torch.tensor([[[3, 40]], [[0, 50]], [[10, 12]]])
    together = gather_reads(hidden, reads)
    for row in range(3):
        alone = gather_reads(hidden[row : row + 1, : int(reads[row, 0, 1])], reads[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_reads_are_float32_and_averaged_in_float32():
    hidden = torch.randn(1, 400, 4).bfloat16()
    gathered = gather_reads(hidden, torch.tensor([[[0, 400]]]))
    assert gathered.dtype == torch.float32
    torch.testing.assert_close(gathered[0, 0], hidden[0].double().mean(dim=0).float(), atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_position_that_was_read():
    hidden = torch.randn(1, 5, 3, requires_grad=True)
    gather_reads(hidden, torch.tensor([[[1, 4]]])).sum().backward()
    assert hidden.grad[0, :, 0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize("spec", [LAST, MEAN, GATED, GATED_MEAN])
def test_padding_changes_nothing(spec):
    network = tiny.make_network(spec)
    long, short = tiny.sequences(2, longest=30, seed=4)
    long, short = sorted((long, short), key=len, reverse=True)
    plans = [read_plan(spec, 2, len(one)) for one in (long, short)]
    padded = torch.tensor([long, short + [7] * (len(long) - len(short))])
    with torch.no_grad():
        together = network(padded, torch.tensor(plans))
        for row, (one, plan) in enumerate(zip((long, short), plans, strict=True)):
            alone = network(torch.tensor([one]), torch.tensor([plan]))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2", "gpt_neox", "phi3"]
)
def test_decoders_need_no_mask(model_type):
    assert networks_of(model_type).causal


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "deberta-v2", "ernie", "xlnet", "modernbert", "t5", "longformer"]
)
def test_everything_else_gets_a_mask(model_type):
    assert not networks_of(model_type).causal


def test_a_decoder_that_was_opened_to_look_ahead_gets_a_mask():
    network = tiny.make_network(LAST)
    network.backbone.config.is_causal = False
    assert not network.causal


def test_a_mask_is_asked_for_where_one_is_needed():
    with pytest.raises(ValueError, match=r"\(bert\) needs an attention mask"):
        networks_of("bert").last_hidden(torch.zeros(1, 2, dtype=torch.long))


def test_a_mask_changes_nothing_for_a_decoder():
    network = tiny.make_network(LAST)
    ids = torch.tensor([tiny.sequences(1)[0]])
    with torch.no_grad():
        without = network.last_hidden(ids)
        masked = network.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        assert torch.equal(network.last_hidden(ids, torch.ones_like(ids)), without)
    torch.testing.assert_close(masked, without, atol=1e-5, rtol=1e-5)


def networks_of(model_type: str) -> PreferenceNetwork:
    backbone = torch.nn.Identity()
    backbone.config = AutoConfig.for_model(model_type)
    return PreferenceNetwork(backbone, RepresentationHead(8, LAST))
