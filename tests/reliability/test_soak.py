"""The soak loses nothing, and would tell: real replicas, a real Redis, real faults; and a table that is wrong."""

import time

import pytest
import redis
from processes import Process, Redis, Server, chat_tokenizer, ended, write_model
from soak import Faults, Load, Outcome, Supervisor, Table, Window, report, soak


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("soak") / "model", chat_tokenizer(), kind="general-preference")


@pytest.fixture(scope="module")
def table(model):
    return Table.made(model, prompts=30)


@pytest.fixture(scope="module")
def pair_of_processes(model):
    store = Redis()
    # No memory cache, so that what lies in Redis is what is answered with.
    server = Server("--model", f"soak={model}", "--redis-url", store.url, "--memory-cache-mb", "0")
    with ended(store, server):
        store.start()
        server.start()
        yield store, server


def asked(table, url, count=20):
    load = Load(table, [url])
    try:
        for place in range(count):
            load.ask([place, place + 1], time.monotonic())
    finally:
        load.close()
    return load.windows[-1]


def test_a_short_soak_loses_nothing(tmp_path):
    outcome = soak(tmp_path, seconds=8.0, every_s=2.0, seed=1, prompts=40)
    assert (outcome.lost, outcome.wrong, outcome.unclean) == ([], [], [])
    assert len(outcome.windows) > 2
    assert sum(len(window.seconds) for window in outcome.windows) > 20


def test_answers_that_differ_from_the_table_are_wrong(pair_of_processes, table):
    _, server = pair_of_processes
    assert asked(table, server.url).wrong == []
    moved = Table(table.pairs, [right + 1e-3 for right in table.right])
    assert len(asked(moved, server.url).wrong) == 20


def test_no_answer_is_a_lost_one(table, monkeypatch):
    monkeypatch.setattr("soak._PATIENCE_S", 0.2)
    assert len(asked(table, "http://127.0.0.1:9", count=2).lost) == 2


def test_corrupted_values_are_found_and_not_served(pair_of_processes, table):
    store, server = pair_of_processes
    asked(table, server.url)
    with redis.Redis.from_url(store.url) as connection:
        deadline = time.monotonic() + 10
        while connection.dbsize() < 20 and time.monotonic() < deadline:  # values are written after the reply
            time.sleep(0.05)
        before = set(connection.keys())
        Faults([server], store, seed=0, pause_s=0.1).inflict("values corrupted in Redis")
        assert set(connection.keys()) == before
    assert asked(table, server.url).wrong == []
    assert server.metrics()["paragone_cache_corrupted_total"] > 5


@pytest.mark.parametrize("name", ["FLUSHALL", "Redis is full", "SIGSTOP of Redis", "SIGSTOP of a replica"])
def test_answers_stay_right_after(name, pair_of_processes, table):
    store, server = pair_of_processes
    Faults([server], store, seed=0, pause_s=0.5).inflict(name)
    window = asked(table, server.url)
    assert (window.lost, window.wrong) == ([], [])


def test_every_fault_comes_once_before_any_comes_again():
    faults = Faults([], Redis(), seed=3, pause_s=0.0)
    drawn = [faults.next() for _ in range(2 * len(faults.names()))]
    assert sorted(drawn[: len(drawn) // 2]) == sorted(drawn[len(drawn) // 2 :]) == sorted(faults.names())


def test_the_supervisor_starts_again_what_ended():
    process = Process(["sleep", "100"])
    process.launch()
    with ended(process):
        first = process.pid
        supervisor = Supervisor([process], wait_s=0.0)
        try:
            Faults([], process, seed=0, pause_s=0.0).inflict("kill -9 of Redis")
            deadline = time.monotonic() + 10
            while process.pid == first and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            supervisor.close()
        assert process.runs
        assert process.pid != first
        assert [code for _, code in supervisor.exits] == [-9]


def test_the_report_names_what_was_lost(capsys):
    windows = [Window("warm-up"), Window("FLUSHALL", [0.1, 0.3], ["UnavailableError: x"], [], 2)]
    report(Outcome(100.0, windows, ["serve ended with 1"], 3.0, [(400.0, 410.0)]))
    printed = capsys.readouterr().out
    assert "FAULT UnavailableError: x" in printed
    assert "FAULT serve ended with 1" in printed
    assert printed.count("FLUSHALL") == 1
