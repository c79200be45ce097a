"""One completions server: what it answers is the policy's, token for token; one that is not the policy is refused."""

import asyncio
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from paragone_evaluation.readers import Prompt
from paragone_training.errors import SamplerMismatchError
from paragone_training.policy.model.logprobs import ResponseLogprobs, frozen_logprobs
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.rows import seed_of, stream
from paragone_training.policy.sampling.completions import CompletionsServer, ServerFault, SglangRoutes, VllmRoutes
from paragone_training.policy.sampling.drawing import Decoding, sample
from paragone_training.policy.sampling.stopping import Stops
from tests.training.policy.peers import misbehave, peers
from tests.training.policy.tiny_policy import save_policy

TOKENS = [(3, 40, 41, 1, 4), (3, 60, 1, 4), (3, 50, 51, 52, 53, 1, 4)]
PROMPTS = [Prompt(str(number), "", ids) for number, ids in enumerate(TOKENS)]
SETTINGS = Decoding(max_new_tokens=12)


@pytest.fixture(scope="module")
def policy(policy_folder):
    return load_policy(str(policy_folder))


@pytest.fixture(scope="module")
def peer(policy_folder, tmp_path_factory):
    with peers([policy_folder], tmp_path_factory.mktemp("peer")) as (urls, _):
        yield urls[0]


@pytest.fixture(autouse=True)
def _well_behaved(peer):
    yield
    misbehave(peer)


def asked(url, work, **options):
    """Return what a coroutine gets from a server that was met."""
    routes = options.pop("routes", VllmRoutes())

    async def run():
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            server = CompletionsServer(url, routes, http, **options)
            await server.meet(longest=64 - routes.kept_tokens, texts={})
            return await work(server)

    return asyncio.run(run())


def test_the_user_and_the_password_of_an_address_are_sent_and_never_said(peer):
    async def work(server):
        return server.url, await server.ready()

    url, ready = asked(peer.replace("http://", "http://me:hush@"), work)
    assert (url, ready) == (peer, True)


def test_responses_and_their_logprobs_are_the_trainers(peer, policy):
    async def work(server):
        ends = policy.end_ids
        drawn = [await server.complete(PROMPTS[n % 3], 0, seed=n, decoding=SETTINGS, end_ids=ends) for n in range(12)]
        scored = [await server.logprob(TOKENS[n % 3], one.token_ids) for n, one in enumerate(drawn)]
        again = await server.complete(PROMPTS[0], 0, seed=0, decoding=SETTINGS, end_ids=ends)
        return drawn, scored, again

    drawn, scored, again = asked(peer, work)
    items = [(TOKENS[n % 3], one.token_ids) for n, one in enumerate(drawn)]
    frozen = frozen_logprobs(ResponseLogprobs(policy.model, chunk_tokens=7), items, pad_id=0, batch=5)

    np.testing.assert_allclose([one.sampler_logprob for one in drawn], frozen, atol=2e-4)
    np.testing.assert_allclose(scored, frozen, atol=2e-4)
    assert {one.finished for one in drawn} == {True, False}
    assert all(one.finished == (one.token_ids[-1] == policy.tokenizer.eos_token_id) for one in drawn)
    assert again == drawn[0]
    assert len({one.token_ids for one in drawn}) > 6


@pytest.mark.parametrize("mood", [{}, {"ignore_stop": True}])
def test_a_text_ends_a_response_at_a_server_as_it_does_here(peer, policy, mood):
    free = [sample(policy, [PROMPTS[n % 3]], [stream(n)], SETTINGS)[0] for n in range(12)]
    texts = [policy.tokenizer.decode(list(row.token_ids), skip_special_tokens=True) for row in free]
    # What stands in the middle of some responses, over the border of two tokens.
    stops = Stops(policy.tokenizer, [next(text[2:5] for text in texts if len(text) > 8)])
    settings = replace(SETTINGS, stops=stops)
    here = [sample(policy, [PROMPTS[n % 3]], [stream(n)], settings)[0] for n in range(12)]

    async def work(server):
        ends = policy.end_ids
        return [await server.complete(PROMPTS[n % 3], 0, seed=n, decoding=settings, end_ids=ends) for n in range(12)]

    misbehave(peer, **mood)
    there = asked(peer, work)
    assert [row.token_ids for row in there] == [row.token_ids for row in here]
    assert [row.finished for row in there] == [row.finished for row in here]
    np.testing.assert_allclose([row.sampler_logprob for row in there], [row.sampler_logprob for row in here], atol=2e-4)
    shorter = [row for row, whole in zip(here, free, strict=True) if len(row.token_ids) < len(whole.token_ids)]
    assert shorter
    for row, text in zip(here, texts, strict=True):
        assert stops.text(row.token_ids) == text.partition(stops.texts[0])[0]
        assert row.finished or stops.texts[0] not in text


def test_sglangs_logprobs_are_left_out_where_temperature_scales_them(peer, policy):
    async def work(server):
        hot = Decoding(max_new_tokens=4, temperature=2.0)
        return [
            await server.complete(PROMPTS[0], 0, seed=1, decoding=decoding, end_ids=policy.end_ids)
            for decoding in (SETTINGS, hot)
        ]

    plain, hot = asked(peer, work, routes=SglangRoutes())
    assert plain.sampler_logprob is not None
    assert hot.sampler_logprob is None


def test_sglang_calls_the_policy_by_its_folder_after_an_update(policy_folder, tmp_path):
    after = save_policy(tmp_path / "after", seed=1)

    async def work(server):
        await server.routes.update(server, str(after))
        await server.meet(longest=58, texts={})
        return server.model

    with peers([policy_folder], tmp_path) as (urls, _):
        assert asked(urls[0], work, routes=SglangRoutes(), model=str(policy_folder)) == str(after)


def test_seeds_are_the_same_after_a_restart_and_differ_by_every_name():
    assert seed_of(0, 1, 1, "p", 2) == seed_of(0, 1, 1, "p", 2) == 1155465296780917
    assert len({seed_of(*names) for names in ((0, 1, "p", 2), (0, 1, "p", 3), (0, 2, "p", 2), (1, 1, "p", 2))}) == 4
    assert all(seed_of(number) < 2**53 for number in range(100))


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ({"no_ids": True}, "returns no token ids, and text is never tokenized again"),
        ({"extra_token": True}, "read 6 prompt tokens where 5 were sent"),
        ({"cut_end": True}, "cuts the end token off, or stops at others"),
    ],
)
def test_an_answer_that_is_not_token_for_token_is_refused(peer, policy, mood, message):
    misbehave(peer, **mood)

    async def work(server):
        for seed in range(20):
            await server.complete(PROMPTS[0], 0, seed=seed, decoding=SETTINGS, end_ids=policy.end_ids)

    with pytest.raises(SamplerMismatchError, match=message):
        asked(peer, work)


def test_a_server_of_another_model_context_or_tokenizer_is_refused(peer, policy):
    async def met(**options):
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            routes = options.pop("routes", VllmRoutes())
            server = CompletionsServer(peer, routes, http, model=options.pop("model", None))
            await server.meet(**{"longest": 64, "texts": {}, **options})

    text = policy.tokenizer.decode(list(TOKENS[0]))
    asyncio.run(met(texts={text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]}))
    with pytest.raises(SamplerMismatchError, match=r"serves .*; servers\.model has to name the one"):
        asyncio.run(met(model="another"))
    with pytest.raises(SamplerMismatchError, match="a context of 64 tokens and the policy needs 65"):
        asyncio.run(met(longest=65))
    asyncio.run(met(longest=58, routes=SglangRoutes()))
    with pytest.raises(SamplerMismatchError, match=r"needs 59 beside the 6 .* or lower policy\.max_length to 58"):
        asyncio.run(met(longest=59, routes=SglangRoutes()))
    with pytest.raises(SamplerMismatchError, match=r"the tokenizer of .* is not the policy's"):
        asyncio.run(met(texts={text: [1, 2, 3]}))


def test_a_failure_that_may_pass_is_a_fault_and_a_refusal_is_not(peer, policy):
    async def work(server):
        return await server.complete(PROMPTS[0], 0, seed=0, decoding=SETTINGS, end_ids=policy.end_ids)

    misbehave(peer, status=503)
    with pytest.raises(ServerFault, match="503"):
        asked(peer, work)
    misbehave(peer, status=400)
    with pytest.raises(SamplerMismatchError, match=r"refused \(400\): .*as asked"):
        asked(peer, work)
    with pytest.raises(ServerFault, match="did not answer") as caught:
        asked("http://127.0.0.1:9", work)
    assert caught.value.gone
