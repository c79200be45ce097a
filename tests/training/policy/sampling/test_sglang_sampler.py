"""A real SGLang as sampler: three iterations with a kill -9 in between, and weights that it reads while it runs.

``PARAGONE_TEST_SGLANG`` names the python of an environment with SGLang that runs on a CPU; without it these tests skip.
SGLang's kernels for CPUs, ``sgl_kernel``, come from its source. Without them a module of that name is enough that has
``assign_req_to_token_pool_cpu`` (in row ``req_pool_indices[i]`` of ``req_to_token``, columns ``start_offset[i]`` to
``end_offset[i]`` become the next ones of ``out_cache_loc``) and, for imports alone, any other name.
"""

import os
import shlex

import pytest

from paragone_training.policy.model.weights import _resolve_policy
from paragone_training.policy.oracle import RunProcess, free_port
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.peers import wait_until_well
from tests.training.policy.real_servers import SIZES, check_restarted_run, check_run
from tests.training.policy.test_resuming import run_to_the_end
from tests.training.policy.tiny_policy import recipe

SGLANG = os.environ.get("PARAGONE_TEST_SGLANG")
ENVIRONMENT = ["env", "-u", "PYTHONPATH", "SGLANG_USE_CPU_ENGINE=1", "OMP_NUM_THREADS=1"]
POLICY = "builtin:mini-policy"
LONGEST = 506  # it has 512 positions, of which SGLang keeps six
pytestmark = pytest.mark.skipif(SGLANG is None, reason="PARAGONE_TEST_SGLANG names no python with SGLang")


def sglang_command(model: str, port: str) -> list[str]:
    where = ["--model-path", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    kernels = ["--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
    sizes = ["--max-total-tokens", "8192", "--max-running-requests", "16"]
    return [*ENVIRONMENT, SGLANG or "", "-m", "sglang.launch_server", *where, *kernels, *sizes]


def test_three_iterations_on_a_restarted_sglang_with_a_kill_in_between(tmp_path, prompts_file, oracle_url):
    servers = {"kind": "sglang", "command": shlex.join(sglang_command("{model}", "{port}")), "concurrency": 8}
    deaths = ("iteration-02/round-1/parts/samples-00001.parquet",)
    arguments = (POLICY, prompts_file, oracle_url, "inpo")
    changes = {"policy__max_length": LONGEST, "servers": servers, "evaluation": {}, **SIZES}
    run_to_the_end(tmp_path / "run", deaths, *arguments, **changes)

    check_restarted_run(tmp_path / "run")


def test_a_running_sglang_reads_new_weights(tmp_path, prompts_file, oracle_url):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*sglang_command(_resolve_policy(POLICY), str(port)), "--served-model-name", "policy"]
    process = RunProcess(command, tmp_path / "sglang.log")
    try:
        wait_until_well(url, process, within_s=600)
        # An update gives the policy the folder's name there, whatever it was called before.
        servers = {"kind": "sglang", "urls": [url], "model": "policy", "reload": "update", "concurrency": 8}
        changes = {"policy__max_length": LONGEST, "servers": servers, **SIZES}
        changed = recipe("inpo", POLICY, prompts_file, oracle_url, **changes)
        train_policy(changed, tmp_path / "run")
        check_run(tmp_path / "run", iterations=3)
    finally:
        process.stop()
