import asyncio
import email.utils
import logging
import time

import httpx2
import pytest

from paragone.addresses import Addresses
from paragone.connection import Question, RetryPolicy
from paragone.exceptions import (
    AnswerError,
    DeadlineError,
    ParagoneError,
    QuotaExceededError,
    RequestError,
    ServerError,
    UnavailableError,
    UnknownRouteError,
)
from paragone.transport import Attempts, send, send_async
from tests.clients.oracle import Clock, error

OK = httpx2.Response(200, content=b"answer")


class Script:
    """A server that answers as it is told, one outcome a try; the last one is repeated."""

    def __init__(self, *outcomes):
        self.outcomes = outcomes
        self.seen = []

    def __call__(self, request):
        outcome = self.outcomes[min(len(self.seen), len(self.outcomes) - 1)]
        self.seen.append(request)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx2.Response(outcome.status_code, content=outcome.content, headers=dict(outcome.headers))


def attempts(policy, clock, addresses=None):
    question = Question("/v1/rewards", {"authorization": "Bearer k"}, b"{}", "hash")
    return Attempts(question, policy, addresses or Addresses(["http://host"], clock), clock)


def waiting(script, policy, clock, addresses=None, stopped=lambda: False):
    with httpx2.Client(transport=httpx2.MockTransport(script)) as http:
        return send(http, attempts(policy, clock, addresses), sleep=clock.sleep, stopped=stopped)


def awaiting(script, policy, clock, addresses=None):
    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(script)) as http:
            return await send_async(http, attempts(policy, clock, addresses), sleep=clock.sleep_async)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [waiting, awaiting])


def policy(retries=None, timeout_s=60.0, retry_s=30.0):
    return RetryPolicy(timeout_s=timeout_s, retry_s=retry_s, retries=retries)


@both
@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"),
        httpx2.ConnectTimeout("no handshake"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("closed without an answer"),
        httpx2.Response(502),
        httpx2.Response(503),
        httpx2.Response(504),
        error(503, "overloaded", "the queue is full", retry_after="1"),
        error(429, "quota_exceeded", "10 requests a minute", retry_after="1"),
    ],
)
def test_a_passing_failure_is_retried_with_the_same_request(ask, failure):
    script = Script(failure, failure, OK)
    assert ask(script, policy(), Clock()) == b"answer"
    assert len(script.seen) == 3
    assert len({request.headers["x-request-id"] for request in script.seen}) == 1
    assert all(request.content == b"{}" for request in script.seen)


@both
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(400, "invalid_json", "m"), RequestError),
        (error(422, "empty_prompt", "m"), RequestError),
        (error(404, "not_found", "m"), UnknownRouteError),
        (error(429, "quota_exceeded", "m"), QuotaExceededError),
        (error(500, "internal_error", "m"), ServerError),
        (error(500, "engine_failed", "m"), ServerError),
        (httpx2.Response(302), AnswerError),
    ],
)
def test_any_other_failure_is_raised_at_once(ask, answer, kind):
    script, clock = Script(answer, OK), Clock()
    with pytest.raises(kind):
        ask(script, policy(), clock)
    assert len(script.seen) == 1
    assert clock.waits == []


@both
@pytest.mark.parametrize("failure", [httpx2.UnsupportedProtocol("x"), httpx2.LocalProtocolError("x")])
def test_a_connection_that_can_never_be_is_not_retried(ask, failure):
    script = Script(failure)
    with pytest.raises(UnavailableError):
        ask(script, policy(), Clock())
    assert len(script.seen) == 1


@both
def test_an_answer_that_cannot_be_decoded_is_no_answer(ask):
    with pytest.raises(AnswerError):
        ask(Script(httpx2.DecodingError("bad gzip")), policy(), Clock())


@both
@pytest.mark.parametrize("failure", [httpx2.ReadTimeout("x"), httpx2.PoolTimeout("x"), httpx2.WriteTimeout("x")])
def test_an_answer_that_takes_too_long_is_a_deadline_and_not_retried(ask, failure):
    script = Script(failure)
    with pytest.raises(DeadlineError, match="no answer within 60 s"):
        ask(script, policy(), Clock())
    assert len(script.seen) == 1


@both
def test_no_more_tries_are_made_than_were_allowed(ask):
    script = Script(httpx2.ConnectError("refused"))
    with pytest.raises(UnavailableError, match="refused"):
        ask(script, policy(retries=3), Clock())
    assert len(script.seen) == 4


@both
def test_a_wait_is_never_shorter_than_retry_after(ask):
    clock = Clock()
    ask(Script(error(503, "overloaded", "m", retry_after="7"), OK), policy(), clock)
    assert clock.waits[0] >= 7


@both
def test_retry_after_may_be_a_date(ask):
    clock = Clock()
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    ask(Script(error(503, "overloaded", "m", retry_after=date), OK), policy(), clock)
    assert 15 <= clock.waits[0] <= 21


@both
def test_a_retry_after_that_nobody_can_read_is_none(ask):
    clock = Clock()
    ask(Script(error(503, "overloaded", "m", retry_after="soon"), OK), policy(), clock)
    assert clock.waits[0] <= 0.25
    with pytest.raises(QuotaExceededError):
        ask(Script(error(429, "quota_exceeded", "m", retry_after="soon"), OK), policy(), clock)


@both
def test_a_wait_that_would_pass_the_deadline_is_not_begun(ask):
    clock = Clock()
    with pytest.raises(UnavailableError) as caught:
        ask(Script(error(503, "overloaded", "m", retry_after="61")), policy(timeout_s=60.0), clock)
    assert clock.waits == []
    assert caught.value.retry_after_s == 61


def test_the_deadline_holds_over_all_tries():
    clock = Clock()

    def slow(_):
        clock.now += 25.0
        raise httpx2.ConnectError("refused")

    with pytest.raises(ParagoneError):
        waiting(slow, policy(timeout_s=60.0), clock)
    assert clock.now <= 1000.0 + 60.0 + 25.0


def test_each_try_gets_the_time_that_is_left():
    script, clock = Script(error(503, "overloaded", "m", retry_after="20"), OK), Clock()
    waiting(script, policy(timeout_s=60.0), clock)
    first, second = (request.extensions["timeout"] for request in script.seen)
    assert first == {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
    assert second["read"] == pytest.approx(60.0 - clock.waits[0])


@both
def test_each_try_tells_the_server_when_its_answer_is_of_no_use_any_more(ask):
    script, clock = Script(error(503, "overloaded", "m", retry_after="20"), OK), Clock()
    ask(script, policy(timeout_s=60.0), clock)
    first, second = (float(request.headers["x-deadline-s"]) for request in script.seen)
    assert first == 60
    assert second == pytest.approx(60 - clock.waits[0], abs=1e-3)


@pytest.mark.parametrize(("timeout_s", "sent"), [(1e-9, "0.001"), (1e9, "86400.000"), (float("inf"), "86400.000")])
def test_a_deadline_is_one_that_the_server_takes(timeout_s, sent):
    script = Script(OK)
    waiting(script, policy(timeout_s=timeout_s), Clock())
    assert script.seen[0].headers["x-deadline-s"] == sent


def test_waits_are_spread_between_nothing_and_a_bound_that_doubles():
    chosen = policy()
    for tries, bound in [(1, 0.25), (2, 0.5), (4, 2.0), (7, 16.0), (50, 16.0)]:
        waits = [chosen.pause_s(tries, None) for _ in range(300)]
        assert 0 <= min(waits) < bound / 3
        assert bound * 2 / 3 < max(waits) <= bound


def test_every_retry_is_logged_without_the_key_or_the_body(caplog):
    with caplog.at_level(logging.WARNING, logger="paragone"):
        waiting(Script(error(503, "overloaded", "the queue is full"), OK), policy(), Clock())
    (record,) = caplog.records
    assert "try 1 failed, the next one in" in record.getMessage()
    assert "the queue is full" in record.getMessage()
    assert "Bearer" not in record.getMessage()


def test_a_request_whose_sibling_failed_is_not_tried_again():
    script = Script(httpx2.ConnectError("refused"))
    with pytest.raises(UnavailableError, match="another part of the batch failed"):
        waiting(script, policy(), Clock(), stopped=lambda: True)
    assert len(script.seen) == 1


def test_an_error_of_a_proxy_is_told_from_one_of_the_service():
    with pytest.raises(ServerError, match="from a proxy, or another server") as caught:
        waiting(Script(httpx2.Response(500, text="<html>secret</html>")), policy(), Clock())
    assert caught.value.code is None
    assert "secret" not in str(caught.value)


def test_the_request_id_of_the_server_is_kept():
    with pytest.raises(ServerError) as caught:
        waiting(Script(error(500, "internal_error", "m", x_request_id="from-the-server")), policy(), Clock())
    assert caught.value.request_id == "from-the-server"


def test_the_wait_stops_growing_and_thousands_of_tries_have_one_too():
    several = policy()
    for tries in (1, 8, 1025, 10**6):
        bound = min(16.0, 0.25 * 2.0 ** min(tries - 1, 10))
        assert all(0.0 <= several.pause_s(tries, None) <= bound for _ in range(20))
        assert several.pause_s(tries, 3.0) >= 3.0


@both
def test_a_deadline_that_nobody_chose_is_not_named(ask):
    script = Script(OK)
    ask(script, RetryPolicy(timeout_s=300, retry_s=30, named=False), Clock())
    assert "x-deadline-s" not in script.seen[0].headers
    assert script.seen[0].extensions["timeout"]["read"] == 300


@both
@pytest.mark.parametrize("code", ["overloaded", "too_many_connections"])
def test_a_server_that_says_when_to_come_back_is_not_gone(ask, code):
    clock = Clock()
    script = Script(*[error(503, code, "m", retry_after="20")] * 6, OK)
    assert ask(script, policy(timeout_s=300, retry_s=30), clock) == b"answer"
    assert sum(clock.waits) >= 120
    with pytest.raises(UnavailableError):  # but the time of the request is over when it is over
        ask(Script(error(503, code, "m", retry_after="20")), policy(timeout_s=100, retry_s=30), clock)


@both
def test_a_server_that_fails_is_given_the_retry_time_whatever_it_says(ask):
    clock = Clock()
    with pytest.raises(UnavailableError):
        ask(Script(error(503, "engine_unavailable", "m", retry_after="5")), policy(timeout_s=300, retry_s=30), clock)
    assert sum(clock.waits) <= 30


@both
@pytest.mark.parametrize("failure", [httpx2.ConnectError("refused"), httpx2.ConnectTimeout("no handshake")])
def test_a_service_that_never_answered_is_given_its_own_time(ask, failure):
    clock, addresses = Clock(), Addresses(["http://host"], Clock())
    impatient = RetryPolicy(timeout_s=300, retry_s=60, wait_s=0)
    with pytest.raises(UnavailableError):
        ask(Script(failure), impatient, clock, addresses)
    assert clock.waits == []
    patient = RetryPolicy(timeout_s=300, retry_s=0, wait_s=60)
    assert ask(Script(*[failure] * 5, OK), patient, clock, addresses) == b"answer"
    # Now it is known: when it goes, it is waited for as one that comes back.
    assert ask(Script(*[failure] * 5, OK), impatient, clock, addresses) == b"answer"
    with pytest.raises(UnavailableError):
        ask(Script(failure), patient, clock, addresses)
