"""Kernels of our own: how they are compiled, and what they compute, against float32 and torch's own operations."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from paragone_models.machine import bfloat16_refusal
from paragone_models.packing import backend, native
from paragone_models.packing.cpu import DecoderForward, TorchOperations
from paragone_models.packing.native import NativeOperations, kernels, speedup
from tests.models import packs

FAMILY = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module")
def compiled():
    """The kernels that multiply nothing run on every processor that a compiler knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "bfloat16_refusal", lambda: None)
        ours = kernels.__wrapped__()
    if isinstance(ours, str):
        pytest.skip(f"no kernels of our own: {ours}")
    return ours


@pytest.fixture(scope="module")
def library(compiled):
    reason = bfloat16_refusal()
    if reason is not None:
        pytest.skip(f"no kernels of our own: {reason}")
    return compiled


@pytest.fixture(scope="module")
def pairs():
    """Decoders in float32, and their like in bfloat16."""
    return {name: (packs.decoder(name), packs.decoder(name).bfloat16()) for name in FAMILY}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), model_type=st.sampled_from(FAMILY), max_tokens=st.sampled_from([23, 64, 4096]))
def test_the_decoder_is_as_near_to_float32_as_the_models_own_code_over_random_trees(
    library, pairs, seed, model_type, max_tokens
):
    exact, coarse = pairs[model_type]
    items = packs.random_items(seed)
    reference, plain = packs.one_by_one(exact, items), packs.one_by_one(coarse, items)
    packer = packs.packer(DecoderForward(coarse, NativeOperations(library)), max_tokens=max_tokens, max_bytes=1 << 20)
    for _ in ("cold", "from stored keys and values"):
        assert (packer.encode(items) - reference).norm() < 1.5 * (plain - reference).norm()


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_long_nodes_are_read_in_blocks_and_chunks(library, pairs, rows, monkeypatch):
    monkeypatch.setattr(native, "_ROWS", rows)
    monkeypatch.setattr(native, "_FEWEST", rows)
    for model_type in ("mistral", "qwen3"):
        exact, coarse = pairs[model_type]
        items = [*packs.siblings(300, [1, 40, 290]), *packs.siblings(700, [2], seed=1)]  # chunks have 256 keys
        reference, plain = packs.one_by_one(exact, items), packs.one_by_one(coarse, items)
        packer = packs.packer(DecoderForward(coarse, NativeOperations(library)), max_tokens=512, max_bytes=1 << 22)
        for _ in ("cold", "from stored keys and values"):
            assert (packer.encode(items) - reference).norm() < 1.5 * (plain - reference).norm()


def test_deterministic_states_are_the_same_bits_in_every_batch(library, pairs):
    forward = DecoderForward(pairs["qwen3"][1], NativeOperations(library))
    items = [*packs.siblings(70, [1, 5, 40, 90]), *packs.siblings(33, [12, 80], seed=1)]
    alone = [packs.packer(forward, deterministic=True, max_tokens=64).encode([item])[0] for item in items]
    shared = packs.packer(forward, deterministic=True, max_tokens=64, max_bytes=1 << 20)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            states = shared.encode(items[::-1])
        finally:
            torch.set_num_threads(before)
        for row, index in enumerate(reversed(range(len(items)))):
            assert torch.equal(states[row], alone[index])


@pytest.mark.parametrize("size", [8, 64, 100])
def test_norms_are_the_models_own(compiled, size):
    rows, weight = random(33, size), random(size, seed=1)
    ours = NativeOperations(compiled).normed("rows", rows, (weight, 1e-6))
    exact = rows.float() * torch.rsqrt(rows.float().square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(ours, weight * exact.bfloat16(), rtol=8e-3, atol=0)


def test_rotations_are_torchs_with_a_norm_and_without(compiled):
    heads, weight, angles = random(19, 3, 16), random(16, seed=1), random(19, 8, seed=2)
    for norm in (None, (weight, 1e-6)):
        ours, torchs = (
            way.rotated("heads", heads, norm, angles.cos(), angles.sin())
            for way in (NativeOperations(compiled), TorchOperations())
        )
        assert ours.shape == (3, 19, 16)
        torch.testing.assert_close(ours.float(), torchs.float(), rtol=0.02, atol=0.02)


def test_the_activation_holds_for_every_gate_that_bfloat16_has(compiled):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    gate = every[every.isfinite()]
    ours = NativeOperations(compiled).activated(gate.clone(), torch.full_like(gate, 0.5))
    torch.testing.assert_close(ours.float(), functional.silu(gate.float()) * 0.5, rtol=4e-3, atol=1e-36)


def test_what_is_not_a_number_stays_so(library, pairs):
    model = pairs["llama"][1]
    forward = DecoderForward(model, NativeOperations(library))
    tokens = packs.siblings(40, [5])
    with torch.no_grad():
        row = model.embed_tokens.weight[tokens[0].token_ids[-1]]
        before = row.clone()
        row.fill_(torch.nan)
        try:
            states = packs.packer(forward).encode(tokens)
        finally:
            row.copy_(before)
    assert states.isnan().all()
    assert packs.packer(forward).encode(tokens).isfinite().all()


def test_shapes_that_do_not_fit_are_errors(compiled):
    with pytest.raises(RuntimeError, match="shapes differ"):
        compiled.rms_norm(random(3, 8), random(4), 1e-6, random(3, 8))
    with pytest.raises(RuntimeError, match="must be bfloat16"):
        compiled.silu_multiply(torch.ones(2, 2), random(2, 2))


def test_they_are_taken_where_they_are_faster_and_only_there(library, pairs, monkeypatch):
    model = pairs["qwen3"][1]
    assert speedup(library, heads=8, key_heads=4, head_size=64) > 0
    for ratio, expected in ((2.0, ["native", "decoder", "blocks"]), (0.9, ["decoder", "blocks"])):
        monkeypatch.setattr(backend, "speedup", lambda *_, ratio=ratio, **__: ratio)
        assert [name for name, _ in backend.ways(model)] == expected
    assert [name for name, _ in backend.ways(pairs["qwen3"][0])] == ["decoder", "blocks"]  # float32


def test_where_the_processor_multiplies_no_bfloat16_torchs_operations_stand_in(pairs, monkeypatch):
    monkeypatch.setattr(native, "bfloat16_refusal", lambda: "this CPU has neither avx512_bf16 nor amx")
    assert kernels.__wrapped__() == "this CPU has neither avx512_bf16 nor amx"
    monkeypatch.setattr(backend, "kernels", kernels.__wrapped__)
    assert [name for name, _ in backend.ways(pairs["qwen3"][1])] == ["decoder", "blocks"]
    name, _ = backend.choose(pairs["qwen3"][1])
    assert name == "decoder"


def test_a_limit_of_onednns_is_asked_for_before_anything_is_compiled():
    answer = outcome("", ONEDNN_MAX_CPU_ISA="AVX2", CXX="no-such-compiler")
    assert answer == "ONEDNN_MAX_CPU_ISA is AVX2, which leaves out the instructions that multiply bfloat16"


ANY_PROCESSOR = "from paragone_models.packing import native; native.bfloat16_refusal = lambda: None"


def outcome(setup=ANY_PROCESSOR, /, **environment):
    """Return what a process of its own says of the kernels."""
    code = f"{setup}\nfrom paragone_models.packing.native import kernels; print(kernels())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_without_a_compiler_that_works_torchs_operations_stand_in(tmp_path, pairs, monkeypatch):
    assert outcome(CXX="no-such-compiler") == "there is no C++ compiler"
    assert outcome(PARAGONE_NATIVE="0") == "PARAGONE_NATIVE is 0"
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    assert outcome(CXX=str(broken)) == f"{broken} failed: out of order"
    monkeypatch.setattr(backend, "kernels", lambda: "there is no C++ compiler")
    name, _ = backend.choose(pairs["llama"][1])
    assert name == "decoder"


@pytest.mark.usefixtures("compiled")
def test_the_library_is_compiled_once_and_wherever_it_can_be_kept(tmp_path):
    cache = tmp_path / "cache"
    assert outcome(XDG_CACHE_HOME=str(cache)).startswith("<module")
    (kept,) = (cache / "paragone").iterdir()
    assert kept.suffix == ".so"
    written = kept.stat().st_mtime_ns
    assert outcome(XDG_CACHE_HOME=str(cache)).startswith("<module")
    assert kept.stat().st_mtime_ns == written
    (tmp_path / "file").write_text("")
    assert outcome(XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path)).startswith("<module")
