"""The trainer: one pass a distinct response, a mean per pair over the whole step, and resumption."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from paragone_evaluation.readers import Pair
from paragone_models.network import PreferenceNetwork
from paragone_models.text.reader import TextReader
from paragone_training.data import PairBatches, group_pairs, read_groups
from paragone_training.errors import DivergedError
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.objective import Objective
from paragone_training.preference.train_model import fit
from paragone_training.trainer import StepTrainer, warmup_steps
from tests.training.arguments import pairs, recipe

OBJECTIVE = Objective("bradley-terry", 1.0)


class GradientSpy(TrainerCallback):
    """Keep the gradient of the first optimiser step, before clipping."""

    def __init__(self) -> None:
        self.gradient: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not self.gradient:
            self.gradient = {name: weight.grad.clone() for name, weight in model.named_parameters()}


def first_gradient(folder: Path, *, budget: int, accumulation: int, rows: Any) -> dict[str, Tensor]:
    built = recipe()
    groups = group_pairs(rows)
    model = build_model(built, [text for group in groups for text in group.responses])
    batches = PairBatches(
        groups,
        read_groups(groups, TextReader(model.tokenizer, model.spec)),
        budget=budget,
        pad_id=model.tokenizer.pad_token_id,
    )
    assert len(batches) == accumulation
    spy = GradientSpy()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    StepTrainer(model.network, arguments, batches, OBJECTIVE, callbacks=[spy]).train()
    return spy.gradient


def test_accumulation_one_and_four_give_the_same_gradient_with_unequal_numbers_of_pairs(tmp_path):
    rows = pairs(4)
    rows = rows[:9] + rows[9:15] + rows[18:27] + rows[27:28]  # 9, 6, 9 and 1 labelled pairs
    one = first_gradient(tmp_path / "one", budget=24, accumulation=1, rows=rows)
    four = first_gradient(tmp_path / "four", budget=6, accumulation=4, rows=rows)
    assert one.keys() == four.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(four[name], gradient, rtol=1e-4, atol=1e-6)
    assert sum(float(gradient.abs().sum()) for gradient in one.values()) > 0


def test_a_step_divides_by_its_own_pairs_not_by_its_passes(tmp_path):
    rows = pairs(1)
    groups = group_pairs(rows)
    model = build_model(recipe(), [text for group in groups for text in group.responses])
    readings = read_groups(groups, TextReader(model.tokenizer, model.spec))
    batches = PairBatches(groups, readings, budget=6, pad_id=0)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = StepTrainer(model.network, arguments, batches, OBJECTIVE)
    batch = dict(batches[0])
    _, count = trainer.get_batch_samples(iter([batches[0], batches[0]]), 2, torch.device("cpu"))
    assert count.tolist() == [18, 0]
    whole = trainer.compute_loss(model.network, batch, num_items_in_batch=torch.tensor([9, 0]))
    half = trainer.compute_loss(model.network, batch, num_items_in_batch=count)
    torch.testing.assert_close(half * 2, whole)


def test_each_distinct_response_passes_the_network_once_an_epoch(tmp_path, monkeypatch):
    rows: list[int] = []
    forward = PreferenceNetwork.forward

    def counted(self: PreferenceNetwork, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.training:
            rows.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(PreferenceNetwork, "forward", counted)
    fit(recipe(training={"epochs": 2, "batch_responses": 4}), Rows(pairs(3)), tmp_path)
    assert sum(rows) == 2 * 3 * 6  # 27 pairs would be 54 rows an epoch if every pair brought its own two
    assert max(rows) <= 4


def test_a_batch_without_a_labelled_pair_changes_nothing_and_breaks_nothing(tmp_path):
    rows = pairs(1)[:1] + pairs(2)[9:10]
    outcome = fit(recipe(training={"epochs": 4, "batch_responses": 2}), Rows([*rows, *pairs(1)[1:3]]), tmp_path)
    assert all(torch.isfinite(weight).all() for weight in outcome.model.network.parameters())


class Killed(Exception):
    """Stands for a machine that goes away."""


class Killer(TrainerCallback):
    """Go away at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step == self._step:
            raise Killed


RESUMED = recipe(
    pretraining={"epochs": 1, "batch_tokens": 128},
    teacher={"steps": 2, "batch_responses": 6},
    training={
        "epochs": 3,
        "batch_responses": 3,
        "accumulation": 2,
        "dropout": 0.2,
        "head_dropout": 0.2,
        "token_noise": 0.1,
        "average_decay": 0.9,
    },
)


def test_a_run_that_is_killed_and_resumed_equals_one_that_was_not(tmp_path, monkeypatch):
    whole = fit(RESUMED, Rows(pairs(3), held_out_pairs=pairs(1)), tmp_path / "whole")
    per_epoch = 3  # six chunks, two a step
    with monkeypatch.context() as patch:
        with_callback(patch, Killer(per_epoch + 1))
        with pytest.raises(Killed):
            fit(RESUMED, Rows(pairs(3), held_out_pairs=pairs(1)), tmp_path / "cut")
    assert (tmp_path / "cut" / f"checkpoint-{per_epoch}").is_dir()
    resumed = fit(RESUMED, Rows(pairs(3), held_out_pairs=pairs(1)), tmp_path / "cut", resume=True)
    for one, two in itertools.zip_longest(
        whole.model.network.state_dict().items(), resumed.model.network.state_dict().items()
    ):
        assert one[0] == two[0]
        torch.testing.assert_close(one[1], two[1], rtol=0, atol=0)
    assert whole.judged is not None
    assert resumed.judged is not None
    assert whole.judged.logit.tolist() == resumed.judged.logit.tolist()


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    """Have every trainer that is made from here on call it too."""
    init = StepTrainer.__init__

    def extended(self: Any, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
        init(self, *args, callbacks=[callback, *(callbacks or [])], **kwargs)

    monkeypatch.setattr(StepTrainer, "__init__", extended)


def test_a_run_of_one_epoch_that_is_killed_in_its_middle_goes_on_from_there(tmp_path, monkeypatch):
    settings = {**RESUMED.model_dump()["training"], "epochs": 1, "save_steps": 1, "betas": [0.9, 0.98]}
    single = recipe(pretraining={"epochs": 1, "batch_tokens": 128}, training=settings)
    whole = fit(single, Rows(pairs(3)), tmp_path / "whole")
    with monkeypatch.context() as patch:
        with_callback(patch, Killer(3))
        with pytest.raises(Killed):
            fit(single, Rows(pairs(3)), tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    # A checkpoint that was being written, and is not whole.
    (tmp_path / "cut" / "checkpoint-3").mkdir()
    (tmp_path / "cut" / "checkpoint-3" / "trainer_state.json").write_text('{"epoch": 0.')
    resumed = fit(single, Rows(pairs(3)), tmp_path / "cut", resume=True)
    for name, tensor in whole.model.network.state_dict().items():
        torch.testing.assert_close(resumed.model.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_checkpoints_come_by_time_unless_steps_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr("paragone_training.trainer._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    fit(recipe(training={"epochs": 1, "batch_responses": 2, "checkpoints": 9}), Rows(pairs(1)), tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


@pytest.mark.parametrize(
    ("asked", "steps", "laid_out", "expected"),
    [(0.1, 1, None, 0), (0.1, 1, 40, 0), (0.1, 2, 40, 4), (0.03, 56, None, 2), (0.9, 2, None, 1), (1, 2, None, 1)],
)
def test_some_step_of_a_run_has_a_learning_rate(asked, steps, laid_out, expected):
    assert warmup_steps(asked, steps=steps, laid_out=laid_out) == expected


class Poison(TrainerCallback):
    """Put NaN into a weight at the end of a step, or into a gradient before it."""

    def __init__(self, step: int, *, gradient: bool) -> None:
        self._step, self._gradient = step, gradient

    def _spoil(self, model: Any) -> None:
        weight = next(model.parameters())
        tensor = weight.grad if self._gradient else weight.data
        tensor.view(-1)[0] = float("nan")

    def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if self._gradient and state.global_step == self._step:
            self._spoil(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not self._gradient and state.global_step == self._step:
            self._spoil(model)


def spoiled(folder: Path, monkeypatch: pytest.MonkeyPatch, *, gradient: bool, save_steps: int | None) -> str:
    """Return why a run of four steps of two passes ends whose second step is spoiled."""
    training = {"epochs": 4, "batch_responses": 6, "accumulation": 2, "save_steps": save_steps, "checkpoints": 9}
    with_callback(monkeypatch, Poison(2, gradient=gradient))
    with pytest.raises(DivergedError) as ended:
        fit(recipe(training=training), Rows([*pairs(2), *pairs(1)], held_out_pairs=pairs(1)), folder)
    assert json.loads((folder / "history.json").read_text(), parse_constant=pytest.fail)
    return str(ended.value)


def test_gradients_that_are_no_numbers_stop_the_run_at_their_step_with_its_rows(tmp_path, monkeypatch):
    message = spoiled(tmp_path, monkeypatch, gradient=True, save_steps=1)
    assert message.startswith("step 3 of 4: the gradients have the norm nan over 2 rows (pairs.jsonl:0, pairs.jsonl:1)")
    assert "lower training.learning_rate" in message
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    # Checkpoints by epoch here, and an epoch is a step: the weights of step 2 are looked at before they are written.
    message = spoiled(tmp_path, monkeypatch, gradient=False, save_steps=None)
    assert message.startswith("after step 2 of 4 1 weights are NaN or infinite (backbone.embed_tokens.weight)")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_loss_beyond_float32_stops_the_first_step(tmp_path):
    extreme = recipe(model={"temperature": 1e-44})
    with pytest.raises(DivergedError, match=r"step 1 of 2: the loss is inf over 1 rows \(pairs\.jsonl:0\)"):
        fit(extreme, Rows(pairs(1)), tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_evaluation_runs_every_epoch_and_is_in_the_history(tmp_path):
    outcome = fit(recipe(training={"epochs": 3}), Rows(pairs(3), held_out_pairs=pairs(2, split="test")), tmp_path)
    evaluations = [line for line in outcome.history if "eval_accuracy" in line]
    assert [line["epoch"] for line in evaluations] == [1.0, 2.0, 3.0]
    assert {"eval_negative_log_likelihood", "eval_margin", "eval_length_accuracy"} <= evaluations[0].keys()


def test_the_log_states_the_loss_in_force(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_training.preference.train_model")
    fit(recipe(loss={"name": "scaled"}, training={"epochs": 1}), Rows(pairs(1)), tmp_path)
    assert "loss in force: scaled bradley-terry loss: -strength * log sigmoid((r1 - r2))" in caplog.text


@pytest.mark.parametrize(
    ("loss", "strength", "words"),
    [
        ("soft", 1.0, "every strength is 1, so loss.name = 'soft' learns the probability 2/3 from each pair"),
        ("margin", 2.5, "strengths that the margin loss takes: 2.5"),
    ],
)
def test_the_log_says_what_strengths_mean_to_the_loss(tmp_path, caplog, loss, strength, words):
    caplog.set_level("INFO", "paragone_training")
    rows = [Pair("p", "a b", "c", strength), Pair("q", "a b", "c", -strength)]
    fit(recipe(loss={"name": loss}, training={"epochs": 1}), Rows(rows), tmp_path)
    assert words in caplog.text


def test_a_run_whose_gradients_were_all_zero_says_that_it_learned_nothing(tmp_path, caplog):
    # Logits beyond float32: one of the two orders is right already, at a loss and a gradient of 0; the other diverges.
    extreme, ends = recipe(model={"temperature": 1e-44}, training={"epochs": 1}), []
    for number, strength in enumerate((1.0, -1.0)):
        try:
            ends.append(fit(extreme, Rows([Pair("p", "a b", "c", strength)]), tmp_path / str(number)))
        except DivergedError as error:
            ends.append(error)
    assert sum(isinstance(end, DivergedError) for end in ends) == 1
    assert "the gradients of every step were 0: nothing was learned" in caplog.text
