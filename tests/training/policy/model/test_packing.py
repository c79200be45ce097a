"""Packed passes against padded ones: log-probabilities, gradients, whole steps; who is padded all the same, and why."""

import itertools
import logging
import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paragone_models.packing.backend import PACKED
from paragone_models.packing.gpu import flex_attention
from paragone_models.packing.segments import segments_attention
from paragone_training.adapters import recompute_activations
from paragone_training.policy.gradient import train_step
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model import logprobs
from paragone_training.policy.model.logprobs import (
    ResponseLogprobs,
    _choose_attention,
    _packed_attention,
    frozen_logprobs,
    packed_row,
    padded_sequences,
    response_logprobs,
    unpacked,
)
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.passes import PairPasses
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair, read_json_file
from paragone_training.settings import LoraSection
from tests.models.packs import SHAPE, SPECIAL, VOCABULARY, reference_flex

FAMILY = ["llama", "mistral", "qwen2", "qwen3"]
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def causal(model_type, **changes):
    """Return a small policy with weights large enough that what a token attends to matters."""
    config = AutoConfig.for_model(model_type, **{**SHAPE, **SPECIAL.get(model_type, {}), **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
            if parameter.dim() == 1 and "gemma" not in model_type:
                parameter.add_(1.0)
    return model


def items_of(seed):
    """Return prompts and responses: few prompts, some with one beginning, responses that repeat, and empty ones."""
    chance = random.Random(seed)

    def draw(shortest, longest):
        return [chance.randrange(VOCABULARY) for _ in range(chance.randint(shortest, longest))]

    stem = draw(1, 40)
    prompts = [stem + draw(1, 50), stem + draw(1, 3), draw(1, 30)]
    items = [(chance.choice(prompts), draw(0, 40)) for _ in range(9)]
    return [*items, items[0], (prompts[0], []), (items[1][0], [*items[1][1], 5])]


def sums_and_gradients(network, items, *, alone):
    """Return log-probabilities and the gradients of a weighted sum of them, padded one by one or packed together."""
    weights = torch.linspace(-1, 2, len(items))
    network.zero_grad()
    if alone:
        found = torch.cat([network(padded_sequences([item], 0)) for item in items])
        (found * weights).sum().backward()
    else:
        with network.packing():
            found = network(packed_row(items))
            (found * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.requires_grad}
    return found.detach(), gradients


def assert_equal_gradients(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        error = (gradient - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-4, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("model_type", [*FAMILY, "gemma2", "gemma3_text", "qwen3_moe"])
def test_packed_logprobs_and_gradients_are_those_of_each_sequence_alone(model_type):
    network = ResponseLogprobs(causal(model_type), chunk_tokens=7, attend=segments_attention())
    for seed in range(3):
        items = items_of(seed)
        mine, gradients = sums_and_gradients(network, items, alone=False)
        theirs, wanted = sums_and_gradients(network, items, alone=True)
        torch.testing.assert_close(mine, theirs, **ROUNDING)
        assert_equal_gradients(gradients, wanted)
        assert len(packed_row(items).layout.tokens) < sum(len(prompt) + len(response) for prompt, response in items)


@pytest.mark.parametrize("model_type", ["gemma2", "mistral", "qwen3"])
def test_the_gpus_attention_has_the_same_gradients(model_type):
    network = ResponseLogprobs(causal(model_type), chunk_tokens=1000, attend=flex_attention(reference_flex))
    items = items_of(1)
    mine, gradients = sums_and_gradients(network, items, alone=False)
    theirs, wanted = sums_and_gradients(network, items, alone=True)
    torch.testing.assert_close(mine, theirs, **ROUNDING)
    assert_equal_gradients(gradients, wanted)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_padded_passes_never_mix_texts_on_both_sides_of_a_rotary_switch(name):
    switch = 24
    ropes = {
        "longrope": {"short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0], "factor": 4.0},
        "dynamic": {"factor": 2.0},
    }
    scaling = {"rope_type": name, "rope_theta": 1e4, "original_max_position_embeddings": switch, **ropes[name]}
    positions = 4 * switch if name == "longrope" else switch
    heads = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    model = causal("llama", **heads, max_position_embeddings=positions, rope_parameters=scaling)
    network = ResponseLogprobs(model, chunk_tokens=1000)
    items = [(list(range(5, 9)), [7, 8]), (list(range(5, 50)), [3, 4, 5]), (list(range(9, 30)), [6, 7, 8]), ([5], [6])]
    weights = torch.linspace(-1, 2, len(items))
    (network(padded_sequences(items, 0)) * weights).sum().backward()
    gradients = {key: weight.grad.clone() for key, weight in network.named_parameters()}
    mine = network(padded_sequences(items, 0)).detach()
    # Each in a model that has seen no other: a long text leaves its angles behind.
    network.zero_grad()
    theirs = []
    for item, weight in zip(items, weights, strict=True):
        fresh = ResponseLogprobs(
            causal("llama", **heads, max_position_embeddings=positions, rope_parameters=scaling), chunk_tokens=1000
        )
        value = fresh(padded_sequences([item], 0))
        (value * weight).sum().backward()
        for (_, own), part in zip(network.named_parameters(), fresh.parameters(), strict=True):
            own.grad = part.grad if own.grad is None else own.grad + part.grad
        theirs.append(value.detach())
    torch.testing.assert_close(mine, torch.cat(theirs), **ROUNDING)
    assert_equal_gradients(gradients, {key: weight.grad for key, weight in network.named_parameters()})


def test_layers_that_run_again_in_the_backward_pass_attend_as_before():
    model = causal("qwen3")
    network = ResponseLogprobs(model, chunk_tokens=7, attend=segments_attention())
    wanted = sums_and_gradients(network, items_of(0), alone=True)
    recompute_activations(model)
    network.train()
    runs = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    mine = sums_and_gradients(network, items_of(0), alone=False)
    assert len(runs) == 4  # two layers, twice
    torch.testing.assert_close(mine[0], wanted[0], **ROUNDING)
    assert_equal_gradients(mine[1], wanted[1])


def test_a_packed_pass_with_gradients_outside_its_block_is_refused():
    network = ResponseLogprobs(causal("llama"), chunk_tokens=7, attend=segments_attention())
    with pytest.raises(RuntimeError, match="stand in one block"):
        network(packed_row(items_of(0)))
    with torch.no_grad():
        network(packed_row(items_of(0)))


def test_a_network_without_packed_attention_takes_padded_passes_alone():
    network = ResponseLogprobs(causal("llama"), chunk_tokens=7)
    with pytest.raises(ValueError, match="takes padded passes"):
        network(packed_row(items_of(0)))


def test_what_is_shared_is_in_the_row_once():
    prompt, other = list(range(20)), list(range(50, 60))
    row = packed_row([(prompt, [1, 2]), (prompt, [3]), (other, [4]), (prompt, [1, 2])])
    assert row.layout.tokens.tolist() == [*prompt, 1, 2, 3, *other, 4]
    assert row.layout.positions.tolist() == [*range(22), 20, *range(11)]
    assert row.reads.tolist() == [19, 20, 19, 32]
    assert row.targets.tolist() == [1, 2, 3, 4]
    assert row.owners.tolist() == [0, 0, 1, 2]
    assert row.places.tolist() == [0, 1, 2, 0]


def test_frozen_columns_do_not_depend_on_how_passes_are_made():
    model, items = causal("qwen3"), items_of(4)
    found = []
    for attend in (None, segments_attention()):
        network = ResponseLogprobs(model, chunk_tokens=7, attend=attend)
        found.append(frozen_logprobs(network, items, pad_id=0, batch=5))
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-4)


def pairs_of(count, seed=0):
    chance = random.Random(seed)
    prompts = [tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randint(2, 30))) for _ in range(count // 3)]
    pairs = []
    for number in range(count):
        won, lost = (tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, 25))) for _ in range(2))
        pairs.append(TrainingPair(prompts[number % len(prompts)], won, lost, (0.8, 0.0, 0.0, *[0.0] * 4)))
    return pairs


def test_pairs_of_one_prompt_share_a_pass_and_no_pair_changes_its_step():
    pairs = [replace(pair, targets=(float(n), *[0.0] * 6)) for n, pair in enumerate(pairs_of(48))]
    steps = []
    rows = []
    for packs in (False, True):
        passes = PairPasses(pairs, size=4, step=24, pad_id=0, seed=1, packed=packs)
        batches = [passes[index] for index in range(len(passes))]
        numbers = [[int(value) for value in batch["preference"]] for batch in batches]
        steps.append([sorted(itertools.chain(*numbers[first : first + 6])) for first in (0, 6)])
        rows.append(sum(len(batch["layout"].tokens) if packs else batch["input_ids"].numel() for batch in batches))
    assert steps[0] == steps[1]
    assert rows[1] < 0.6 * rows[0]


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpoints"])
@pytest.mark.parametrize("lora", [None, LoraSection(rank=2)], ids=["in-full", "adapters"])
def test_a_packed_step_ends_where_a_padded_one_does(tmp_path, policy_folder, lora, changes):
    ends = []
    for batching in ("padded", "packed"):
        policy = load_policy(str(policy_folder))
        training = PolicyTrainingSection(
            pairs_per_step=8, pairs_per_pass=4, learning_rate=1e-2, batching=batching, log_steps=1, **changes
        )
        pairs = with_columns(policy, training)
        method = method_of("inpo", eta=0.5, tau=0.1)
        folder = tmp_path / batching
        train_step(
            policy, pairs, folder, method=method, training=training, lora=lora, raw=False, dtype="float32", seed=0
        )
        start, lines = read_json_file(folder / "start.json"), read_json_file(folder / "history.json")
        assert start["noise_nats"] < 1e-3
        ends.append((policy.model.state_dict(), [start["loss"], *(line["raw_loss"] for line in lines)]))
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-3)
    before = load_policy(str(policy_folder)).model.state_dict()
    moved = sum(float((weight - before[name]).norm()) for name, weight in ends[0][0].items())
    apart = sum(float((weight - ends[1][0][name]).norm()) for name, weight in ends[0][0].items())
    assert moved > 0.1
    assert apart < 0.01 * moved


def with_columns(policy, training):
    """Return pairs with their log-probabilities under the policy itself."""
    pairs = pairs_of(24)
    items = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [
        (pair.prompt_ids, pair.rejected_ids) for pair in pairs
    ]
    network = response_logprobs(policy.model, training)
    assert network.packs == (training.batching == "packed")
    found = frozen_logprobs(network, items, pad_id=0, batch=8)
    columns = zip(found[:24], found[24:], strict=True)
    return [
        replace(pair, targets=(0.8, 0.0, 0.0, won, lost, won, lost))
        for pair, (won, lost) in zip(pairs, columns, strict=True)
    ]


@pytest.mark.parametrize("batching", ["auto", "packed"])
@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("gpt_neox", {}, "packing gpt_neox was never shown to be exact"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "length of the batch",
        ),
    ],
)
def test_what_cannot_be_packed_is_padded_and_the_log_says_why(model_type, changes, reason, batching, caplog):
    model = causal(model_type, **changes)
    logprobs._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="paragone_training"):
        assert _packed_attention(model, batching) is None
    assert reason in caplog.text
    assert _choose_attention(model, "padded") == "training.batching is 'padded'"


def test_every_family_passes_its_trial_with_windows_and_caps_and_keeps_its_mode():
    for model_type in sorted(PACKED):
        model = causal(model_type).train()
        assert not isinstance(_choose_attention(model, "packed"), str), model_type
        assert model.training
        assert all(weight.grad is None for weight in model.parameters())


def test_attention_that_is_wrong_in_states_or_only_in_gradients_is_seen_at_its_trial(monkeypatch):
    right = segments_attention()

    def unscaled(run, layer, query, key, value, rule):
        return right(run, layer, query, key, value, replace(rule, scale=2 * rule.scale))

    def detached(run, layer, query, key, value, rule):
        return right(run, layer, query, key.detach(), value, rule)

    def broken(*_):
        raise NotImplementedError("no such kernel")

    model = causal("qwen3")
    for attend, reason in (
        (unscaled, "its packed states are off by"),
        (detached, "its packed gradients are off by"),
        (broken, "packing failed with NotImplementedError: ['no such kernel']"),
    ):
        monkeypatch.setattr(logprobs, "segments_attention", lambda attend=attend: attend)
        assert _choose_attention(model, "auto").startswith(reason)


def test_on_a_gpu_packing_has_to_be_asked_for():
    config = causal("qwen3").config
    assert "training.batching = 'packed' asks for it" in unpacked(config, "auto", "cuda")
    assert unpacked(config, "packed", "cuda") is None
    assert unpacked(config, "packed", "mps") == "there is no packed attention for mps"
