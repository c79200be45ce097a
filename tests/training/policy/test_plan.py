"""The dry run's bytes against those that a real pass saves, and how they fall with the number of processes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paragone_models.packing.segments import segments_attention
from paragone_training.policy.model.logprobs import ResponseLogprobs, packed_row, padded_sequences
from paragone_training.policy.plan import _saved_bytes_packed, describe_plan, plan_memory
from paragone_training.saved_activations import meta_attention, saved_bytes
from tests.training.policy.tiny_policy import recipe


def config(*, key_heads=2):
    return AutoConfig.for_model(
        "qwen3", hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=key_heads, head_dim=16, max_position_embeddings=256, vocab_size=500, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip


def really_saved(model, items, *, packed=False):
    """Return the bytes that a pass on the CPU holds when its backward pass begins, all but weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    network = ResponseLogprobs(model, chunk_tokens=64, attend=segments_attention() if packed else None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), network.packing():
        network(packed_row(items) if packed else padded_sequences(items, 0))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("tokens", [32, 128])
def test_the_activations_of_a_dry_run_are_those_of_a_real_pass_within_three_percent(key_heads, tokens):
    shape = config(key_heads=key_heads)
    # One padded row: without any, no mask is made at all.
    items = [([5] * (tokens // 2), [6] * (tokens // 2))] * 5 + [([5], [6])]
    real = really_saved(AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa"), items)
    with torch.device("meta"):
        dry = AutoModelForCausalLM.from_config(shape, attn_implementation=meta_attention("sdpa"))
    assert saved_bytes(dry, sequences=6, tokens=tokens) == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize(("tokens", "prompt"), [(32, 16), (128, 16), (128, 100)])
def test_so_are_those_of_a_packed_pass(key_heads, tokens, prompt):
    shape = config(key_heads=key_heads)
    items = [([number] * prompt, [number + side] * (tokens - prompt)) for side in (100, 200) for number in range(3)]
    real = really_saved(AutoModelForCausalLM.from_config(shape), items, packed=True)
    with torch.device("meta"):
        dry = AutoModelForCausalLM.from_config(shape)
    assert _saved_bytes_packed(dry, pairs=3, tokens=tokens, prompt=prompt) == pytest.approx(real, rel=0.03)


def planned(shards=1, tokens=128, prompt=32, **changes):
    made = recipe("inpo", "unused", "unused", **changes)
    return plan_memory(made, config(), tokens=tokens, prompt=prompt, shards=shards)


def test_processes_that_share_the_model_hold_their_part_of_weights_gradients_and_optimiser():
    one, eight = planned(), planned(shards=8)
    for part in ("weights", "gradients", "optimiser"):
        assert getattr(eight, part) == getattr(one, part) // 8
    assert one.weights == one.gradients == one.model_weights * 4
    assert one.optimiser == 2 * one.weights
    assert (one.gathered, eight.activations, eight.logits) == (0, one.activations, one.logits)
    assert eight.gathered > 500 * 64 * 2 * 4  # embeddings and head, for one
    assert eight.total < one.total


def test_knobs_that_save_memory_do_so_in_the_plan():
    plain = planned()
    assert planned(training__gradient_checkpointing=True).activations < 0.5 * plain.activations
    assert planned(training__bf16=True).activations < 0.7 * plain.activations
    assert planned(training__optimiser="rmsprop").optimiser == plain.optimiser // 2
    assert planned(training__chunk_tokens=512).logits == plain.logits // 2
    assert planned(lora={"rank": 2}).gradients < 0.1 * plain.gradients
    padded = planned(training__batching="padded")
    assert plain.activations < padded.activations
    assert planned(training__batching="padded", policy__attention="flash_attention_2").activations < padded.activations


def test_a_plan_says_how_passes_are_made():
    plain, padded = planned(), planned(training__batching="padded")
    assert (plain.rows, plain.padded) == (2 * (32 + 2 * 96), None)  # two pairs a pass, each with its prompt once
    assert (padded.rows, padded.padded) == (2 * 2 * 128, "training.batching is 'padded'")


def test_the_plan_has_a_line_of_memory_for_every_number_of_processes(policy_folder, prompts_file):
    said = describe_plan(recipe("inpo", policy_folder, prompts_file), ranks=[1, 8])
    lines = [line for line in said.splitlines() if line.startswith("memory of")]
    assert [line.split(",")[0] for line in lines] == ["memory of one process", "memory of each of 8 processes (FSDP2)"]
    assert "gathered layers" in lines[1]
    assert "gathered layers" not in lines[0]
