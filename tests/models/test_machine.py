"""The dtype that a backbone gets when nobody says."""

import pytest
import torch

from paragone_models import machine
from paragone_models.machine import automatic_dtype, bfloat16_refusal

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("speedup", "parameters", "demonstration", "dtype", "reason"),
    [
        (2.0, 30_000_000, False, torch.bfloat16, "2.0 times as fast as float32"),
        (2.0, 30_000_000, True, torch.float32, "the same everywhere"),
        (2.0, 1_000_000, False, torch.float32, "nothing below 10 M parameters"),
        (1.2, 30_000_000, False, torch.float32, "1.2 times as fast, and 1.3 is"),
    ],
)
def test_a_cpu_runs_bfloat16_where_it_is_faster_and_the_model_large_enough_and_says_why(
    monkeypatch, speedup, parameters, demonstration, dtype, reason
):
    monkeypatch.setattr(machine, "bfloat16_speedup", lambda: speedup)
    monkeypatch.setattr(machine, "bfloat16_refusal", lambda: None)
    choice = automatic_dtype(CPU, parameters=parameters, demonstration=demonstration)
    assert choice.dtype == dtype
    assert reason in choice.reason


def test_a_cpu_without_the_instructions_says_which_are_missing(monkeypatch):
    monkeypatch.setattr(machine, "bfloat16_refusal", lambda: "no amx")
    assert automatic_dtype(CPU, parameters=30_000_000, demonstration=False).reason == "no amx"


def test_the_speed_is_measured_once_a_process():
    assert machine.bfloat16_speedup() == machine.bfloat16_speedup() >= 0


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("limit", ["AVX2", "avx512_core", "AVX512_CORE_VNNI"])
def test_a_limit_below_bfloat16_is_a_refusal_on_every_processor(monkeypatch, variable, limit):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(variable, limit)
    assert bfloat16_refusal().startswith(f"{variable} is {limit}")


def test_a_processor_without_the_instructions_refuses_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_seconds", lambda *_: pytest.fail("measured"))
    assert bfloat16_refusal() is not None
    assert machine.bfloat16_speedup.__wrapped__() == 0.0


@pytest.mark.parametrize("instructions", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_instruction_set_is_enough(monkeypatch, instructions):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, instructions, lambda: True)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert bfloat16_refusal() is None
