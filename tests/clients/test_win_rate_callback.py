"""The win-rate callback without weights: a policy that is a table of texts, and transformers' own events."""

from types import SimpleNamespace

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from paragone import Client
from paragone.adapters.trl import WinRateCallback
from tests.clients.oracle import Oracle, error, probability

PROMPTS = ["p", [{"role": "user", "content": "q"}]]


class Tracker(TrainerCallback):
    def __init__(self, logged):
        self.logged = logged

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: ARG002 (the signature of transformers)
        self.logged.append(logs)


def first_texts(policy, tokenizer, prompts):  # noqa: ARG001 (the signature of the callback's function)
    return policy["texts"][: len(prompts)]


class Trainer:
    """What the callback needs of a trainer, with transformers' own handler of events."""

    def __init__(self, eval_dataset=None):
        self.eval_dataset = eval_dataset
        self.policy = {"texts": ["four", "sixsix"]}
        self.logged = []
        self.callback_handler = CallbackHandler([Tracker(self.logged)], self.policy, None, None, None)
        self.state = TrainerState(is_world_process_zero=True, is_local_process_zero=True, epoch=1.0)
        self.args = SimpleNamespace(per_device_eval_batch_size=1)

    def event(self, name, *arguments):
        handler = self.callback_handler
        handler.call_event(name, self.args, self.state, TrainerControl(), **dict(arguments))


def made(trainer, oracle, **settings):
    callback = WinRateCallback(
        Client(transport=oracle if not isinstance(oracle, Oracle) else oracle.transport(), retry_s=0),
        trainer,
        **{"generate": first_texts, **settings},
    )
    trainer.callback_handler.add_callback(callback)
    return callback


def test_an_evaluation_has_the_mean_probability_against_the_references():
    trainer, oracle, metrics = Trainer(), Oracle(), {"eval_loss": 1.0}
    made(trainer, oracle, prompts=PROMPTS, references=[["a"], ["b", "longer one"]])
    trainer.event("on_train_begin")
    trainer.event("on_evaluate", ("metrics", metrics))
    second = (probability("sixsix", "b") + probability("sixsix", "longer one")) / 2
    right = (probability("four", "a") + second) / 2
    assert metrics == {"eval_loss": 1.0, "eval_win_rate": pytest.approx(right), "eval_win_rate_unjudged": 0}
    assert trainer.logged == [{"eval_win_rate": pytest.approx(right), "eval_win_rate_unjudged": 0}]
    assert trainer.state.log_history[0]["eval_win_rate"] == pytest.approx(right)
    assert oracle.bodies()[0]["groups"][1]["prompt"] == PROMPTS[1]


def test_the_first_completions_are_the_references_if_none_are_given():
    trainer, oracle = Trainer({"prompt": ["p", "q"]}), Oracle()
    made(trainer, oracle, every=2)
    trainer.event("on_train_begin")
    trainer.policy["texts"] = ["four more", "sixsix more"]
    for step in (1, 2):
        trainer.state.global_step = step
        trainer.event("on_step_end")
    (logs,) = trainer.logged
    assert logs["eval_win_rate"] == pytest.approx(probability("four more", "four"))
    assert trainer.state.log_history[0]["step"] == 2
    trainer.event("on_evaluate", ("metrics", {}))
    assert len(trainer.logged) == 1


def test_a_prompt_without_an_answer_is_left_out_and_counted():
    trainer = Trainer()
    trainer.policy["texts"] = ["bad", "sixsix"]
    made(trainer, Oracle(), prompts=PROMPTS, references=[["a"], ["b"]])
    trainer.event("on_evaluate", ("metrics", {}))
    assert trainer.logged == [{"eval_win_rate": probability("sixsix", "b"), "eval_win_rate_unjudged": 1}]


def test_a_service_that_does_not_answer_ends_no_run_and_gives_no_number(caplog):
    import httpx2

    trainer = Trainer()
    broken = httpx2.MockTransport(lambda _: error(500, "engine_failed", "out of memory"))
    made(trainer, broken, prompts=PROMPTS, references=[["a"], ["b"]])
    trainer.event("on_evaluate", ("metrics", {}))
    assert trainer.logged == [{"eval_win_rate_unjudged": 2}]
    assert "no win rate of the policy" in caplog.text


def test_other_processes_take_part_in_the_sampling_alone():
    trainer, oracle, asked = Trainer(), Oracle(), []

    def sharded(policy, tokenizer, prompts):  # noqa: ARG001
        asked.append(prompts)
        return ["a", "b"]

    trainer.state.is_world_process_zero = False
    made(trainer, oracle, prompts=PROMPTS, references=[["a"], ["b"]], generate=sharded)
    trainer.event("on_evaluate", ("metrics", {}))
    assert asked == [PROMPTS]
    assert oracle.seen == []
    assert trainer.logged == []


def test_every_event_of_transformers_is_taken():
    trainer = Trainer()
    made(trainer, Oracle(), prompts=PROMPTS, references=[["a"], ["b"]], every=100)
    for name in [name for name in dir(CallbackHandler) if name.startswith("on_") and name != "on_log"]:
        trainer.event(name, ("metrics", {}))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="eval_dataset"):
        made(Trainer(), Oracle())
    with pytest.raises(ValueError, match="2 prompts with 1 lists of references"):
        made(Trainer(), Oracle(), prompts=PROMPTS, references=[["a"]])
    trainer = Trainer()
    made(trainer, Oracle(), prompts=PROMPTS)
    with pytest.raises(ValueError, match="before training"):
        trainer.event("on_evaluate", ("metrics", {}))
