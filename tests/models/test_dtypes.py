"""The dtype that a backbone gets when nobody says."""

import pytest
import torch

from paragone_models import dtypes
from paragone_models.dtypes import automatic_dtype, bfloat16_speedup

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("speedup", "parameters", "demonstration", "dtype"),
    [
        (2.0, 30_000_000, False, torch.bfloat16),
        (2.0, 30_000_000, True, torch.float32),
        (2.0, 1_000_000, False, torch.float32),
        (0.2, 30_000_000, False, torch.float32),
    ],
)
def test_a_cpu_runs_bfloat16_where_it_is_faster_and_the_model_large_enough(
    monkeypatch, speedup, parameters, demonstration, dtype
):
    monkeypatch.setattr(dtypes, "bfloat16_speedup", lambda: speedup)
    assert automatic_dtype(CPU, parameters=parameters, demonstration=demonstration) == dtype


def test_the_speed_is_measured_once_a_process():
    assert bfloat16_speedup() == bfloat16_speedup() >= 0
