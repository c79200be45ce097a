"""ArmoRM, QRM, URM and LDL-Reward: held against their published formulas, written here on plain states."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from tests.models import tiny
from tests.models.files.families.checkpoints import PROMPT, RESPONSES, backbone, ids, save, states

ATTRIBUTES, QUANTILES, INNER = 4, 3, 8
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"


def linear(out, into):
    return {"weight": torch.randn(out, into), "bias": torch.randn(out)}


def norm(size):
    values = {name: torch.randn(size) for name in ("weight", "bias", "running_mean")}
    return values | {"running_var": torch.rand(size) + 0.5, "num_batches_tracked": torch.tensor(7)}


def heads(quantiles: int) -> dict[str, torch.Tensor]:
    """The tensors of an ArmoRM (one number an attribute) or a QRM (several)."""
    torch.manual_seed(quantiles)
    if quantiles == 1:
        layers = {0: linear(INNER, tiny.HIDDEN), 1: linear(INNER, INNER), 2: linear(ATTRIBUTES, INNER)}
    else:
        layers = {0: linear(INNER, tiny.HIDDEN), 2: norm(INNER), 3: linear(INNER, INNER), 5: norm(INNER)}
        for number in (0, 3):
            del layers[number]["bias"]
        layers[6] = linear(ATTRIBUTES, INNER)
    return {
        "regression_layer.weight": torch.randn(ATTRIBUTES * quantiles, tiny.HIDDEN),
        "reward_transform_matrix": torch.eye(ATTRIBUTES) - 0.3 * torch.rand(ATTRIBUTES, ATTRIBUTES),
        "gating.logit_scale": torch.tensor([1.5]),
        **{f"gating.layers.{n}.{part}": tensor for n, layer in layers.items() for part, tensor in layer.items()},
    }


def gate_of(tensors, hidden, quantiles: int):
    """The gate's weights, layer by layer as each class applies them."""

    def layer(number, part="weight"):
        return tensors.get(f"gating.layers.{number}.{part}")

    if quantiles == 1:
        hidden = functional.relu(functional.linear(hidden, layer(0), layer(0, "bias")))
        hidden = functional.relu(functional.linear(hidden, layer(1), layer(1, "bias")))
        logits = functional.linear(hidden, layer(2), layer(2, "bias"))
    else:
        for number, after in ((0, 2), (3, 5)):
            hidden = functional.relu(functional.linear(hidden, layer(number)))
            mean, spread = layer(after, "running_mean"), (layer(after, "running_var") + 1e-5).sqrt()
            hidden = (hidden - mean) / spread * layer(after) + layer(after, "bias")
        logits = functional.linear(hidden, layer(6), layer(6, "bias"))
    return functional.softmax(logits / 5.0, dim=-1)


def gated(folder, quantiles: int, **config):
    bare, tensors = backbone(), heads(quantiles)
    config = {"num_objectives": ATTRIBUTES, "gating_temperature": 5.0, **config}
    if quantiles > 1:
        config["num_quantiles"] = quantiles
    auto = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    save(
        folder, bare, tensors, architecture="LlamaForRewardModelWithGating", template=TEMPLATE, auto_map=auto, **config
    )
    return bare, tensors


@pytest.mark.parametrize("quantiles", [1, QUANTILES])
def test_reward_ratings_and_quantiles_are_those_of_the_published_formulas(tmp_path, quantiles):
    bare, tensors = gated(tmp_path, quantiles)
    model = load_model(tmp_path, device="cpu")
    assert (model.kind, model.spec.gate) == ("helpsteer", "attributes")
    scores = model.score(PROMPT, RESPONSES)
    for row, response in enumerate(RESPONSES):
        tokens = ids(tmp_path, PROMPT, response)
        hidden = states(bare, tokens)
        # The last end of a turn that an assistant's header follows, as the publishers search it.
        end, header = (tiny.MARKS.index(mark) for mark in ("<|im_end|>", "<|im_start|>"))
        place = max(place for place in range(len(tokens) - 1) if tokens[place : place + 2] == [end, header])
        weights = 1.5 * gate_of(tensors, hidden[place], quantiles)
        raw = (tensors["regression_layer.weight"] @ hidden[-1]).reshape(ATTRIBUTES, quantiles)
        adjusted = tensors["reward_transform_matrix"].T @ raw
        own = scores.representations[row]
        torch.testing.assert_close(own[0], weights @ adjusted.mean(1), atol=1e-4, rtol=1e-4)
        expected = raw[:, 0] if quantiles == 1 else adjusted.mean(1)
        torch.testing.assert_close(own[1 : 1 + ATTRIBUTES], expected, atol=1e-4, rtol=1e-4)
        if quantiles > 1:
            torch.testing.assert_close(own[1 + ATTRIBUTES :], weights @ adjusted, atol=1e-4, rtol=1e-4)
            assert list(scores.attributes)[-3:] == ["quantile_0.25", "quantile_0.5", "quantile_0.75"]
    difference = float(scores.rewards[0] - scores.rewards[1])
    assert scores.probabilities[0, 1] == pytest.approx(1 / (1 + torch.tensor(-difference).exp().item()), abs=1e-6)


def test_a_gate_gives_one_weight_an_attribute(tmp_path):
    bare, tensors = gated(tmp_path, 1)
    model = load_model(tmp_path, device="cpu")
    hidden = torch.stack([states(bare, one)[[1, -1]] for one in tiny.sequences(2)])
    expected = gate_of(tensors, hidden[:, 0], 1)
    torch.testing.assert_close(model.gate_scales(hidden), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"must be \[n, 2, H\]"):
        model.gate_scales(hidden[:, :1])


def test_attributes_have_the_names_of_the_labels_or_the_published_ones(tmp_path):
    names = {str(row): f"quality {row}" for row in range(ATTRIBUTES)}
    gated(tmp_path, 1, id2label=names)
    assert load_model(tmp_path, device="cpu").spec.attributes == tuple(names.values())
    gated(tmp_path, 1)
    assert load_model(tmp_path, device="cpu").spec.attributes == tuple(f"objective_{row}" for row in range(ATTRIBUTES))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"regression_layer.weight": torch.ones(ATTRIBUTES + 1, tiny.HIDDEN)}, r"regression_layer.weight has shape"),
        ({"reward_transform_matrix": None}, "reward_transform_matrix is missing"),
        ({"gating.logit_scale": None}, "logit_scale is missing"),
        ({"gating.layers.1.bias": torch.ones(2)}, "no gate of a form that is known"),
        ({"gating.layers.1.weight": None}, "no gate of a form that is known"),
        ({"gating.layers.2.extra": torch.ones(2)}, "no gate of a form that is known"),
        ({"score.weight": torch.ones(1, tiny.HIDDEN)}, "gives no place to .*score.weight"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(tmp_path, change, reason):
    gated(tmp_path, 1)
    path = tmp_path / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=reason):
        load_model(tmp_path, device="cpu")


def of_gemma(folder, **config):
    """A QRM of Gemma 2: no matrix, and a dropout behind every norm but the last."""
    torch.manual_seed(5)
    bare = backbone("gemma2", attn_logit_softcapping=5.0, sliding_window=8)
    layers = {0: linear(INNER, tiny.HIDDEN), 2: norm(INNER), 4: linear(INNER, INNER), 6: norm(INNER)}
    layers |= {8: linear(INNER, INNER), 10: norm(INNER), 11: linear(5, INNER)}
    for number in (0, 4, 8):
        del layers[number]["bias"]
    tensors = {
        "regression_layer.weight": torch.randn(5 * 19, tiny.HIDDEN),
        "gating.logit_scale": torch.tensor([1.3]),
        **{f"gating.layers.{n}.{part}": tensor for n, layer in layers.items() for part, tensor in layer.items()},
    }
    save(folder, bare, tensors, architecture="Gemma2ForSequenceClassification", template=tiny.CHATML, **config)
    return bare, tensors


def test_qrm_of_gemma_2_reads_its_gate_where_the_turn_ends_and_not_at_the_line_break(tmp_path):
    bare, tensors = of_gemma(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert (model.spec.gate_distance, len(model.spec.attributes)) == (2, 5 + 19)
    assert model.spec.attributes[:2] == ("helpsteer-helpfulness", "helpsteer-correctness")
    scores = model.score(PROMPT, RESPONSES)
    for row, response in enumerate(RESPONSES):
        tokens = ids(tmp_path, PROMPT, response)
        hidden = states(bare, tokens)
        place = tokens.index(tiny.MARKS.index("<|im_end|>"))  # the first one: the user's
        gate = hidden[place]
        for number in (0, 4, 8):
            gate = functional.relu(tensors[f"gating.layers.{number}.weight"] @ gate)
            mean, var, weight, bias = (
                tensors[f"gating.layers.{number + 2}.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            gate = (gate - mean) / (var + 1e-5).sqrt() * weight + bias
        gate = functional.linear(gate, tensors["gating.layers.11.weight"], tensors["gating.layers.11.bias"])
        weights = 1.3 * functional.softmax(gate, dim=-1)  # no temperature of its own
        raw = (tensors["regression_layer.weight"] @ hidden[-1]).reshape(5, 19)
        own = scores.representations[row]
        torch.testing.assert_close(own[0], weights @ raw.mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own[1:6], raw.mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own[6:], weights @ raw, atol=1e-4, rtol=1e-4)


def test_a_template_that_ends_a_turn_in_another_way_is_refused_for_gemma(tmp_path):
    of_gemma(tmp_path)
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    tiny.make_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="no special token 2 tokens before the end of a user's turn"):
        load_model(tmp_path, device="cpu")


def test_the_matrix_of_llamas_layout_beside_gemmas_is_left_over(tmp_path):
    of_gemma(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path) | {"reward_transform_matrix": torch.eye(5)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"gives no place to .*reward_transform_matrix"):
        load_model(tmp_path, device="cpu")


def urm(folder, *, without: str = "", attributes: int = 5):
    torch.manual_seed(6)
    bare, size = backbone(), tiny.HIDDEN
    layers = {0: linear(size, size), 2: linear(size, size), 4: linear(attributes, size)}
    heads = {f"weights.fc.{n}.{part}": tensor * 0.3 for n, layer in layers.items() for part, tensor in layer.items()}
    heads["score.weight"] = torch.randn(2 * attributes, size) * 0.3
    heads = {name: tensor for name, tensor in heads.items() if not (without and name.startswith(without))}
    architecture = "LlamaForSequenceClassificationWithNormal_Weights"
    save(folder, bare, heads, architecture=architecture, template=TEMPLATE)
    return bare, heads


def test_urm_weighs_the_means_by_the_last_token_and_tells_how_sure_they_are(tmp_path):
    bare, tensors = urm(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert (model.kind, model.spec.gate, model.spec.dimension) == ("helpsteer", "none", 11)
    assert model.spec.attributes[5] == "helpsteer-helpfulness_deviation"
    scores = model.score(PROMPT, RESPONSES)
    for row, response in enumerate(RESPONSES):
        state = states(bare, ids(tmp_path, PROMPT, response))[-1]
        weights = state
        for number in (0, 2, 4):
            weight, bias = (tensors[f"weights.fc.{number}.{part}"] for part in ("weight", "bias"))
            weights = functional.linear(functional.selu(weights) if number else weights, weight, bias)
        values = tensors["score.weight"] @ state
        own = scores.representations[row]
        torch.testing.assert_close(own[0], weights @ values[0::2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own[1:6], values[0::2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own[6:], values[1::2].exp(), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no gate that reads the prompt alone"):
        model.gate_scales(torch.zeros(1, 1, tiny.HIDDEN))


@pytest.mark.parametrize("without", ["weights.fc", "weights.fc.2.bias", "score"])
def test_an_urm_that_is_not_whole_is_refused(tmp_path, without):
    urm(tmp_path, without=without)
    with pytest.raises(ModelLoadError, match=rf"{without}.* is missing; a reward of weighed normal distributions"):
        load_model(tmp_path, device="cpu")


def ldl(folder, **config):
    """An LDL-Reward: a bare backbone, and two heads of their own in pickles of tensors."""
    torch.manual_seed(8)
    bare = backbone("gemma2", attn_logit_softcapping=5.0, sliding_window=8)
    rated = {0: linear(24, tiny.HIDDEN), 2: linear(24, 24), 4: linear(ATTRIBUTES * 10, 24)}
    weighed = {0: linear(24, tiny.HIDDEN), 3: linear(24, 24), 6: linear(ATTRIBUTES, 24)}
    for name, layers in (("regression_layer.pt", rated), ("gating_layer.pt", weighed)):
        tensors = {f"network.{n}.{part}": 0.3 * tensor for n, one in layers.items() for part, tensor in one.items()}
        torch.save(tensors, folder / name)
    stated = {"architecture": "LDLRewardModel27B", "template": TEMPLATE, "num_objectives": ATTRIBUTES * 10, **config}
    save(folder, bare, {}, prefix="", **stated)
    return bare


def stack(folder, name, state, step):
    """A head's numbers, layer by layer."""
    tensors = torch.load(folder / name, weights_only=True)
    for number in range(0, 3 * step, step):
        weight, bias = tensors[f"network.{number}.weight"], tensors[f"network.{number}.bias"]
        state = functional.linear(functional.leaky_relu(state) if number else state, weight, bias)
    return state


@pytest.mark.parametrize("config", [{}, {"softmax": True, "temperature": 2.0}])
def test_ldl_weighs_the_means_of_distributions_over_bins(tmp_path, config):
    bare = ldl(tmp_path, **config)
    scores = load_model(tmp_path, device="cpu").score(PROMPT, RESPONSES)
    assert list(scores.attributes) == [f"objective_{row}" for row in range(ATTRIBUTES)]
    for row, response in enumerate(RESPONSES):
        state = states(bare, ids(tmp_path, PROMPT, response))[-1]
        weights = stack(tmp_path, "gating_layer.pt", state, 3)
        weights = functional.softmax(weights / 2.0, dim=-1) if config else weights
        shares = functional.softmax(stack(tmp_path, "regression_layer.pt", state, 2).view(ATTRIBUTES, 10), dim=-1)
        # As published: the distributions are mixed first, and the mixture's mean is the reward.
        reward = ((weights @ shares) * torch.linspace(0, 1, 10)).sum()
        own = scores.representations[row]
        torch.testing.assert_close(own[0], reward, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own[1:], (shares * torch.linspace(0, 1, 10)).sum(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gating_layer.pt", None, "has no gating_layer.pt"),
        ("regression_layer.pt", None, "has no regression_layer.pt"),
        ("gating_layer.pt", {"network.1.weight": torch.ones(2, 2)}, "known are linear layers network.0, network.3, …"),
        ("regression_layer.pt", {"network.0.weight": torch.ones(24, 5)}, "from 32 numbers on"),
        ("regression_layer.pt", {"network.4.bias": torch.ones(7)}, "known are linear layers"),
        (
            "gating_layer.pt",
            {"network.6.weight": torch.ones(3, 24), "network.6.bias": torch.ones(3)},
            "and gating_layer.pt 3",
        ),
        ("gating_layer.pt", {"network.0.bias": torch.full((24,), torch.nan)}, "NaN or infinity"),
    ],
)
def test_an_ldl_that_is_not_whole_is_refused(tmp_path, name, change, reason):
    ldl(tmp_path)
    identity = load_model(tmp_path, device="cpu").identity
    path = tmp_path / name
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, "network.0.weight": tensors["network.0.weight"] * 2}, path)
    assert load_model(tmp_path, device="cpu").identity != identity, "the heads are part of it"
    if change is None:
        path.unlink()
    else:
        torch.save({**tensors, **change}, path)
    with pytest.raises(ModelLoadError, match=reason):
        load_model(tmp_path, device="cpu")


def test_a_gate_distance_is_part_of_the_identity_and_of_the_rules(tmp_path):
    of_gemma(tmp_path)
    spec = load_model(tmp_path, device="cpu").spec
    assert replace(spec, gate_distance=None).identity("w", "t") != spec.identity("w", "t")
    assert json.loads(spec.to_json())["gate_distance"] == 2
    for bad in ({"gate": "none"}, {"gate_distance": 0}):
        with pytest.raises(ModelLoadError, match="gate_distance is"):
            replace(spec, **bad)


def test_a_gate_of_another_backbone_is_refused(tmp_path):
    save(tmp_path, backbone("qwen2"), heads(1), architecture="X", num_objectives=ATTRIBUTES)
    with pytest.raises(ModelLoadError, match="gated qwen2 model, whose gate reads a token that is not known here"):
        load_model(tmp_path, device="cpu")
