"""Where a server listens: the port is its own before a model is loaded, and free again for the next server."""

import errno
import socket

import pytest
from serving_setup import free_port

from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.http.listening import ListenError, bind, host_and_port, leave_for_successors, refusal
from paragone_service.http.middleware import Drain
from paragone_service.http.server import Server, configure


@pytest.fixture
def bound():
    sockets = bind("127.0.0.1", 0)
    yield sockets
    for one in sockets:
        one.close()


def port_of(sockets):
    return sockets[0].getsockname()[1]


def test_whoever_connects_before_the_server_listens_is_refused(bound):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(bound)))


def test_a_second_server_is_refused_also_while_the_first_one_still_loads(bound):
    port = port_of(bound)
    with pytest.raises(ListenError) as caught:
        bind("127.0.0.1", port)
    assert caught.value.taken
    assert str(caught.value) == (
        f"127.0.0.1:{port} is taken by another process, perhaps a `paragone serve` that still runs: stop it "
        f"(`ss -ltnp 'sport = :{port}'` shows which it is), or take another --port"
    )


def test_connections_that_are_left_of_a_server_keep_none_from_its_port(bound):
    port = port_of(bound)
    bound[0].listen()
    leave_for_successors(bound)
    asking = socket.create_connection(("127.0.0.1", port))
    answering, _ = bound[0].accept()
    answering.close()  # whoever closes first keeps the connection for a minute
    asking.recv(1)
    asking.close()
    bound[0].close()
    for one in bind("127.0.0.1", port):
        one.close()


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "nul\0"])
def test_what_can_be_no_name_of_a_host_is_refused(host):
    with pytest.raises(ListenError, match="is no address of this machine"):
        bind(host, 0)


def test_all_addresses_of_a_host_have_the_same_port():
    sockets = bind("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "host '192.0.2.1' is no address of this machine (Cannot assign requested address): `ip addr`"),
        ("nowhere.invalid", "host 'nowhere.invalid' is no address of this machine ("),
    ],
)
def test_a_host_that_is_not_here_is_named(host, words):
    with pytest.raises(ListenError) as caught:
        bind(host, free_port())
    assert str(caught.value).startswith(words)
    assert "--host 127.0.0.1" in caught.value.remedy
    assert not caught.value.taken


def test_a_port_that_a_user_may_not_have_is_named():
    error = refusal(PermissionError(errno.EACCES, "Permission denied"), "::", 80)
    assert error.reason == "[::]:80: this user may not listen on port 80"
    assert "--port from 1024 on" in error.remedy
    assert host_and_port("127.0.0.1", 80) == "127.0.0.1:80"


def test_a_port_that_is_lost_while_models_load_is_said_as_well(bound):
    settings = Settings(port=port_of(bound))
    leave_for_successors(bound)
    with socket.socket() as other:
        leave_for_successors([other])
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        drain = Drain()
        server = Server(configure(create_app(settings, {}, drain=drain), settings), drain)
        with pytest.raises(ListenError, match="is taken by another process"):
            server.run(bound)
