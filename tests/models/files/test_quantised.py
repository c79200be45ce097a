"""Quantised checkpoints: the numbers of their weights times their scales, or a sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.quantised import unloadable
from paragone_models.packing.backend import mixing, refusal
from tests.models import tiny
from tests.models.files.test_formats import own_logits
from tests.models.files.test_heads import change

BLOCK = 32
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}


def save_fp8(folder, *, head=False, rest=torch.float32):
    """Write a classifier with matrices of eight-bit floats and a scale a block; return what it is without them.

    Args:
        head: quantise the head too.
        rest: dtype of what is not quantised.
    """
    torch.manual_seed(0)
    plain = LlamaForSequenceClassification(tiny.llama_config(num_labels=1, pad_token_id=0)).eval()
    plain.save_pretrained(folder)
    stored, exact = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight") and not (head and name == "score.weight"):
            exact[name] = weight.to(rest).float()
            stored[name] = weight.to(rest)
            continue
        blocks = [row.split(BLOCK, 1) for row in weight.split(BLOCK)]
        scales = torch.stack([torch.stack([block.abs().max() / 448 for block in row]) for row in blocks])
        spread = scales.repeat_interleave(BLOCK, 0)[: len(weight)].repeat_interleave(BLOCK, 1)
        stored[name] = (weight / spread).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scales
        exact[name] = stored[name].float() * spread
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, quantization_config=FP8)
    plain.load_state_dict(exact)
    return plain


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("rest", [torch.float32, torch.bfloat16])
def test_eight_bit_floats_are_dequantised_on_a_cpu_head_included(tmp_path, head, rest):
    exact = save_fp8(tmp_path, head=head, rest=rest)
    sequences = tiny.sequences(4)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    expected = own_logits(exact, sequences)
    torch.testing.assert_close(model.embed(sequences, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    assert model.provenance.numerics["quantisation"] == "fp8, dequantised"
    half = load_model(tmp_path, device="cpu", dtype="bfloat16")
    torch.testing.assert_close(half.embed(sequences, [1] * 4), expected, atol=0.3, rtol=0.1)


def test_the_identity_covers_how_weights_are_quantised(tmp_path):
    save_fp8(tmp_path)
    before = load_model(tmp_path, device="cpu", dtype="float32").identity
    change(tmp_path, quantization_config={**FP8, "activation_scheme": "static"})
    assert load_model(tmp_path, device="cpu", dtype="float32").identity != before


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("where", ["v_head", "lm_head"])
def test_a_head_of_packed_numbers_is_refused_by_name(tmp_path, where, dtype):
    tiny.save_output_row(tmp_path)
    name = f"{where}.weight"
    change(tmp_path, add={name: torch.ones(1 if where == "v_head" else 400, tiny.HIDDEN).to(dtype)})
    with pytest.raises(ModelLoadError, match=rf"{name} is stored as .*a head that is quantised is not read"):
        load_model(tmp_path, device="cpu", head="auto" if where == "v_head" else "lm-head-row-0")


def test_four_bit_weights_of_compressed_tensors_are_read_whole(tmp_path):
    compressed = pytest.importorskip("compressed_tensors", reason="compressed-tensors packs and unpacks the weights")
    torch.manual_seed(0)
    plain = LlamaForSequenceClassification(tiny.llama_config(num_labels=1, pad_token_id=0)).eval()
    plain.save_pretrained(tmp_path)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    arguments = compressed.quantization.QuantizationArgs(**weights)
    scheme = compressed.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    pack = compressed.BaseCompressor.load_from_registry("pack-quantized").compress
    stored, exact = {}, {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = exact[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 7
        packed = pack({"weight": weight, "weight_scale": scale}, scheme)
        stored |= {name.removesuffix("weight") + part: tensor for part, tensor in packed.items()}
        exact[name] = (weight / scale).round().clamp(-8, 7) * scale
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    change(tmp_path, quantization_config={**settings, "config_groups": groups, "ignore": ["score"]})
    plain.load_state_dict(exact)
    sequences = tiny.sequences(4)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    torch.testing.assert_close(model.embed(sequences, [1] * 4), own_logits(plain, sequences), atol=1e-4, rtol=1e-4)
    assert model.provenance.numerics["quantisation"] == "compressed-tensors"


INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
ROUNDED = {"quant_method": "compressed-tensors", "config_groups": {"all": {"input_activations": {"num_bits": 8}}}}


@pytest.mark.parametrize(("settings", "reason"), [(INT8, "LLM.int8"), (ROUNDED, "the order of a sum is seen")])
def test_what_makes_a_text_depend_on_its_company_is_run_alone(settings, reason):
    network = tiny.make_network(tiny.make_reader().spec)
    assert mixing(network.backbone, causal=True) is None
    network.config.quantization_config = settings
    assert reason in refusal(network.config)
    assert reason in mixing(network.backbone, causal=True)


def test_layers_that_take_a_scale_from_all_rows_are_found_by_trying():
    network = tiny.make_network(tiny.make_reader().spec)
    network.config.quantization_config = {"quant_method": "fp8"}
    assert mixing(network.backbone, causal=True) is None
    scaled = network.backbone.layers[0].mlp.down_proj
    scaled.register_forward_pre_hook(lambda _, inputs: ((inputs[0] / inputs[0].abs().max() * 3).round() / 3,))
    assert "beside others a text's hidden state is off" in mixing(network.backbone, causal=True)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("gptq", "pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel"),
        ("fbgemm_fp8", "they run on a GPU only, and this is a CPU"),
        ("spqr", "they run on a GPU only, and this is a CPU"),
        ("nvfp4", r"on cpu \(ValueError: not yet\)"),
    ],
)
def test_a_refusal_names_the_package_or_the_device(tmp_path, method, remedy):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    text = unloadable(tmp_path, torch.device("cpu"), ValueError("not yet"))
    with pytest.raises(ModelLoadError, match=remedy):
        raise ModelLoadError(text)
    assert "weights that are not quantised" in text
