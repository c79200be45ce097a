"""Keys of a server: the file's form, the ring that finds them, and the command that makes them."""

import asyncio
import json
import logging
import stat

import pytest

from paragone.cli import main
from paragone_service.api_keys import KeyRing, hash_of, parse_keys, plain_key
from tests.service.conftest import until

A, B = f"a:{hash_of('one')}", f"b:{hash_of('two')}"


def test_a_file_has_a_name_a_hash_and_options_a_line():
    ring = KeyRing(parse_keys(f"# ours\n{A}\n\n{B} tenant=acme requests_per_minute=60 tokens_per_minute=1000\n"))
    assert ring.find(b"one").name == "a"
    two = ring.find(b"two")
    assert (two.tenant, two.requests_per_minute, two.tokens_per_minute) == ("acme", 60, 1000)
    for wrong in (b"", b"three", hash_of("one").encode(), b"a"):
        assert ring.find(wrong) is None


def test_a_file_of_one_word_is_the_key_itself_and_a_line_of_hash_never_is():
    assert parse_keys("sesame\n") == (plain_key("sesame"),)
    assert KeyRing(parse_keys(A)).find(A.encode()) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the API key is empty"),
        ("# nothing\n", "the API key is empty"),
        ("two words", "the API key is empty or has characters"),
        (f"{A}\nsesame", "line 2 is not NAME:HASH"),
        (f"{A}\n{A}", "the name a comes twice"),
        (f"{A} colour=red", "options are tenant="),
        (f"{A} requests_per_minute=0", "requests_per_minute must be a whole number, at least 1"),
        (f"{A} tokens_per_minute=many", "tokens_per_minute must be a whole number"),
        (f"{A} tenant=a/b", "a tenant's name has letters"),
        (f"{A[:-1]}\n{B}", "line 1 is not NAME:HASH"),
        (f"{A[:-1]}", "line 1 is not NAME:HASH"),
        (f"{A}0", "line 1 is not NAME:HASH"),
        ("a:", "line 1 is not NAME:HASH"),
        (f"{A}\nc:{A[2:]}", "line 2: c has the hash of a"),
    ],
)
def test_what_is_no_list_of_keys_is_refused_and_never_repeated(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_keys(text)
    assert "sesame" not in str(raised.value)


@pytest.mark.anyio
async def test_keys_are_exchanged_while_the_server_runs_and_kept_while_the_file_is_wrong(caplog):
    text = A

    def read():
        return parse_keys(text)

    ring = KeyRing(read())
    following = asyncio.create_task(ring.follow(read, every_s=0.01))
    with caplog.at_level(logging.WARNING, "paragone.service"):
        text = B
        await until(lambda: ring.find(b"two") is not None)
        assert ring.find(b"one") is None
        text = "sesame"
        await until(lambda: "the keys stay as they were" in caplog.text)
        await asyncio.sleep(0.05)
        assert ring.find(b"two") is not None
    following.cancel()
    assert caplog.text.count("the keys stay as they were") == 1


def run(*words):
    """The exit code of ``paragone key new``."""
    try:
        return main(["key", "new", *words])
    except SystemExit as end:
        return end.code


def test_a_new_key_is_printed_once_and_its_line_appended(tmp_path, capsys):
    file = tmp_path / "keys"
    assert run("training", "--file", str(file)) == 0
    first = capsys.readouterr().out.strip()
    assert run("acme", "--file", str(file), "--tenant", "acme", "--requests-per-minute", "9") == 0
    second = capsys.readouterr().out.strip()
    ring = KeyRing(parse_keys(file.read_text()))
    assert ring.find(first.encode()).name == "training"
    assert (ring.find(second.encode()).tenant, ring.find(second.encode()).requests_per_minute) == ("acme", 9)
    assert first not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("robot", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert KeyRing(parse_keys(made["line"] + "\n" + file.read_text())).find(made["key"].encode()).name == "robot"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a",), "keys has a key named a already: give another name, or remove its line first"),
        (("two words",), "the name 'two words' must have letters"),
        (("b", "--tenant", "x/y"), "a tenant's name has letters"),
        (("b", "--requests-per-minute", "0"), "requests_per_minute must be a whole number, at least 1"),
    ],
)
def test_a_key_that_no_file_could_hold_is_not_made(tmp_path, capsys, words, message):
    file = tmp_path / "keys"
    file.write_text(f"{A}\n")
    assert run(*words, "--file", str(file)) == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == f"{A}\n"


def test_a_line_is_not_added_to_a_file_that_holds_a_plain_key(tmp_path, capsys):
    file = tmp_path / "keys"
    file.write_text("sesame\n")
    assert run("b", "--file", str(file)) == 2
    assert "line 1 is not NAME:HASH" in capsys.readouterr().err


def test_without_a_file_the_line_is_printed_too(capsys):
    assert run("training") == 0
    made, line = capsys.readouterr().out.split()
    assert line == f"training:{hash_of(made)}"
