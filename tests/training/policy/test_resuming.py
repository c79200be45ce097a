"""A run that was killed at any moment, and started again, gives what an uninterrupted one gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pyarrow import parquet

from paragone_training.policy.rows import read_json_file
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.tiny_policy import recipe

ROOT = Path(__file__).parents[3]

# One interpreter, so that the libraries are imported once: each run is a fork that kills itself, kill -9, when the
# file it was told about has just appeared.
DRIVER = """
    import json, os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from paragone_training.policy import rows as files
    from paragone_training.policy.train_policy import train_policy
    from tests.training.policy.tiny_policy import recipe

    folder, policy, prompts, url, method = sys.argv[1:6]
    changes = {"evaluation": {"prompts": [prompts]}} | json.loads(os.environ["RECIPE_CHANGES"])
    made = recipe(method, policy, Path(prompts), url, **changes)
    for death in [*sys.argv[6:], None]:
        child = os.fork()
        if child == 0:
            whole = files._whole

            def deadly(path, *, death=death):
                class Context:
                    def __enter__(self):
                        self.inner = whole(path)
                        return self.inner.__enter__()
                    def __exit__(self, *error):
                        early = death is not None and death.startswith("before:") and str(path).endswith(death[7:])
                        if early:
                            os.kill(os.getpid(), signal.SIGKILL)
                        result = self.inner.__exit__(*error)
                        if death is not None and str(path).endswith(death):
                            os.kill(os.getpid(), signal.SIGKILL)
                        return result
                return Context()

            files._whole = deadly
            train_policy(made, Path(folder), resume=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(death, ended, flush=True)
        if ended != (0 if death is None else -signal.SIGKILL):
            sys.exit(f"at {death}: ended with {ended}")
"""

DEATHS = (
    "recipe.json",
    "before:iteration-01/round-1/parts/samples-00001.parquet",
    "iteration-01/round-1/parts/samples-00001.parquet",
    "iteration-01/round-1/parts/oracle-00001.parquet",
    "iteration-01/round-1/oracle.parquet",
    "iteration-01/round-1/samples.parquet",
    "iteration-01/round-1/targets.parquet",
    "iteration-01/step-1/logprobs.parquet",
    "before:iteration-01/step-1/policy",
    "iteration-01/step-1/policy",
    "evaluation-01/parts/oracle-00000.parquet",
    "evaluation-01/summary.json",
    "iteration-01/metrics.json",
    "iteration-02/round-1/parts/samples-00002.parquet",
    "iteration-02/step-1/start.json",
    "iteration-02/metrics.json",
)


def contents(folder: Path) -> dict[str, object]:
    """Return what a run has on disk, without times and without who was asked how often."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            columns = parquet.read_table(path).to_pydict()
            found[name] = {
                key: value for key, value in columns.items() if key not in ("forward_responses", "cached_responses")
            }
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.name == "history.json":
            found[name] = [{key: line[key] for key in ("loss", "step")} for line in read_json_file(path)]
        elif path.name == "summary.json":
            found[name] = read_json_file(path)
    return found


def run_to_the_end(folder: Path, deaths: Sequence[str], *arguments: object, **changes: object) -> None:
    """Run a recipe in a process that is killed at each of the deaths and started again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), *map(str, arguments), *deaths],
        cwd=ROOT,
        env=environment | {"RECIPE_CHANGES": json.dumps(changes)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout.count(str(-signal.SIGKILL)) == len(deaths)


def assert_same_run(killed_folder: Path, whole_folder: Path) -> None:
    killed, uninterrupted = contents(killed_folder), contents(whole_folder)
    assert killed.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert killed[name] == value, name


def test_a_run_killed_at_every_stage_ends_as_an_uninterrupted_one_that_keeps_all(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    run_to_the_end(tmp_path / "killed", DEATHS, policy_folder, prompts_file, oracle_url, "inpo", output={"keep": 1})
    whole = recipe("inpo", policy_folder, prompts_file, oracle_url, evaluation={"prompts": [str(prompts_file)]})
    train_policy(whole, tmp_path / "whole")
    # Killed before it removed them; the run that went on did.
    assert not (tmp_path / "killed" / "iteration-01" / "step-1" / "policy").exists()
    shutil.rmtree(tmp_path / "whole" / "iteration-01" / "step-1" / "policy")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_training_goes_on_from_a_checkpoint_with_the_same_outcome(tmp_path, policy_folder, prompts_file, oracle_url):
    changes = {"training__iterations": 1, "training__save_steps": 2}
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, **changes), tmp_path)
    weights = tmp_path / "iteration-01" / "step-1" / "policy" / "model.safetensors"
    whole = weights.read_bytes()
    history = read_json_file(tmp_path / "iteration-01" / "step-1" / "history.json")
    (saved,) = (tmp_path / "iteration-01" / "step-1" / "checkpoints").glob("checkpoint-*")
    assert saved.name == f"checkpoint-{2 * ((len(history) - 1) // 2)}"

    # As if it had been killed while it wrote the checkpoint after the last one.
    for path in (tmp_path / "iteration-01" / "metrics.json", *weights.parent.iterdir()):
        path.unlink()
    weights.parent.rmdir()
    half = saved.with_name(f"checkpoint-{2 * ((len(history) - 1) // 2) + 2}")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, **changes), tmp_path, resume=True)
    assert weights.read_bytes() == whole
