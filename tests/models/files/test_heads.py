"""Heads under the names that trainers give them, and tensors that nothing would apply."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.heads import left_over
from paragone_models.files.saving import export_backbone, save_model
from tests.models import tiny
from tests.models.files.test_formats import classifier, own_logits

WIDE = {"word_embed_proj_dim": 16, "ffn_dim": 64, "do_layer_norm_before": False}


def change(folder, add=None, drop=(), **values):
    """Add and drop tensors and settings of a folder."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name not in drop}
    save_file({**tensors, **(add or {})}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **values}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def unlabelled(folder, **values):
    """Take from a config what it says of labels."""
    change(folder, id2label=None, label2id=None, num_labels=None, **values)


def states(model, sequences) -> torch.Tensor:
    """Return transformers' last hidden states of a classifier's backbone."""
    backbone = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        return torch.stack([backbone(input_ids=torch.tensor([one])).last_hidden_state[0, -1] for one in sequences])


def test_the_bias_of_a_classifier_is_applied_here_and_where_the_backbone_runs_elsewhere(tmp_path):
    theirs = classifier(tmp_path, "llama", 3)
    bias = torch.tensor([0.5, -1.0, 2.0])
    sequences = tiny.sequences(4)
    bare = load_model(tmp_path, device="cpu").identity
    change(tmp_path, add={"score.bias": bias})
    model, remote = load_model(tmp_path, device="cpu"), load_model(tmp_path, elsewhere=True)
    expected = own_logits(theirs, sequences) + bias
    torch.testing.assert_close(model.embed(sequences, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    hidden = states(theirs, sequences)[:, None]
    torch.testing.assert_close(remote.represent(hidden), expected, atol=1e-4, rtol=1e-4)
    assert model.identity == remote.identity != bare


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.2.mlp.up_proj.weight", (64, 32)),
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.layers.0.self_attn.q_norm.weight", (16,)),
        ("gating.layers.0.weight", (4, 32)),
        ("reward_transform_matrix", (3, 3)),
        ("score.scale", (1,)),
    ],
)
def test_a_tensor_that_the_config_gives_no_place_to_is_refused_by_name(tmp_path, name, shape, elsewhere):
    classifier(tmp_path, "llama")
    change(tmp_path, add={name: torch.ones(shape)})
    with pytest.raises(ModelLoadError, match=f"gives no place to .*{name.removeprefix('model.')}"):
        load_model(tmp_path, device="cpu", elsewhere=elsewhere)
    with pytest.raises(ModelLoadError, match=f"gives no place to .*{name.removeprefix('model.')}"):
        export_backbone(str(tmp_path), tmp_path / "bare")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_left_over_tensors_that_change_no_reward_are_left_over(tmp_path, elsewhere):
    classifier(tmp_path, "llama")
    harmless = {
        "lm_head.weight": torch.ones(400, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.rotary_emb.inv_freq": torch.ones(8),
    }
    change(tmp_path, add=harmless)
    load_model(tmp_path, device="cpu", elsewhere=elsewhere)


def test_masks_of_an_older_transformers_are_no_biases():
    shapes = {"h.0.attn.bias": (1, 1, 8, 8), "h.0.attn.masked_bias": (), "h.1.attn.bias": (32,)}
    assert left_over(shapes, (), shapes) == ["h.1.attn.bias"]


@pytest.mark.parametrize("text", [True, False])
def test_a_tensor_left_over_in_a_folder_of_our_own_is_refused(gated_folder, tmp_path, text):
    import shutil

    folder = shutil.copytree(gated_folder, tmp_path / "copy")
    name = "layers.7.mlp.up_proj.weight" if text else "value_head.weight"
    change(folder, add={name: torch.ones(6, 32)})
    with pytest.raises(ModelLoadError, match=name):
        load_model(folder, device="cpu")


def test_the_bias_of_a_gate_is_applied(tmp_path):
    folder = tiny.save_published(tmp_path)
    sequences = tiny.sequences(4)
    before = load_model(folder, device="cpu")
    bias = torch.tensor([2.0, -1.0, 0.5])
    change(folder, add={"prompt_head.bias": bias})
    model = load_model(folder, device="cpu")
    hidden = torch.stack([model.network.last_hidden(torch.tensor([one]))[0, [0, -1]] for one in sequences])
    weight = load_file(folder / "model.safetensors")["prompt_head.weight"]
    expected = torch.softmax(hidden[:, 0] @ weight.T + bias, -1)
    torch.testing.assert_close(model.gate_scales(hidden), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before.gate_scales(hidden), expected, atol=1e-3)
    assert model.identity != before.identity


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "bert", "roberta"])
def test_a_config_without_labels_has_as_many_as_the_head_has_rows(tmp_path, model_type, rows):
    theirs = classifier(tmp_path, model_type, rows)
    unlabelled(tmp_path)
    sequences = [[2, *one] for one in tiny.sequences(3)]
    for kind in ("auto", "bradley-terry" if rows == 1 else "regression"):
        model = load_model(tmp_path, device="cpu", kind=kind)
        assert model.kind == ("bradley-terry" if rows == 1 else "regression")
        vectors = model.embed(sequences, [1] * 3)
        torch.testing.assert_close(vectors, own_logits(theirs, sequences), atol=1e-4, rtol=1e-4)


HEADS = ["v_head.summary", "v_head", "score", "regression_head", "reward_head"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_a_value_head_of_a_causal_lm_is_its_reward(tmp_path, name, bias):
    theirs = tiny.save_output_row(tmp_path)
    draw = torch.Generator().manual_seed(1)
    head = {f"{name}.weight": torch.randn(1, 32, generator=draw)}
    if bias:
        head[f"{name}.bias"] = torch.randn(1, generator=draw)
    change(tmp_path, add=head)
    sequences = tiny.sequences(4)
    with torch.no_grad():
        hidden = torch.stack([theirs.model(torch.tensor([one])).last_hidden_state[0, -1] for one in sequences])
    expected = hidden @ head[f"{name}.weight"].T + head.get(f"{name}.bias", 0.0)
    model = load_model(tmp_path, device="cpu")
    assert (model.kind, model.spec.final_eos, model.spec.temperature) == ("bradley-terry", False, 1.0)
    torch.testing.assert_close(model.embed(sequences, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelLoadError, match=rf"has a head of its own, {name}\.weight: leave head='lm-head-row-0' out"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")


@pytest.mark.parametrize("file", ["value_head.safetensors", "value_head.bin"])
def test_a_value_head_in_a_file_of_its_own_is_read(tmp_path, file):
    theirs = tiny.save_output_row(tmp_path)
    head = {"v_head.summary.weight": torch.linspace(-1, 1, 32)[None], "v_head.summary.bias": torch.ones(1)}
    if file.endswith(".bin"):
        torch.save(head, tmp_path / file)
    else:
        save_file(head, tmp_path / file)
    sequence = tiny.sequences(1)
    with torch.no_grad():
        hidden = theirs.model(torch.tensor(sequence)).last_hidden_state[:, -1]
    expected = hidden @ head["v_head.summary.weight"].T + 1
    torch.testing.assert_close(load_model(tmp_path, device="cpu").embed(sequence, [1]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["config", "tensors"])
def test_a_standardised_reward_has_its_mean_and_deviation_and_prefers_as_it_was_trained(tmp_path, where):
    folder = tiny.save_published(tmp_path, rows=1, gate=False)
    sequences = tiny.sequences(4)
    plain = load_model(folder, device="cpu")
    vectors = plain.embed(sequences, [1] * 4)
    if where == "config":
        change(folder, mean=0.5, std=2.0, normalize_reward=True)
    else:
        change(folder, add={"mean": torch.tensor([0.5]), "std": torch.tensor([2.0])})
    model = load_model(folder, device="cpu")
    standard = model.embed(sequences, [1] * 4)
    torch.testing.assert_close(standard, (vectors - 0.5) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.logit(standard[0], standard[1]), plain.logit(vectors[0], vectors[1]))
    assert model.identity != plain.identity


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_a_deviation_that_is_none_is_refused(tmp_path, std):
    folder = tiny.save_published(tmp_path, rows=1, gate=False)
    change(folder, mean=0.5, std=std)
    with pytest.raises(ModelLoadError, match=f"mean 0.5 and std {std}"):
        load_model(folder, device="cpu")


def deep(prefix, rows=1, *, norm=False, bias=True):
    """Return a head of two linear layers with a ReLU between them, and its tensors by the names of trainers."""
    torch.manual_seed(4)
    layers = [nn.LayerNorm(32)] if norm else []
    layers += [nn.Linear(32, 12, bias=bias), nn.ReLU(), nn.Linear(12, rows, bias=bias)]
    head = nn.Sequential(*layers)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head, {f"{prefix}.{name}": tensor for name, tensor in head.state_dict().items()}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("prefix", "norm"), [("score", False), ("v_head.summary", False), ("score", True)])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "INFORMForSequenceClassification"])
def test_a_published_head_of_two_layers_is_applied(tmp_path, architecture, prefix, norm, rows):
    theirs = tiny.save_output_row(tmp_path)
    head, tensors = deep(prefix, rows, norm=norm)
    change(tmp_path, add=tensors, drop=["lm_head.weight"], architectures=[architecture], num_labels=rows)
    sequences = tiny.sequences(4)
    with torch.no_grad():
        hidden = torch.stack([theirs.model(torch.tensor([one])).last_hidden_state[0, -1] for one in sequences])
        expected = head(hidden)
    model, remote = load_model(tmp_path, device="cpu"), load_model(tmp_path, elsewhere=True)
    assert model.kind == ("bradley-terry" if rows == 1 else "regression")
    torch.testing.assert_close(model.embed(sequences, [1] * 4), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(remote.represent(hidden[:, None]), expected, atol=1e-4, rtol=1e-4)
    again = load_model(save_model(tmp_path / "ours", model.network, model.spec, None), device="cpu")
    assert torch.equal(again.embed(sequences, [1] * 4), model.embed(sequences, [1] * 4))


def test_a_head_of_two_layers_is_standardised_in_its_last(tmp_path):
    theirs = tiny.save_output_row(tmp_path)
    head, tensors = deep("score", bias=False)
    change(tmp_path, add=tensors, mean=0.5, std=2.0)
    sequence = tiny.sequences(1)
    with torch.no_grad():
        hidden = theirs.model(torch.tensor(sequence)).last_hidden_state[:, -1]
        expected = (head(hidden) - 0.5) / 2
    torch.testing.assert_close(load_model(tmp_path, device="cpu").embed(sequence, [1]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"value_head.0": (12, 32), "value_head.2": (1, 12)}, r"value_head\.0\.weight .*no file says which activation"),
        ({"score.0": (12, 32), "score.1": (1, 12)}, r"score\.1\.weight of shape \[1, 12\].*form that is not known"),
        ({"score.0": (12, 32), "score.3": (1, 12)}, r"score\.3\.weight"),
        ({"score.1": (1, 32)}, r"score\.1\.weight"),
        ({"score.0": (32,), "score.1": (1, 32)}, r"score\.0\.weight of shape \[32\]"),
        ({"score.0": (12, 32), "score.2": (1, 11)}, r"score\.2\.weight of shape \[1, 11\]"),
        ({"score.0": (12, 31), "score.2": (1, 12)}, r"goes from 31 numbers to 1; here it goes from 32 to 1"),
        ({"gating.layers.0": (4, 32), "regression_layer": (19, 32)}, "reward_transform_matrix is missing"),
    ],
)
def test_a_head_of_a_form_that_its_tensors_do_not_tell_is_refused_by_name(tmp_path, shapes, reason):
    tiny.save_output_row(tmp_path)
    change(tmp_path, add={f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(ModelLoadError, match=reason):
        load_model(tmp_path, device="cpu")


def test_two_heads_are_refused_by_name(tmp_path):
    tiny.save_output_row(tmp_path)
    change(tmp_path, add={"v_head.weight": torch.ones(1, 32), "score.weight": torch.ones(1, 32)})
    with pytest.raises(ModelLoadError, match=r"several heads \(score\.weight, v_head\.weight\)"):
        load_model(tmp_path, device="cpu")


def test_a_head_that_nothing_knows_is_named_and_no_row_is_recommended(tmp_path):
    tiny.save_output_row(tmp_path)
    change(tmp_path, add={"my_judge.0.weight": torch.ones(1, 32)})
    with pytest.raises(ModelLoadError, match=r"my_judge\.0\.weight") as refusal:
        load_model(tmp_path, device="cpu")
    assert "lm-head-row-0" not in str(refusal.value)
    with pytest.raises(ModelLoadError, match=r"my_judge\.0\.weight"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")


def test_no_row_is_recommended_where_it_could_not_be_read(tmp_path):
    tiny.save_output_row(tmp_path, tied=True)
    with pytest.raises(ModelLoadError, match="without a value head") as refusal:
        load_model(tmp_path, device="cpu")
    assert "lm-head-row-0" not in str(refusal.value)


def test_a_reward_at_a_token_of_its_own_is_refused(tmp_path):
    tiny.save_output_row(tmp_path)
    change(tmp_path, add={"v_head.weight": torch.ones(1, 32)}, reward_token_id=7)
    with pytest.raises(ModelLoadError, match="reward_token_id 7"):
        load_model(tmp_path, device="cpu")


def test_hidden_states_of_another_width_than_the_layers_are_read(tmp_path):
    theirs = classifier(tmp_path, "opt", **WIDE)
    sequences = tiny.sequences(4)
    model = load_model(tmp_path, device="cpu")
    assert model.network.head.value_head.in_features == 16
    torch.testing.assert_close(model.embed(sequences, [1] * 4), own_logits(theirs, sequences), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "bert", "roberta"])
def test_a_head_is_that_of_the_files_whatever_the_backbone_computes_in(tmp_path, model_type):
    classifier(tmp_path, model_type)
    exact, half = (load_model(tmp_path, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert exact.identity == half.identity
    for name, tensor in exact.network.head.state_dict().items():
        assert torch.equal(half.network.head.state_dict()[name], tensor), name
