"""The loop with completions servers that really generate: weights arrive, are checked, and wrong ones stop the run."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RunError, SamplerMismatchError
from paragone_training.policy.model.logprobs import policy_logprobs
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.oracle import RunProcess
from paragone_training.policy.recipe import PolicyTrainingSection, ServersSection
from paragone_training.policy.rows import Response, read_json_file, read_rows
from paragone_training.policy.sampling.completions import stored_probes
from paragone_training.policy.sampling.drawing import Decoding
from paragone_training.policy.sampling.servers import FleetSampler, SamplerServers
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.peers import misbehave, peer_command, peers
from tests.training.policy.test_resuming import ROOT, assert_same_run, run_to_the_end
from tests.training.policy.tiny_policy import recipe


@pytest.fixture(scope="module")
def two(policy_folder, tmp_path_factory):
    with peers([policy_folder] * 2, tmp_path_factory.mktemp("two")) as (urls, _):
        yield urls


@pytest.fixture(autouse=True)
def _well_behaved(request):
    yield
    if "two" in request.fixturenames:
        for url in request.getfixturevalue("two"):
            misbehave(url)


def test_a_run_starts_its_servers_anew_for_every_iterate(tmp_path, policy_folder, prompts_file, oracle_url, caplog):
    caplog.set_level("INFO", logger="paragone_training.policy.sampling.servers")
    servers = {"command": shlex.join(peer_command()), "phases": "colocated", "count": 2, "concurrency": 2}
    held_out = {"prompts": [str(prompts_file)]}
    changed = recipe("inpo", policy_folder, prompts_file, oracle_url, servers=servers, evaluation=held_out)
    train_policy(changed, tmp_path)

    for iteration in ("iteration-01", "iteration-02"):
        metrics = read_json_file(tmp_path / iteration / "metrics.json")
        assert metrics["reload_noise_per_token"] < 1e-4
        assert metrics["sampler_noise_per_token"] < 1e-4
        assert metrics["missing_groups"] == 0
    taken = [message.split(" have ")[1].split(" after ")[0] for message in caplog.messages if " have " in message]
    # Before training, for the evaluation of iterates 0 and 1, for iteration 2, which the evaluation left at rest, …
    first, second = (str(tmp_path / name / "step-1" / "policy") for name in ("iteration-01", "iteration-02"))
    assert taken == [str(policy_folder), str(policy_folder), first, first, second]
    assert len(list((tmp_path / "servers").iterdir())) == 2
    assert len(read_rows(tmp_path / "iteration-02" / "round-1" / "samples.parquet", Response)) == 18


def test_servers_that_stay_up_are_given_new_weights_and_a_killed_run_ends_as_a_whole_one(
    tmp_path, policy_folder, prompts_file, oracle_url, two
):
    changes = {"servers": {"urls": two, "reload": "update", "concurrency": 3}}
    deaths = (
        "probes.parquet",
        "iteration-01/round-1/parts/samples-00001.parquet",
        "before:iteration-01/step-1/policy",
        "evaluation-01/parts/samples-00000.parquet",
        "iteration-02/round-1/samples.parquet",
    )
    run_to_the_end(tmp_path / "killed", deaths, policy_folder, prompts_file, oracle_url, "inpo", **changes)
    whole = recipe(
        "inpo", policy_folder, prompts_file, oracle_url, evaluation={"prompts": [str(prompts_file)]}, **changes
    )
    train_policy(whole, tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (0.01, r"nats a token from the trainer's, and sampling\.tolerance is 0\.01: it has other weights"),
        (50.0, "still has the weights of the policy before"),
    ],
)
def test_servers_that_keep_their_old_weights_stop_the_run_with_numbers(
    tmp_path, policy_folder, prompts_file, oracle_url, two, tolerance, message
):
    servers = {"urls": two, "reload": "update"}
    arguments = (policy_folder, prompts_file, oracle_url)
    changes = {"servers": servers, "sampling__tolerance": tolerance, "training__learning_rate": 0.1}
    run = recipe("inpo", *arguments, **changes, evaluation={"prompts": [str(prompts_file)]})
    misbehave(two[1])
    train_policy(recipe("inpo", *arguments, **changes, training__iterations=1), tmp_path / "warm")
    for url in two:
        # Back to the initial weights, and deaf from then on.
        subprocess.run(reload_command(url, str(policy_folder)), check=True)
        misbehave(url, deaf=True)
    with pytest.raises(SamplerMismatchError, match=message):
        train_policy(run, tmp_path / "deaf")


def reload_command(url, model):
    code = "import httpx2, sys; httpx2.post(sys.argv[1] + '/collective_rpc', json={'method': 'reload_weights', "
    code += "'kwargs': {'weights_path': sys.argv[2]}}, timeout=60).raise_for_status()"
    return [sys.executable, "-c", code, url, model]


def test_a_command_gives_servers_their_weights(tmp_path, policy_folder, prompts_file, oracle_url, two):
    command = shlex.join(reload_command(two[0], "MODEL")).replace("{", "{{").replace("}", "}}")
    servers = {"urls": two[:1], "reload": "command", "command": command.replace("MODEL", "{model}")}
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, servers=servers), tmp_path / "run")
    assert read_json_file(tmp_path / "run" / "iteration-02" / "metrics.json")["reload_noise_per_token"] < 1e-4

    failing = servers | {"command": "sh -c 'echo no room; exit 3' {model}"}
    with pytest.raises(RunError, match=r"ended with code 3:\nno room"):
        train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, servers=failing), tmp_path / "failing")


def test_a_server_that_does_not_start_stops_the_run_with_its_last_words(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    servers = {"command": "sh -c 'echo no such model {model} {port}; exit 2'"}
    with pytest.raises(RunError, match=r"a sampler server ended with code 2, .*0\.log:\nno such model"):
        train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, servers=servers), tmp_path)


def test_groups_that_servers_cannot_complete_are_left_out_of_the_round(
    tmp_path, policy_folder, prompts_file, oracle_url, two
):
    servers = {"urls": two[:1], "reload": "update", "concurrency": 1, "request_timeout_s": 2.0, "tries": 1}
    settings = {"servers": servers, "training__iterations": 1}
    strict = recipe("inpo", policy_folder, prompts_file, oracle_url, **settings)
    # The stored responses are scored first, so that eight of the slow requests are theirs.
    misbehave(two[0], delay_s=2.5, count=10)
    with pytest.raises(
        RunError, match=r"of 6 prompts have no group that was compared: data\.max_missing_groups is 0\.05"
    ):
        train_policy(strict, tmp_path)
    lenient = recipe("inpo", policy_folder, prompts_file, oracle_url, data__max_missing_groups=0.5, **settings)
    train_policy(lenient, tmp_path, resume=True)
    metrics = read_json_file(tmp_path / "iteration-01" / "metrics.json")

    assert 1 <= metrics["missing_groups"] <= 2
    rows = read_rows(tmp_path / "iteration-01" / "round-1" / "samples.parquet", Response)
    assert len(rows) == 3 * (6 - metrics["missing_groups"])


def test_a_server_of_the_runs_own_that_dies_is_started_again_with_the_same_weights(tmp_path, policy_folder):
    policy = load_policy(str(policy_folder))
    prompts = [Prompt(f"p{number}", "", (3, 40 + number, 1, 4)) for number in range(4)]
    probes = stored_probes(
        tmp_path / "probes.parquet", policy, prompts, source=str(policy_folder), seed=0, max_new_tokens=8
    )
    section = ServersSection(command=shlex.join(peer_command()))
    with SamplerServers(section, tmp_path, probes, tolerance=1e-4, longest=64, texts={}) as servers:
        expected = policy_logprobs(policy, probes, PolicyTrainingSection())
        servers.take("initial", str(policy_folder), expected)
        sampler = FleetSampler(servers.fleet, servers.background, Decoding(max_new_tokens=6), policy.end_ids)
        chunks = {0: prompts[:2], 1: prompts[2:]}
        whole = dict(sampler.draw_chunks(chunks, responses=2, names=(0,)))
        misbehave(servers.fleet.servers[0].url, die=True)

        assert dict(sampler.draw_chunks(chunks, responses=2, names=(0,))) == whole
        assert list(servers._starts.values()) == [2]


def test_a_process_of_a_run_ends_with_it_even_after_a_kill(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from paragone_training.policy.oracle import RunProcess\n"
        "RunProcess(['sh', '-c', 'echo $$; exec sleep 600'], Path(sys.argv[1]))\n"
        "import time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "log")], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert_ends(int((tmp_path / "log").read_text()))


def assert_ends(number: int) -> None:
    """See that a process is gone, or waits for nothing but its parent's notice."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"{number} still runs")


def test_stopping_a_process_ends_its_children_too(tmp_path):
    process = RunProcess(["sh", "-c", "sleep 600 & echo $!; wait"], tmp_path / "log")
    while not (tmp_path / "log").read_text():
        time.sleep(0.05)
    child = int((tmp_path / "log").read_text())
    process.stop()
    assert_ends(child)
