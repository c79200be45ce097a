"""Packed passes against sequences run one by one, over random trees and every family."""

import copy
import dataclasses
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention as torch_flex
from torch.nn.attention.varlen import varlen_attn

from paragone_models.forward import LocalForward
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.packing import attention, backend, cpu
from paragone_models.packing.backend import PACKED, refusal, through_model
from paragone_models.packing.cpu import DecoderForward, attend_blocks
from paragone_models.packing.gpu import _Borders, flex_attention, varlen_attention
from paragone_models.packing.segments import segments_attention
from paragone_models.spec import ModelSpec
from tests.models import packs

ROUNDING = 1e-5
FAMILY = ["llama", "mistral", "qwen2", "qwen3"]
SPEC = ModelSpec(kind="bradley-terry", dimension=1)


@pytest.fixture(scope="module")
def decoders():
    return {model_type: packs.decoder(model_type) for model_type in sorted(PACKED)}


@pytest.mark.parametrize("model_type", sorted(PACKED))
def test_packed_passes_equal_one_by_one_for_every_family_that_is_packed(decoders, model_type):
    model = decoders[model_type]
    assert refusal(model.config) is None
    for seed in range(2):
        items = packs.random_items(seed)
        packer = packs.packer(through_model(model, attend_blocks))
        assert packs.error(packer.encode(items), packs.one_by_one(model, items)) < ROUNDING


@pytest.mark.parametrize("rows", [1, 7, 30])
@pytest.mark.parametrize("model_type", ["gemma2", "llama", "mistral", "starcoder2"])
def test_nodes_of_many_blocks_equal_one_by_one(decoders, model_type, rows, monkeypatch):
    monkeypatch.setattr(cpu, "_FEWEST", rows)
    monkeypatch.setattr(cpu, "_MOST", rows)
    model = decoders[model_type]
    items = packs.random_items(7)
    packer = packs.packer(through_model(model, attend_blocks), max_tokens=150, max_bytes=1 << 20)
    reference = packs.one_by_one(model, items)
    for _ in ("cold, in several passes", "from stored keys and values"):
        assert packs.error(packer.encode(items), reference) < ROUNDING


@pytest.mark.parametrize("model_type", sorted(PACKED))
def test_the_attention_with_gradients_equals_one_by_one_for_every_family(decoders, model_type):
    model = decoders[model_type]
    items = packs.random_items(7)
    packer = packs.packer(through_model(model, segments_attention()), max_tokens=150, max_bytes=1 << 20)
    reference = packs.one_by_one(model, items)
    for _ in ("cold, in several passes", "from stored keys and values"):
        assert packs.error(packer.encode(items), reference) < ROUNDING


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), model_type=st.sampled_from(FAMILY), max_tokens=st.sampled_from([23, 64, 4096]))
def test_the_written_out_decoder_equals_one_by_one_over_random_trees(seed, model_type, max_tokens):
    model = _decoder(model_type)
    items = packs.random_items(seed)
    packer = packs.packer(DecoderForward(model), max_tokens=max_tokens, max_bytes=1 << 20)
    reference = packs.one_by_one(model, items)
    for _ in ("cold", "from stored keys and values"):
        assert packs.error(packer.encode(items), reference) < ROUNDING


_MODELS: dict[str, object] = {}


def _decoder(model_type):
    if model_type not in _MODELS:
        _MODELS[model_type] = packs.decoder(model_type)
    return _MODELS[model_type]


@pytest.mark.parametrize("model_type", ["gemma2", "mistral", "qwen3"])
@pytest.mark.parametrize("max_tokens", [37, 4096])
def test_the_varlen_path_equals_one_by_one(decoders, model_type, max_tokens):
    model = decoders[model_type]
    items = packs.random_items(3)
    forward = through_model(model, varlen_attention(reference_kernel))
    packer = packs.packer(forward, max_tokens=max_tokens, max_bytes=1 << 20)
    if model_type == "gemma2":
        with pytest.raises(NotImplementedError, match="no cap"):
            packer.encode(items)
        return
    reference = packs.one_by_one(model, items)
    for _ in ("cold", "warm"):
        assert packs.error(packer.encode(items), reference) < ROUNDING


@pytest.mark.parametrize("model_type", ["gemma2", "mistral", "qwen3"])
def test_the_flex_path_equals_one_by_one(decoders, model_type):
    model = decoders[model_type]
    items = packs.siblings(40, [1, 20, 35])
    packer = packs.packer(through_model(model, flex_attention(packs.reference_flex)), max_tokens=96, max_bytes=1 << 20)
    reference = packs.one_by_one(model, items)
    for _ in ("cold, in two passes", "warm"):
        assert packs.error(packer.encode(items), reference) < ROUNDING


def test_torchs_own_kernels_take_the_arguments_that_are_given():
    expected = set(inspect.signature(packs.reference_flex).parameters)
    assert expected <= set(inspect.signature(torch_flex).parameters)
    known = set(inspect.signature(varlen_attn).parameters)
    assert "window_size" in known or "is_causal" in known
    assert list(inspect.signature(varlen_attn).parameters)[3:7] == ["cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_bfloat16_stays_near_float32():
    exact, coarse = packs.decoder("qwen3"), packs.decoder("qwen3").bfloat16()
    items = packs.random_items(5)
    reference = packs.one_by_one(exact, items)
    plain = packs.one_by_one(coarse, items)
    for forward in (DecoderForward(coarse), through_model(coarse, attend_blocks)):
        states = packs.packer(forward).encode(items)
        assert states.dtype == torch.float32
        assert (states - reference).norm() < 1.5 * (plain - reference).norm()


def test_a_cap_that_is_left_out_would_be_seen(decoders):
    model = decoders["gemma2"]

    def uncapped(run, layer, query, key, value, rule):
        return attend_blocks(run, layer, query, key, value, dataclasses.replace(rule, cap=None))

    items = backend._trial_items(model.config.vocab_size)
    trial = backend._trial(model, items)
    assert backend._disagreement(model, through_model(model, attend_blocks), items, trial) is None
    assert "off by" in backend._disagreement(model, through_model(model, uncapped), items, trial)


def test_a_window_that_is_left_out_would_be_seen(decoders):
    model = decoders["mistral"]
    items = packs.random_items(0)

    def unlimited(run, layer, query, key, value, rule):
        return attend_blocks(run, layer, query, key, value, dataclasses.replace(rule, window=None))

    states = packs.packer(through_model(model, unlimited)).encode(items)
    assert packs.error(states, packs.one_by_one(model, items)) > 100 * ROUNDING


def test_the_prompt_of_siblings_is_computed_once(decoders):
    items = packs.siblings(50, [10, 20, 30])
    packer = packs.packer(DecoderForward(decoders["llama"]))
    packer.encode(items)
    assert packer.executed_tokens == 50 + 10 + 20 + 30


def test_siblings_that_arrive_apart_share_their_prompt(decoders):
    model = decoders["llama"]
    items = packs.siblings(64, [10, 20, 30])
    packer = packs.packer(DecoderForward(model), max_bytes=1 << 20)
    states = torch.cat([packer.encode([item]) for item in items])
    assert packs.error(states, packs.one_by_one(model, items)) < ROUNDING
    assert packer.executed_tokens == 64 + 10 + 20 + 30
    assert packer.store.hits == 2


def test_a_group_over_the_budget_is_split_and_keeps_its_prompt(decoders):
    model = decoders["llama"]
    items = packs.siblings(64, [40] * 6)
    packer = packs.packer(DecoderForward(model), max_tokens=100, max_bytes=0)
    assert packs.error(packer.encode(items), packs.one_by_one(model, items)) < ROUNDING
    assert packer.executed_tokens == 64 + 6 * 40


def test_a_sequence_over_the_budget_runs_in_pieces(decoders):
    model = decoders["qwen3"]
    items = packs.siblings(10, [200])
    packer = packs.packer(DecoderForward(model), max_tokens=64)
    assert packs.error(packer.encode(items), packs.one_by_one(model, items)) < ROUNDING
    assert packer.executed_tokens == 210


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_deterministic_states_are_the_same_bits_in_every_batch(model_type):
    forward = DecoderForward(_decoder(model_type))
    items = [
        *packs.siblings(70, [1, 5, 40, 90]),
        *packs.siblings(33, [12, 80], seed=1),
        *packs.siblings(1, [3], seed=2),
    ]
    alone = [packs.packer(forward, deterministic=True, max_tokens=64).encode([item])[0] for item in items]
    shared = packs.packer(forward, deterministic=True, max_tokens=64, max_bytes=1 << 20)
    for seed in range(12):
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
        chosen = order[: 1 + seed % len(items)]
        states = shared.encode([items[index] for index in chosen])
        for row, index in enumerate(chosen):
            assert torch.equal(states[row], alone[index])


def test_deterministic_states_are_right_and_still_share_their_prompt(decoders):
    model = decoders["qwen3"]
    items = packs.siblings(64, [10, 20])
    packer = packs.packer(DecoderForward(model), deterministic=True, max_bytes=1 << 20)
    assert packs.error(packer.encode(items), packs.one_by_one(model, items)) < ROUNDING
    assert packer.executed_tokens == 64 + 10 + 20
    packer.encode(items[:1])
    assert packer.executed_tokens == 64 + 10 + 20 + 10


def test_items_with_other_content_never_share_tokens_or_stored_keys(decoders):
    model = decoders["llama"]
    plain = packs.siblings(64, [10, 20])
    pictured = [dataclasses.replace(item, content_key=bytes([index])) for index, item in enumerate(plain)]
    packer = packs.packer(DecoderForward(model), max_bytes=1 << 20)
    packer.encode(plain)
    before = packer.executed_tokens
    packer.encode(pictured)
    assert packer.executed_tokens == before + 74 + 84


def test_packed_attention_outside_a_packed_pass_is_an_error(decoders):
    model = decoders["llama"]
    with attention.packed(model.config), pytest.raises(RuntimeError, match="packed passes alone"):
        model(input_ids=torch.tensor([[1, 2]]), use_cache=False)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("attribute", ["s_aux", "position_bias"])
def test_attention_with_more_to_it_is_not_packed(attribute):
    with pytest.raises(RuntimeError, match=attribute):
        attention._attention(
            torch.nn.Identity(),
            *[torch.zeros(1, 1, 1, 8)] * 3,
            None,
            paragone_run=object(),
            paragone_attend=object(),
            **{attribute: torch.zeros(1)},
        )


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bert", {}, "never shown to be exact"),
        ("gpt2", {}, "never shown to be exact"),
        ("mamba", {}, "never shown to be exact"),
        ("bloom", {}, "never shown to be exact"),
        ("gpt_oss", {}, "never shown to be exact"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "length of the batch",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attends to what follows"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("gemma3", {}, "more than text"),
    ],
)
def test_what_cannot_be_shown_exact_is_refused_with_its_reason(model_type, changes, reason):
    from transformers import AutoConfig

    shape = {} if model_type == "gemma3" else packs.SHAPE
    if model_type == "gpt2":
        shape = {}
    config = AutoConfig.for_model(model_type, **{**shape, **packs.SPECIAL.get(model_type, {}), **changes})
    assert reason in refusal(config)


def test_code_from_a_checkpoint_is_not_packed(decoders):
    class Foreign(type(decoders["llama"].config)):
        pass

    Foreign.__module__ = "transformers_modules.foreign"
    assert "comes with the checkpoint" in refusal(Foreign())


def test_a_way_that_disagrees_is_not_taken(decoders, monkeypatch):
    model = decoders["qwen3"]

    right = DecoderForward(model)

    def wrong(run, tokens, positions):
        return right(run, tokens, positions.flip(0))

    def silent(run, *_):
        return torch.ones(len(run.output_rows), packs.HIDDEN)

    def broken(*_):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(backend, "ways", lambda *_, **__: [("broken", broken), ("silent", silent), ("wrong", wrong)])
    reason = backend.choose(model)
    assert "broken: failed with NotImplementedError" in reason
    assert "silent: failed with KeyError" in reason
    assert "wrong: run packed its hidden states are off by" in reason


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_way_that_computes_with_other_weights_is_not_taken_in_any_dtype(monkeypatch, dtype, error):
    """As one does that does not know of an adapter: an error of the size of ten bfloat16 roundings."""
    model = packs.decoder("llama").to(dtype)
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in other.named_parameters():
        if "proj" in name:
            parameter.data *= (1 + error * torch.randn(parameter.shape, generator=draw)).to(dtype)
    monkeypatch.setattr(backend, "ways", lambda *_, **__: [("other", DecoderForward(other))])
    assert "other: run packed its hidden states are off by" in backend.choose(model)
    monkeypatch.setattr(backend, "ways", lambda *_, **__: [("same", DecoderForward(model))])
    assert backend.choose(model)[0] == "same"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trial_in_twice_the_precision_leaves_the_backbone_as_it_was(dtype):
    model = packs.decoder("llama").to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    items = packs.siblings(20, [3, 9])
    trial = backend._trial(model, items)
    plain = torch.stack([backend._plain_state(model, item, torch.device("cpu")) for item in items])
    exact = copy.deepcopy(model).to(torch.float64 if dtype == torch.float32 else torch.float32)
    expected = torch.stack([backend._plain_state(exact, item, torch.device("cpu")) for item in items])
    torch.testing.assert_close(trial.states, expected, atol=1e-5, rtol=1e-5)
    noise = float((plain - expected).norm() / expected.norm())
    assert noise < trial.limit < 4 * noise + 2e-3
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert DecoderForward.serves(model)  # no hook is left


def test_the_forward_pass_says_how_it_batches():
    decoder, encoder = packs.decoder("qwen3"), packs.decoder("gemma2")
    head = RepresentationHead(packs.HIDDEN, SPEC)
    local = LocalForward(PreferenceNetwork(decoder, head), max_batch_tokens=64)
    assert (local.batching, local.attention) == ("packed", "packed decoder")
    assert LocalForward(PreferenceNetwork(encoder, head), max_batch_tokens=64).attention == "packed blocks"
    other = LocalForward(PreferenceNetwork(packs.decoder("gpt_neox"), head), max_batch_tokens=64)
    assert other.batching.startswith("padded: packing gpt_neox was never shown")
    assert other.packer is None


def test_padded_batches_are_deterministic_one_by_one():
    network = PreferenceNetwork(packs.decoder("gpt_neox"), RepresentationHead(packs.HIDDEN, SPEC))
    local = LocalForward(network, max_batch_tokens=4096, deterministic=True)
    items = packs.siblings(20, [3, 40, 17])
    together = local.encode(items)
    for row, item in enumerate(items):
        assert torch.equal(together[row], local.encode([item])[0])


def test_items_with_different_reads_are_refused_before_they_run(decoders):
    network = PreferenceNetwork(decoders["qwen3"], RepresentationHead(packs.HIDDEN, SPEC))
    items = [packs.item([1, 2, 3], 1), packs.siblings(2, [2])[0]]
    with pytest.raises(ValueError, match="same number of reads"):
        LocalForward(network, max_batch_tokens=64).encode(items)


def reference_kernel(query, key, value, where: _Borders, rule):
    """What a varlen kernel computes, by plain products: causal, aligned at the ends, windowed."""
    group = query.shape[1] // key.shape[1]
    outs = []
    for index in range(len(where.queries) - 1):
        rows = slice(int(where.queries[index]), int(where.queries[index + 1]))
        seen = slice(int(where.keys[index]), int(where.keys[index + 1]))
        q = query[rows].transpose(0, 1)
        k, v = (tensor[seen].transpose(0, 1).repeat_interleave(group, 0) for tensor in (key, value))
        distance = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])
        mask = (distance >= 0) & (distance < (rule.window or 10**9))
        assert q.shape[1] <= where.max_queries
        assert k.shape[1] <= where.max_keys
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=rule.scale)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)
