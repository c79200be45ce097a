"""Limits on connections, by real sockets on a real server: heads, bodies, silence, and how many there may be."""

import asyncio
import contextlib
import json
import logging
import resource

import pytest
from fastapi import FastAPI, Request

from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.http.connections import raise_file_limit
from paragone_service.http.middleware import Drain
from paragone_service.http.server import Server, configure
from tests.service.conftest import until

pytestmark = pytest.mark.anyio

GET = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"model": "bt", "items": [{"prompt": "a", "response": "b"}]}).encode()


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, data):
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self):
        """The status and the error code, or the body where there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self.reader.readexactly(int(fields[b"content-length"]))
        with contextlib.suppress(ValueError, TypeError, KeyError):
            body = json.loads(body)["error"]["code"]
        return int(head.split()[1]), body

    async def closed(self):
        """Whether the server closes it, having said nothing more."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), 10) == b""
        return True


@contextlib.asynccontextmanager
async def listening(app_of, **settings):
    """Yield a function that connects to a server in this loop, and the server."""
    settings = Settings(port=0, **settings)
    drain = Drain()
    server = Server(configure(app_of(settings, drain), settings), drain)
    server.config.loop = "none"
    running = asyncio.create_task(server._serve())
    clients = []

    async def connect():
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    try:
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield connect, server
    finally:
        for client in clients:
            client.writer.close()
        server.should_exit = True
        await running


@pytest.fixture
def service(hosted):
    return lambda settings, drain: create_app(settings, {"bt": hosted["bt"]}, drain=drain)


def cut(server):
    """How many connections were cut, by reason, where there were any."""
    samples = server.config.app.state.metrics.connections_cut.collect()[0].samples
    return {sample.labels["reason"]: sample.value for sample in samples if sample.value}


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"nonsense\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        POST + b"content-length: minus one\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_our_shape(service, sent):
    async with listening(service) as (connect, server):
        client = await connect()
        await client.send(sent)
        assert await client.answer() == (400, "invalid_http")
        assert await client.closed()
        assert cut(server) == {"malformed": 1}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez?" + b"x" * 5_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 5_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"y" * 5_000 + b": x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(40)) + b"\r\n",
    ],
    ids=["address", "value", "name", "number"],
)
async def test_a_head_over_the_limit_is_refused_and_the_connection_ends(service, head):
    async with listening(service, max_header_bytes=4_000, max_headers=32) as (connect, server):
        client = await connect()
        await client.send(head)
        assert await client.answer() == (431, "headers_too_large")
        assert await client.closed()
        assert cut(server) == {"headers": 1}
        other = await connect()
        await other.send(GET)
        assert (await other.answer())[0] == 200


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (b"GET /v2/models/m/config HTTP/1.1\r\nx: " + b"y" * 5_000 + b"\r\n\r\n", None),
        (b"GET /v2/models?" + b"x" * 5_000, None),
        (b"POST /classify HTTP/1.1\r\nx: " + b"y" * 5_000 + b"\r\n\r\n", {"message", "type", "param", "code"}),
    ],
    ids=["KServe", "KServe's address", "vLLM"],
)
async def test_a_head_is_refused_in_the_shape_of_its_path(service, head, fields):
    async with listening(service, max_header_bytes=4_000) as (connect, _):
        client = await connect()
        await client.send(head)
        refusal = await client.reader.read()
        assert refusal.startswith(b"HTTP/1.1 431 ")
        error = json.loads(refusal.partition(b"\r\n\r\n")[2])["error"]
        assert isinstance(error, str) if fields is None else set(error) == fields


@pytest.mark.parametrize("line", [b"x: y\r\n", b"y"], ids=["lines", "one line without an end"])
async def test_a_head_without_an_end_is_cut_at_the_limit_of_bytes(service, line):
    async with listening(service, max_header_bytes=4_000) as (connect, server):
        client = await connect()
        await client.send(b"GET /livez HTTP/1.1\r\nx: ")
        sent = 0
        while not cut(server) and sent < 1_000_000:
            await client.send(100 * line)
            sent += 100 * len(line)
            await asyncio.sleep(0.001)
        assert sent < 200_000
        assert cut(server) == {"headers": 1}


async def test_trailers_are_counted_and_never_become_headers(service):
    async with listening(service, max_header_bytes=4_000) as (connect, server):
        chunked = POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
        client = await connect()
        await client.send(chunked + b"x-request-id: forged\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"forged" not in head
        client = await connect()
        await client.send(chunked + 100 * (b"x: " + b"y" * 100 + b"\r\n"))
        assert await client.answer() == (431, "headers_too_large")
        assert cut(server) == {"headers": 1}


async def test_who_says_nothing_is_cut_and_who_stops_half_way_is_told(service):
    async with listening(service, header_timeout_s=0.2) as (connect, server):
        silent, half = await connect(), await connect()
        await half.send(GET[:20])
        assert await half.answer() == (408, "request_timeout")
        assert await half.closed()
        assert await silent.closed()
        assert cut(server) == {"head": 2}


async def test_headers_a_byte_at_a_time_are_cut_on_every_request_of_a_connection(service):
    async with listening(service, header_timeout_s=0.3) as (connect, server):
        client = await connect()
        await client.send(GET)
        assert (await client.answer())[0] == 200
        for byte in GET[:-4]:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.03)
            if cut(server):
                break
        assert await client.answer() == (408, "request_timeout")
        assert cut(server) == {"head": 1}


@pytest.mark.parametrize("piece", [b"", b"x"], ids=["silence", "a byte now and then"])
async def test_a_body_that_comes_too_slowly_is_refused(service, piece):
    async with listening(service, body_timeout_s=0.3) as (connect, _):
        client = await connect()
        await client.send(POST + b"content-length: 1000\r\n\r\n")
        answering = asyncio.create_task(client.answer())
        while not answering.done():
            await client.send(piece)
            await asyncio.sleep(0.05)
        assert await answering == (408, "request_timeout")


async def test_a_body_that_keeps_coming_may_take_longer_than_the_limit(service):
    async with listening(service, body_timeout_s=0.4) as (connect, _):
        client = await connect()
        body = BODY + b" " * 4_000
        await client.send(POST + b"content-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 400):
            await client.send(body[start : start + 400])
            await asyncio.sleep(0.08)
        assert (await client.answer())[0] == 200


async def test_the_rest_of_a_refused_body_cannot_hold_a_connection(service):
    async with listening(service, api_key="sesame") as (connect, server):
        client = await connect()
        await client.send(POST + b"content-length: 1000000\r\n\r\nx")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401")
        await asyncio.wait_for(client.reader.read(), 20)  # until the server closes it
        assert not server.server_state.connections


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(service):
    async with listening(service, idle_timeout_s=0.3) as (connect, server):
        idle, busy = await connect(), await connect()
        await idle.send(GET)
        await idle.answer()
        for _ in range(10):
            await busy.send(GET)
            assert (await busy.answer())[0] == 200
            await asyncio.sleep(0.1)
        assert await idle.closed()
        assert cut(server)["idle"] >= 1


async def test_the_longest_idle_connection_gives_way_to_a_new_one(service):
    async with listening(service, max_connections=3) as (connect, server):
        clients = [await connect() for _ in range(3)]
        for client in (clients[1], clients[0], clients[2]):
            await client.send(GET)
            assert (await client.answer())[0] == 200
        fourth = await connect()
        await fourth.send(GET)
        assert (await fourth.answer())[0] == 200
        assert await clients[1].closed()
        await clients[0].send(GET)
        assert (await clients[0].answer())[0] == 200
        assert cut(server) == {"idle": 1}


async def test_where_no_connection_is_idle_a_new_one_is_refused_with_the_reason(service):
    async with listening(service, max_connections=2) as (connect, server):
        busy = [await connect() for _ in range(2)]
        for client in busy:
            await client.send(POST)  # a head that goes on
        await until(lambda: len(server.server_state.connections) == 2)
        third = await connect()
        await third.send(GET)
        assert await third.answer() == (503, "too_many_connections")
        assert await third.closed()
        for client in busy:
            await client.send(b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
            assert (await client.answer())[0] == 200
        assert cut(server) == {"full": 1}


async def test_a_bad_head_behind_a_good_request_does_not_cost_its_answer(service):
    async with listening(service) as (connect, _):
        client = await connect()
        await client.send(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY) + b"\0\0\0 nonsense\r\n\r\n")
        assert (await client.answer())[0] == 200
        assert await client.closed()


async def test_pipelined_requests_are_all_answered(service):
    async with listening(service, header_timeout_s=0.2) as (connect, server):
        client = await connect()
        await client.send(20 * (POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)))
        for _ in range(20):
            assert (await client.answer())[0] == 200
        assert cut(server) == {}


async def test_five_hundred_silent_connections_leave_room_for_who_asks(service):
    async with listening(service, max_connections=200, header_timeout_s=1) as (connect, _):
        await asyncio.gather(*(connect() for _ in range(500)), return_exceptions=True)
        await asyncio.sleep(2)
        client = await connect()
        await client.send(GET)
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("trusted", "forwarded", "seen"),
    [
        ((), "203.0.113.9", "127.0.0.1"),
        (("10.0.0.0/8",), "203.0.113.9", "127.0.0.1"),
        (("127.0.0.0/8",), "203.0.113.9", "203.0.113.9"),
        (("127.0.0.1", "10.0.0.0/8"), "6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        (("127.0.0.1",), "", "127.0.0.1"),
    ],
)
async def test_only_a_trusted_proxy_says_who_asks(monkeypatch, trusted, forwarded, seen):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")

    def echo(settings, drain):  # noqa: ARG001
        app = FastAPI()

        @app.get("/")
        async def who(request: Request) -> str:
            return request.client.host

        return app

    async with listening(echo, trusted_proxies=trusted) as (connect, _):
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: %b\r\n\r\n" % forwarded.encode())
        assert json.loads((await client.answer())[1]) == seen


def test_the_limit_of_open_files_is_raised_and_a_hard_one_is_said(caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        assert raise_file_limit(1_000) == 1_000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1_256
        with caplog.at_level(logging.WARNING, "paragone.service"):
            assert raise_file_limit(hard) == hard - 256
        assert "raise its limit (ulimit -n)" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
