"""Saving: what is written is what is loaded."""

import pytest
import torch
from safetensors.torch import load_file

from paragone_models import load_model
from paragone_models.files.saving import save_model
from paragone_models.kinds import KINDS
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import read_plan
from tests.models import tiny

SPECS = {
    "bradley-terry": ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=64),
    "regression": ModelSpec(kind="regression", dimension=2, attributes=("a", "b"), weights=(1.0, 2.0), max_length=64),
    "helpsteer": ModelSpec(kind="helpsteer", dimension=3, attributes=("a", "b"), max_length=64),
    "general-preference": ModelSpec(
        kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.1, max_length=64
    ),
    "hybrid": ModelSpec(kind="hybrid", dimension=5, gate="softmax", max_length=64),
}
SEQUENCES = tiny.sequences(4)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.has_steps and not kind.reads_pairs])
def test_a_model_of_every_kind_survives_its_folder(tmp_path, kind):
    spec = SPECS[kind]
    network = tiny.make_network(spec)
    tokenizer = tiny.make_tokenizer()
    assert (
        save_model(tmp_path / "new" / "folder", network, spec, tokenizer, card="# A model\n") == tmp_path / "new/folder"
    )
    model = load_model(tmp_path / "new" / "folder", device="cpu")
    assert model.spec == spec
    assert (tmp_path / "new/folder/README.md").read_text() == "# A model\n"
    with torch.no_grad():
        for sequence in SEQUENCES:
            reads = torch.tensor(read_plan(spec, 2, len(sequence)))[None]
            expected = network(torch.tensor([sequence]), reads)[0]
            torch.testing.assert_close(model.embed([sequence], [2])[0], expected, atol=1e-5, rtol=1e-5)
    answer = model.score("Why?", ["Because.", "<|im_end|>", ""])
    assert answer.probabilities.shape == (3, 3)


def test_the_storage_type_is_the_backbones_alone(tmp_path):
    spec = SPECS["general-preference"]
    save_model(tmp_path, tiny.make_network(spec), spec, None, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(tmp_path / "head.safetensors").values()} == {torch.float32}
    model = load_model(tmp_path, device="cpu")
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert model.reader is None


def test_saving_again_replaces_the_model(tmp_path):
    spec = SPECS["bradley-terry"]
    save_model(tmp_path, tiny.make_network(spec, seed=1), spec, None)
    first = load_model(tmp_path, device="cpu")
    save_model(tmp_path, tiny.make_network(spec, seed=2), spec, None)
    second = load_model(tmp_path, device="cpu")
    assert first.identity != second.identity
    save_model(tmp_path, tiny.make_network(spec, seed=1), spec, None)
    assert load_model(tmp_path, device="cpu").identity == first.identity


def test_a_network_on_its_way_through_training_can_be_saved(tmp_path):
    spec = SPECS["general-preference"]
    network = tiny.make_network(spec).train()
    network(torch.tensor([[5, 6, 7]]), torch.tensor([[[0, 1], [2, 3]]])).sum().backward()
    save_model(tmp_path, network, spec, None)
    assert network.training
    assert load_model(tmp_path, device="cpu").spec == spec


def test_a_head_that_its_tensors_do_not_tell_is_refused(tmp_path):
    spec = SPECS["bradley-terry"]
    layers = torch.nn.Sequential(torch.nn.Linear(tiny.HIDDEN, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    head = RepresentationHead(tiny.HIDDEN, spec, value_head=layers)
    network = PreferenceNetwork(tiny.make_network(spec).backbone, head)
    with pytest.raises(ValueError, match="only a head of linear layers to 1 numbers"):
        save_model(tmp_path / "none", network, spec, None)
    assert not (tmp_path / "none").exists()


def test_a_head_that_does_not_fit_the_spec_is_refused(tmp_path):
    network = tiny.make_network(SPECS["general-preference"])
    with pytest.raises(ValueError, match="only a head of linear layers to 5 numbers"):
        save_model(tmp_path, network, SPECS["hybrid"], None)
    ungated = ModelSpec(kind="general-preference", dimension=4)
    with pytest.raises(ValueError, match="the spec's gate is none, and the head has a gate"):
        save_model(tmp_path, network, ungated, None)
    with pytest.raises(ValueError, match="the head has no gate"):
        save_model(tmp_path, tiny.make_network(ungated), SPECS["general-preference"], None)
