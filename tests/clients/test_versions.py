"""Client and server of different versions, each the real one, told apart by the version of an installed package."""

import contextlib
import logging
import sys

import httpx2
import pytest

from paragone import AsyncClient, Client
from paragone.exceptions import VersionError
from paragone.versions import VERSION_HEADER, incompatibility, minor_difference, own_version
from paragone_models import load_model
from paragone_service.app import create_app
from paragone_service.config import Settings
from tests.service.conftest import SPECS, make_model, make_tokenizer, serving

PAIR = ("Should every school have a garden?", "It keeps kids fit.", "No.")


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("model") / "bt", SPECS["bt"], make_tokenizer(), 0)
    return {"bt": load_model(folder, name="bt", device="cpu")}


@contextlib.contextmanager
def installed(folder, version):
    """Within the context the package is installed in this version: its metadata is what comes first on the path."""
    metadata = folder / version / f"paragone-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: paragone\nVersion: {version}\n")
    sys.path.insert(0, str(metadata.parent))
    try:
        yield
    finally:
        sys.path.remove(str(metadata.parent))


@pytest.fixture
def asked(hosted, tmp_path):
    """Return the answer of a real server of one version to a real client of another."""

    async def ask(client_version, server_version, wrapped=None):
        with installed(tmp_path, server_version):
            app = create_app(Settings(), hosted)
        transport = httpx2.ASGITransport(app=wrapped(app) if wrapped else app)
        with installed(tmp_path, client_version):
            client = AsyncClient("http://127.0.0.1", retry_s=0, transport=transport)
        async with app.router.lifespan_context(app), client:
            return [await client.prefer(*PAIR) for _ in range(2)]

    return ask


@pytest.mark.anyio
async def test_equal_versions_and_those_that_differ_by_a_patch_say_nothing(asked, caplog):
    caplog.set_level(logging.WARNING, "paragone")
    assert await asked("1.2.0", "1.2.0") == await asked("1.2.0", "1.2.9")
    assert not caplog.messages


@pytest.mark.anyio
@pytest.mark.parametrize(("client", "server", "upgraded"), [("1.2.0", "1.4.1", "client"), ("1.4.1", "1.2.0", "server")])
async def test_another_minor_version_is_warned_of_once(asked, caplog, client, server, upgraded):
    caplog.set_level(logging.WARNING, "paragone")
    assert await asked(client, server)
    [message] = [record.message for record in caplog.records if record.name == "paragone"]
    assert f"the client's version is {client} and the server's {server}" in message
    assert message.endswith(f"upgrade the {upgraded}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("client", "server", "age", "remedy"),
    [
        ("1.9.9", "2.0.0", "old", "upgrade the client (install paragone 2.* where the client runs)"),
        ("2.0.0", "1.9.9", "new", "take an older client (install paragone 1.* where the client runs)"),
        ("1.0.0", "0.1.0", "new", "take an older client (install paragone 0.* where the client runs)"),
    ],
)
async def test_another_major_version_is_refused_with_both_and_the_remedy(asked, client, server, age, remedy):
    with pytest.raises(VersionError) as caught:
        await asked(client, server)
    assert (caught.value.code, caught.value.status) == ("incompatible_version", 400)
    assert f"the client's version {client} is too {age} for the server's version {server}" in caught.value.message
    assert caught.value.message.endswith(remedy)


@pytest.mark.anyio
async def test_a_client_looks_at_the_answer_itself(asked):
    # As a server would answer that never looks at its client's version.
    def deaf(app):
        async def called(scope, receive, send):
            headers = [pair for pair in scope["headers"] if pair[0] != VERSION_HEADER.encode()]
            await app({**scope, "headers": headers}, receive, send)

        return called

    with pytest.raises(VersionError, match=r"the client's version 1\.0\.0 is too old for the server's version 2\.0\.0"):
        await asked("1.0.0", "2.0.0", deaf)


@pytest.mark.anyio
async def test_whoever_tells_no_version_is_answered_and_told_ours_if_it_has_a_key(hosted):
    async with serving(hosted, api_key="sesame") as client:
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.headers.get(VERSION_HEADER)) == (401, None)
        assert VERSION_HEADER not in (await client.get("/readyz")).headers
        answer = await client.get("/v1/models", headers={"authorization": "Bearer sesame"})
        assert (answer.status_code, answer.headers[VERSION_HEADER]) == (200, own_version())
        odd = {"authorization": "Bearer sesame", VERSION_HEADER: "tomorrow"}
        assert (await client.get("/v1/models", headers=odd)).status_code == 200


def test_the_waiting_client_tells_its_version_and_looks_too():
    seen = []

    def answer(request):
        seen.append(request.headers[VERSION_HEADER])
        return httpx2.Response(200, headers={VERSION_HEADER: "7.0.0"}, json={})

    with (
        Client(retry_s=0, transport=httpx2.MockTransport(answer)) as client,
        pytest.raises(VersionError, match="too old"),
    ):
        client.models()
    assert seen == [own_version()]


@pytest.mark.parametrize("version", ["", "1", "one.two", "1.2.3 or so", "9" * 10 + ".0.0", "1.2.3-" + "a" * 65])
def test_a_version_that_cannot_be_read_is_not_judged(version):
    assert incompatibility(version, "2.0.0") is None
    assert minor_difference("2.0.0", version) is None


@pytest.mark.parametrize("version", ["1.2", "1.2.0", "1.2.3rc1", "1.2.0.dev4+g1a2b3c"])
def test_versions_of_every_release_are_read(version):
    assert incompatibility(version, "2.0.0") is not None
    assert minor_difference(version, "1.3.0") is not None
