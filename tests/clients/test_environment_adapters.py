"""The adapters of hosts with environments, and of those that ask for one response at a time."""

import asyncio
import dataclasses
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from paragone import AsyncClient, Client
from paragone.adapters import areal, nemo_rl, skyrl, tinker, verifiers
from paragone.adapters.single import without_ends
from paragone.exceptions import TextError, UnsupportedError
from tests.clients.oracle import Oracle, length, probability


@pytest.fixture
def oracle():
    return Oracle()


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def awaited(oracle, ask):
    async def main():
        async with AsyncClient(transport=oracle.transport()) as client:
            return await ask(client)

    return asyncio.run(main())


# verifiers and prime-rl


@dataclasses.dataclass
class Trace:
    """What is read and recorded of the host's trace."""

    last_reply: str
    has_error: bool = False
    rewards: dict = dataclasses.field(default_factory=dict)
    errors: list = dataclasses.field(default_factory=list)

    def record_reward(self, name, value, weight=1.0):
        self.rewards[name] = (value, weight)

    def record_error(self, error):
        self.errors.append(error)


def task(prompt="p", **fields):
    return SimpleNamespace(**{"system_prompt": None, "prompt": prompt, **fields})


def test_a_judge_gives_the_scalar_or_the_probability_against_the_reference(oracle):
    judged = task(answer="sixsix")
    assert awaited(oracle, lambda client: verifiers.score(client, judged, Trace("four"))) == 0.4
    against = {"signal": "against_reference"}
    assert awaited(oracle, lambda client: verifiers.score(client, judged, Trace("four"), **against)) == probability(
        "four", "sixsix"
    )
    with pytest.raises(ValueError, match="no text in 'gold' to compare with"):
        awaited(oracle, lambda client: verifiers.score(client, judged, Trace("a"), **against, reference_field="gold"))


def test_a_judge_that_fails_raises_and_never_scores(oracle):
    with pytest.raises(TextError):
        awaited(oracle, lambda client: verifiers.score(client, task(), Trace("bad")))
    with pytest.raises(ValueError, match="the task has no prompt"):
        awaited(oracle, lambda client: verifiers.score(client, task(None), Trace("four")))
    with pytest.raises(UnsupportedError):
        awaited(Oracle(kind="general-preference"), lambda client: verifiers.score(client, task(), Trace("four")))


def test_what_was_asked_are_the_system_prompt_and_the_messages_of_the_task(oracle):
    class Turn:  # the host's messages are pydantic objects
        def model_dump(self, **_):
            call = {"id": "1", "type": "function", "name": "f", "arguments": "{}"}
            return {"role": "assistant", "content": None, "tool_calls": [call], "provider_state": [{}]}

    wrapped = SimpleNamespace(data=task([*user("p"), Turn()], system_prompt="s"))
    awaited(oracle, lambda client: verifiers.score(client, wrapped, Trace("four")))
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert oracle.bodies()[0]["items"][0]["prompt"] == [
        {"role": "system", "content": "s"},
        *user("p"),
        {"role": "assistant", "tool_calls": [called]},
    ]


def test_traces_of_an_episode_get_their_win_rates_and_those_that_failed_do_not_vote(oracle):
    traces = [Trace("a"), Trace("much longer", has_error=True), Trace("bad"), Trace("bbb")]
    awaited(oracle, lambda client: verifiers.record_win_rates(client, task(), traces, name="won", weight=0.5))
    assert oracle.bodies()[0]["groups"][0]["responses"] == ["a", "bad", "bbb"]
    assert traces[0].rewards == {"won": ((0.5 + probability("a", "bbb")) / 2, 0.5)}
    assert traces[3].rewards == {"won": ((0.5 + probability("bbb", "a")) / 2, 0.5)}
    assert (traces[1].rewards, traces[1].errors) == ({}, [])
    assert (traces[2].rewards, [type(error) for error in traces[2].errors]) == ({}, [TextError])


def test_a_trace_without_anything_to_compare_it_with_is_marked_as_failed(oracle):
    left, none = [Trace("a"), Trace("bad")], [Trace("bad"), Trace("bad")]
    for traces in (left, none, [], [Trace("a", has_error=True)]):
        awaited(oracle, lambda client, traces=traces: verifiers.record_win_rates(client, task(), traces))
    assert [trace.rewards for trace in left + none] == [{}] * 4
    assert "no other trace" in str(left[0].errors[0])
    assert [type(trace.errors[0]) for trace in (left[1], *none)] == [TextError] * 3
    assert len(oracle.bodies()) == 2  # where all have failed already, nothing is asked


# tinker-cookbook


class HostsBuilder:
    """What the adapter reads of ``PairwisePreferenceGroupBuilder``; its rewards are those of the host's code."""

    def __init__(self, client):
        self.convo_prefix = user("p")
        self.preference_model = tinker.PreferenceModel(client)

    def get_response_message(self, trajectory):
        return assistant(trajectory.text), trajectory.valid

    def _preprocess_message(self, message):
        return {**message, "content": message["content"].removeprefix("<t>")}

    async def compute_group_rewards(self, trajectory_group, _):
        """Every pair one way, wins minus losses over the number of matches, as tinker-cookbook 0.6.1."""
        messages = [[self._preprocess_message(self.get_response_message(one)[0][0])] for one in trajectory_group]
        size, balance = len(messages), [0.0] * len(messages)
        for i in range(size):
            for j in range(i + 1, size):
                comparison = SimpleNamespace(
                    prompt_conversation=self.convo_prefix, completion_A=messages[i], completion_B=messages[j]
                )
                won = await self.preference_model(comparison)
                balance[j] += won
                balance[i] -= won
        return [
            (value / (size - 1) + one.valid - 1.0, {"win_minus_loss": value / (size - 1), "format": float(one.valid)})
            for value, one in zip(balance, trajectory_group, strict=True)
        ]


class OwnBuilder(tinker.TournamentRewards, HostsBuilder):
    pass


class RankBuilder(OwnBuilder):
    signal = "rank"


def trajectories(*texts):
    return [SimpleNamespace(text=text.removesuffix("…"), valid=not text.endswith("…")) for text in texts]


def test_a_group_of_tinker_has_the_hosts_rewards_from_one_request(oracle):
    group = trajectories("a", "<t>bbb", "ccccc…", "dd")

    async def both(client):
        return [await builder(client).compute_group_rewards(group, []) for builder in (HostsBuilder, OwnBuilder)]

    wanted, got = awaited(oracle, both)
    for (reward, metrics), (expected, its_metrics) in zip(got, wanted, strict=True):
        assert reward == pytest.approx(expected)
        assert metrics == pytest.approx(its_metrics)
    paths = [request.url.path for request in oracle.seen]
    assert (paths.count("/v1/preferences"), paths.count("/v1/tournaments")) == (6, 1)


def test_a_group_of_tinker_may_have_another_signal(oracle):
    awaited(oracle, lambda client: RankBuilder(client).compute_group_rewards(trajectories("a", "bb"), []))
    assert oracle.bodies()[0]["signal"] == "rank"


def test_tinker_gets_an_exception_where_a_trajectory_has_no_reward(oracle):
    with pytest.raises(TextError):
        awaited(oracle, lambda client: OwnBuilder(client).compute_group_rewards(trajectories("a", "bad"), []))
    with pytest.raises(ValueError, match="let num_envs be 2 or more"):
        awaited(oracle, lambda client: OwnBuilder(client).compute_group_rewards(trajectories("a"), []))


# AReaL


def areal_client(oracle, **settings):
    return Client(transport=oracle.transport(), **{"timeout_s": 12, **settings})


def test_areal_judges_the_rows_messages_and_the_completion_without_its_end(oracle):
    row = {"messages": user("p"), "answer": "sixsix"}
    score = pickle.loads(pickle.dumps(areal.reward_fn(areal_client(oracle))))
    assert score("<|im_start|>…", "four<|im_end|>\n", [1], [2], **row) == 0.4
    against = areal.reward_fn(areal_client(oracle), signal="against_reference")
    assert against("<|im_start|>…", "four", [1], [2], **row) == probability("four", "sixsix")
    assert oracle.bodies()[-1]["pairs"][0]["prompt"] == user("p")


def test_areal_gets_an_exception_where_there_is_no_reward(oracle):
    score = areal.reward_fn(areal_client(oracle), signal="against_reference")
    with pytest.raises(TextError):
        score("p", "bad", [], [], messages="p", answer="a")
    for row in ({"messages": "p"}, {"answer": "a"}):
        with pytest.raises(KeyError, match="the row has no column"):
            score("p", "four", [], [], **row)


@pytest.mark.parametrize("timeout_s", [None, 15, 60])
def test_areal_would_make_zero_of_a_call_of_fifteen_seconds(oracle, timeout_s):
    with pytest.raises(ValueError, match="reward of 0 of what takes 15 s: make it with timeout_s=12"):
        areal.reward_fn(areal_client(oracle, timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("text", "left"),
    [("a<|im_end|>", "a"), ("a </s> \n</s>\n", "a "), ("a\n", "a\n"), ("</s>a", "</s>a"), ("</s>", "")],
)
def test_only_ends_of_turns_are_cut(text, left):
    assert without_ends(text, ("</s>", "<|im_end|>")) == left


# SkyRL


class HostsEnvironment:
    def __init__(self):
        self.turns = 0


def environment(oracle, **attributes):
    kind = type("Environment", (skyrl.OneTurn, HostsEnvironment), attributes)
    kind.client = Client(transport=oracle.transport())
    made = kind(env_config={}, extras={"reward_spec": {"ground_truth": "sixsix"}})
    assert made.init(user("p")) == (user("p"), {})
    return made


def test_skyrl_ends_the_episode_with_the_answers_reward(oracle):
    made = environment(oracle)
    assert made.step("four") == {"observations": [], "reward": 0.4, "done": True, "metadata": {"paragone": 0.4}}
    assert made.turns == 0  # the host's own beginning was made
    assert environment(oracle, signal="against_reference").step("four")["reward"] == probability("four", "sixsix")


def test_skyrl_gets_an_exception_where_there_is_no_reward(oracle):
    with pytest.raises(TextError):
        environment(oracle).step("bad")
    with pytest.raises(KeyError, match="reward_spec has no 'gold'"):
        environment(oracle, signal="against_reference", reference_field="gold").step("four")


# NeMo-RL


def logs(*pairs: tuple[str, str]) -> list[Any]:
    return [[{**turn, "token_ids": [1]} for turn in (*user(prompt), *assistant(said))] for prompt, said in pairs]


def test_nemo_rl_has_the_win_rates_of_groups_that_follow_each_other(oracle):
    batch = logs(("p", "a"), ("p", "bbb"), ("p", "a"), ("p", "cc"))
    with Client(transport=oracle.transport()) as client:
        rewards = nemo_rl.rewards(client, batch, num_generations=2)
    # Equal prompts of two groups stay two groups.
    assert rewards == [
        (0.5 + probability(*pair)) / 2 for pair in (("a", "bbb"), ("bbb", "a"), ("a", "cc"), ("cc", "a"))
    ]
    assert oracle.bodies()[0]["groups"][0] == {"prompt": user("p"), "responses": [assistant("a"), assistant("bbb")]}


def test_nemo_rl_without_groups_has_scalars_or_references(oracle):
    with Client(transport=oracle.transport()) as client:
        assert nemo_rl.rewards(client, logs(("p", "four"))) == [length(assistant("four")) / 10]
        (against,) = nemo_rl.rewards(client, logs(("p", "four")), references=["sixsix"])
    assert 0 < against < 1
    assert oracle.bodies()[1]["pairs"][0]["second"] == "sixsix"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (logs(("p", "a")), "1 message logs are not whole groups of 2: with asynchronous rollouts leave"),
        (logs(("p", "a"), ("q", "b")), "not of one prompt: is num_generations the trainer's"),
        ([user("p"), user("p")], "must end with a turn of the assistant"),
    ],
)
def test_nemo_rl_refuses_what_is_no_whole_group(oracle, batch, message):
    with Client(transport=oracle.transport()) as client, pytest.raises(ValueError, match=message):
        nemo_rl.rewards(client, batch, num_generations=2)
    assert oracle.seen == []
