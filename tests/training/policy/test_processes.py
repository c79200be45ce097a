"""Two processes take the steps that one takes, also where the pairs do not fill whole steps, and with FSDP2."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from paragone_training.policy.errors import RunError
from paragone_training.policy.run import train_policy
from paragone_training.policy.sections import PolicyTrainingSection
from paragone_training.policy.sharding import check_sharding
from paragone_training.sections import LoraSection
from tests.training.policy.tiny_policy import recipe

ROOT = Path(__file__).parents[3]

PROGRAM = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState, DistributedType
from paragone_training.policy import step
from paragone_training.policy.run import train_policy
from tests.training.policy.tiny_policy import recipe

folder, policy, prompts, url = sys.argv[1:]
if "ACCELERATE_USE_FSDP" in os.environ:
    # accelerate has a list of devices that may be sharded, and CPUs are not on it; all behind the list is its own.
    start = AcceleratorState.__init__
    def start_sharded(self, *arguments, fsdp_plugin=None, **more):
        start(self, *arguments, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
    AcceleratorState.__init__ = start_sharded
    gather = step.whole_state
    def counted(model):
        shares = [weight.to_local().numel() for weight in model.parameters()]
        whole = sum(weight.numel() for weight in model.parameters())
        print(f"share {sum(shares)} of {whole}", flush=True)
        return gather(model)
    step.whole_state = counted
sizes = {"training__pairs_per_step": 8, "training__pairs_per_pass": 2}
made = recipe("inpo", Path(policy), Path(prompts), url, evaluation={"prompts": [prompts]}, **sizes)
train_policy(made, Path(folder))
torch.distributed.destroy_process_group()
"""


def environment_of(name):
    """Return what `accelerate launch` sets for one of the shipped files."""
    path = ROOT / "training" / "recipes" / "accelerate" / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "program.py"])
    found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {key: value for key, value in found.items() if key.startswith(("FSDP_", "ACCELERATE_"))}


def two_processes(folder, policy_folder, prompts_file, oracle_url, tmp_path, **more):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment = {**os.environ, **found, **more}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(program), str(folder), str(policy_folder), str(prompts_file), oracle_url]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]
    return result.stdout


def one_process(folder, policy_folder, prompts_file, oracle_url):
    sizes = {"training__pairs_per_step": 8, "training__pairs_per_pass": 2}
    held_out = {"prompts": [str(prompts_file)]}
    one = recipe("inpo", policy_folder, prompts_file, oracle_url, evaluation=held_out, **sizes)
    train_policy(one, folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory, policy_folder, prompts_file, oracle_url):
    folder = tmp_path_factory.mktemp("one") / "run"
    one_process(folder, policy_folder, prompts_file, oracle_url)
    return folder


def assert_same_weights(mine, theirs, policy_folder):
    start = load_file(policy_folder / "model.safetensors")
    for iteration in ("iteration-01", "iteration-02"):
        ours, other = (load_file(run / iteration / "step-1" / "policy" / "model.safetensors") for run in (mine, theirs))
        for name, weight in ours.items():
            torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-3)
        assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in ours.items())


def test_two_processes_end_at_the_weights_of_one(tmp_path, one, policy_folder, prompts_file, oracle_url):
    two_processes(tmp_path / "two", policy_folder, prompts_file, oracle_url, tmp_path)
    assert_same_weights(one, tmp_path / "two", policy_folder)


def test_two_processes_with_fsdp2_hold_half_of_the_weights_each_and_end_at_those_of_one(
    tmp_path, one, policy_folder, prompts_file, oracle_url
):
    said = two_processes(
        tmp_path / "two", policy_folder, prompts_file, oracle_url, tmp_path, **environment_of("fsdp2-one-host")
    )
    shares = re.findall(r"share (\d+) of (\d+)", said)  # wherever they stand: both processes write to one pipe
    assert len(shares) == 4  # two processes, two iterations
    assert all(int(held) <= 0.51 * int(whole) for held, whole in shares)
    assert_same_weights(one, tmp_path / "two", policy_folder)


def test_the_file_for_several_hosts_differs_from_that_for_one_in_their_number_alone():
    one, several = (environment_of(name) for name in ("fsdp2-one-host", "fsdp2-hosts"))
    assert one == several
    assert one["FSDP_VERSION"] == "2"


@pytest.mark.parametrize(
    ("plugin", "training", "lora", "message"),
    [
        ({"fsdp_version": 1}, {}, None, "fsdp_version is 1; only 2 is supported"),
        ({"cpu_ram_efficient_loading": True}, {}, None, "leaves all ranks but the first without weights"),
        ({}, {}, LoraSection(rank=4), r"\[lora\] is not supported with FSDP"),
        ({}, {"save_steps": 5}, None, "save_steps is 5; with FSDP it must be 0"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused_with_the_remedy(plugin, training, lora, message):
    settings = {"fsdp_version": 2, "cpu_ram_efficient_loading": False} | plugin
    with pytest.raises(RunError, match=message):
        check_sharding(FullyShardedDataParallelPlugin(**settings), PolicyTrainingSection(**training), lora)
