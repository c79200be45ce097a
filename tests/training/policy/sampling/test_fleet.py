"""Several servers as one sampler: stragglers, failures and deaths move work to others; nothing is lost in silence."""

import time

import httpx2
import pytest

from paragone_evaluation.readers import Prompt
from paragone_training.errors import SamplerGoneError, SamplerMismatchError
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.oracle import Background
from paragone_training.policy.recipe import ServersSection
from paragone_training.policy.sampling.completions import CompletionsServer, ServerFault, VllmRoutes
from paragone_training.policy.sampling.drawing import Decoding, Missing
from paragone_training.policy.sampling.servers import FleetSampler, _Fleet
from tests.training.policy.peers import misbehave, peers, seen

PROMPTS = [Prompt(f"p{number}", f"{number}", (3, 40 + number, 41, 1, 4)) for number in range(6)]
CHUNKS = {0: PROMPTS[:2], 3: PROMPTS[2:4], 4: PROMPTS[4:]}


@pytest.fixture(scope="module")
def two(policy_folder, tmp_path_factory):
    with peers([policy_folder] * 2, tmp_path_factory.mktemp("two")) as (urls, _):
        yield urls


@pytest.fixture(autouse=True)
def _well_behaved(two):
    yield
    for url in two:
        misbehave(url)


async def come_back(server):
    if not await server.ready():
        raise ServerFault("not yet", gone=True)


def drawn(urls, policy_folder, *, readmit=come_back, chunks=CHUNKS, **limits):
    """Return the groups of all chunks, by chunk, in the order in which they came."""
    section = ServersSection(urls=tuple(urls), reload="update", **{"concurrency": 4, "patience_s": 5.0, **limits})
    background, http = Background("test"), httpx2.AsyncClient(timeout=60, trust_env=False)
    servers = [CompletionsServer(url, VllmRoutes(), http, model=str(policy_folder)) for url in urls]
    fleet = _Fleet(servers, section, readmit)
    ends = load_policy(str(policy_folder)).end_ids
    sampler = FleetSampler(fleet, background, Decoding(max_new_tokens=6), ends)

    async def close():
        await fleet.close()
        await http.aclose()

    try:
        return dict(sampler.draw_chunks(chunks, responses=3, names=(0, 1, 1)))
    finally:
        background.close(close())


def test_load_is_spread_and_every_group_is_whole(two, policy_folder):
    before = [len(seen(url)) for url in two]
    found = drawn(two, policy_folder)

    assert sorted(found) == [0, 3, 4]
    assert all(len(group) == 3 for groups in found.values() for group in groups)
    # The one that is faster gets more: a machine with other work may slow one down.
    assert all(3 <= len(seen(url)) - count <= 15 for url, count in zip(two, before, strict=True))
    # Which server answers changes nothing, and a second run sends the same requests.
    assert drawn(two[:1], policy_folder) == found
    requests = [tuple(map(str, one)) for one in seen(two[0])[-18:]]
    drawn(two[:1], policy_folder)
    assert sorted(tuple(map(str, one)) for one in seen(two[0])[-18:]) == sorted(requests)


def test_a_straggler_is_asked_of_the_other_server(two, policy_folder):
    whole = drawn(two, policy_folder)
    misbehave(two[0], delay_s=3.0)
    began = time.monotonic()
    found = drawn(two, policy_folder, request_timeout_s=1.0)

    assert found == whole
    assert time.monotonic() - began < 20


def test_a_group_that_stays_slow_is_missing_and_says_why(two, policy_folder):
    for url in two:
        misbehave(url, delay_s=4.0)
    found = drawn(two, policy_folder, chunks={0: PROMPTS[:1]}, request_timeout_s=0.3, tries=2)

    (group,) = found[0]
    assert isinstance(group, Missing)
    assert "2 tries failed" in group.reason
    assert "longer than servers.request_timeout_s" in group.reason


def test_what_is_not_complete_when_the_rounds_time_is_up_is_missing(two, policy_folder):
    misbehave(two[0], delay_s=6.0)
    began = time.monotonic()
    found = drawn(two[:1], policy_folder, round_timeout_s=1.0)

    assert time.monotonic() - began < 5
    groups = [group for chunk in found.values() for group in chunk]
    assert len(groups) == 6
    assert all(isinstance(group, Missing) and "round_timeout_s" in group.reason for group in groups)


def test_failures_that_pass_are_tried_again(two, policy_folder):
    whole = drawn(two, policy_folder)
    misbehave(two[0], status=500, count=2)
    misbehave(two[1], status=503, count=2)

    assert drawn(two, policy_folder, tries=6) == whole


def test_a_server_that_is_killed_loses_nothing(two, policy_folder, tmp_path):
    whole = drawn(two, policy_folder)
    with peers([policy_folder], tmp_path) as (urls, processes):
        misbehave(urls[0], die=True)
        assert drawn([urls[0], two[1]], policy_folder) == whole
        assert processes[0].ended is not None


def test_all_servers_gone_stops_the_run_after_its_patience(policy_folder):
    began = time.monotonic()
    with pytest.raises(SamplerGoneError, match=r"no sampler server answered for \d+ s, and servers\.patience_s is 2"):
        drawn(["http://127.0.0.1:9"], policy_folder, patience_s=2.0)
    assert 2 <= time.monotonic() - began < 15


def test_a_server_that_comes_back_as_another_stops_the_run(policy_folder):
    async def other(server):
        raise SamplerMismatchError(f"{server.url} has other weights")

    with pytest.raises(SamplerMismatchError, match="other weights"):
        drawn(["http://127.0.0.1:9"], policy_folder, readmit=other)
