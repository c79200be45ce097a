"""The chat server of a judge: pauses, refusals, redirects and limits."""

import asyncio

import httpx2
import pytest
from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone_service.judge.chat import ChatError, ChatServer

from .scripted import Scripted, completion, status

pytestmark = pytest.mark.anyio
BODY = {"model": "m", "messages": []}


def chat(server, **settings):
    return ChatServer("http://judge/v1", transport=httpx2.ASGITransport(app=server.app), **settings)


async def test_an_answer_has_its_text_its_thoughts_its_tokens_and_what_it_cost():
    server = Scripted(lambda _: completion("A", logprobs=[("A", {"A": 0.5, "B": 0.25})], reasoning_content="Hm."))
    answer = await chat(server, api_key="secret").complete(BODY)
    assert (answer.text, answer.thoughts, answer.finish_reason, answer.refused) == ("A", "Hm.", "stop", False)
    assert [one for one, _ in answer.tokens[0].alternatives] == ["A", "B"]
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 3)
    assert server.headers[0]["authorization"] == "Bearer secret"


async def test_a_busy_server_is_asked_again_after_the_pause_that_it_wants_and_nobody_asks_meanwhile():
    server = Scripted()
    server.first = [status(429, retry_after="0.3"), status(503, retry_after="0")]
    judge = chat(server, concurrency=1)
    first, second = await asyncio.gather(judge.complete(BODY), judge.complete(BODY))
    assert first.text == second.text == "A"
    assert len(server.bodies) == 4


@pytest.mark.parametrize("header", ["3600", "Wed, 01 Jan 2200 00:00:00 GMT"])
async def test_a_pause_that_is_longer_than_the_patience_ends_the_call_at_once_and_is_passed_on(header):
    server = Scripted(lambda _: status(429, retry_after=header))
    with pytest.raises(ChatError, match=r"is 429.*patience_s") as refusal:
        await chat(server).complete(BODY)
    assert refusal.value.code is ErrorCode.JUDGE_UNAVAILABLE
    assert refusal.value.retry_after_s >= 3600
    assert len(server.bodies) == 1


async def test_a_server_that_is_busy_for_ever_ends_the_call_though_it_always_says_at_once():
    server = Scripted(lambda _: status(429, retry_after="0"))
    with pytest.raises(ChatError, match="is 429"):
        await chat(server).complete(BODY)
    assert len(server.bodies) == 8


async def test_no_pause_begins_that_is_longer_than_what_whoever_waits_has_left():
    server = Scripted(lambda _: status(503, retry_after="5"))
    with pytest.raises(ChatError):
        await chat(server).complete(BODY, left_s=lambda: 2.0)
    assert len(server.bodies) == 1


async def test_a_redirect_within_the_host_is_followed_and_one_to_another_is_refused():
    server = Scripted()
    server.first = [status(307, location="/moved/chat/completions")]
    assert (await chat(server).complete(BODY)).text == "A"
    for location in ("http://elsewhere/v1/chat/completions", "https://judge/v1/chat/completions", "http://judge:81/"):
        server.first = [status(307, location=location)]
        with pytest.raises(ChatError, match="another host") as refusal:
            await chat(server, api_key="secret").complete(BODY)
        assert refusal.value.code is ErrorCode.JUDGE_FAILED
        assert location not in str(refusal.value)
    server.first = [status(302, location="/moved/chat/completions")]
    with pytest.raises(ChatError, match="as a GET"):
        await chat(server).complete(BODY)
    server.answer = lambda _: status(307, location="/moved/chat/completions")
    with pytest.raises(ChatError, match="more than 3 times"):
        await chat(server).complete(BODY)


@pytest.mark.parametrize(
    ("response", "code", "words"),
    [
        (Response(b'{"error": "secret text"}', 401), ErrorCode.JUDGE_FAILED, "refuses the key"),
        (Response(b"", 404), ErrorCode.JUDGE_FAILED, "no such model"),
        (Response(b"", 422), ErrorCode.JUDGE_FAILED, "one of the judge's settings"),
        (
            Response(b'{"error": {"message": "maximum context length is 128"}}', 400),
            ErrorCode.RESPONSE_TOO_LONG,
            "context",
        ),
        (Response(b"<html>", 200), ErrorCode.JUDGE_FAILED, "another shape"),
        (Response(b'{"choices": []}', 200), ErrorCode.JUDGE_FAILED, "another shape"),
        (Response(b'{"choices": [{"message": {"content": 7}}]}', 200), ErrorCode.JUDGE_FAILED, "another shape"),
        (
            Response(b'{"choices": [{"message": {"content": "A", "reasoning": [7]}}]}', 200),
            ErrorCode.JUDGE_FAILED,
            "another shape",
        ),
        *(
            (
                Response(
                    b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"token": "A", '
                    b'"top_logprobs": [{"token": "A", "logprob": %b}]}]}}]}' % number,
                    200,
                ),
                ErrorCode.JUDGE_FAILED,
                "another shape",
            )
            for number in (b"NaN", b"1000", b"null")
        ),
        (Response(b"[" * 100_000, 200), ErrorCode.JUDGE_FAILED, "another shape"),
        (Response(b" " * 16_000_001, 200), ErrorCode.JUDGE_FAILED, "more than 16 MB"),
    ],
)
async def test_what_is_no_completion_is_an_error_that_repeats_nothing(response, code, words):
    with pytest.raises(ChatError, match=words) as refusal:
        await chat(Scripted(lambda _: response)).complete(BODY)
    assert refusal.value.code is code
    assert "secret" not in str(refusal.value)


async def test_a_token_of_probability_zero_is_as_if_it_were_not_listed():
    body = (
        b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": {"content": [{"token": "A", '
        b'"top_logprobs": [{"token": "A", "logprob": 0.001}, {"token": "B", "logprob": -Infinity}]}]}}]}'
    )
    answer = await chat(Scripted(lambda _: Response(body, 200))).complete(BODY)
    assert answer.tokens[0].alternatives == (("A", 0.0),)


async def test_no_more_calls_are_under_way_than_were_allowed():
    server = Scripted()
    judge = chat(server, concurrency=3)
    await asyncio.gather(*(judge.complete(BODY) for _ in range(20)))
    assert server.most <= 3


async def test_a_server_is_reachable_while_it_answers():
    server = Scripted()
    judge = chat(server)
    assert await judge.reachable()
    server.well = False
    assert not await judge.reachable()
    await judge.close()
    away = ChatServer("http://127.0.0.1:9/v1")
    assert not await away.reachable()
    with pytest.raises(ChatError, match="cannot be reached"):
        await away.complete(BODY, left_s=lambda: 0.0)
    await away.close()
