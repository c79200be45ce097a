import asyncio
import dataclasses
import inspect
import logging
import math
import pickle
import pkgutil
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from paragone import AsyncClient, Client, adapters
from paragone.adapters import openrlhf, slime, tinker, trl, verl
from paragone.exceptions import ParagoneError, ServerError, TextError, UnsupportedError
from paragone.wire import Shaping
from tests.clients.oracle import Oracle, error, probability

HOSTS = ("trl", "verl", "slime", "openrlhf", "tinker", "tinker_cookbook", "torch", "numpy", "transformers")


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def client(oracle):
    with Client(transport=oracle.transport()) as client:
        yield client


def awaited(oracle, ask):
    """Return what a coroutine function makes of an ``AsyncClient``."""

    async def main():
        async with AsyncClient(transport=oracle.transport() if isinstance(oracle, Oracle) else oracle) as client:
            return await ask(client)

    return asyncio.run(main())


def test_no_adapter_imports_its_host():
    names = [module.name for module in pkgutil.iter_modules(adapters.__path__)]
    script = "\n".join(f"import paragone.adapters.{name}" for name in names)
    script += "\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HOSTS)


# TRL: judges


@pytest.mark.parametrize("shuffle_order", [True, False])
def test_the_pairwise_judge_gives_the_index_of_the_better_one(client, shuffle_order):
    judge = trl.PairwiseJudge(client, seed=0)
    completions = [["longer one", "b"], ["a", "longer one"]] * 5
    assert judge.judge(["p"] * 10, completions, shuffle_order=shuffle_order) == [0, 1] * 5


def test_the_pairwise_judge_says_minus_one_where_a_pair_is_refused(client, caplog):
    assert trl.PairwiseJudge(client).judge(["p", "p"], [["bad", "b"], ["a", "bb"]]) == [-1, 1]
    assert "not judged" in caplog.text


def test_the_pairwise_judge_swaps_by_a_coin_and_swaps_back(client, oracle):
    judge = trl.PairwiseJudge(client, seed=1)
    given = [["four", "sixsix"]] * 20
    assert judge.probabilities(["p"] * 20, given) == pytest.approx([probability("four", "sixsix")] * 20)
    asked = [pair["first"] for pair in oracle.bodies()[0]["pairs"]]
    assert set(asked) == {"four", "sixsix"}


def test_the_rank_judge_gives_the_indices_best_first(client):
    assert trl.RankJudge(client).judge(["p", "q"], [["a", "ccc", "bb"], ["aa", "b"]]) == [[1, 2, 0], [0, 1]]


def test_the_rank_judge_has_no_word_for_a_failure_and_raises(client):
    with pytest.raises(TextError):
        trl.RankJudge(client).judge(["p"], [["a", "bad"]])


def test_judges_take_conversations(client, oracle):
    prompts = [[{"role": "user", "content": "p", "name": None}]]
    assert trl.PairwiseJudge(client).judge(prompts, [[assistant("aa"), [{"content": "b"}]]], False) == [0]
    (pair,) = oracle.bodies()[0]["pairs"]
    assert pair == {"prompt": user("p"), "first": assistant("aa"), "second": assistant("b")}


# TRL: reward functions


def rewards_of(kind, oracle, *arguments, **columns):
    names = ("signal", "shaping", "references", "num_generations", "num_generations_eval")
    settings = {name: columns.pop(name) for name in names if name in columns}
    if kind == "sync":
        with Client(transport=oracle.transport()) as client:
            return trl.reward_function(client, **settings)(*arguments, **columns)
    return awaited(oracle, lambda client: trl.async_reward_function(client, **settings)(*arguments, **columns))


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_a_win_rate_is_the_mean_probability_within_the_group_of_a_prompt(kind, oracle):
    prompts = ["p", "q", "p", "q", "q"]  # Online DPO does not keep siblings side by side
    completions = ["a", "b", "aaa", "bbbbb", "bb"]
    rewards = rewards_of(kind, oracle, prompts=prompts, completions=completions, step=3)
    assert rewards[0] == (0.5 + probability("a", "aaa")) / 2
    assert rewards[2] == (0.5 + probability("aaa", "a")) / 2
    assert rewards[3] == pytest.approx((0.5 + probability("bbbbb", "b") + probability("bbbbb", "bb")) / 3)
    assert len(oracle.seen) == 1


@both
def test_conversations_are_asked_as_conversations(kind, oracle):
    prompts = [user("p"), user("p")]
    completions = [[{"role": "assistant", "content": "a", "tool_calls": None}], [{"content": "bb"}]]
    assert None not in rewards_of(kind, oracle, prompts=prompts, completions=completions)
    (group,) = oracle.bodies()[0]["groups"]
    assert group == {"prompt": user("p"), "responses": [assistant("a"), assistant("bb")]}


@both
def test_a_refused_group_is_none_and_never_a_number(kind, oracle, caplog):
    rewards = rewards_of(kind, oracle, prompts=["p", "p", "q", "q"], completions=["bad", "bad", "a", "bb"])
    assert rewards[:2] == [None, None]
    assert None not in rewards[2:]
    assert "no reward" in caplog.text


@both
def test_a_number_of_generations_makes_groups_and_equal_prompts_do_not(kind, oracle):
    prompts, completions = ["p"] * 4, ["a", "aaa", "aaaaa", "aaaaaaa"]
    settings = {"prompts": prompts, "completions": completions}
    rewards = rewards_of(kind, oracle, num_generations=2, **settings)
    assert rewards == [(0.5 + probability(*pair)) / 2 for pair in (("a", "aaa"), ("aaa", "a")) * 2]
    assert [len(group["responses"]) for group in oracle.bodies()[0]["groups"]] == [2, 2]
    assert rewards_of(kind, oracle, **settings) != rewards


@both
@pytest.mark.parametrize("prompts", [["p", "p", "q"], ["p", "p", "q", "p"]])
def test_completions_that_are_no_whole_groups_are_refused_and_say_why(kind, oracle, prompts):
    with pytest.raises(ValueError, match=f"{len(prompts)} completions are not whole groups of 2 .*num_generations"):
        rewards_of(kind, oracle, num_generations=2, prompts=prompts, completions=["a"] * len(prompts))
    assert oracle.seen == []


@both
def test_evaluation_may_have_another_number_of_generations(kind, oracle):
    numbers = {"num_generations": 4, "num_generations_eval": 2}
    prompts = ["p", "p", "q", "q"]
    assert None not in rewards_of(kind, oracle, **numbers, prompts=prompts, completions=["a", "b", "cc", "d"])
    assert len(oracle.bodies()[0]["groups"]) == 2
    with pytest.raises(ValueError, match="num_generations_eval is 0"):
        rewards_of(kind, oracle, num_generations_eval=0)


@both
def test_a_signal_of_the_group_is_asked_for_and_returned(kind, oracle):
    group = {"num_generations": 3, "prompts": ["p"] * 3, "completions": ["a", "ccc", "bb"]}
    assert rewards_of(kind, oracle, signal="rank", **group) == [0.0, 1.0, 0.5]
    shaped = rewards_of(kind, oracle, signal="reward", shaping=Shaping(answer_length_penalty=0.5), **group)
    assert shaped == [0.1, 0.3, 0.2]  # the small oracle shapes nothing
    first, second = oracle.bodies()
    assert (first["signal"], "shaping" in first) == ("rank", False)
    assert (second["signal"], second["shaping"]["answer_length_penalty"]) == ("reward", 0.5)


@both
def test_an_anchor_is_what_a_column_holds_and_needs_no_rivals(kind, oracle):
    columns = {"prompts": ["p", "q"], "completions": ["four", "a"], "best": [["sixsix", "a"], ["b"]]}
    rewards = rewards_of(kind, oracle, signal="anchor", references="best", **columns)
    assert rewards == [(probability("four", "sixsix") + probability("four", "a")) / 2, 0.5]
    assert [group["references"] for group in oracle.bodies()[0]["groups"]] == columns["best"]
    with pytest.raises(ValueError, match="name the column"):
        rewards_of(kind, oracle, signal="anchor", **columns)


@both
@pytest.mark.parametrize("signal", ["win_rate", "reward"])
def test_what_is_no_reward_is_logged_beside_it(kind, oracle, signal):
    metrics, extras = {}, {}
    logging_in_trl = {"log_metric": metrics.__setitem__, "log_extra": extras.__setitem__}
    rewards_of(
        kind,
        oracle,
        signal=signal,
        num_generations=2,
        prompts=["p", "p", "q", "q"],
        completions=["a", "bbb", "bad", "c"],
        **logging_in_trl,
    )
    if signal == "reward":
        assert metrics == {"paragone/unscored": 0.25}
        assert extras == {"paragone_reward": [0.1, 0.3, None, 0.1]}
    else:
        assert metrics == {"paragone/unscored": 0.5, "paragone/cyclic_triples": 0.0}
        assert extras == {"paragone_rank": [2, 1, None, None]}


@both
def test_a_refused_completion_does_not_vote_and_whoever_is_left_alone_has_no_win_rate(kind, oracle, caplog):
    completions = ["a", "bad", "bbb", "a", "bad"]
    rewards = rewards_of(kind, oracle, prompts=["p"] * 3 + ["q"] * 2, completions=completions)
    assert rewards == [(0.5 + probability("a", "bbb")) / 2, None, (0.5 + probability("bbb", "a")) / 2, None, None]
    assert "too long" in caplog.text


@both
def test_a_completion_that_is_alone_has_no_win_rate(kind, oracle, caplog):
    assert rewards_of(kind, oracle, prompts=["p", "q", "q"], completions=["a", "a", "bb"])[0] is None
    assert "alone" in caplog.text


@both
def test_the_scalar_reward_is_another_signal(kind, oracle):
    rewards = rewards_of(kind, oracle, signal="reward", prompts=["p", "q"], completions=["four", "bad"])
    assert rewards == [0.4, None]


@both
def test_a_model_without_a_scalar_says_what_to_use(kind):
    oracle = Oracle(kind="general-preference")
    with pytest.raises(UnsupportedError, match="win_rate in a group, against_reference or against_label"):
        rewards_of(kind, oracle, signal="reward", prompts=["p"], completions=["four"])


def test_trl_finds_a_name_and_knows_which_function_is_a_coroutine(client):
    waits = trl.reward_function(client)
    awaits = trl.async_reward_function(AsyncClient(), signal="reward")
    assert (waits.__name__, awaits.__name__) == ("paragone_win_rate", "paragone_reward")
    assert (waits.func.__name__, awaits.func.__name__) == ("paragone_win_rate", "paragone_reward")  # TRL unwraps
    assert not inspect.iscoroutinefunction(waits)
    assert inspect.iscoroutinefunction(awaits)


def test_a_service_that_does_not_answer_ends_the_step():
    transport = httpx2.MockTransport(lambda _: error(500, "engine_failed", "out of memory"))
    with Client(transport=transport) as client:
        with pytest.raises(ServerError):
            trl.reward_function(client)(["p", "p"], ["a", "b"])
        with pytest.raises(ServerError):
            trl.PairwiseJudge(client).judge(["p"], [["a", "b"]])


# verl


def test_verl_gets_the_reward_of_a_solution(oracle):
    async def ask(client):
        compute_score = verl.compute_score(client)
        assert inspect.iscoroutinefunction(compute_score)
        return await compute_score(
            data_source="d",
            solution_str="four",
            ground_truth="g",
            extra_info={"prompt": user("p")},
            reward_router_address="http://router",
            reward_model_tokenizer=None,
        )

    assert awaited(oracle, ask) == {"score": 0.4}
    assert oracle.bodies()[0]["items"] == [{"prompt": user("p"), "response": "four"}]


def test_verl_gets_the_probability_against_the_ground_truth(oracle):
    async def ask(client):
        compute_score = verl.compute_score(client, signal="against_ground_truth", prompt_field="question")
        return await compute_score("d", "four", "sixsix", {"question": "p"})

    assert awaited(oracle, ask)["score"] == probability("four", "sixsix")


@pytest.mark.parametrize("signal", ["reward", "against_ground_truth"])
def test_verl_gets_a_plain_function_of_a_client_that_waits(client, signal):
    waits = verl.compute_score(client, signal=signal)
    assert not inspect.iscoroutinefunction(waits)
    told = waits(data_source="d", solution_str="four", ground_truth="sixsix", extra_info={"prompt": "p"}, more=1)
    assert told["score"] == (0.4 if signal == "reward" else probability("four", "sixsix"))
    with pytest.raises(KeyError, match="keep the prompt"):
        waits("d", "four", "sixsix", None)


@pytest.mark.parametrize("extra_info", [None, {}, {"index": 3}])
def test_verl_without_a_prompt_is_told_where_to_keep_it(oracle, extra_info):
    with pytest.raises(KeyError, match="let the data set keep the prompt"):
        awaited(oracle, lambda client: verl.compute_score(client)("d", "s", "g", extra_info))


def test_verl_gets_an_exception_where_there_is_no_score(oracle):
    with pytest.raises(ParagoneError):
        awaited(oracle, lambda client: verl.compute_score(client)("d", "bad", "g", {"prompt": "p"}))


# slime


@dataclasses.dataclass
class Sample:
    prompt: Any
    response: str
    label: Any = None
    metadata: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Arguments:
    group_rm: bool = True


def test_slime_gets_the_win_rates_of_the_call_whatever_its_prompts_are(oracle, caplog):
    samples = [Sample("p", "a"), Sample("p in /tmp/1", "aaa")]
    rewards = awaited(oracle, lambda client: slime.custom_rm(client)(Arguments(), samples, evaluation=False))
    assert rewards == [(0.5 + probability("a", "aaa")) / 2, (0.5 + probability("aaa", "a")) / 2]
    assert "prompts of a group differ" in caplog.text
    assert oracle.bodies()[0]["groups"][0]["prompt"] == "p"


def test_slime_gets_a_list_of_the_shape_that_it_gave(oracle):
    samples = [[Sample("p", "a"), Sample("p", "aaa")], Sample("p", "aaaaa")]
    first, last = awaited(oracle, lambda client: slime.custom_rm(client)(Arguments(), samples))
    lengths = {"a": first[0], "aaa": first[1], "aaaaa": last}
    for response, reward in lengths.items():
        assert reward == pytest.approx(sum(probability(response, other) for other in lengths) / 3)
    scalars = awaited(oracle, lambda client: slime.custom_rm(client, signal="reward")(Arguments(), samples))
    assert scalars == [[0.1, 0.3], 0.5]


def test_slime_gets_a_number_for_one_sample(oracle):
    reward = slime.custom_rm
    assert awaited(oracle, lambda client: reward(client, signal="reward")(None, Sample("p", "four"))) == 0.4
    with pytest.raises(ValueError, match="group-rm"):
        awaited(oracle, lambda client: reward(client)(None, Sample("p", "four")))


def test_slime_gets_another_signal_of_the_group(oracle):
    samples = [Sample("p", "a", label="b"), Sample("p", "ccc"), Sample("p", "bb")]
    ranks = awaited(oracle, lambda client: slime.custom_rm(client, signal="rank")(Arguments(), samples))
    assert ranks == [0.0, 1.0, 0.5]
    anchored = {"signal": "anchor", "references_of": lambda sample: [sample.label]}
    rm = awaited(oracle, lambda client: slime.custom_rm(client, **anchored)(Arguments(), samples[:1]))
    assert rm == [0.5]
    with pytest.raises(ValueError, match="give references_of"):
        slime.custom_rm(AsyncClient(), signal="anchor")


def test_slime_without_group_rm_gives_the_parts_of_one_sample_and_these_are_no_rivals(oracle):
    parts = [Sample("p", "a"), Sample("p a b", "aaa")]
    with pytest.raises(ValueError, match="group-rm"):
        awaited(oracle, lambda client: slime.custom_rm(client)(Arguments(group_rm=False), parts))


def test_slime_may_find_the_prompt_elsewhere(oracle):
    sample = Sample("<|im_start|>user…", "four", metadata={"messages": user("p")})
    rm = {"signal": "reward", "prompt_of": lambda sample: sample.metadata["messages"]}
    awaited(oracle, lambda client: slime.custom_rm(client, **rm)(None, sample))
    assert oracle.bodies()[0]["items"][0]["prompt"] == user("p")


def test_slime_gets_an_exception_where_there_is_no_reward(oracle):
    with pytest.raises(TextError):
        awaited(oracle, lambda client: slime.custom_rm(client)(None, [Sample("p", "a"), Sample("p", "bad")]))
    with pytest.raises(TextError):
        awaited(oracle, lambda client: slime.eval_rm(client)(None, Sample("p", "bad")))


def test_slime_evaluates_samples_without_a_group(oracle):
    sample = Sample("p", "four", label="sixsix")
    assert awaited(oracle, lambda client: slime.eval_rm(client)(Arguments(False), sample)) == 0.4
    against = {"signal": "against_label"}
    rate = awaited(oracle, lambda client: slime.eval_rm(client, **against)(Arguments(False), [sample]))
    assert rate == [probability("four", "sixsix")]
    with pytest.raises(ValueError, match="no text as its label"):
        awaited(oracle, lambda client: slime.eval_rm(client, **against)(Arguments(False), Sample("p", "four")))


# OpenRLHF


def test_openrlhf_gets_numbers_for_one_sample_and_lists_for_several(client, oracle):
    reward_func = openrlhf.reward_func(client)
    one = reward_func(["prompt: four<|im_end|>\n"], ["prompt: "], ["a label"])
    assert one == {"rewards": 0.4, "scores": pytest.approx(1 / (1 + math.exp(-0.4))), "extra_logs": {"paragone": 0.4}}
    assert oracle.bodies()[0]["items"] == [{"prompt": "prompt: ", "response": "four"}]
    two = reward_func(["pfour</s>", "qsix </s>  </s>"], ["p", "q"], [None, None])
    assert two["rewards"] == [0.4, 0.4]
    assert [item["response"] for item in oracle.bodies()[1]["items"]] == ["four", "six "]


def test_openrlhf_gets_the_probability_against_the_label(client, oracle):
    settings = {
        "prompt_of": lambda prompt, label: user(prompt + label["more"]),
        "reference_of": lambda label: label["best"],
    }
    reward_func = openrlhf.reward_func(client, signal="against_label", **settings)
    answer = reward_func(["pfour"], ["p"], [{"more": "!", "best": "sixsix"}])
    assert answer["rewards"] == answer["scores"] == probability("four", "sixsix")
    assert oracle.bodies()[0]["pairs"][0]["prompt"] == user("p!")


def test_openrlhf_gets_an_exception_where_there_is_no_reward(client, caplog):
    with pytest.raises(TextError):
        openrlhf.reward_func(client)(["pbad"], ["p"], [None])
    assert "1 samples have no reward" in caplog.text
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        openrlhf.reward_func(client)(["rompt: four"], ["prompt: "], [None])


# tinker-cookbook


@dataclasses.dataclass
class Comparison:
    prompt_conversation: list
    completion_A: list
    completion_B: list


def judged(oracle, *sides):
    return awaited(oracle, lambda client: tinker.PreferenceModel(client)(Comparison(user("p"), *sides)))


def test_tinker_gets_a_positive_number_where_b_is_preferred(oracle):
    score = judged(oracle, assistant("a"), assistant("longer"))
    assert score == 2 * probability(assistant("longer"), assistant("a")) - 1 > 0
    assert judged(oracle, assistant("longer"), assistant("a")) == pytest.approx(-score)
    assert judged(oracle, assistant("same"), assistant("same")) == 0


def test_tinker_gets_an_exception_and_not_a_tie_where_there_is_no_answer(oracle):
    with pytest.raises(TextError):
        judged(oracle, assistant("bad"), assistant("b"))


def test_tinker_messages_are_put_into_the_shape_of_the_wire(oracle):
    class ToolCall:
        def model_dump(self, mode):
            return {"type": "function", "mode": mode}

    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turn = {"role": "assistant", "content": parts, "tool_calls": [ToolCall()], "trainable": True}
    judged(oracle, [turn], assistant("b"))
    (pair,) = oracle.bodies()[0]["pairs"]
    assert pair["second"] == [
        {
            "role": "assistant",
            "content": "ab",
            "reasoning_content": "Hm.",
            "tool_calls": [{"type": "function", "mode": "json"}],
        }
    ]


def test_all_functions_for_hosts_can_be_pickled():
    waiting, awaiting = Client(), AsyncClient()
    functions = [
        *(trl.reward_function(waiting, signal=signal, num_generations=4) for signal in ("win_rate", "reward")),
        *(trl.async_reward_function(awaiting, signal=signal) for signal in ("win_rate", "reward")),
        trl.reward_function(waiting, signal="nash", shaping=Shaping(style_penalty=1.0)),
        slime.custom_rm(awaiting),
        slime.eval_rm(awaiting),
        verl.compute_score(awaiting),
        verl.compute_score(waiting),
        openrlhf.reward_func(waiting),
        tinker.PreferenceModel(awaiting),
    ]
    for function in functions:
        copy = pickle.loads(pickle.dumps(function))
        assert inspect.iscoroutinefunction(copy) == inspect.iscoroutinefunction(function)
        assert getattr(copy, "__name__", None) == getattr(function, "__name__", None)


def test_the_logs_of_the_adapters_repeat_no_text(oracle, caplog):
    with caplog.at_level(logging.DEBUG, logger="paragone"), Client(transport=oracle.transport()) as client:
        trl.PairwiseJudge(client).judge(["secret"], [["bad", "secret"]])
    assert "secret" not in caplog.text
