"""`/v1/files`: any data file is read as `paragone data` reads it, shown page by page, and kept nowhere."""

import asyncio
import bz2
import gzip
import io
import json
import os
import tempfile
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from paragone.installing import pip_install
from paragone.wire import FileAnswer
from paragone_evaluation.data_summary import summarised
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.options import ReadOptions
from paragone_service.api_keys import hash_of
from paragone_service.files import reading
from tests.service.conftest import serving, until
from tests.service.doubles import Leaving

pytestmark = pytest.mark.anyio

EVERYDAY = Path(__file__).parents[3] / "data" / "everyday_pairs.jsonl"
PAIRS = [
    {"prompt": f"Question {n}?", "first": f"Answer {n}.", "second": "No idea.", "strength": (-1) ** n * 2}
    for n in range(7)
]


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def client():
    async with serving({}) as client:
        yield client


async def ask(client, content, name="pairs.jsonl", **query):
    return await client.post("/v1/files", content=content, params={"name": name, **query})


async def answered(client, content, name="pairs.jsonl", **query):
    response = await ask(client, content, name, **query)
    assert response.status_code == 200, response.text
    return FileAnswer.model_validate_json(response.content)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


async def test_a_file_is_read_as_the_command_reads_it(client):
    answer = await answered(client, EVERYDAY.read_bytes(), limit=3, offset=190)
    expected = summarised(FilePass(EVERYDAY, options=ReadOptions(bad_rows="leave-out")))
    assert (answer.layout, answer.count, answer.read) == ("pairs", 192, 192)
    same = ("prompts", "responses", "pairs", "decided", "ties", "duplicates", "first_preferred", "splits")
    assert {name: getattr(answer, name) for name in same} == {name: expected[name] for name in same}
    rows = [json.loads(line) for line in EVERYDAY.read_text().splitlines()][190:]
    assert [row.line for row in answer.rows] == [191, 192]
    for shown, row in zip(answer.rows, rows, strict=True):
        assert shown.prompt == [{"role": "user", "content": row["prompt"]}]
        assert shown.responses == [row["first"], row["second"]]
        assert [(label.first, label.second, label.strength) for label in shown.labels] == [(0, 1, row["strength"])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(PAIRS).encode()),
        ("a.jsonl.gz", gzip.compress(lines(PAIRS), mtime=0)),
        ("A.JSONL.BZ2", bz2.compress(lines(PAIRS))),
        ("a.parquet", parquet(PAIRS)),
        ("a.csv", b"prompt,chosen,rejected\n" + b"".join(b"Question %d?,good,bad\n" % n for n in range(7))),
    ],
)
async def test_every_container_is_read_and_paged(client, name, content):
    answer = await answered(client, content, name, offset=2, limit=4)
    assert (answer.read, answer.pairs, answer.offset) == (7, 7, 2)
    assert [row.prompt[0]["content"] for row in answer.rows] == [f"Question {n}?" for n in range(2, 6)]


async def test_ratings_unjudged_responses_and_prompts_are_shown_as_what_they_are(client):
    rated = [{"prompt": f"{n}?", "response": "x", "ratings": {"helpfulness": n}} for n in range(3)]
    answer = await answered(client, lines(rated))
    assert answer.layout == "ratings"
    assert answer.rows[2].ratings == [{"helpfulness": 2}]
    assert answer.ratings["helpfulness"].mean == 1
    bare = await answered(client, lines([{"prompt": "p?", "responses": ["a", "b", "c"]}]))
    assert (bare.layout, bare.rows[0].responses, bare.rows[0].labels) == ("unjudged", ["a", "b", "c"], [])
    prompts = await answered(client, lines([{"prompt": "p?"}, {"prompt": "q?"}]))
    assert (prompts.layout, [row.responses for row in prompts.rows]) == ("prompts", [[], []])


async def test_what_is_left_out_is_counted_with_its_reason_and_its_lines(client):
    broken = [*PAIRS[:2], {"prompt": "p?", "first": "a", "second": "b", "strength": 9}]
    answer = await answered(client, lines(broken) + b"{not json\n" + lines(PAIRS[3:]))
    assert (answer.count, answer.read) == (8, 6)
    assert [(left.rows, left.lines) for left in answer.left_out] == [(1, [3]), (1, [4])]
    assert "strength" in answer.left_out[0].reason
    assert "not JSON" in answer.left_out[1].reason


@pytest.mark.parametrize(
    ("name", "content", "query", "words"),
    [
        ("notes.txt", b"hello", {}, "its name must end in one of .jsonl"),
        ("pairs.jsonl", b'{"colour": 3}\n', {}, "cannot read|cannot be read"),
        ("pairs.jsonl", b"", {}, "has no rows"),
        ("pairs.parquet", b"PAR1 and no more", {}, "cannot read pairs.parquet"),
        ("pairs.jsonl.gz", gzip.compress(lines(PAIRS), mtime=0)[:40], {}, "cannot read pairs.jsonl.gz"),
        ("pairs.jsonl", b"\xff\xfe\xff", {}, "pairs.jsonl"),
        ("pairs.jsonl", lines(PAIRS), {"layout": "mine"}, "layout is 'mine'; it must be auto or one of"),
        ("pairs.jsonl", lines(PAIRS), {"limit": 501}, "less than or equal to 500"),
        ("pairs.jsonl", lines(PAIRS), {"offset": -1}, "greater than or equal to 0"),
        ("pairs.jsonl", lines(PAIRS), {"colour": 1}, "colour|not permitted|unknown"),
        ("", lines(PAIRS), {}, "name"),
    ],
)
async def test_what_cannot_be_read_is_refused_in_the_readers_words(client, name, content, query, words):
    response = await ask(client, content, name, **query)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert any(word in error["message"] for word in words.split("|")), error
    assert tempfile.gettempdir() not in error["message"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.jsonl", "C:\\files\\passwd.jsonl", "hf:someone/passwd.jsonl", ".passwd.jsonl"]
)
async def test_a_name_is_never_a_path_nor_a_data_set_elsewhere(client, name):
    answer = await answered(client, lines(PAIRS), name)
    assert answer.name == "passwd.jsonl"
    assert answer.read == 7


async def test_code_that_is_dropped_as_a_file_is_not_run(client, tmp_path):
    response = await ask(client, f"open({str(tmp_path / 'ran')!r}, 'w')".encode(), "json.py")
    assert response.status_code == 422
    assert not list(tmp_path.iterdir())


def bombs():
    """Small files that unpack to much: one line of 250 MB; a text of a megabyte in each of 4,096 rows of a table."""
    packer, chunk = zlib.compressobj(1, wbits=31), b"a" * (1 << 20)
    line = packer.compress(b'{"prompt": "') + b"".join(packer.compress(chunk) for _ in range(250)) + packer.flush()
    text, rows = pyarrow.array(["b" * 1_000_000]), pyarrow.array([0] * 4096, pyarrow.int32())
    column, stream = pyarrow.DictionaryArray.from_arrays(rows, text), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column, "chosen": column, "rejected": column}), stream)
    return {"a.jsonl.gz": line, "a.parquet": stream.getvalue()}


async def test_a_bomb_is_refused_and_the_server_goes_on():
    async with serving({}, file_memory_mb=150) as client:
        for name, content in bombs().items():
            assert len(content) < 2_000_000
            response = await ask(client, content, name)
            assert response.status_code == 422, response.text
            message = response.json()["error"]["message"]
            assert f"reading {name} took more than 150 MB of memory" in message or f"cannot read {name}" in message
        assert (await answered(client, lines(PAIRS))).read == 7


async def test_reading_ends_at_its_limit_of_time_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with serving({}, file_limit_s=0.05) as client:
        response = await ask(client, lines(PAIRS))
        assert response.status_code == 422
        assert "took more than 0.05 s" in response.json()["error"]["message"]
    assert not list(tmp_path.iterdir())


async def test_without_the_readers_the_answer_says_what_to_install(client, monkeypatch):
    monkeypatch.setattr(reading, "_NEEDED", "a_package_that_nobody_has")
    response = await ask(client, lines(PAIRS))
    assert response.status_code == 404
    assert pip_install("evaluation", place=False) in response.json()["error"]["message"]


async def test_a_page_stops_before_its_rows_take_too_much_and_says_how_many_are_missing(client, monkeypatch):
    rows = [{"prompt": "p", "chosen": "é" * 1000, "rejected": "b" * n} for n in range(1, 8)]
    monkeypatch.setattr(reading, "_ROWS_BYTES", 20_000)  # an é takes six bytes of the answer
    response = await ask(client, lines(rows), limit=6)
    assert len(response.content) < 22_000
    answer = FileAnswer.model_validate_json(response.content)
    assert (answer.read, len(answer.rows), answer.not_shown) == (7, 3, 3)
    after = await answered(client, lines(rows), offset=3, limit=3)
    assert ([row.line for row in after.rows], after.not_shown) == ([4, 5, 6], 0)


async def test_a_row_or_a_summary_that_no_answer_holds_is_refused(client, monkeypatch):
    monkeypatch.setattr(reading, "_ROWS_BYTES", 5_000)
    long = [PAIRS[0], {"prompt": "p", "first": "a" * 6000, "second": "b", "strength": 1}, PAIRS[2]]
    assert [row.line for row in (await answered(client, lines(long), limit=1)).rows] == [1]
    response = await ask(client, lines(long), offset=1)
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert "the row of line 2 takes 6" in message
    assert "more than the 5000" in message
    assert "from offset 2" in message
    assert [row.line for row in (await answered(client, lines(long), offset=2)).rows] == [3]
    monkeypatch.setattr(reading, "_ANSWER_BYTES", 5_000)
    rated = [{"prompt": "p", "response": "x", "ratings": {f"attribute {n}": 1 for n in range(100)}}]
    response = await ask(client, lines(rated), limit=0)
    assert response.status_code == 422
    assert "too many attributes" in response.json()["error"]["message"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Have another script read files; it is given the lines of its body."""

    def run_instead(*body):
        (tmp_path / "another_reader.py").write_text("\n".join(("import os, sys, time", *body)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(reading, "_SCRIPT", "another_reader")

    return run_instead


async def test_half_an_answer_of_a_process_that_was_killed_is_no_answer(client, script):
    script("""os.write(1, b'{"answer": {"name": "pairs.jsonl"}')""", "os.kill(os.getpid(), 9)")
    response = await ask(client, lines(PAIRS))
    assert response.status_code == 422
    assert "MB of memory" in response.json()["error"]["message"]


async def test_a_process_that_fails_is_a_failure_of_the_server(client, script):
    script("""os.write(1, b'{"answer": {"name": "pairs.jsonl"}}')""", "sys.exit('something broke')")
    assert (await ask(client, lines(PAIRS))).status_code == 500


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def test_clients_that_leave_or_are_late_give_up_their_place_and_their_process(tmp_path, script, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(reading, "_MOST_WAITING", 1)
    script(f"open(f'{tmp_path}/{{os.getpid()}}.pid', 'w').close()", "time.sleep(300)")
    async with serving({}) as client:

        def leaving():
            return Leaving(client, PAIRS, "/v1/files", query="name=pairs.jsonl")

        running = [leaving(), leaving()]
        await until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, timeout_s=60)
        processes = [int(file.stem) for file in tmp_path.glob("*.pid")]
        waiting = leaving()
        await until(lambda: len(list(temporary.iterdir())) == 3)

        async def never_read():
            raise AssertionError("the body was read of a file that there is no room for")
            yield b""

        refused = await ask(client, never_read())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0

        waiting.left.set()
        await waiting.done
        client.headers["x-deadline-s"] = "0.2"
        assert (await ask(client, lines(PAIRS))).status_code == 504
        del client.headers["x-deadline-s"]
        assert len(list(temporary.iterdir())) == 2

        for one in running:
            one.left.set()
            await one.done
        assert not any(map(alive, processes))
        assert not list(temporary.iterdir())
        monkeypatch.undo()
        assert (await answered(client, lines(PAIRS))).read == 7


async def test_a_key_is_needed_and_the_body_has_a_limit(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"user:{hash_of('user')}\n")
    async with serving({}, api_key_file=file, max_body_mb=0.001) as client:
        assert (await ask(client, lines(PAIRS))).status_code == 401
        client.headers["authorization"] = "Bearer user"
        assert (await ask(client, lines(PAIRS))).status_code == 200
        assert (await ask(client, lines(PAIRS) * 10)).status_code == 413


async def test_one_key_cannot_take_the_places_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_OF_A_KEY", 1)
    file = tmp_path / "keys"
    file.write_text(f"one:{hash_of('one')}\nother:{hash_of('other')}\n")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly():
        begun.set()
        await go_on.wait()
        yield lines(PAIRS)

    def named(name):
        return {"headers": {"authorization": f"Bearer {name}"}, "params": {"name": "pairs.jsonl"}}

    async with serving({}, api_key_file=file) as client:
        sending = asyncio.create_task(client.post("/v1/files", content=slowly(), **named("one")))
        await begun.wait()
        again = await client.post("/v1/files", content=lines(PAIRS), **named("one"))
        assert (again.status_code, again.json()["error"]["code"]) == (503, "overloaded")
        assert "1 files of this key" in again.json()["error"]["message"]
        assert (await client.post("/v1/files", content=lines(PAIRS), **named("other"))).status_code == 200
        go_on.set()
        assert (await sending).status_code == 200
        assert (await client.post("/v1/files", content=lines(PAIRS), **named("one"))).status_code == 200
