"""The files of the page: who gets them, with which headers, and what there must not be in them."""

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from paragone_service.http.page import page_files
from paragone_service.settings_sources import load_settings
from tests.service.conftest import serving

FOLDER = Path(__file__).parents[3] / "service" / "paragone_service" / "page"
FILES = page_files()


@pytest.mark.anyio
async def test_the_page_and_all_that_it_loads_need_no_key_and_its_calls_do(hosted):
    async with serving(hosted, api_key="secret-key") as client:
        for path in FILES:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert "x-paragone-version" not in answer.headers
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/page/nothing.js")).status_code == 401
        assert (await client.post("/", json={"inputs": "x"})).status_code == 401
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 200  # as all of this server


@pytest.mark.anyio
async def test_a_server_without_a_key_answers_for_its_own_names_alone(hosted):
    async with serving(hosted) as client:
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421


@pytest.mark.anyio
async def test_the_headers_forbid_other_scripts_frames_and_referrers(client):
    answer = await client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.anyio
async def test_a_file_is_compressed_where_asked_and_sent_again_only_if_it_changed(client):
    content = (FOLDER / "page.css").read_bytes()
    plain = await client.get("/page/page.css", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == content
    refused = await client.get("/page/page.css", headers={"accept-encoding": "br, gzip;q=0"})
    assert "content-encoding" not in refused.headers
    async with client.stream("GET", "/page/page.css", headers={"accept-encoding": "br, gzip"}) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == content
    assert len(raw) < len(content)
    assert answer.headers["etag"] != plain.headers["etag"]
    for sent in (plain, answer):
        encoding = sent.headers.get("content-encoding", "identity")
        known = {"accept-encoding": encoding, "if-none-match": f'"other", {sent.headers["etag"]}'}
        again = await client.get("/page/page.css", headers=known)
        assert (again.status_code, again.content) == (304, b"")
    assert (await client.get("/page/page.css", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.anyio
async def test_a_head_request_has_the_headers_alone(client):
    answer = await client.head("/", headers={"accept-encoding": "identity"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(FILES["/"].content)


@pytest.mark.anyio
async def test_the_page_is_off_where_the_settings_say_so(hosted):
    async with serving(hosted, page=False) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/page/app.js")).status_code == 404
    async with serving(hosted, page=False, api_key="secret-key") as client:
        assert (await client.get("/")).status_code == 401
    assert load_settings({"page": False}).page is False


@pytest.mark.anyio
async def test_a_dialect_that_is_asked_at_the_root_still_answers_there(client):
    answer = await client.post("/", json={"inputs": [["a", "b"]]})
    assert answer.status_code != 405


def test_nothing_in_the_files_makes_markup_of_a_text_or_runs_one():
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|setHTML"
        r"|\beval\(|new Function|javascript:|style=|\son\w+=\"|https?://(?!www\.w3\.org/2000/svg)",
    )
    names = [path for path in FOLDER.iterdir() if path.suffix in {".js", ".html", ".svg"}]
    assert len(names) > 5
    found = {path.name: match[0] for path in names if (match := forbidden.search(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_every_module_is_loaded_by_another_and_every_one_that_is_loaded_is_there():
    loaded = {"app.js", "page.css", "icon.svg", "index.html"}
    for path in FOLDER.glob("*.js"):
        loaded.update(re.findall(r"from \"\./([^\"]+)\"", path.read_text(encoding="utf-8")))
    assert loaded == {path.name for path in FOLDER.iterdir()}


def test_all_modules_are_named_by_the_page_so_that_none_waits_for_another():
    named = re.findall(r'(?:modulepreload" href|src)="page/([^"]+\.js)"', FILES["/"].content.decode())
    assert sorted(named) == sorted(path.name for path in FOLDER.glob("*.js"))


def test_the_whole_page_is_small():
    assert sum(len(file.content) for file in FILES.values()) < 200_000


def test_the_files_are_part_of_the_distribution():
    tracked = subprocess.run(["git", "ls-files", "."], cwd=FOLDER, capture_output=True, text=True, check=True)
    names = set(tracked.stdout.split())
    assert names >= {path.name for path in FOLDER.iterdir()}  # hatchling packs what git does not ignore
