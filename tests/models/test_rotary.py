"""Rotary angles that depend on a pass's length: a text has the numbers that transformers gives it alone."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from paragone_models.errors import ModelLoadError
from paragone_models.files.loading import load_model
from paragone_models.files.saving import read_refusal
from paragone_models.forward import LocalForward
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.rotary import angles_of, depending_on_length, positions_of
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem, read_plan
from tests.models import tiny
from tests.models.files.test_formats import classifier

SWITCH = 24
FAMILIES = ["cohere", "gemma2", "glm", "glm4", "gpt_neox", "granite", "llama", "mistral", "mixtral", "nemotron"]
FAMILIES += ["olmo2", "persimmon", "phi", "qwen2", "qwen2_moe", "qwen3", "seed_oss", "smollm3", "stablelm"]
LAYERED = ["gemma3_text", "olmo3"]
"""Families with a set of angles for each type of layer."""
SWITCHED = ["phi3", "phimoe"]
"""Families whose configuration takes no other scaling than LongRoPE."""
CASES = [(family, name) for family in (*FAMILIES, *LAYERED) for name in ("longrope", "dynamic")]
CASES += [(family, "longrope") for family in SWITCHED]

# Lengths on both sides of the switch, at it, the same twice, and a short one after the longest.
LENGTHS = [5, 60, SWITCH, SWITCH + 1, 9, 40, 60, 12]


def scaling(name: str, half: int) -> dict:
    """Return the rope parameters of a scaling that depends on length, for heads of which 2 * half numbers rotate."""
    if name == "longrope":
        factors = {"short_factor": [1.0] * half, "long_factor": [3.0 + place for place in range(half)]}
        phimoe = {"short_mscale": 1.1, "long_mscale": 1.3}
        return {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, **factors, **phimoe} | {
            "original_max_position_embeddings": SWITCH
        }
    return {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def config_of(family: str, name: str):
    """Return the configuration of a tiny copy of a family."""
    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "num_local_experts": 2}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.3}
    # Half a head rotates in some families: asked with factors of a whole head, and then made to fit.
    positions = SWITCH if name == "dynamic" else 4 * SWITCH
    values = {**sizes, "max_position_embeddings": positions, "original_max_position_embeddings": SWITCH}
    plain = AutoConfig.for_model(family, **values)
    parameters = plain.rope_parameters
    if family in LAYERED:
        scaled = {layer: {**scaling(name, 8), "partial_rotary_factor": 1.0} for layer in set(plain.layer_types)}
        return AutoConfig.for_model(family, **values, rope_parameters=scaled)
    partial = parameters.get("partial_rotary_factor", 1.0)
    scaled = {**scaling(name, int(8 * partial)), "partial_rotary_factor": partial}
    return AutoConfig.for_model(family, **values, rope_parameters=scaled)


def network_of(config) -> PreferenceNetwork:
    torch.manual_seed(2)
    spec = ModelSpec(kind="bradley-terry", dimension=1, max_length=96)
    backbone = AutoModel.from_config(config).eval()
    return PreferenceNetwork(backbone, RepresentationHead(32, spec)).eval()


def items_of(lengths) -> list[EncodeItem]:
    draw = torch.Generator().manual_seed(4)
    spec = ModelSpec(kind="bradley-terry", dimension=1)
    sequences = [torch.randint(4, 200, (length,), generator=draw).tolist() for length in lengths]
    return [EncodeItem(one, read_plan(spec, 2, len(one)), 2) for one in sequences]


def alone(backbone, item: EncodeItem) -> torch.Tensor:
    """What transformers says of one text, in a model that has seen no other."""
    with torch.no_grad():
        return copy.deepcopy(backbone)(input_ids=torch.tensor([item.token_ids]), use_cache=False).last_hidden_state[
            0, -1
        ]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_text_has_its_own_numbers_whatever_shares_its_pass_or_came_before(family, name):
    network = network_of(config_of(family, name))
    assert depending_on_length(network.config) == [name]
    items = items_of(LENGTHS)
    expected = torch.stack([alone(network.backbone, item) for item in items])
    local = LocalForward(network, max_batch_tokens=4096)
    assert local.batching.startswith("padded")
    torch.testing.assert_close(local.encode(items)[:, -1], expected, atol=1e-4, rtol=1e-4)
    # A late sibling, after a long text has left its angles behind.
    for place in (1, 0, 2, 4):
        states = local.encode([items[place]])[0, -1]
        torch.testing.assert_close(states, expected[place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_a_batch_with_a_mask_is_split_by_angles_in_training_too(name):
    network = network_of(config_of("llama", name))
    items = items_of(LENGTHS)
    # Before the batch: it leaves the angles of its longest text behind.
    apart = [copy.deepcopy(network) for _ in items]
    expected = torch.cat(
        [
            one(torch.tensor([item.token_ids]), torch.tensor([item.reads]))
            for one, item in zip(apart, items, strict=True)
        ]
    )
    longest = max(LENGTHS)
    tokens = torch.zeros(len(items), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, item in enumerate(items):
        tokens[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
        mask[row, : len(item.token_ids)] = 1
    reads = torch.tensor([item.reads for item in items])
    rewards = network(tokens, reads, mask)
    torch.testing.assert_close(rewards, expected, atol=1e-4, rtol=1e-4)
    rewards.sum().backward()
    expected.sum().backward()
    for name, parameter in network.named_parameters():
        gradient = sum(one.get_parameter(name).grad for one in apart)
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3)


def test_a_loaded_classifier_gives_a_short_response_beside_a_long_one_its_own_reward(tmp_path):
    theirs = classifier(tmp_path, "llama", max_position_embeddings=96, rope_parameters=scaling("longrope", 8))
    draw = torch.Generator().manual_seed(4)
    sequences = [torch.randint(4, 400, (length,), generator=draw).tolist() for length in LENGTHS]
    with torch.no_grad():
        expected = torch.cat([theirs(input_ids=torch.tensor([one])).logits for one in sequences])
    model = load_model(tmp_path, device="cpu")
    torch.testing.assert_close(model.embed(sequences, [2] * len(sequences)), expected, atol=1e-4, rtol=1e-4)


def test_lengths_share_angles_up_to_the_switch_and_apart_beyond_it_under_dynamic_ntk():
    longrope, dynamic = config_of("llama", "longrope"), config_of("llama", "dynamic")
    assert angles_of(longrope, 3) == angles_of(longrope, SWITCH) != angles_of(longrope, SWITCH + 1)
    assert angles_of(longrope, SWITCH + 1) == angles_of(longrope, 96)
    assert angles_of(dynamic, 3) == angles_of(dynamic, SWITCH) != angles_of(dynamic, SWITCH + 1)
    assert angles_of(dynamic, SWITCH + 1) != angles_of(dynamic, SWITCH + 2)


def test_a_configuration_without_such_angles_says_so():
    assert depending_on_length(tiny.llama_config()) == []
    linear = tiny.llama_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    assert depending_on_length(linear) == []


@pytest.mark.parametrize(
    ("parameters", "positions"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        # The file's own length is the stretched one already.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_scaled_positions_reach_as_far_as_their_factor(parameters, positions):
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if parameters["rope_type"] == "llama3" else {}
    config = tiny.llama_config(rope_parameters={"rope_theta": 1e4, **parameters, **llama3})
    assert positions_of(config) == positions


def test_a_longer_conversation_than_the_scaled_positions_is_refused_by_the_number(tmp_path):
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    classifier(tmp_path, "llama", max_position_embeddings=64, rope_parameters=scaled)
    assert load_model(tmp_path, device="cpu").spec.max_length == 128
    with pytest.raises(ModelLoadError, match="the backbone has positions for 128 tokens"):
        load_model(tmp_path, device="cpu", max_length=129)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_a_server_with_one_set_of_angles_does_not_run_such_a_backbone(name):
    network = network_of(config_of("llama", name))
    refusal = read_refusal(network, network.head.spec, first_token=False)
    assert name in (refusal or "")
