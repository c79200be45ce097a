"""Two processes, with nobody above them, wait for each other longer than a collective may take, and share work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paragone_training.policy.oracle import free_port
from paragone_training.policy.processes import Processes

ROOT = Path(__file__).parents[3]

# Collectives have a second; one scene after the other, since processes take long to start.
PROGRAM = """
import os, time
from datetime import timedelta
import torch
from accelerate import PartialState
from paragone_training.policy.processes import Processes

state = PartialState(cpu=True, timeout=timedelta(seconds=300))
state.wait_for_everyone()
torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1), torch.distributed.group.WORLD)
main = state.is_main_process

def late(barrier):
    time.sleep(3 * main)
    barrier.wait()

def error(barrier):
    if main:
        raise ValueError("no prompt fits")
    barrier.wait()

def lost(barrier):
    time.sleep(0 if main else 3)
    barrier.wait()

def collective(barrier):
    time.sleep(3 * main)
    state.wait_for_everyone()

def shared(barrier):
    mine = []
    for item in barrier.shared([{"chunk": number} for number in range(7)] if main else ()):
        mine.append(item["chunk"])
        if len(mine) == 1:
            barrier.wait()  # until each has one
    print(f"taken: {mine}", flush=True)
    assert list(barrier.shared()) == []

def absent(barrier):
    if main:
        barrier.until(lambda: 2, "chunks that other processes sample")
    barrier.wait()

def killed(barrier):
    if main:
        os._exit(9)
    barrier.wait()

for scene in (late, error, lost, absent, shared, collective, killed):
    try:
        with Processes(limit_s=1 if scene in (lost, absent) else 300) as barrier:
            scene(barrier)
        print(f"{scene.__name__}: together", flush=True)
    except Exception as found:
        print(f"{scene.__name__}: {type(found).__name__}: {found}".splitlines()[0], flush=True)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Return what the main process and the other one said of each scene."""
    program = tmp_path_factory.mktemp("two") / "program.py"
    program.write_text(PROGRAM)
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    found |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, **found, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    return [dict(line.split(": ", 1) for line in lines) for lines in outputs]


def test_a_barrier_waits_as_long_as_the_main_process_takes_and_a_collective_does_not(said):
    assert [scenes["late"] for scenes in said] == ["together", "together"]
    assert "RuntimeError" in said[1]["collective"]


def test_an_error_of_one_process_stops_the_others(said):
    assert said[0]["error"] == "ValueError: no prompt fits"
    assert said[1]["error"] == "RunError: another process of the run stopped: process 0: ValueError: no prompt fits"


def test_the_main_process_waits_for_the_others_no_longer_than_the_limit(said):
    assert said[0]["lost"].startswith("RunError: 1 of 2 processes did not come within 1 s: see what they printed")
    assert "another process of the run stopped: process 0: RunError: 1 of 2" in said[1]["lost"]


def test_each_item_of_shared_work_goes_to_one_process(said):
    assert [scenes["shared"] for scenes in said] == ["together", "together"]
    first, second = (json.loads(scenes["taken"]) for scenes in said)
    assert first == sorted(first)
    assert second == sorted(second)
    assert sorted(first + second) == list(range(7))


def test_work_that_never_comes_stops_the_run(said):
    assert said[0]["absent"].startswith(
        "RunError: 2 chunks that other processes sample did not come within 1 s: see what they printed"
    )


def test_the_others_stop_when_the_main_process_is_gone(said):
    assert "killed" not in said[0]
    assert said[1]["killed"].startswith("RunError: the main process of the run is gone")


def test_one_process_never_waits():
    with Processes(limit_s=0) as barrier:
        barrier.wait()
        assert list(barrier.shared([1, 2])) == [1, 2]
