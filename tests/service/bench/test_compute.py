"""What is counted in this process: tokens, operations, and turns."""

import pytest
import torch

from paragone_models import load_model
from paragone_models.text.reader import EncodeItem
from paragone_service.bench.compute import _operations, _padded_tokens, _peak, measure


def item(prompt, response):
    tokens = [*prompt, *response]
    return EncodeItem(tokens, ((len(prompt), len(tokens)),), len(prompt))


GROUPS = [item([5, 6, 7], [8] * 4), item([5, 6, 7], [9] * 2), item([10, 11], [12] * 6)]


@pytest.fixture(scope="module")
def model():
    return load_model("builtin:mini-bradley-terry", device="cpu", dtype="float32")


def test_plain_transformers_computes_the_longest_of_every_batch_of_input_order():
    assert _padded_tokens(GROUPS, batch=2) == 2 * 7 + 8
    assert _padded_tokens(GROUPS) == 3 * 8


def test_operations_are_two_per_weight_and_token_and_four_per_key_that_is_seen(model):
    config = model.network.config
    layers = sum(
        weight.numel() for name, weight in model.network.backbone.named_parameters() if "embed_tokens" not in name
    )
    seen = sum(range(1, 4)) + sum(range(4, 8)) + sum(range(4, 6)) + sum(range(1, 3)) + sum(range(3, 9))
    width = config.num_attention_heads * config.head_dim
    expected = 2 * layers * 17 + 4 * config.num_hidden_layers * width * seen
    assert _operations(model, GROUPS, 17) == pytest.approx(expected)


def test_a_turn_computes_a_shared_prompt_once_and_an_earlier_turn_gives_it_nothing(model):
    prompt = list(range(10, 110))
    turn = [item(prompt, [8] * 4), item(prompt, [9] * 2), item([10, 11], [12] * 6)]
    found = measure(model, [turn, turn, turn])
    assert found.responses == 3
    assert found.tokens == 104 + 102 + 8
    assert found.executed_tokens == 100 + 4 + 2 + 2 + 6
    assert found.padded_tokens == 3 * 104
    assert found.sharing == pytest.approx(214 / 114)
    assert found.padding == pytest.approx(312 / 214)
    assert min(found.engine_s, found.padded_s, found.ratio, found.peak_flops, found.share_of_peak) > 0


def test_one_turn_alone_is_refused_because_it_only_warms_up(model):
    with pytest.raises(ValueError, match="give at least two"):
        measure(model, [GROUPS])


def test_the_peak_of_a_matrix_product_is_positive():
    assert _peak(torch.device("cpu"), torch.float32, size=64) > 0
