"""Two processes draw what one draws and end where it does: packed or padded, with FSDP2 or not, killed or not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import LlamaConfig

from paragone_training.errors import RunError
from paragone_training.policy.evaluate import INITIAL
from paragone_training.policy.model.logprobs import frozen_columns, policy_logprobs
from paragone_training.policy.model.weights import check_sharding, load_policy
from paragone_training.policy.oracle import free_port
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import Response, read_answers, read_json_file, read_rows
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.tiny_policy import recipe

ROOT = Path(__file__).parents[4]

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState, DistributedType
from paragone_training.policy import gradient
from paragone_training.policy.model import weights
from paragone_training.policy.train_policy import train_policy
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
    def counting(gather):
        def counted(model):
            shares = [weight.to_local().numel() for weight in model.parameters()]
            whole = sum(weight.numel() for weight in model.parameters())
            print(f"share {sum(shares)} of {whole}", flush=True)
            return gather(model)
        return counted
    gradient.whole_state, weights._whole_trained = counting(gradient.whole_state), counting(weights._whole_trained)
from paragone_training.policy.model import logprobs
read_logprobs = logprobs.policy_logprobs
def read_share(policy, items, training):
    print(f"logprobs {len(items)} by {os.environ['RANK']};", flush=True)
    return read_logprobs(policy, items, training)
logprobs.policy_logprobs = read_share
from paragone_training.policy.sampling import drawing, rounds
draw, main, other_has_drawn = drawing.sample, os.environ["RANK"] == "0", Path(folder).with_name("drawn")
def draw_in_turn(*arguments):
    # The main process lets the other one draw first, so that both have a share.
    while main and not other_has_drawn.exists():
        time.sleep(0.05)
    print(f"drawn by {os.environ['RANK']};", flush=True)
    return draw(*arguments)
drawing.sample = draw_in_turn
write = rounds.write_rows
def write_and_die(path, *arguments):
    write(path, *arguments)
    if not main:
        if "DIES" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        other_has_drawn.touch()
rounds.write_rows = write_and_die
changes = json.loads(os.environ["RECIPE_CHANGES"])
made = recipe("inpo", Path(policy), Path(prompts), url, evaluation={"prompts": [prompts]}, **changes)
train_policy(made, Path(folder), resume=True)
torch.distributed.destroy_process_group()
"""


def environment_of(name):
    """Return what `accelerate launch` sets for one of the shipped files."""
    path = ROOT / "training" / "recipes" / "accelerate" / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "program.py"])
    found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {key: value for key, value in found.items() if key.startswith(("FSDP_", "ACCELERATE_"))}


SIZES = {"training__pairs_per_step": 8, "training__pairs_per_pass": 2}
LORA = {"lora": {"rank": 4, "alpha": 8.0}}


@pytest.fixture(scope="module")
def run(policy_folder, prompts_file, oracle_url):
    """Return what runs the recipe with changes, in two processes with an environment or, without one, in this one."""
    where = [str(policy_folder), str(prompts_file), oracle_url]

    def started(folder, environment=None, *, dies=False, **changes):
        changes = SIZES | changes
        if environment is None:
            held_out = {"prompts": [str(prompts_file)]}
            train_policy(
                recipe("inpo", policy_folder, prompts_file, oracle_url, evaluation=held_out, **changes), folder
            )
            return ""
        program = folder.with_name("program.py")
        program.write_text(PROGRAM)
        folder.with_name("drawn").unlink(missing_ok=True)
        path = os.pathsep.join([str(ROOT), *sys.path])
        found = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "RECIPE_CHANGES": json.dumps(changes)}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        command += ["--master_port", str(free_port()), str(program), str(folder), *where]
        found |= {"DIES": "1"} if dies else {}
        result = subprocess.run(
            command, cwd=ROOT, env=os.environ | found | environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode != 0) == dies, result.stdout[-1000:] + result.stderr[-4000:]
        return result.stdout

    return started


@pytest.fixture(scope="module")
def one(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("one") / "run"
    run(folder, training__batching="padded")
    return folder


def assert_same_weights(mine, theirs, policy_folder):
    start = load_file(policy_folder / "model.safetensors")
    for iteration in ("iteration-01", "iteration-02"):
        ours, other = (load_file(run / iteration / "step-1" / "policy" / "model.safetensors") for run in (mine, theirs))
        assert ours.keys() == other.keys() == start.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-3)
        assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in ours.items())


def assert_same_responses(mine, theirs, policy_folder):
    # Of the initial policy, whose weights do not hang on the number of processes.
    for folder in ("iteration-01/round-1", "evaluation-00"):
        ours, other = (read_rows(run / folder / "samples.parquet", Response) for run in (mine, theirs))
        assert ours == other
        assert not (theirs / folder / "parts").exists()
    tables = [read_answers(run / "iteration-01" / "round-1" / "oracle.parquet") for run in (mine, theirs)]
    for ours, other in zip(*tables, strict=True):
        assert ours.prompt_id == other.prompt_id
        np.testing.assert_array_equal(ours.raw, other.raw)
    # The likelihoods of the KL to the initial policy, of which each process computed its share.
    rows = read_rows(theirs / "evaluation-01" / "samples.parquet", Response)
    items = [(row.prompt_ids, row.token_ids) for row in rows]
    expected = policy_logprobs(load_policy(str(policy_folder)), items, PolicyTrainingSection())
    frozen = frozen_columns(theirs / "evaluation-01" / "logprobs.parquet", INITIAL)
    assert list(frozen) == [(row.prompt_id, row.number) for row in rows]
    np.testing.assert_allclose([value for (value,) in frozen.values()], expected, atol=1e-3)


def assert_halves(said):
    """Two processes held half of the weights each, at the end of two iterations."""
    shares = re.findall(r"share (\d+) of (\d+)", said)  # wherever they stand: both processes write to one pipe
    assert len(shares) == 4
    assert all(int(held) <= 0.51 * int(whole) for held, whole in shares)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_two_processes_end_at_the_weights_of_one(tmp_path, run, one, policy_folder, batching):
    killed = batching == "packed"
    if killed:
        # After its first chunk, while the main process waits for its own.
        run(tmp_path / "two", {}, dies=True, training__batching=batching)
        parts = (tmp_path / "two" / "iteration-01" / "round-1" / "parts").glob("samples-*.parquet")
        assert len(list(parts)) == 1
    said = run(tmp_path / "two", {}, training__batching=batching)
    # Two rounds of three chunks, of which one was drawn before; the held-out prompts are a chunk, three times.
    drawn = re.findall(r"drawn by (\d);", said)
    assert {"0", "1"} == set(drawn)
    assert len(drawn) == (8 if killed else 9)
    assert_same_responses(one, tmp_path / "two", policy_folder)
    # Base and reference of two iterations, the initial policy being both in the first, and the initial policy's of two
    # evaluations: half of the responses each.
    shares = re.findall(r"logprobs (\d+) by (\d);", said)
    assert sorted(rank for _, rank in shares) == ["0"] * 5 + ["1"] * 5
    assert max(int(count) for count, _ in shares) <= 9
    assert not list((tmp_path / "two").glob("**/logprobs.parts"))
    assert_same_weights(one, tmp_path / "two", policy_folder)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_two_processes_with_fsdp2_hold_half_of_the_weights_each_and_end_at_those_of_one(
    tmp_path, run, one, policy_folder, batching
):
    assert_halves(run(tmp_path / "two", environment_of("fsdp2-one-host"), training__batching=batching))
    assert_same_weights(one, tmp_path / "two", policy_folder)


def test_adapters_of_two_processes_with_fsdp2_are_merged_into_the_weights_of_one(tmp_path, run, policy_folder):
    run(tmp_path / "one", **LORA)
    assert_halves(run(tmp_path / "two", environment_of("fsdp2-one-host"), **LORA))
    assert_same_weights(tmp_path / "one", tmp_path / "two", policy_folder)


@pytest.mark.parametrize("adapters", [{}, LORA])
def test_training_with_fsdp2_goes_on_from_a_checkpoint_with_the_same_outcome(tmp_path, run, adapters):
    changes = {"training__iterations": 1, "training__save_steps": 2, **adapters}
    run(tmp_path / "run", environment_of("fsdp2-one-host"), **changes)
    iteration = tmp_path / "run" / "iteration-01"
    step, weights = iteration / "step-1", iteration / "step-1" / "policy" / "model.safetensors"
    whole, history = weights.read_bytes(), read_json_file(step / "history.json")
    (saved,) = (step / "checkpoints").glob("checkpoint-*")
    assert 0 < int(saved.name.removeprefix("checkpoint-")) < len(history)

    # As if it had been killed after its last checkpoint.
    shutil.rmtree(step / "policy")
    for path in (iteration / "metrics.json", step / "start.json"):
        path.unlink()
    run(tmp_path / "run", environment_of("fsdp2-one-host"), **changes)
    assert not (step / "start.json").exists()  # the policy is not the step's base any more: nothing is checked
    assert weights.read_bytes() == whole


def test_the_file_for_several_hosts_differs_from_that_for_one_in_their_number_alone():
    one, several = (environment_of(name) for name in ("fsdp2-one-host", "fsdp2-hosts"))
    assert one == several
    assert one["FSDP_VERSION"] == "2"


@pytest.mark.parametrize(
    ("plugin", "training", "message"),
    [
        ({"fsdp_version": 1}, {}, "fsdp_version is 1; only 2 is supported"),
        ({"cpu_ram_efficient_loading": True}, {}, "leaves all ranks but the first without weights"),
        ({"state_dict_type": "FULL_STATE_DICT"}, {"save_steps": 5}, "save_steps is 5 and .* FULL_STATE_DICT: each"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused_with_the_remedy(plugin, training, message):
    settings = {"fsdp_version": 2, "cpu_ram_efficient_loading": False} | plugin
    with pytest.raises(RunError, match=message):
        check_sharding(FullyShardedDataParallelPlugin(**settings), LlamaConfig(), PolicyTrainingSection(**training))


def test_a_model_whose_texts_need_different_passes_is_not_shared_by_processes():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    check_sharding(plugin, LlamaConfig(), PolicyTrainingSection())
    switching = LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(RunError, match=r"depend on a text's length \(dynamic\).*train it in one process"):
        check_sharding(plugin, switching, PolicyTrainingSection())
