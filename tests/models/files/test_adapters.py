"""Adapters: merged as peft applies them, in every dtype, and part of the identity."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.saving import export_backbone
from paragone_models.packing.cpu import DecoderForward
from tests.models import tiny
from tests.models.files.test_formats import classifier, own_logits
from tests.models.files.test_heads import change

# peft asks transformers by a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TARGETS = ["q_proj", "v_proj", "down_proj"]
SEQUENCES = tiny.sequences(4)


def adapt(model, folder, **options):
    """Write an adapter of random numbers for a model, and return the model with it."""
    torch.manual_seed(7)
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options}
    changed = peft.get_peft_model(model, peft.LoraConfig(**values)).eval()
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    changed.save_pretrained(folder)
    return changed


def adapted_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def beside(tmp_path):
    """A classifier with an adapter beside its weights, and what peft makes of it."""
    changed = adapt(classifier(tmp_path, "llama"), tmp_path / "adapter")
    expected = own_logits(changed, SEQUENCES)
    for path in (tmp_path / "adapter").glob("adapter*"):
        shutil.copy(path, tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    return tmp_path, expected


def rewards(folder, **options):
    model = load_model(folder, device="cpu", **options)
    return model.embed(SEQUENCES, [1] * len(SEQUENCES))


def test_an_adapter_beside_the_weights_is_merged(beside):
    folder, expected = beside
    torch.testing.assert_close(rewards(folder), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_counts_in_bfloat16_too(beside, tmp_path_factory):
    folder, expected = beside
    half = rewards(folder, dtype="bfloat16")
    torch.testing.assert_close(half, expected, atol=0.3, rtol=0.1)
    base = shutil.copytree(folder, tmp_path_factory.mktemp("base") / "base")
    for path in base.glob("adapter*"):
        path.unlink()
    assert not torch.equal(half, rewards(base, dtype="bfloat16"))
    model = load_model(folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.network.backbone.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.network.backbone.buffers()} == {torch.float32}  # rotary frequencies


@pytest.mark.parametrize("what", ["config", "tensors", "none"])
def test_an_adapter_and_its_config_are_part_of_the_identity(beside, what):
    folder, _ = beside
    before = load_model(folder, device="cpu").identity
    if what == "config":
        adapted_config(folder, lora_alpha=80)
    elif what == "tensors":
        path = folder / "adapter_model.safetensors"
        save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    else:
        for path in folder.glob("adapter*"):
            path.unlink()
    assert load_model(folder, device="cpu").identity != before


@pytest.mark.parametrize("reach", ["absolute", "beside", "moved"])
@pytest.mark.parametrize("rows", [1, 3])
def test_an_adapter_of_a_classifier_brings_its_head_and_names_its_base(tmp_path, rows, reach):
    base = tmp_path / "base"
    torch.manual_seed(5)
    tiny.save_output_row(base)
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=rows, pad_token_id=0).eval()
    changed = adapt(theirs, tmp_path / "adapter", task_type="SEQ_CLS", use_rslora=True)
    names = {"absolute": str(base), "beside": "../base", "moved": "base"}
    adapted_config(tmp_path / "adapter", base_model_name_or_path=names[reach])
    model = load_model(tmp_path / "adapter", device="cpu")
    assert model.kind == ("bradley-terry" if rows == 1 else "regression")
    expected = own_logits(changed, SEQUENCES)
    torch.testing.assert_close(model.embed(SEQUENCES, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    change(base, add={"model.norm.weight": torch.full((32,), 1.5)})
    assert load_model(tmp_path / "adapter", device="cpu").identity != model.identity


def test_an_adapter_of_a_causal_lm_with_a_value_head_beside_it_is_a_reward(tmp_path):
    theirs = tiny.save_output_row(tmp_path / "base", text=True)
    changed = adapt(theirs, tmp_path / "adapter", task_type="CAUSAL_LM", use_dora=True)
    head = {"v_head.summary.weight": torch.linspace(-1, 1, 32)[None], "v_head.summary.bias": torch.ones(1)}
    save_file(head, tmp_path / "adapter" / "value_head.safetensors")
    adapted_config(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    with torch.no_grad():
        hidden = [changed.base_model.model.model(torch.tensor([one])).last_hidden_state[0, -1] for one in SEQUENCES]
    expected = torch.stack(hidden) @ head["v_head.summary.weight"].T + 1
    model = load_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(model.embed(SEQUENCES, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    assert model.score("Why?", ["Because."]).rewards.shape == (1,)  # with the base's tokenizer


def test_an_adapter_of_an_encoder_brings_its_classifier(tmp_path):
    theirs = classifier(tmp_path / "base", "bert")
    options = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    changed = adapt(theirs, tmp_path / "adapter", **options)
    adapted_config(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    torch.testing.assert_close(rewards(tmp_path / "adapter"), own_logits(changed, SEQUENCES), atol=1e-4, rtol=1e-4)


def test_an_adapter_of_a_causal_lm_without_a_head_is_no_reward(tmp_path):
    theirs = tiny.save_output_row(tmp_path / "base")
    adapt(theirs, tmp_path / "adapter", task_type="CAUSAL_LM")
    adapted_config(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(ModelLoadError, match="without a value head"):
        load_model(tmp_path / "adapter", device="cpu")


def test_an_adapter_with_a_tensor_too_many_or_too_few_is_refused_by_name(beside):
    folder, _ = beside
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    extra = name.replace("layers.0", "layers.9")
    save_file({**tensors, extra: tensors[name].clone()}, path)
    with pytest.raises(ModelLoadError, match=r"layers\.9"):
        load_model(folder, device="cpu")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(ModelLoadError, match=r"lacks 1 tensors .*lora_B"):
        load_model(folder, device="cpu")


def test_a_base_that_is_not_there_is_named(tmp_path):
    adapt(tiny.save_output_row(tmp_path / "base"), tmp_path / "adapter")
    adapted_config(tmp_path / "adapter", base_model_name_or_path="/nowhere/base")
    with pytest.raises(ModelLoadError, match=r"/nowhere/base.*correct base_model_name_or_path"):
        load_model(tmp_path / "adapter", device="cpu")
    adapted_config(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(ModelLoadError, match="names no base_model_name_or_path"):
        load_model(tmp_path / "adapter", device="cpu")


def test_an_adapter_that_adds_tokens_is_refused(beside):
    folder, _ = beside
    values = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 4}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match="PROMPT_TUNING"):
        load_model(folder, device="cpu")


def test_no_other_server_gets_a_base_without_its_adapter(beside, tmp_path):
    folder, _ = beside
    with pytest.raises(ModelLoadError, match="has an adapter"):
        load_model(folder, elsewhere=True)
    with pytest.raises(ModelLoadError, match="has an adapter"):
        export_backbone(str(folder), tmp_path / "bare")


def test_a_written_out_decoder_is_no_way_to_run_a_backbone_with_an_adapter_inside():
    model = AutoModelForCausalLM.from_config(tiny.llama_config()).eval()
    assert DecoderForward.serves(model.model)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=TARGETS), model.model)
    assert not DecoderForward.serves(model.model)
