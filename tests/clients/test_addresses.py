import httpx2
import pytest

from paragone import Client
from paragone.addresses import PROBE_TIMEOUT_S, Addresses
from paragone.connection import RetryPolicy
from paragone.exceptions import (
    DeadlineError,
    NonFiniteScoreError,
    QuotaExceededError,
    ServerError,
    UnavailableError,
)
from tests.clients.oracle import Clock, Oracle, error, listening
from tests.clients.test_transport import OK, Script, awaiting, waiting

A, B, C = "http://a", "http://b", "http://c"

both = pytest.mark.parametrize("ask", [waiting, awaiting])


class Replicas:
    """Servers by their addresses, each with a script of its own."""

    def __init__(self, **scripts):
        self.scripts = {f"http://{name}": script for name, script in scripts.items()}
        self.asked = []

    def __call__(self, request):
        address = f"http://{request.url.host}"
        self.asked.append((address, request.url.path))
        return self.scripts[address](request)

    def asked_of(self, address):
        return [path for one, path in self.asked if one == address]


def first_of(addresses, key="hash"):
    return addresses.round(key)[0]


def replicas(first, second, clock):
    """Return two replicas and their addresses; the first is the one that the prompt of the tests prefers."""
    addresses = Addresses([A, B], clock)
    scripts = {"a": first, "b": second} if first_of(addresses) == A else {"a": second, "b": first}
    return Replicas(**scripts), addresses


def policy(timeout_s=60.0, retry_s=30.0, retries=None):
    return RetryPolicy(timeout_s=timeout_s, retry_s=retry_s, retries=retries)


PASSING = [
    httpx2.ConnectError("refused"),
    httpx2.ConnectTimeout("no handshake"),
    httpx2.ReadError("reset"),
    httpx2.ReadTimeout("silent"),
    httpx2.Response(502),
    error(503, "overloaded", "m", retry_after="7"),
    error(503, "shutting_down", "m", retry_after="1"),
    error(503, "not_ready", "m"),
    error(500, "internal_error", "m"),
    error(500, "engine_failed", "m"),
]


@both
@pytest.mark.parametrize("failure", PASSING)
def test_a_request_that_fails_at_one_address_goes_to_the_next_at_once(ask, failure):
    clock = Clock()
    servers, addresses = replicas(Script(failure), Script(OK), clock)
    assert ask(servers, policy(), clock, addresses) == b"answer"
    assert len(servers.asked) == 2
    assert clock.waits == []


@both
@pytest.mark.parametrize("failure", PASSING)
def test_the_next_request_does_not_go_there_first(ask, failure):
    clock = Clock()
    servers, addresses = replicas(Script(failure), Script(OK), clock)
    gone = first_of(addresses)
    for _ in range(3):
        ask(servers, policy(), clock, addresses)
    assert servers.asked_of(gone) == ["/v1/rewards"]


@both
def test_no_wait_at_all_is_needed_for_the_other_address(ask):
    clock = Clock()
    servers, addresses = replicas(Script(httpx2.ConnectError("refused")), Script(OK), clock)
    assert ask(servers, policy(retry_s=0), clock, addresses) == b"answer"


@both
def test_all_addresses_are_tried_before_a_wait_and_again_after_it(ask):
    clock = Clock()
    gone = httpx2.ConnectError("refused")
    servers, addresses = replicas(Script(gone), Script(gone, gone, OK), clock)
    assert ask(servers, policy(), clock, addresses) == b"answer"
    assert 1 <= len(clock.waits) <= 2
    assert {address for address, _ in servers.asked[:2]} == {A, B}


@both
def test_when_all_stay_away_the_retry_time_is_used_and_the_last_failure_raised(ask):
    clock = Clock()
    gone = Script(httpx2.ConnectError("refused"))
    servers, addresses = replicas(gone, gone, clock)
    with pytest.raises(UnavailableError, match="refused"):
        ask(servers, policy(timeout_s=600, retry_s=30), clock, addresses)
    assert 1000 + 29 < clock.now <= 1000 + 30


@both
def test_an_address_that_is_back_answers_readyz_first_and_is_then_preferred_again(ask):
    clock = Clock()
    servers, addresses = replicas(Script(httpx2.ConnectError("refused"), OK), Script(OK), clock)
    preferred = first_of(addresses)
    ask(servers, policy(), clock, addresses)
    clock.now += 2
    assert ask(servers, policy(), clock, addresses) == b"answer"
    assert servers.asked_of(preferred) == ["/v1/rewards", "/readyz", "/v1/rewards"]
    assert ask(servers, policy(), clock, addresses) == b"answer"
    assert servers.asked_of(preferred)[3:] == ["/v1/rewards"]


@both
@pytest.mark.parametrize("health", [error(503, "not_ready", "loading"), httpx2.ReadTimeout("silent")])
def test_an_address_that_is_not_ready_gets_no_request(ask, health):
    clock = Clock()
    servers, addresses = replicas(Script(httpx2.ConnectError("refused"), health), Script(OK), clock)
    preferred = first_of(addresses)
    for _ in range(4):
        assert ask(servers, policy(), clock, addresses) == b"answer"
        clock.now += 1.01
    assert set(servers.asked_of(preferred)[1:]) == {"/readyz"}


def test_one_request_probes_and_the_others_leave_the_address_alone():
    clock = Clock()
    addresses = Addresses([A, B], clock)
    addresses.failed(A)
    clock.now += 2
    assert addresses.must_probe(A)
    assert not addresses.must_probe(A)
    assert all(addresses.round(str(key)) == [B] for key in range(20))
    clock.now += PROBE_TIMEOUT_S  # whoever probed may be gone
    assert addresses.must_probe(A)


@both
def test_a_silent_address_gets_its_share_of_the_time_and_the_last_one_the_rest(ask):
    clock = Clock()
    seen = []

    def silent(request):
        seen.append(request.extensions["timeout"]["read"])
        clock.now += seen[-1]
        raise httpx2.ReadTimeout("silent")

    servers = Replicas(a=silent, b=silent, c=silent)
    with pytest.raises(DeadlineError):
        ask(servers, policy(timeout_s=60), clock, Addresses([A, B, C], clock))
    assert seen == [20, 20, 20]
    assert clock.now == 1060


@both
def test_a_quota_is_the_keys_and_no_other_address_is_asked(ask):
    clock = Clock()
    servers, addresses = replicas(Script(error(429, "quota_exceeded", "m", retry_after="9"), OK), Script(OK), clock)
    preferred = first_of(addresses)
    assert ask(servers, policy(), clock, addresses) == b"answer"
    assert [address for address, _ in servers.asked] == [preferred] * 2
    assert clock.waits[0] >= 9
    with pytest.raises(QuotaExceededError):
        ask(Replicas(a=Script(error(429, "quota_exceeded", "m")), b=Script(OK)), policy(), clock, Addresses([A], clock))


@both
def test_a_number_that_is_none_is_none_at_every_replica(ask):
    clock = Clock()
    servers, addresses = replicas(Script(error(500, "non_finite_score", "m")), Script(OK), clock)
    with pytest.raises(NonFiniteScoreError):
        ask(servers, policy(), clock, addresses)
    assert len(servers.asked) == 1


@both
def test_a_fault_of_every_replica_is_raised_and_not_waited_for(ask):
    clock = Clock()
    fault = Script(error(500, "internal_error", "m"))
    servers, addresses = replicas(fault, fault, clock)
    with pytest.raises(ServerError):
        ask(servers, policy(), clock, addresses)
    assert len(servers.asked) == 2
    assert clock.waits == []


def test_prompts_are_spread_evenly_and_one_prompt_stays_where_it_is():
    addresses = Addresses([A, B, C], Clock())
    first = [first_of(addresses, f"prompt {place}") for place in range(300)]
    assert first == [first_of(addresses, f"prompt {place}") for place in range(300)]
    assert all(first.count(url) > 60 for url in (A, B, C))
    assert addresses.round(None) == [A, B, C]


def test_the_prompts_of_an_address_that_is_gone_spread_over_all_others_and_no_other_moves():
    addresses = Addresses([A, B, C], Clock())
    before = {place: first_of(addresses, f"{place}") for place in range(300)}
    addresses.failed(A)
    after = {place: first_of(addresses, f"{place}") for place in range(300)}
    assert all(after[place] == url for place, url in before.items() if url != A)
    moved = [after[place] for place, url in before.items() if url == A]
    assert min(moved.count(B), moved.count(C)) > 20


def test_failures_at_one_moment_are_one_and_later_ones_hold_longer():
    clock = Clock()
    addresses = Addresses([A, B], clock)
    for _ in range(100):
        addresses.failed(A)
    clock.now += 1.01
    assert A in addresses.round(None)
    addresses.failed(A)
    clock.now += 1.01
    assert A not in addresses.round(None)
    clock.now += 1.01
    assert A in addresses.round(None)
    for _ in range(2000):  # no overflow, and no hold without an end
        addresses.failed(A)
        clock.now += 31
        assert A in addresses.round(None)


def test_a_client_of_several_addresses_splits_and_merges_as_one_of_one_address():
    oracle = Oracle()
    with Client([A, B + "/"], transport=oracle.transport(), max_items_per_request=5) as client:
        assert repr(client) == "Client(url=['http://a', 'http://b'], model=None)"
        answer = client.rewards([(f"p{place}", "x" * place) for place in range(60)])
        assert [row.reward for row in answer.rewards] == [place / 10 for place in range(60)]
    assert {request.url.host for request in oracle.seen} == {"a", "b"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ([], "names no address"),
        (["http://a", "ftp://b"], "url='ftp://b' is not an http"),
        (["http://a/", "http://a"], "names http://a more than once"),
        (["http://a", 3], "url=3 is not an http"),
        ("http://a:port", "url='http://a:port'"),
    ],
)
def test_addresses_are_checked_each(url, words):
    with pytest.raises(ValueError, match=words):
        Client(url)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="api_key=") as caught:
        Client("http://me:secret@host")
    assert "secret" not in str(caught.value)
    for url in ("http://me:secret/1@host", "me:secret@host", "http://:secret@host:x"):
        with pytest.raises(ValueError, match=r"url=|api_key=") as caught:
            Client(url)
        assert "secret" not in str(caught.value)


def test_a_proxy_of_the_environment_is_asked_for_other_machines_alone(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with listening(Oracle()) as url, Client([url, "http://elsewhere.invalid"], retry_s=0) as client:
        for place in range(8):  # whichever a prompt prefers: the proxy refuses the other one, this one answers directly
            assert client.prefer(f"p{place}", "a", "b") == 0.5
