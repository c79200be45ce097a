"""What the runs on real completions servers share: their sizes, and what has to hold of each."""

from pathlib import Path

import pytest

from paragone_training.policy.rows import Response, read_json_file, read_rows

SIZES = {
    "sampling": {"responses": 3, "max_new_tokens": 16, "batch": 6, "unfinished": "keep", "tolerance": 1e-4},
    "training": {"iterations": 3, "pairs_per_step": 4, "pairs_per_pass": 2, "learning_rate": 1e-3},
}


def check_run(folder: Path, *, iterations: int) -> None:
    for number in range(1, iterations + 1):
        metrics = read_json_file(folder / f"iteration-{number:02d}" / "metrics.json")
        assert metrics["missing_groups"] == 0
        rows = read_rows(folder / f"iteration-{number:02d}" / "round-1" / "samples.parquet", Response)
        assert len(rows) == 18
        assert len({tuple(row.token_ids) for row in rows}) > 9
        start = read_json_file(folder / f"iteration-{number:02d}" / "step-1" / "start.json")
        assert start["raw_loss"] == pytest.approx(start["raw_closed_form"], rel=1e-3)
        if "sampler_noise_per_token" in metrics:
            # What it drew with, tokens and prefix cache included, is what the trainer computes.
            assert metrics["sampler_noise_per_token"] < 1e-4


def check_restarted_run(folder: Path) -> None:
    check_run(folder, iterations=3)
    noise = [read_json_file(path)["reload_noise_per_token"] for path in sorted(folder.glob("*/metrics.json"))]
    assert len(noise) == 3
    assert max(noise) < 1e-4
    log = (folder / "servers" / "0.log").read_text(errors="replace")
    # Its first start, one for iteration 2, one after the kill, one for iteration 3.
    assert log.count("Application startup complete") == 4
