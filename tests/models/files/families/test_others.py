"""Families whose readers are shared: each in its publisher's layout, held against plain transformers and torch."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification

from paragone_models import load_model
from paragone_models.files.families.backbone import Options
from paragone_models.files.families.family import Checkpoint
from paragone_models.files.families.registry import family_of
from tests.models import tiny
from tests.models.files.families.checkpoints import PROMPT, RESPONSES, SIZES, backbone, ids, save, states

HIDDEN = tiny.HIDDEN


def name_of(folder) -> str:
    options = Options(torch.float32, torch.device("cpu"), trust_remote_code=False)
    family = family_of(Checkpoint(folder, options))
    return "none" if family is None else family.name


def rewards(folder, **options):
    return load_model(folder, device="cpu", **options).score(PROMPT, RESPONSES).rewards


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("qwen3", {}),  # Skywork-Reward-V2, Nemotron of Qwen
        ("llama", {"pad_token_id": 3}),  # Skywork, FsfairX, OffsetBias, Tulu
        ("gemma2", {"attn_logit_softcapping": 5.0, "sliding_window": 8}),  # Skywork-Reward-Gemma-2
        ("olmo2", {}),  # Tulu's, of OLMo
    ],
)
def test_a_plain_classifier_reads_its_chat_template(tmp_path, family, values):
    torch.manual_seed(2)
    config = AutoConfig.for_model(family, **{**SIZES, "num_labels": 1, **values})
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    tiny.make_tokenizer(tiny.CHATML).save_pretrained(tmp_path)
    assert "one label" in name_of(tmp_path)
    with torch.no_grad():
        tokens = [torch.tensor([ids(tmp_path, PROMPT, response)]) for response in RESPONSES]
        expected = [float(model.score(model.model(one).last_hidden_state[0, -1])) for one in tokens]
    assert rewards(tmp_path) == pytest.approx(expected, abs=2e-4)


def test_eurus_is_a_mistral_with_a_regression_head_and_runs_no_code_of_its_own(tmp_path):
    bare = backbone("mistral", sliding_window=None)
    weight = torch.randn(1, HIDDEN)
    auto = {"AutoModel": "modeling_eurus_rm.EurusRewardModel"}
    heads = {"regression_head.weight": weight}
    save(tmp_path, bare, heads, architecture="EurusRewardModel", template=tiny.CHATML, auto_map=auto)
    assert "Eurus" in name_of(tmp_path)
    expected = [float(weight @ states(bare, ids(tmp_path, PROMPT, one))[-1]) for one in RESPONSES]
    assert rewards(tmp_path) == pytest.approx(expected, abs=1e-4)


def test_grm_has_a_head_of_two_layers_beside_a_language_model(tmp_path):
    bare = backbone("llama")
    first, last = (torch.randn(24, HIDDEN), torch.randn(24)), (torch.randn(1, 24), torch.randn(1))
    heads = {f"v_head.summary.0.{part}": tensor for part, tensor in zip(("weight", "bias"), first, strict=True)}
    heads |= {f"v_head.summary.2.{part}": tensor for part, tensor in zip(("weight", "bias"), last, strict=True)}
    heads["lm_head.weight"] = torch.randn(400, HIDDEN)
    auto = {"AutoModelForCausalLM": "modeling_grm.ValueHeadModel"}
    save(tmp_path, bare, heads, architecture="LlamaForCausalLM", template=tiny.CHATML, auto_map=auto)
    assert "GRM" in name_of(tmp_path)
    expected = [
        float(functional.linear(functional.relu(functional.linear(hidden[-1], *first)), *last))
        for hidden in (states(bare, ids(tmp_path, PROMPT, one)) for one in RESPONSES)
    ]
    assert rewards(tmp_path) == pytest.approx(expected, abs=1e-4)


def test_open_assistants_deberta_reads_prompt_and_response_as_a_pair_from_a_pickle_of_tensors(tmp_path):
    torch.manual_seed(4)
    config = AutoConfig.for_model(
        "deberta-v2",
        **{**SIZES, "vocab_size": 300, "num_labels": 1, "max_position_embeddings": 512, "type_vocab_size": 0},
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    config.architectures = ["DebertaV2ForSequenceClassification"]
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer = tiny.make_encoder_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert "OpenAssistant" in name_of(tmp_path)
    with torch.no_grad():
        pairs = [tokenizer(PROMPT, one, return_tensors="pt")["input_ids"] for one in RESPONSES]
        expected = [float(model(input_ids=one).logits) for one in pairs]
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.spec.max_length == 512
    assert loaded.score(PROMPT, RESPONSES).rewards == pytest.approx(expected, abs=1e-4)
