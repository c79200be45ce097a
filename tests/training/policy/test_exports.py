"""What trackers show is what the run's own tables say: read back from the file that TensorBoard reads."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from paragone_training.errors import RecipeError
from paragone_training.policy.exports import Trackers, _flattened, steps_before
from paragone_training.policy.rows import read_json_file
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.tiny_policy import recipe


def test_tensorboard_shows_every_logged_step_of_the_run_and_every_iteration(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    held_out = {"prompts": [str(prompts_file)]}
    output = {"trackers": ["tensorboard"]}
    run = tmp_path / "run"
    train_policy(recipe("omwu", policy_folder, prompts_file, oracle_url, evaluation=held_out, output=output), run)

    events = EventAccumulator(str(run / "tracking" / "run"))
    events.Reload()
    histories = [read_json_file(path) for path in sorted(run.glob("iteration-*/step-*/history.json"))]
    assert len(histories) == 3  # one regression in the first iteration of omwu, two in the second
    lines = [line for history in histories for line in history]
    for name in ("loss", "raw_loss", "learning_rate", "grad_norm"):
        shown = events.Scalars(f"step/{name}")
        assert [event.value for event in shown] == pytest.approx([line[name] for line in lines], rel=1e-5)
        assert [event.step for event in shown] == list(range(1, len(lines) + 1))
    assert steps_before(run) == len(lines)

    metrics = [read_json_file(path) for path in sorted(run.glob("iteration-*/metrics.json"))]
    shown = events.Scalars("iteration/evaluation/oracle/win_rate")
    assert [event.value for event in shown] == pytest.approx(
        [found["evaluation"]["oracle"]["win_rate"] for found in metrics], rel=1e-6
    )
    assert [event.step for event in shown] == [1, 2]
    assert [event.value for event in events.Scalars("iteration/pairs")] == [found["pairs"] for found in metrics]


def test_a_resumed_run_may_add_a_tracker_counts_steps_on_and_sends_no_point_twice(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    once = {"training__iterations": 1}
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, **once), tmp_path)
    before = steps_before(tmp_path)
    assert before > 0
    more = recipe("inpo", policy_folder, prompts_file, oracle_url, output={"trackers": ["tensorboard"]})
    train_policy(more, tmp_path, resume=True)
    # As if it had been killed when all steps were taken and the policy was not written yet: they are taken again.
    second = tmp_path / "iteration-02"
    (second / "metrics.json").unlink()
    shutil.rmtree(second / "step-1" / "policy")
    train_policy(more, tmp_path, resume=True)

    events = EventAccumulator(str(tmp_path / "tracking" / tmp_path.name), purge_orphaned_data=False)
    events.Reload()
    lines = read_json_file(second / "step-1" / "history.json")
    shown = events.Scalars("step/loss")
    assert [event.step for event in shown] == [before + line["step"] for line in lines]
    assert [event.value for event in shown] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    assert [event.step for event in events.Scalars("iteration/pairs")] == [1, 2]


def test_inner_tables_and_lists_have_slashes_in_their_names():
    values = {"pairs": 3, "evaluation": {"interval": [0.25, 0.5], "note": None}}
    assert dict(_flattened(values)) == {
        "pairs": 3,
        "evaluation/interval/0": 0.25,
        "evaluation/interval/1": 0.5,
        "evaluation/note": None,
    }


def test_a_tracker_that_is_not_known_or_not_there_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(RecipeError, match=r"'tensorbord'; accelerate knows .*tensorboard.*wandb"):
        Trackers(["tensorbord"], tmp_path, {})
    with pytest.raises(RecipeError, match=r"'aim', which is not installed: pip install aim"):
        Trackers(["aim"], tmp_path, {})
