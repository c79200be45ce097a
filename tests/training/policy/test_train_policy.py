"""The whole loop on a policy of a few thousand weights against a real service."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from paragone_training.errors import FolderTakenError, OracleReplacedError, RecipeError, RunError
from paragone_training.policy.evaluate import write_report
from paragone_training.policy.model.weights import load_tokenizer
from paragone_training.policy.processes import Processes
from paragone_training.policy.rows import (
    LabelledPair,
    Response,
    locked,
    read_answers,
    read_json_file,
    read_rows,
    write_rows,
)
from paragone_training.policy.train_policy import _PolicyRun, train_policy
from paragone_training.watching import progress_of
from tests.training.policy.tiny_policy import LOSSES, recipe


@pytest.mark.parametrize("method", list(LOSSES))
def test_every_method_runs_two_iterations_and_starts_each_at_its_closed_form(
    method, tmp_path, policy_folder, prompts_file, oracle_url
):
    train_policy(recipe(method, policy_folder, prompts_file, oracle_url), tmp_path)

    starts = [read_json_file(path) for path in sorted(tmp_path.glob("iteration-*/step-*/start.json"))]
    assert len(starts) == {"egpo": 4, "omwu": 3}.get(method, 2)
    for start in starts:
        assert start["raw_loss"] == pytest.approx(start["raw_closed_form"], rel=1e-3, abs=1e-6)
        assert start["noise_share"] < 0.01
    rounds = sorted(path.parent.name for path in tmp_path.glob("iteration-*/round-*/oracle.parquet"))
    assert rounds == (["round-1", "round-1", "round-2", "round-2"] if method == "egpo" else ["round-1", "round-1"])
    metrics = read_json_file(tmp_path / "iteration-02" / "metrics.json")
    assert metrics["pairs"] > 0
    assert metrics["incomplete_tables"] == 0
    assert (tmp_path / "report.html").read_text().count("<svg") >= 3


def test_the_tables_on_disk_say_everything_about_an_iteration(tmp_path, policy_folder, prompts_file, oracle_url):
    # One step of all pairs: the first batch is the whole of them.
    changes = {"training__iterations": 1, "training__pairs_per_step": 64, "training__pairs_per_pass": 64}
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, loss__sft=0.5, **changes), tmp_path)
    folder = tmp_path / "iteration-01" / "round-1"
    responses, answers = read_rows(folder / "samples.parquet", Response), read_answers(folder / "oracle.parquet")

    assert [(row.prompt_id, row.number) for row in responses[:4]] == [("p0", 0), ("p0", 1), ("p0", 2), ("p1", 0)]
    assert all(1 <= len(row.token_ids) <= 8 for row in responses)
    assert [answer.raw.shape for answer in answers] == [(3, 3)] * 6
    for answer in answers:
        assert answer.raw + answer.raw.T == pytest.approx(1.0, abs=1e-12)
    pairs = read_rows(folder / "targets.parquet", LabelledPair)
    assert 0 < len(pairs) <= 18
    columns = parquet.read_table(tmp_path / "iteration-01" / "step-1" / "logprobs.parquet").to_pydict()
    assert columns["base_logprob"] == columns["reference_logprob"]
    assert all(value < 0 for value in columns["base_logprob"])
    start = read_json_file(tmp_path / "iteration-01" / "step-1" / "start.json")
    known = dict(zip(zip(columns["prompt_id"], columns["number"], strict=True), columns["base_logprob"], strict=True))
    tokens = {(row.prompt_id, row.number): len(row.token_ids) for row in responses}
    chosen = [(pair.prompt_id, pair.chosen) for pair in pairs if pair.preference != 0.5]
    likelihood = sum(known[place] / tokens[place] for place in chosen) / len(pairs)
    # INPO's scale is eta²; the SFT term stands beside the scaled loss.
    assert start["closed_form"] == pytest.approx(0.5**2 * start["raw_closed_form"] - 0.5 * likelihood, rel=1e-6)
    assert start["loss"] == pytest.approx(start["closed_form"], rel=1e-3)
    (line,) = read_json_file(tmp_path / "iteration-01" / "step-1" / "history.json")
    assert line["loss"] == pytest.approx(start["loss"], rel=1e-3)


def test_k_responses_cost_the_oracle_k_passes_a_prompt(tmp_path, policy_folder, prompts_file, oracle_url):
    changed = recipe("inpo", policy_folder, prompts_file, oracle_url, training__iterations=1, training__seed=991)
    train_policy(changed, tmp_path)
    columns = parquet.read_table(tmp_path / "iteration-01" / "round-1" / "oracle.parquet").to_pydict()
    texts = {
        (row.prompt_id, row.text)
        for row in read_rows(tmp_path / "iteration-01" / "round-1" / "samples.parquet", Response)
    }

    # A response that was drawn twice costs once.
    assert sum(columns["forward_responses"]) <= 18
    assert sum(columns["forward_responses"]) + sum(columns["cached_responses"]) == 18
    assert sum(columns["forward_responses"]) <= len(texts)


def test_evaluation_compares_the_iterate_with_the_initial_policy_by_both_judges(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    changed = recipe(
        "inpo",
        policy_folder,
        prompts_file,
        oracle_url,
        evaluation={"prompts": [str(prompts_file)], "judge_url": oracle_url, "judge_model": "bt", "responses": 2},
    )
    train_policy(changed, tmp_path)
    found = read_json_file(tmp_path / "iteration-02" / "metrics.json")["evaluation"]

    for name in ("oracle", "judge"):
        low, high = found[name]["interval"]
        assert 0 <= low <= found[name]["win_rate"] <= high <= 1
        assert found[name]["prompts"] == 3
        assert 0 < found[name]["controlled"] < 1
    assert found["kl_to_initial"] > -1.0
    assert found["entropy_per_token"] > 0
    assert found["iterate"]["responses"] == found["initial"]["responses"] == 6
    assert "win rate against the initial policy" in (tmp_path / "report.html").read_text()

    done = progress_of(tmp_path)
    assert (done.kind, done.state, done.done, done.total) == ("policy", "done", 2, 2)
    assert done.numbers["win rate (judge)"] == found["judge"]["win_rate"]
    assert [x for x, _ in done.series["win rate (judge)"]] == [1, 2]
    assert done.series["win rate (judge)"][-1] == (2, found["judge"]["win_rate"])
    assert done.series["KL to the initial policy"][-1] == (2, found["kl_to_initial"])
    where = [x for x, _ in done.series["loss"]]
    assert 0 < where[0] <= 1
    assert (where[-1], where) == (2, sorted(where))
    (tmp_path / "iteration-02" / "metrics.json").unlink()
    stopped = progress_of(tmp_path)
    assert (stopped.state, 1 < stopped.done < 2) == ("stopped", True)
    assert stopped.stage.startswith("iteration 2 of 2: ")
    assert stopped.left_s > 0
    with locked(tmp_path):
        assert progress_of(tmp_path).state == "running"
    shutil.rmtree(tmp_path / "iteration-02")
    assert progress_of(tmp_path).stage == "iteration 2 of 2: about to sample"


def test_a_run_that_was_finished_is_the_same_after_resuming(tmp_path, policy_folder, prompts_file, oracle_url):
    changes = {"training__iterations": 1, "sampling__stop": ["e"]}
    small = recipe("inpo", policy_folder, prompts_file, oracle_url, **changes)
    train_policy(small, tmp_path)
    rows = read_rows(tmp_path / "iteration-01" / "round-1" / "samples.parquet", Response)
    decode = load_tokenizer(str(policy_folder)).decode
    stopped = [row for row in rows if "e" in decode(list(row.token_ids), skip_special_tokens=True)]
    assert stopped
    assert all(row.finished for row in stopped)
    assert not any("e" in row.text for row in rows)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    train_policy(small, tmp_path, resume=True)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_more_iterations_may_be_asked_for_and_nothing_else(tmp_path, policy_folder, prompts_file, oracle_url):
    arguments = (policy_folder, prompts_file, oracle_url)
    train_policy(recipe("sppo", *arguments, training__iterations=1), tmp_path)
    train_policy(recipe("sppo", *arguments, training__iterations=2), tmp_path, resume=True)

    assert (tmp_path / "iteration-02" / "metrics.json").exists()
    with pytest.raises(RecipeError, match=r"loss\.eta is not what the run"):
        train_policy(recipe("sppo", *arguments, loss__eta=3.0), tmp_path, resume=True)
    with pytest.raises(RecipeError, match="holds an earlier run: go on with --resume"):
        train_policy(recipe("sppo", *arguments), tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path, policy_folder, prompts_file):
    with locked(tmp_path), pytest.raises(FolderTakenError, match=r"another process \(\d+\) runs in"):
        train_policy(recipe("sppo", policy_folder, prompts_file), tmp_path)


def test_an_oracle_of_another_model_stops_the_run(tmp_path, policy_folder, prompts_file, oracle_url):
    arguments = (policy_folder, prompts_file, oracle_url)
    train_policy(recipe("sppo", *arguments, training__iterations=1), tmp_path)
    (tmp_path / "oracle.json").write_text(json.dumps({"model": "gp", "fingerprint": "0" * 64}))

    with pytest.raises(OracleReplacedError, match="host the first one again and resume"):
        train_policy(recipe("sppo", *arguments, training__iterations=2), tmp_path, resume=True)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers' old name
def test_adapters_are_trained_and_merged_and_kept_as_one_of_the_initial_policy(
    tmp_path, policy_folder, prompts_file, oracle_url
):
    changed = recipe(
        "inpo",
        policy_folder,
        prompts_file,
        oracle_url,
        lora={"rank": 2, "alpha": 4},
        output={"adapters": True, "keep": 1},
    )
    train_policy(changed, tmp_path)
    start = read_json_file(tmp_path / "iteration-02" / "step-1" / "start.json")

    assert start["raw_loss"] == pytest.approx(start["raw_closed_form"], rel=1e-3)
    # The iterate before is gone; its adapter is half of the last one, and leads there from the initial policy.
    assert not (tmp_path / "iteration-01" / "step-1" / "policy").exists()
    config = read_json_file(tmp_path / "iteration-02" / "step-1" / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert config["base_model_name_or_path"] == str(policy_folder)
    tokens = torch.tensor([[5, 6, 7, 8]])
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(policy_folder), tmp_path / "iteration-02" / "step-1" / "adapter"
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "iteration-02" / "step-1" / "policy")
    initial = AutoModelForCausalLM.from_pretrained(policy_folder)
    with torch.no_grad():
        expected = merged(tokens).logits
        torch.testing.assert_close(adapted(tokens).logits, expected, atol=1e-4, rtol=1e-4)
        assert (initial(tokens).logits - expected).abs().max() > 0.01
    files = {path.name for path in (tmp_path / "iteration-02" / "step-1" / "policy").iterdir()}
    assert "model.safetensors" in files
    assert not any(name.startswith("adapter") for name in files)


def test_the_reference_is_reset_every_n_iterations(tmp_path, policy_folder, prompts_file):
    changed = recipe("inpo", policy_folder, prompts_file, reference={"policy": "every-n", "every": 2})
    run = _PolicyRun(changed, tmp_path, Processes(limit_s=1))
    sources = [run.reference_source(iteration) for iteration in range(1, 6)]

    assert sources[0] == sources[1] == str(policy_folder)
    assert sources[2] == sources[3] == run.iterate_source(3)
    assert sources[4] == run.iterate_source(5)


def test_a_run_without_any_decided_pair_says_so(tmp_path, policy_folder, prompts_file, oracle_url):
    changed = recipe(
        "inpo", policy_folder, prompts_file, oracle_url, sampling__unfinished="drop", sampling__max_new_tokens=1
    )
    with pytest.raises(RunError, match=r"no preference to learn from|no pair to train on"):
        train_policy(changed, tmp_path)


def test_a_training_step_stops_early_on_a_longer_schedule(tmp_path, policy_folder, prompts_file, oracle_url):
    changed = recipe(
        "sppo",
        policy_folder,
        prompts_file,
        oracle_url,
        training__iterations=1,
        training__schedule_epochs=6.0,
        training__warmup=0.5,
    )
    train_policy(changed, tmp_path)
    rates = [line["learning_rate"] for line in read_json_file(tmp_path / "iteration-01" / "step-1" / "history.json")]

    # A sixth of the schedule is run, the first third of its warm-up.
    assert len(rates) == math.ceil(
        len(read_rows(tmp_path / "iteration-01" / "round-1" / "targets.parquet", LabelledPair)) / 4
    )
    assert rates == sorted(rates)
    assert rates[-1] < 0.005


def test_a_bradley_terry_oracle_gives_sppo_no_warning(tmp_path, policy_folder, prompts_file, oracle_url):
    changed = recipe("sppo", policy_folder, prompts_file, oracle_url, oracle__model="bt", training__iterations=1)
    train_policy(changed, tmp_path)
    metrics = read_json_file(tmp_path / "iteration-01" / "metrics.json")

    # Its probabilities turn, being no differences of rewards; its preferences do not go in circles.
    assert metrics["rotation"] > 0
    assert metrics["cyclic_share"] == 0
    assert metrics["convergence_warning"] is None


def test_a_schedule_weighs_the_cyclic_part_of_a_hybrid_oracle_by_iteration(
    tmp_path, policy_folder, prompts_file, oracle_url, oracle_models
):
    scheduled = {"oracle__model": "hy", "oracle__skew_weights": [0.0, 2.0]}
    train_policy(recipe("inpo", policy_folder, prompts_file, oracle_url, **scheduled), tmp_path)
    model = oracle_models["hy"]

    for iteration, weight in ((1, 0.0), (2, 2.0)):
        folder = tmp_path / f"iteration-0{iteration}" / "round-1"
        texts = [row.text for row in read_rows(folder / "samples.parquet", Response) if row.prompt_id == "p0"]
        judge = dataclasses.replace(model.comparator, skew_weight=weight)
        expected = judge.matrix(model.score("What is 0?", texts).representations.numpy())
        (raw,) = [answer.raw for answer in read_answers(folder / "oracle.parquet") if answer.prompt_id == "p0"]
        assert raw == pytest.approx(expected, abs=1e-5)
        identity = read_json_file(tmp_path / f"oracle-skew-{weight}.json")
        assert identity["fingerprint"] != model.fingerprint
    with pytest.raises(RecipeError, match=r"weigh the cyclic part of a hybrid model, and bt at .* is of kind bradley"):
        train_policy(
            recipe("inpo", policy_folder, prompts_file, oracle_url, **scheduled | {"oracle__model": "bt"}),
            tmp_path / "other",
        )


def test_after_sampling_training_may_still_be_set_otherwise(tmp_path, policy_folder, prompts_file, oracle_url):
    arguments = (policy_folder, prompts_file, oracle_url)
    train_policy(recipe("inpo", *arguments, training__iterations=1), tmp_path / "whole")
    sampled = tmp_path / "sampled"
    shutil.copytree(tmp_path / "whole", sampled)
    shutil.rmtree(sampled / "iteration-01" / "step-1")
    (sampled / "iteration-01" / "metrics.json").unlink()
    changed = recipe("inpo", *arguments, training__iterations=1, training__learning_rate=0.001)
    train_policy(changed, sampled, resume=True)

    with pytest.raises(RecipeError, match=r"training\.learning_rate is not what the run"):
        train_policy(changed, tmp_path / "whole", resume=True)
    with pytest.raises(RecipeError, match=r"training\.seed is not what the run"):
        train_policy(recipe("inpo", *arguments, training__iterations=1, training__seed=3), sampled, resume=True)


def test_a_report_is_written_when_an_evaluation_lacks_a_group(tmp_path, policy_folder, prompts_file, oracle_url):
    evaluated = {"prompts": [str(prompts_file)]}
    train_policy(
        recipe("inpo", policy_folder, prompts_file, oracle_url, evaluation=evaluated, training__iterations=1), tmp_path
    )
    path = tmp_path / "evaluation-01" / "samples.parquet"
    rows = read_rows(path, Response)
    write_rows(path, rows[1:], Response)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()

    assert f"What is {rows[1].prompt_id[1:]}?" in page
    assert f"What is {rows[0].prompt_id[1:]}?" not in page
