"""Bare backbones for other servers: exactly the model's tensors, under the names of the bare model."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from paragone.cli import main
from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.saving import export_backbone, read_refusal
from paragone_models.spec import ModelSpec
from tests.models import tiny

SPEC = ModelSpec(kind="general-preference", dimension=4, gate="softmax", normalise=True, max_length=128)


def classifier(folder, **changes):
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
        **changes,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


def hidden(folder):
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(10)[None], use_cache=False).last_hidden_state


def test_the_backbone_of_our_own_folder_computes_the_same(tmp_path):
    source = tiny.save_own(tmp_path / "model", SPEC)
    bare = export_backbone(str(source), tmp_path / "bare")
    assert torch.equal(hidden(bare), hidden(source))
    assert {path.name for path in bare.glob("*.safetensors")} == {"model.safetensors"}
    assert AutoTokenizer.from_pretrained(bare)("Close it?").input_ids


def test_the_backbone_of_a_classifier_in_several_files_loses_its_head_and_its_prefix(tmp_path):
    source = classifier(tmp_path / "classifier")
    bare = export_backbone(str(source), tmp_path / "bare")
    assert len(list(bare.glob("*.safetensors"))) > 1
    names = json.loads((bare / "model.safetensors.index.json").read_text())["weight_map"]
    assert "embed_tokens.weight" in names
    assert not [name for name in names if name.startswith(("model.", "score"))]
    config = json.loads((bare / "config.json").read_text())
    assert (config["architectures"], "id2label" in config) == (["LlamaModel"], False)
    assert torch.equal(hidden(bare), hidden(source))


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    source = classifier(tmp_path / "classifier")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelLoadError, match="lacks 9 tensors of its backbone"):
        export_backbone(str(source), tmp_path / "bare")
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    with pytest.raises(ModelLoadError, match=r"embed_tokens.weight has shape \(100, 16\)"):
        export_backbone(str(source), tmp_path / "bare")
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelLoadError, match="brings Python code of its own"):
        export_backbone(str(source), tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_nothing_is_written_over(tmp_path):
    source = classifier(tmp_path / "classifier")
    with pytest.raises(ModelLoadError, match="is there and not an empty folder"):
        export_backbone(str(source), source)


def test_a_model_without_its_backbone_is_the_same_model_and_encodes_nothing(tmp_path):
    source = tiny.save_own(tmp_path / "model", SPEC)
    whole, away = load_model(source, device="cpu"), load_model(source, elsewhere=True)
    assert (away.identity, away.local.batching) == (whole.identity, "elsewhere")
    assert away.provenance.numerics["dtype"] == "elsewhere"
    assert not list(away.network.backbone.parameters())
    states = torch.randn(3, 2, tiny.HIDDEN)
    assert torch.allclose(away.represent(states), whole.represent(states), atol=1e-6)
    with pytest.raises(ValueError, match="the backbone of this model was not loaded"):
        away.score("Why?", ["Because."])


def test_the_head_of_a_classifier_is_read_without_its_backbone(tmp_path):
    source = classifier(tmp_path / "classifier")
    whole, away = load_model(source, device="cpu"), load_model(source, elsewhere=True)
    states = torch.randn(3, 1, 16)
    assert torch.allclose(away.represent(states), whole.represent(states), atol=1e-6)
    assert away.identity == whole.identity


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("qwen3", ModelSpec(kind="bradley-terry", dimension=1, pooling="mean"), "its pooling is mean"),
        ("bert", ModelSpec(kind="bradley-terry", dimension=1), "a bert backbone looks ahead"),
    ],
)
def test_reads_that_no_such_server_returns_are_refused(family, spec, message):
    from transformers import AutoConfig

    from paragone_models.network import AbsentBackbone, PreferenceNetwork, RepresentationHead

    network = PreferenceNetwork(AbsentBackbone(AutoConfig.for_model(family)), RepresentationHead(8, spec))
    assert message in (read_refusal(network, spec, first_token=False) or "")


def test_the_command_writes_the_folder_and_says_how_to_serve_it(tmp_path, capsys):
    from importlib.metadata import EntryPoint

    source = tiny.save_own(tmp_path / "judge", SPEC)
    command = EntryPoint("export", "paragone_models.files.export_command:export", "paragone.commands")
    with pytest.raises(SystemExit) as ended:
        main(["export", "vllm", str(source), str(tmp_path / "bare")], commands=[command])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"vllm serve {tmp_path / 'bare'} --runner pooling --convert embed" in printed
    assert f"paragone serve --model judge={source} --engine judge=vllm:http://127.0.0.1:8123" in printed
    with pytest.raises(SystemExit):
        main(["export", "vllm", str(source), str(tmp_path / "again"), "--json"], commands=[command])
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(tmp_path / "again")
    assert made["commands"][0].startswith(f"vllm serve {tmp_path / 'again'}")
    mean = tiny.save_own(tmp_path / "mean", ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=64))
    assert main(["export", "vllm", str(mean), str(tmp_path / "none")], commands=[command]) == 2
    assert "vLLM cannot run" in capsys.readouterr().err
