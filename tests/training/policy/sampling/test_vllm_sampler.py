"""A real vLLM as sampler: three iterations with a kill -9 in between, and weights that it reads while it runs.

``PARAGONE_TEST_VLLM`` names the python of an environment with vLLM (a CPU build will do); without it these tests skip.
"""

import json
import os
import shlex
import time
from pathlib import Path

import httpx2
import pytest
import torch

from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.oracle import RunProcess, free_port
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.peers import wait_until_well
from tests.training.policy.real_servers import SIZES, check_restarted_run, check_run
from tests.training.policy.test_resuming import run_to_the_end
from tests.training.policy.tiny_policy import recipe

VLLM = os.environ.get("PARAGONE_TEST_VLLM")
ENVIRONMENT = ["env", "-u", "PYTHONPATH", "VLLM_SERVER_DEV_MODE=1", "VLLM_CPU_KVCACHE_SPACE=1", "OMP_NUM_THREADS=1"]
pytestmark = pytest.mark.skipif(VLLM is None, reason="PARAGONE_TEST_VLLM names no python with vLLM")


def vllm_command(model: str, port: str) -> list[str]:
    program = str(Path(VLLM or "").parent / "vllm")
    options = ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    return [*ENVIRONMENT, program, "serve", model, *options]


def test_three_iterations_on_a_restarted_vllm_with_a_kill_in_between(tmp_path, prompts_file, oracle_url):
    servers = {"command": shlex.join(vllm_command("{model}", "{port}")), "concurrency": 8}
    deaths = ("iteration-02/round-1/parts/samples-00001.parquet",)
    arguments = ("builtin:mini-policy", prompts_file, oracle_url, "inpo")
    run_to_the_end(tmp_path / "run", deaths, *arguments, servers=servers, evaluation={}, **SIZES)

    check_restarted_run(tmp_path / "run")


def test_a_running_vllm_reads_new_weights(tmp_path, prompts_file, oracle_url):
    # vLLM 0.32 on CPU keeps the old output head where it is tied to the embeddings (docs/policies.md): untied here.
    policy = load_policy("builtin:mini-policy")
    head = policy.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    policy.model.config.tie_word_embeddings = False
    policy.model.save_pretrained(tmp_path / "untied")
    policy.tokenizer.save_pretrained(tmp_path / "untied")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = RunProcess(vllm_command(str(tmp_path / "untied"), str(port)), tmp_path / "vllm.log")
    try:
        wait_until_well(url, process)
        servers = {"urls": [url], "reload": "update", "concurrency": 8}
        changed = recipe("inpo", tmp_path / "untied", prompts_file, oracle_url, servers=servers, **SIZES)
        train_policy(changed, tmp_path / "run")
        check_run(tmp_path / "run", iterations=3)
        assert json.loads(httpx2.get(f"{url}/v1/models", timeout=10).text)["data"][0]["id"] == str(tmp_path / "untied")
    finally:
        process.stop()
        time.sleep(0.2)
