"""Two processes take the steps that one takes, also where the pairs do not fill whole steps."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from paragone_training.policy.run import train_policy
from tests.training.policy.tiny_policy import recipe

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from paragone_training.policy.run import train_policy
from tests.training.policy.tiny_policy import recipe

folder, policy, prompts, url = sys.argv[1:]
sizes = {"training__pairs_per_step": 8, "training__pairs_per_pass": 2}
made = recipe("inpo", Path(policy), Path(prompts), url, evaluation={"prompts": [prompts]}, **sizes)
train_policy(made, Path(folder))
torch.distributed.destroy_process_group()
"""


def test_two_processes_end_at_the_weights_of_one(tmp_path, policy_folder, prompts_file, oracle_url):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(program), str(tmp_path / "two"), str(policy_folder), str(prompts_file), oracle_url]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]

    sizes = {"training__pairs_per_step": 8, "training__pairs_per_pass": 2}
    held_out = {"prompts": [str(prompts_file)]}
    one = recipe("inpo", policy_folder, prompts_file, oracle_url, evaluation=held_out, **sizes)
    train_policy(one, tmp_path / "one")
    for iteration in ("iteration-01", "iteration-02"):
        mine, theirs = (
            load_file(tmp_path / run / iteration / "step-1" / "policy" / "model.safetensors") for run in ("one", "two")
        )
        start = load_file(policy_folder / "model.safetensors")
        for name, weight in mine.items():
            torch.testing.assert_close(theirs[name], weight, atol=1e-4, rtol=1e-3)
        assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in mine.items())
