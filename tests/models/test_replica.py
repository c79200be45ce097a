"""A model on several devices: what its replicas share, and that they give the same numbers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import BertConfig, BertModel

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.forward import LocalForward
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.packing.packer import Packer
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem
from tests.models import tiny

SPEC = ModelSpec(kind="general-preference", dimension=4, gate="softmax", temperature=0.1, max_length=tiny.POSITIONS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny.save_own(tmp_path_factory.mktemp("whole"), SPEC), device="cpu", dtype="float32")


def items(count=6):
    lengths = [40 + 7 * number for number in range(count)]
    return [EncodeItem([*range(3, 3 + length)], ((9, 10), (length - 1, length)), 10) for length in lengths]


def test_a_replica_on_the_same_device_shares_every_weight_and_nothing_else(model):
    replica = model.replica("cpu")
    for ours, theirs in zip(model.network.parameters(), replica.network.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    assert replica.network.backbone is not model.network.backbone
    assert replica.network.config is not model.network.config  # packing changes it during a pass
    assert replica.local.packer is not model.local.packer
    assert replica.reader is model.reader
    assert (replica.identity, replica.fingerprint) == (model.identity, model.fingerprint)


def test_replicas_that_run_at_the_same_time_give_the_same_numbers(model):
    replica, expected = model.replica("cpu"), model.represent(model.encode(items()))
    with ThreadPoolExecutor(2) as threads:
        for one, other in zip(
            threads.map(lambda _: model.represent(model.encode(items())), range(8)),
            threads.map(lambda _: replica.represent(replica.encode(items())), range(8)),
            strict=True,
        ):
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-5)


def test_heads_of_one_backbone_share_its_copies_too(model):
    moved = {}
    first, second = (model.replica("cpu", moved) for _ in range(2))
    assert len(moved) == len([*model.network.parameters(), *model.network.buffers()])
    assert first.network.head.value_head.weight is second.network.head.value_head.weight


def test_a_copy_on_another_device_has_all_its_tensors_there(model):
    moved = {}
    there = model.network.on("meta", moved)
    assert {tensor.device.type for tensor in (*there.parameters(), *there.buffers())} == {"meta"}
    assert {tensor.device.type for tensor in model.network.parameters()} == {"cpu"}
    again = model.network.on("meta", moved)
    for one, other in zip(there.parameters(), again.parameters(), strict=True):
        assert one is other


def test_a_replica_is_run_as_the_first_one_even_where_another_way_would_be_faster(model):
    blocks = copy.copy(model)
    blocks.local = LocalForward(model.network, max_batch_tokens=64, attention="packed blocks")
    assert model.local.attention == "packed decoder"
    assert blocks.local.attention == "packed blocks"
    assert blocks.replica("cpu").local.attention == "packed blocks"


def test_a_device_that_cannot_run_it_the_same_way_is_refused(model, monkeypatch):
    def failing(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Packer, "encode", failing)
    with pytest.raises(ModelLoadError, match=r"on cpu its batches are padded: .* and packed with packed decoder"):
        model.replica("cpu")


def test_what_is_padded_has_replicas_too():
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    spec = ModelSpec(kind="bradley-terry", dimension=1, max_length=128)
    network = PreferenceNetwork(BertModel(config), RepresentationHead(32, spec)).eval()
    local = LocalForward(network, max_batch_tokens=128)
    again = local.again(network.on("cpu"))
    one = [EncodeItem([1, 2, 3, 4], ((3, 4),), 2)]
    torch.testing.assert_close(again.encode(one), local.encode(one))
    assert again.batching == local.batching
