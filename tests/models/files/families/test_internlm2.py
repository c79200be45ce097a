"""InternLM2's layout, held against its computation written out: grouped projections, rotary positions, gated MLP."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.saving import save_model
from paragone_models.text.rendered import Rendered
from tests.models import tiny
from tests.models.files.families.checkpoints import PROMPT, RESPONSES, ids

HEADS, KEYS, SIZE, WIDTH, INNER, LAYERS, TOKEN = 4, 2, 8, tiny.HIDDEN, 48, 2, 9
CONFIG = {
    "architectures": ["InternLM2ForRewardModel"],
    "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel", "AutoConfig": "configuration_internlm2.X"},
    "model_type": "internlm2",
    "vocab_size": 400,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "bias": False,
    "pad_token_id": 2,
    "reward_token_id": TOKEN,
}


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    made = {"model.tok_embeddings.weight": torch.randn(400, WIDTH), "model.norm.weight": torch.rand(WIDTH) + 0.5}
    shapes = {"attention.wqkv": ((HEADS + 2 * KEYS) * SIZE, WIDTH), "attention.wo": (WIDTH, HEADS * SIZE)}
    shapes |= {"feed_forward.w1": (INNER, WIDTH), "feed_forward.w3": (INNER, WIDTH), "feed_forward.w2": (WIDTH, INNER)}
    for layer in range(LAYERS):
        made |= {f"model.layers.{layer}.{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
        for name in ("attention_norm", "ffn_norm"):
            made[f"model.layers.{layer}.{name}.weight"] = torch.rand(WIDTH) + 0.5
    return made | {"v_head.weight": torch.randn(1, WIDTH)}


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


def written(folder, change=None, **config):
    kept = {name: tensor for name, tensor in {**tensors(), **(change or {})}.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    tiny.make_tokenizer(adds_bos=True).save_pretrained(folder)
    return folder


def normed(hidden, weight):
    return hidden * (hidden.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def turned(states):
    """Rotary positions, in halves. [heads, T, SIZE]"""
    angles = torch.arange(states.shape[1])[:, None] * 10000 ** (-torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def reward(weights, token_ids) -> float:
    """What the publisher's class computes of one sequence that ends with the reward token."""
    hidden = weights["model.tok_embeddings.weight"][torch.tensor(token_ids)]
    length = len(token_ids)
    mask = torch.full((length, length), -torch.inf).triu(1)
    for layer in range(LAYERS):
        own = {
            name: weights[f"model.layers.{layer}.{name}.weight"]
            for name in (
                "attention.wqkv",
                "attention.wo",
                "feed_forward.w1",
                "feed_forward.w2",
                "feed_forward.w3",
                "attention_norm",
                "ffn_norm",
            )
        }
        states = normed(hidden, own["attention_norm"]) @ own["attention.wqkv"].T
        groups = states.view(length, KEYS, HEADS // KEYS + 2, SIZE)
        queries = groups[:, :, :-2].reshape(length, HEADS, SIZE).transpose(0, 1)
        keys, values = (groups[:, :, part].transpose(0, 1).repeat_interleave(HEADS // KEYS, 0) for part in (-2, -1))
        logits = turned(queries) @ turned(keys).transpose(1, 2) / SIZE**0.5 + mask
        read = (logits.softmax(-1) @ values).transpose(0, 1).reshape(length, -1)
        hidden = hidden + read @ own["attention.wo"].T
        inner = normed(hidden, own["ffn_norm"])
        gated = functional.silu(inner @ own["feed_forward.w1"].T) * (inner @ own["feed_forward.w3"].T)
        hidden = hidden + gated @ own["feed_forward.w2"].T
    return float(weights["v_head.weight"] @ normed(hidden, weights["model.norm.weight"])[-1])


def test_the_reward_is_read_at_the_token_that_is_appended(folder):
    model = load_model(folder, device="cpu")
    assert (model.kind, model.spec.reward_token) == ("bradley-terry", TOKEN)
    expected = [reward(tensors(), [*ids(folder, PROMPT, response), TOKEN]) for response in RESPONSES]
    assert model.score(PROMPT, RESPONSES).rewards == pytest.approx(expected, abs=1e-4)


def test_the_token_is_appended_once_to_texts_that_are_rendered_already(folder):
    model = load_model(folder, device="cpu", max_length=40)
    tokens = ids(folder, PROMPT, RESPONSES[0])
    texts = [
        Rendered(tuple(tokens)),
        Rendered((*tokens, TOKEN)),
        Rendered(tuple(tokens), most_tokens=5, keeps_start=True),
    ]
    own, ended, cut = model.reader.read(texts)
    assert own.token_ids == ended.token_ids
    assert own.token_ids[-2:] == [tokens[-1], TOKEN]
    assert len(cut.token_ids) == 5
    assert cut.token_ids[-1] == TOKEN


def test_the_token_counts_towards_the_limit(folder):
    model = load_model(folder, device="cpu", max_length=40)
    model_ids = model.reader.read(_long())[0].token_ids
    assert len(model_ids) <= 40
    assert model_ids[-1] == TOKEN


def _long():
    from paragone_models.text.reader import conversation

    return [conversation(PROMPT * 20, "Yes.")]


def test_the_token_is_part_of_the_identity_and_survives_a_folder_of_our_own(folder, tmp_path_factory):
    model = load_model(folder, device="cpu")
    own = save_model(tmp_path_factory.mktemp("own"), model.network, model.spec, model.reader.tokenizer)
    again = load_model(own, device="cpu")
    assert again.spec.reward_token == TOKEN
    assert again.score(PROMPT, RESPONSES).rewards == pytest.approx(model.score(PROMPT, RESPONSES).rewards, abs=1e-5)
    spec = (own / "paragone.json").read_text()
    (own / "paragone.json").write_text(spec.replace(f'"reward_token": {TOKEN}', '"reward_token": 8'))
    assert load_model(own, device="cpu").identity != again.identity


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        ({"model.layers.1.attention.wqkv.weight": None}, {}, r"3 tensors of a Llama \(layers.1.self_attn.k_proj"),
        ({"model.layers.1.attention.wqkv.weight": torch.ones(5, WIDTH)}, {}, "gives no place to .*attention.wqkv"),
        ({"model.layers.1.attention.wo.weight": torch.ones(5, WIDTH)}, {}, "layers.1.self_attn.o_proj"),
        ({"model.layers.7.attention.wo.weight": torch.ones(WIDTH, WIDTH)}, {}, "gives no place to .*layers.7"),
        ({"gate.weight": torch.ones(2)}, {}, "gives no place to .*gate.weight"),
        ({}, {"reward_token_id": None}, "names no reward_token_id"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "not read with quantised weights"),
        ({}, {"rope_scaling": {"type": "yarn", "factor": 2}}, "scales its rotary positions by yarn"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(tmp_path, change, config, reason):
    with pytest.raises(ModelLoadError, match=reason):
        load_model(written(tmp_path, change, **config), device="cpu")


def test_a_backbone_elsewhere_is_refused(folder):
    with pytest.raises(ModelLoadError, match="an engine that runs its backbone elsewhere"):
        load_model(folder, elsewhere=True)


def test_an_output_embedding_changes_nothing(tmp_path, tmp_path_factory):
    plain = load_model(written(tmp_path), device="cpu").score(PROMPT, RESPONSES).rewards
    more = written(tmp_path_factory.mktemp("more"), {"output.weight": torch.ones(400, WIDTH)})
    assert "output.weight" in load_file(more / "model.safetensors")
    assert load_model(more, device="cpu").score(PROMPT, RESPONSES).rewards == pytest.approx(plain, abs=1e-6)
