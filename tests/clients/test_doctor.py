"""``paragone doctor``: every line says ok, warn or fail, and what to do; exit code 1 where something fails."""

import json
import socket
import subprocess
import sys
from importlib.metadata import EntryPoint

import httpx2
import pytest
from processes import Redis
from redis import Redis as RedisConnection
from serving_setup import free_port

from paragone import cli
from paragone.doctor import findings
from paragone.installing import pip_install
from paragone.versions import VERSION_HEADER, own_version
from paragone_models import checks as model_checks
from paragone_models.packing import native
from paragone_service.checks import checks as service_checks
from tests.clients.oracle import Oracle, listening

COMMAND = EntryPoint("doctor", "paragone.doctor:doctor", "paragone.commands")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("PARAGONE_URL", "PARAGONE_API_KEY", "PARAGONE_REDIS_URL", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def found(rows, subject):
    """Return state, text and remedy of one subject."""
    return next(tuple(row[1:]) for row in rows if row[0] == subject)


def doctor(*words):
    try:
        return cli.main(["doctor", "--quick", *words], commands=[COMMAND])
    except SystemExit as end:
        return end.code or 0


def test_a_bare_client_says_what_is_installed_and_how_to_have_more():
    code = "import sys; sys.modules['torch'] = None\nfrom paragone.doctor import findings\n"
    code += "print([tuple(one) for one in findings({}, checks=())]); assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"'paragone', 'ok', '{own_version()} on Python" in done.stdout


def test_an_extra_is_shown_once_with_its_own_packages_and_what_is_missing(monkeypatch):
    versions = {"fastapi": None, "torch": "2.0"}
    monkeypatch.setattr("paragone.doctor._installed", lambda name: versions.get(name, "1.0"))
    rows = list(findings({}, checks=()))
    state, text, remedy = found(rows, "service")
    assert (state, remedy) == ("warn", f"for `paragone serve`: {pip_install('service')}")
    assert text.endswith("without fastapi")
    assert "torch 2.0" in found(rows, "models")[1]
    assert "torch" not in text
    monkeypatch.setattr("paragone.doctor._installed", lambda _: None)
    assert found(findings({}, checks=()), "training")[:2] == ("info", "not installed")


def test_a_service_is_asked_for_its_models_and_its_version():
    with listening(Oracle()) as url:
        rows = list(findings({"url": url}, checks=()))
        assert found(rows, f"service {url}")[0] == "ok"
        assert "hosts longer" in found(rows, f"service {url}")[1]


@pytest.mark.parametrize(
    ("status", "headers", "subject", "state", "words"),
    [
        (401, {VERSION_HEADER: own_version()}, "service", "fail", "give its key by --api-key"),
        (404, {}, "service", "fail", "is that Paragone?"),
        (200, {VERSION_HEADER: "9.0.0"}, "versions", "fail", "upgrade the client"),
        (200, {VERSION_HEADER: "0.9.0"}, "versions", "warn", "upgrade the client"),
        (200, {VERSION_HEADER: own_version()}, "versions", "ok", "client and service are both"),
    ],
)
def test_a_service_that_cannot_be_used_says_why(status, headers, subject, state, words):
    with listening(lambda _: httpx2.Response(status, json={"models": []}, headers=headers)) as url:
        rows = list(findings({"url": url}, checks=()))
    row = found(rows, f"service {url}" if subject == "service" else subject)
    assert row[0] == state
    assert words in " ".join(row[1:])


def test_what_fails_is_exit_code_1_and_json_is_one_object(capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert doctor("--url", url, "--json", "--port", str(free_port())) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["state"] == "fail"
    failed = next(one for one in made["findings"] if one["state"] == "fail")
    assert failed["subject"] == f"service {url}"
    assert "paragone serve" in failed["remedy"]


def test_lines_for_people_have_state_subject_and_remedy(capsys):
    assert doctor("--port", str(free_port())) == 0
    shown = capsys.readouterr().out
    assert f"ok   paragone     {own_version()} on Python" in shown
    assert "→ for others: paragone key new NAME --file keys.txt" in shown


def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        state, text, remedy = found(service_checks({"port": port}), "port")
        # Whoever asks about a service that runs knows that it has its port.
        assert "port" not in [row[0] for row in service_checks({"url": f"http://127.0.0.1:{port}"})]
    assert state == "warn"
    assert text.startswith(f"127.0.0.1:{port} is taken by another process, perhaps")
    assert f"ss -ltnp 'sport = :{port}'" in remedy
    assert "--port" in remedy
    file = tmp_path / "paragone.toml"
    file.write_text("host = '192.0.2.1'\napi_key = 'k'\n")
    assert found(service_checks({"config": file}), "port")[0] == "fail"


def test_the_default_model_is_named_first():
    text = found(service_checks({"port": free_port()}), "settings")[1]
    assert text.startswith("defaults and environment: hosting mini-general-preference (default), mini-bradley-terry, ")


def test_what_is_not_installed_is_neither_good_nor_bad(capsys, monkeypatch):
    monkeypatch.setattr("paragone.doctor._installed", lambda name: None if "triton" in name else "1.0")
    assert doctor("--port", str(free_port())) == 0
    assert "\n–    triton       not installed\n" in capsys.readouterr().out


def test_settings_that_serve_would_refuse_fail(tmp_path):
    file = tmp_path / "paragone.toml"
    file.write_text("hots = '127.0.0.1'\n")
    ((subject, state, text, remedy),) = service_checks({"config": file})
    assert (subject, state, text) == ("settings", "fail", "unknown key 'hots': did you mean 'host'?")
    assert "mend" in remedy


def test_a_file_of_keys_that_everybody_can_read_is_warned_of(tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"a:{'0' * 64}\n")
    keys.chmod(0o644)
    state, text, remedy = found(service_checks({"api_key_file": keys}), "keys")
    assert (state, remedy) == ("warn", f"chmod o= {keys}")
    assert text.startswith("1: a; everybody")
    keys.chmod(0o600)
    assert found(service_checks({"api_key_file": keys}), "keys")[0] == "ok"
    assert found(service_checks({"api_key_file": tmp_path / "none"}), "keys")[0] == "fail"


def test_redis_is_reached_and_its_policy_judged():
    with Redis() as server, RedisConnection.from_url(server.url) as connection:
        rows = list(service_checks({"redis_url": server.url}))
        assert found(rows, "redis")[0] in ("ok", "warn")  # a busy machine may be slow
        assert "answers in" in found(rows, "redis")[1]
        assert found(rows, "redis keeps") == (
            "warn", "it has no maxmemory", "set maxmemory, and maxmemory-policy allkeys-lfu"
        )  # fmt: skip
        connection.config_set("maxmemory", "100mb")
        assert "nothing new is kept" in found(service_checks({"redis_url": server.url}), "redis keeps")[1]
        connection.config_set("maxmemory-policy", "allkeys-lfu")
        assert found(service_checks({"redis_url": server.url}), "redis keeps")[0] == "ok"
    state, text, _ = found(service_checks({"redis_url": "redis://u:hush@127.0.0.1:1"}), "redis")
    assert state == "fail"
    assert "hush" not in text


def test_no_line_repeats_a_password_of_an_address(tmp_path, capsys):
    file = tmp_path / "paragone.toml"
    judge = "judge:http://u:{}@127.0.0.1:1/v1"
    for password in ("hush", "hu/sh", "12/hush", "h#hush", "hu?hush", "hush@hush"):
        file.write_text(f'[models.j]\nsource = "{judge.format(password)}"\nmodel = "m"\n')
        for options in (
            ["--redis-url", f"redis://u:{password}@127.0.0.1:1/0"],
            ["--redis-url", f"redis+cluster://u:{password}@127.0.0.1:1"],
            ["--redis-url", f"u:{password}@127.0.0.1:1"],
            ["--engine", f"m=vllm:http://u:{password}@127.0.0.1:1"],
            ["--engine", f"vllm:http://u:{password}@127.0.0.1:1"],
            ["--url", f"http://any:{password}@127.0.0.1:1"],
            ["--url", f"any:{password}@127.0.0.1:1"],
            ["--config", str(file)],
        ):
            assert doctor(*options, "--json") == 1
            shown = capsys.readouterr()
            assert not any(part in shown.out + shown.err for part in ("hush", "'hu'", "u:12", "'12'")), options


def test_engines_are_asked_what_they_have():
    models = {"data": [{"id": "backbone"}]}
    with listening(
        lambda request: httpx2.Response(200 if request.url.path == "/v1/models" else 404, json=models)
    ) as url:
        state, text, _ = found(service_checks({"engines": [f"judge=vllm:{url}"]}), "engine judge")
    assert state == "ok"
    assert text.endswith("and has backbone")
    with listening(lambda _: httpx2.Response(401, json={})) as url:
        assert "engine_api_key" in found(service_checks({"engines": [f"j=vllm:{url}"]}), "engine j")[2]
    assert found(service_checks({"engines": [f"j=vllm:http://127.0.0.1:{free_port()}"]}), "engine j")[0] == "fail"
    assert found(service_checks({"engines": [f"j=triton:grpc://127.0.0.1:{free_port()}"]}), "engine j")[0] == "fail"


def test_the_machine_says_what_would_be_chosen_and_why(monkeypatch):
    rows = list(model_checks.checks({}))
    assert "cores, of which torch uses" in found(rows, "cpu")[1]
    assert found(rows, "dtype")[1].startswith(("float32 on cpu: ", "bfloat16 on c"))
    assert "GB free" in found(rows, "cache")[1]
    monkeypatch.setattr(native, "kernels_refusal", lambda: native.NO_COMPILER)
    assert model_checks._kernels("cpu")[1:] == (
        "warn", "torch's operations: there is no C++ compiler", "apt-get install g++, for more speed in bfloat16"
    )  # fmt: skip
    monkeypatch.setattr(native, "kernels_refusal", lambda: None)
    assert "compiled" in model_checks._kernels("cpu")[2]


def test_a_disk_that_is_nearly_full_or_cannot_be_written_is_warned_of(tmp_path, monkeypatch):
    row = model_checks._folder("hub", tmp_path / "a" / "b", "nothing", least=1e18)
    assert row[1] == "warn"
    assert "make room" in row[3]
    monkeypatch.setattr(model_checks.os, "access", lambda *_: False)
    assert "cannot be written: nothing" in model_checks._folder("hub", tmp_path, "nothing", least=0)[2]
