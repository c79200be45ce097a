"""``load_model``: what is refused and why, and what its options change."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragone_models import load_model
from paragone_models.errors import ModelLoadError, TextError
from paragone_models.machine import CANDIDATES, DEFAULTS, Budget
from paragone_models.spec import ModelSpec
from tests.models import tiny

RATINGS = ModelSpec(kind="regression", dimension=2, attributes=("helpful", "verbose"), max_length=64)


@pytest.fixture(scope="module")
def ratings_folder(tmp_path_factory):
    return tiny.save_own(tmp_path_factory.mktemp("ratings"), RATINGS, text=False)


@pytest.fixture
def copy(gated_folder, tmp_path):
    """A copy of a good folder, to be spoiled."""
    return shutil.copytree(gated_folder, tmp_path / "copy")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensor(path, name, value):
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_loaded_model_says_what_it_is(gated, gated_folder):
    assert (gated.kind, gated.spec.dimension, gated.spec.max_length) == ("general-preference", 6, 128)
    assert (gated.provenance.source, gated.name, gated.provenance.revision) == (
        str(gated_folder),
        gated_folder.name,
        None,
    )
    assert len(gated.identity) == 64
    assert len(gated.fingerprint) == 32
    assert gated.provenance.numerics["dtype"] == "float32"
    assert gated.provenance.numerics["device"] == "cpu"
    assert gated.provenance.numerics["attention"] == "packed decoder"
    assert not gated.spec.calibrated
    assert not gated.spec.demonstration
    assert gated.spec.domain is None
    assert load_model(gated_folder, device="cpu", name="judge").name == "judge"


def test_a_loaded_model_is_ready_to_evaluate_and_takes_no_gradients(gated):
    assert not gated.network.training
    assert not any(parameter.requires_grad for parameter in gated.network.parameters())


def test_loading_twice_gives_the_same_model(gated, gated_folder):
    again = load_model(gated_folder, device="cpu")
    assert (again.identity, again.fingerprint) == (gated.identity, gated.fingerprint)
    assert torch.equal(again.embed([[5, 6, 7]], [2]), gated.embed([[5, 6, 7]], [2]))


def test_a_temperature_changes_answers_and_the_fingerprint_but_not_the_identity(gated, gated_folder):
    warmer = load_model(gated_folder, device="cpu", temperature=0.4)
    assert warmer.identity == gated.identity
    assert warmer.fingerprint != gated.fingerprint
    vectors = gated.embed([[5, 6, 7], [8, 9, 10]], [1, 1])
    torch.testing.assert_close(warmer.logit(vectors[0], vectors[1]) * 4, gated.logit(vectors[0], vectors[1]))


def test_another_temperature_is_not_the_calibrated_one(tmp_path):
    spec = ModelSpec(kind="bradley-terry", dimension=1, temperature=2.0, calibrated=True)
    folder = tiny.save_own(tmp_path, ModelSpec(**{**spec.__dict__, "max_length": 64}), text=False)
    assert load_model(folder, device="cpu").spec.calibrated
    assert load_model(folder, device="cpu", temperature=2.0).spec.calibrated
    assert not load_model(folder, device="cpu", temperature=3.0).spec.calibrated


@pytest.mark.parametrize(
    "options", [{"max_length": 64}, {"special_tokens": "parse"}, {"bos": "as-published"}, {"reasoning": "strip"}]
)
def test_options_that_change_a_representation_change_the_identity(gated, gated_folder, options):
    changed = load_model(gated_folder, device="cpu", **options)
    assert changed.identity != gated.identity
    for field, value in options.items():
        assert getattr(changed.spec, field) == value
        assert getattr(changed.reader.spec, field) == value


def test_a_template_that_was_set_is_used_and_changes_the_identity(gated, gated_folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(tiny.TOOLS)
    changed = load_model(gated_folder, device="cpu", chat_template=str(file))
    assert changed.identity != gated.identity
    assert changed.reader.template.sources.default == tiny.TOOLS
    with pytest.raises(ModelLoadError, match="neither a template's name"):
        load_model(gated_folder, device="cpu", chat_template="nowhere.jinja")


def test_what_a_template_leaves_out_is_logged_at_load(copy, caplog):
    (copy / "chat_template.jinja").write_text(tiny.CHATML.replace("['content']", "['content'].split('</think>')[-1]"))
    load_model(copy, device="cpu")
    assert "cuts the thoughts of a response (<think>…</think>) away: they are not scored" in caplog.text


def test_other_weights_have_another_identity(gated, copy):
    change_tensor(copy / "model.safetensors", "norm.weight", 1.5)
    assert load_model(copy, device="cpu").identity != gated.identity


def test_another_head_has_another_identity(gated, copy):
    change_tensor(copy / "head.safetensors", "value_head.weight", 1.5)
    assert load_model(copy, device="cpu").identity != gated.identity


def test_another_template_or_end_token_has_another_identity(gated, copy):
    (copy / "chat_template.jinja").write_text(tiny.TOOLS)
    changed = load_model(copy, device="cpu").identity
    assert changed != gated.identity
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    assert load_model(copy, device="cpu").identity not in (changed, gated.identity)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_head_and_its_output_stay_in_float32_whatever_the_backbone_is(gated, gated_folder, dtype):
    half = load_model(gated_folder, device="cpu", dtype=dtype)
    assert next(half.network.backbone.parameters()).dtype == getattr(torch, dtype)
    assert all(parameter.dtype == torch.float32 for parameter in half.network.head.parameters())
    vectors = half.embed([[5, 6, 7, 8]], [2])
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, vectors.to(getattr(torch, dtype)).float())
    torch.testing.assert_close(vectors, gated.embed([[5, 6, 7, 8]], [2]), atol=0.1, rtol=0.1)
    assert half.identity == gated.identity
    assert half.fingerprint != gated.fingerprint
    assert half.provenance.numerics["dtype"] == dtype


def test_weights_by_name_and_in_order_merge_the_attributes(ratings_folder):
    by_name = load_model(ratings_folder, device="cpu", weights={"verbose": -0.5})
    in_order = load_model(ratings_folder, device="cpu", weights=[0.0, -0.5])
    assert by_name.spec.weights == in_order.spec.weights == (0.0, -0.5)
    vectors = by_name.embed([[5, 6], [7, 8]], [1, 1])
    expected = -0.5 * (vectors[0, 1] - vectors[1, 1])
    torch.testing.assert_close(by_name.logit(vectors[0], vectors[1]), expected)
    assert by_name.identity == load_model(ratings_folder, device="cpu").identity


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0], "1 weights for 2 attributes"),
        ([1.0, 2.0, 3.0], "3 weights for 2 attributes"),
        ({"helpful": 1.0, "rude": 1.0}, "weights name rude; the attributes are helpful, verbose"),
        ([1.0, float("nan")], "must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(ratings_folder, weights, reason):
    with pytest.raises(ModelLoadError, match=reason):
        load_model(ratings_folder, device="cpu", weights=weights)


def test_weights_for_a_model_without_attributes_are_refused(gated_folder):
    with pytest.raises(ModelLoadError, match="this one is general-preference"):
        load_model(gated_folder, device="cpu", weights=[])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": "oracle"}, "head is 'oracle'; it must be one of auto, lm-head-row-0"),
        ({"kind": "oracle"}, "kind is 'oracle'; it must be auto or one of"),
        ({"kind": "bradley-terry"}, "is a general-preference model, not bradley-terry"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be auto or one of float32"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"max_length": 0}, "at least 1 token"),
        ({"max_length": 513}, "max_length is 513; the backbone has positions for 512 tokens"),
        ({"special_tokens": "no"}, "special_tokens is 'no'"),
        ({"bos": "never"}, "bos is 'never'"),
        ({"reasoning": "no"}, "reasoning is 'no'"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"max_batch_tokens": "fast"}, "max_batch_tokens is 'fast'; it must be at least 1, or auto"),
        ({"revision": "main"}, "has no revisions"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(gated_folder, options, reason):
    with pytest.raises(ModelLoadError, match=reason):
        load_model(gated_folder, **{"device": "cpu", **options})


def test_the_budget_of_a_batch_can_be_found_by_a_warm_up_which_the_log_explains(gated_folder, caplog):
    with caplog.at_level("INFO", logger="paragone_models"):
        model = load_model(gated_folder, device="cpu", max_batch_tokens="auto")
    assert model.budget.tokens == model.local.max_batch_tokens == model.local.packer.max_tokens
    assert model.budget.tokens in CANDIDATES["cpu"]
    assert "in a warm-up (tokens/s by budget: 512: " in model.budget.reason
    assert f"of {model.budget.tokens} tokens: {model.budget.reason}" in caplog.text


def test_the_budget_of_a_batch_says_whether_it_was_given(gated_folder):
    assert load_model(gated_folder, device="cpu", max_batch_tokens=64).budget == Budget(64, "given")
    assert load_model(gated_folder, device="cpu").budget == Budget(DEFAULTS["cpu"], "the default on cpu")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="is no folder here, and no Hugging Face id"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match="is no folder here"):
        load_model("nothing")


def test_a_hub_id_that_is_not_in_the_cache_is_refused_while_the_hub_cannot_be_reached():
    with pytest.raises(ModelLoadError, match="neither a folder here nor in the local Hugging Face cache"):
        load_model("nobody-at-all/nothing-at-all")


def test_a_file_is_no_folder(gated_folder):
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        load_model(gated_folder / "model.safetensors")


def test_a_built_in_model_that_does_not_exist_is_refused():
    with pytest.raises(ModelLoadError, match=r"no built-in model 'maxi'; built in are mini-bradley-terry"):
        load_model("builtin:maxi")


def test_a_folder_without_a_config_is_refused(copy):
    (copy / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[]", "does not hold a JSON object")])
def test_a_broken_config_is_refused(copy, text, reason):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=reason):
        load_model(copy, device="cpu")


def test_an_architecture_that_transformers_does_not_know_is_refused(copy):
    change_config(copy, model_type="perpetuum-mobile")
    with pytest.raises(ModelLoadError, match="perpetuum-mobile"):
        load_model(copy, device="cpu")


def test_a_folder_without_its_head_is_refused(copy):
    (copy / "head.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="would score at random"):
        load_model(copy, device="cpu")


def test_a_head_of_another_shape_than_its_spec_is_refused(copy):
    spec = json.loads((copy / "paragone.json").read_text())
    (copy / "paragone.json").write_text(json.dumps({**spec, "dimension": 8}))
    with pytest.raises(ModelLoadError, match=r"the head's tensors are .* needs"):
        load_model(copy, device="cpu")


def test_a_backbone_weight_that_is_missing_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights \(layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(copy, device="cpu")


def test_a_weight_of_another_shape_is_refused(copy):
    change_config(copy, intermediate_size=48)
    with pytest.raises(ModelLoadError, match=r"weights of other shapes than its config: .*mlp"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("file", "name"), [("model.safetensors", "norm.weight"), ("head.safetensors", "value_head.weight")]
)
def test_weights_that_are_no_numbers_are_refused(copy, file, name, value):
    change_tensor(copy / file, name, value)
    with pytest.raises(ModelLoadError, match=f"NaN or infinity in .*{name}"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
def test_a_file_that_was_cut_off_is_refused(copy, file):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_model(copy, device="cpu")


def test_a_pickle_of_more_than_tensors_is_refused_and_never_run(copy):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (copy / "model.safetensors").unlink()
    torch.save({"norm.weight": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(
        ModelLoadError, match=r"pytorch_model\.bin is a pickle that holds more than tensors.*was not run"
    ):
        load_model(copy, device="cpu")


def test_a_pickle_of_tensors_is_read_where_there_are_no_safetensors(gated, copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    model = load_model(copy, device="cpu")
    assert torch.equal(model.embed([[5, 6, 7]], [1]), gated.embed([[5, 6, 7]], [1]))
    change = {**torch.load(copy / "pytorch_model.bin"), "norm.weight": torch.full((tiny.HIDDEN,), 1.5)}
    torch.save(change, copy / "pytorch_model.bin")
    assert load_model(copy, device="cpu").identity != model.identity


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK"])
def test_a_damaged_pickle_is_refused(copy, content):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin"):
        load_model(copy, device="cpu")


def test_weights_of_other_programs_are_named(copy):
    (copy / "model.safetensors").rename(copy / "model.gguf")
    with pytest.raises(ModelLoadError, match=r"but model\.gguf: convert them to safetensors"):
        load_model(copy, device="cpu")


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors file"):
        load_model(copy, device="cpu")


def test_a_broken_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load_model(copy, device="cpu")


def test_a_folder_without_a_tokenizer_embeds_tokens_and_refuses_text(gated, gated_folder, tmp_path):
    silent = shutil.copytree(gated_folder, tmp_path / "silent", ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    model = load_model(silent, device="cpu")
    assert model.reader is None
    assert torch.equal(model.embed([[5, 6, 7]], [1]), gated.embed([[5, 6, 7]], [1]))
    with pytest.raises(TextError, match="no tokenizer files") as caught:
        model.score("Why?", ["Because."])
    assert caught.value.code == "text_unavailable"
    assert model.identity != gated.identity


def test_a_causal_language_model_is_no_preference_model(tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny.llama_config()).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="holds LlamaForCausalLM without a value head"):
        load_model(tmp_path, device="cpu")


QUANTISED = [
    "bitsandbytes",
    "gptq",
    "awq",
    "compressed-tensors",
    "torchao",
    "hqq",
    "quanto",
    "fbgemm_fp8",
    "eetq",
    "aqlm",
]


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused_in_a_sentence_that_says_what_reads_them(copy, method):
    settings = {"quant_method": method, "load_in_4bit": True, "bits": 4, "quant_type": "int8_weight_only"}
    change_config(copy, quantization_config=settings)
    with pytest.raises(
        ModelLoadError, match=rf"quantised weights \({method}\).*weights that are not quantised"
    ) as refusal:
        load_model(copy, device="cpu")
    assert "\n" not in str(refusal.value)


def test_a_quantisation_that_nobody_knows_is_refused_too(copy):
    change_config(copy, quantization_config={"quant_method": "three-bits-and-a-prayer"})
    with pytest.raises(ModelLoadError, match="three-bits-and-a-prayer"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "spiral"}},
        {"hidden_act": "wishful"},
        {"num_key_value_heads": 5},
        {"vocab_size": -1},
    ],
)
def test_whatever_a_library_raises_over_a_config_is_one_sentence(copy, values):
    change_config(copy, **values)
    with pytest.raises(ModelLoadError) as refusal:
        load_model(copy, device="cpu")
    assert str(copy) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_that_overflows_at_its_first_sentence_is_not_loaded(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["norm.weight"] = torch.full_like(tensors["norm.weight"], 3e38)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"first forward pass failed, so it is not served.*NaN or infinity"):
        load_model(copy, device="cpu")


def test_a_template_that_fails_on_a_plain_conversation_is_no_model_to_load(copy):
    (copy / "chat_template.jinja").write_text("{{ raise_exception('only poems') }}")
    with pytest.raises(ModelLoadError, match=r"cannot read a plain conversation: .*only poems"):
        load_model(copy, device="cpu")


def test_a_limit_below_the_sentence_that_is_tried_is_no_reason_to_refuse(gated_folder):
    assert load_model(gated_folder, device="cpu", max_length=3).spec.max_length == 3
