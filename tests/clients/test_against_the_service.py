"""The client against the real service: over a socket with uvicorn, and in this process through ASGI."""

import asyncio
import contextlib
import itertools
import os
import threading
import time

import httpx2
import pytest

from paragone import AsyncClient, Client, checked, cli
from paragone.adapters import trl
from paragone.exceptions import (
    DeadlineError,
    KeyRefusedError,
    RequestError,
    TextError,
    TooLargeError,
    UnavailableError,
    UnknownModelError,
    UnknownRouteError,
    UnsupportedError,
)
from paragone.wire import ItemError, RunReport
from paragone_models import load_model
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.engine.contract import Health
from paragone_service.http.middleware import Drain
from paragone_service.http.server import Server, configure
from tests.service.conftest import SPECS, make_model, make_tokenizer

PROMPT = "Should every school have a garden?"
RESPONSES = ["It keeps kids fit, and they learn to work in teams.", "Because it is fun.", "No! Let them read.", ""]


@pytest.fixture(scope="module", autouse=True)
def _no_settings_from_outside():
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PARAGONE_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    return {
        name: load_model(make_model(root / name, SPECS[name], tokenizer, seed), name=name, device="cpu")
        for seed, name in enumerate(["gpm", "bt", "ratings"])
    }


@contextlib.contextmanager
def serving(models, **settings):
    """Serve on the loopback, on a free port unless the settings name one, and yield the address."""
    chosen = Settings(**{"port": 0, **settings})
    drain = Drain()
    server = Server(configure(create_app(chosen, models, drain=drain), chosen), drain)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(hosted):
    with serving(hosted) as url:
        yield url


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


def through_asgi(models, ask, **settings):
    """Return what a coroutine function makes of a client inside the application's own event loop."""

    async def main():
        app = create_app(Settings(**settings), models)
        client = AsyncClient(transport=httpx2.ASGITransport(app=app))
        async with app.router.lifespan_context(app), client:
            return await ask(client)

    return asyncio.run(main())


def test_the_two_orders_of_a_pair_sum_to_one_exactly(client):
    for model in ("gpm", "bt"):
        one = client.prefer(PROMPT, RESPONSES[0], RESPONSES[1], model=model)
        other = client.prefer(PROMPT, RESPONSES[1], RESPONSES[0], model=model)
        assert 0 < one < 1
        assert one + other == 1


def test_a_run_is_reported_listed_and_shown_by_both_clients(client, hosted):
    fields = {"name": "judge", "kind": "model", "state": "running", "stage": "step 2 of 8", "unit": "steps", "done": 2}
    series = {"loss": [[1, 0.6], [2, 0.5]]}
    assert client.report_run({**fields, "series": series}).done == 2
    assert [run.name for run in client.runs()] == ["judge"]
    assert client.run("judge").series == series
    with pytest.raises(RequestError, match="state"):
        client.report_run({**fields, "state": "asleep"})
    with pytest.raises(UnknownRouteError, match="knows no run 'nobodys'"):
        client.run("nobodys")

    async def ask(other):
        told = await other.report_run(RunReport(**fields, total=8))
        return told, await other.runs(), await other.run("judge")

    told, listed, shown = through_asgi(hosted, ask)
    assert (told.total, [run.name for run in listed], shown.total) == (8, ["judge"], 8)


def test_every_native_route_is_understood(client):
    answer = client.preferences([(PROMPT, RESPONSES[0], RESPONSES[1])], model="bt")
    (pair,) = checked(answer.preferences)
    rewards = client.rewards([(PROMPT, response) for response in RESPONSES], model="bt", return_=["representation"])
    rows = checked(rewards.rewards)
    assert (pair.first_reward, pair.second_reward) == (rows[0].reward, rows[1].reward)
    assert [row.representation for row in rows] == [[row.reward] for row in rows]
    assert (answer.identity, answer.fingerprint) == (rewards.identity, rewards.fingerprint)
    tournament = client.tournament(PROMPT, RESPONSES, return_=["matrix"], model="bt")
    assert tournament.ranking == sorted(range(4), key=lambda place: -rows[place].reward)
    assert tournament.matrix[0][1] == pair.probability
    (tokens,) = checked(client.tokens([(PROMPT, RESPONSES[0])]).tokens)
    assert PROMPT in tokens.text
    assert len(tokens.token_ids) > tokens.prompt_length > 0


def test_conversations_and_tools_are_understood(client):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    first = {"role": "assistant", "content": "Yes."}
    assert client.prefer(prompt, first, "No.") == client.prefer(
        prompt, "Yes.", [{"role": "assistant", "content": "No."}]
    )


def test_models_are_described_the_default_one_first(client, hosted):
    models = client.models()
    assert [info.id for info in models] == list(hosted)
    assert client.model("ratings") == models[2]
    assert models[2].attributes == ["helpful", "verbose"]
    assert models[0].identity == hosted["gpm"].identity
    assert client.preferences([]).model == "gpm"


def test_a_tournament_costs_a_forward_a_response_and_then_nothing(client):
    group = (PROMPT, [f"{response} Really." for response in RESPONSES])
    assert client.tournaments([group]).usage.forward_responses == 4
    again = client.tournaments([group]).usage
    assert (again.forward_responses, again.cached_responses) == (0, 4)


def test_a_split_batch_has_the_numbers_of_a_whole_one(url, client):
    pairs = [
        (f"{PROMPT} ({place % 7})", first, second)
        for place in range(30)
        for first, second in itertools.pairwise(RESPONSES)
    ]
    whole = client.preferences(pairs)
    with Client(url, max_items_per_request=8) as splitting:
        parts = splitting.preferences(pairs)
    assert parts.preferences == whole.preferences
    assert parts.identity == whole.identity


def test_both_clients_get_the_same_numbers(client, hosted):
    pairs = [(PROMPT, first, second) for first in RESPONSES for second in RESPONSES]
    through = through_asgi(hosted, lambda asking: asking.preferences(pairs))
    waited = client.preferences(pairs)
    # Each server has a cache of its own: batches differ, and so may the last bits of float32, at a temperature of 0.1.
    assert [row.logit for row in through.preferences] == pytest.approx(
        [row.logit for row in waited.preferences], abs=1e-5
    )
    assert through.fingerprint == waited.fingerprint


@pytest.mark.parametrize(
    ("ask", "kind", "code"),
    [
        (lambda client: client.prefer("", "a", "b"), TextError, "empty_prompt"),
        (lambda client: client.prefer([], "a", "b"), TextError, "empty_prompt"),
        (lambda client: client.prefer(PROMPT, "word " * 3000, "b"), TextError, "response_too_long"),
        (
            lambda client: client.prefer("word " * 3000, "a", "b", truncation="error"),
            TextError,
            "conversation_truncated",
        ),
        (lambda client: client.prefer(PROMPT, "a", "b", model="none"), UnknownModelError, "unknown_model"),
        (lambda client: client.model("none"), UnknownModelError, "unknown_model"),
        (
            lambda client: client.prefer(PROMPT, "a", "b", model="ratings"),
            UnsupportedError,
            "preferences_unavailable",
        ),
    ],
)
def test_a_refusal_arrives_as_its_own_exception(client, ask, kind, code):
    with pytest.raises(kind) as caught:
        ask(client)
    assert caught.value.code == code
    assert caught.value.request_id


def test_too_many_items_and_too_many_bytes_are_refused_if_they_are_not_split(hosted):
    with serving(hosted, max_body_mb=1) as url, Client(url, max_items_per_request=20_000) as client:
        with pytest.raises(TooLargeError, match="10001 items"):
            client.rewards([("p", "r")] * 10_001)
        with pytest.raises(TooLargeError, match="1000000 bytes"):
            client.rewards([("p", "r" * 1_100_000)])


def test_a_bad_item_is_named_by_its_place_in_the_whole_batch(url):
    items = [(PROMPT, f"{place}") for place in range(20)]
    items[13] = ("", "no prompt")
    with Client(url, max_items_per_request=4, concurrency=1) as client:
        with pytest.raises(TextError) as caught:
            client.rewards(items)
        rows = client.rewards(items, model="bt", on_error="report").rewards
    assert caught.value.item == 13
    assert caught.value.message.startswith("items[13]")
    assert [place for place, row in enumerate(rows) if isinstance(row, ItemError)] == [13]
    assert (rows[13].error.code, rows[13].error.item) == ("empty_prompt", 13)


def test_a_key_is_asked_for_and_checked(hosted):
    with serving(hosted, api_key="right") as url:
        with Client(url) as client, pytest.raises(KeyRefusedError) as missing:
            client.models()
        with Client(url, api_key="wrong") as client, pytest.raises(KeyRefusedError) as wrong:
            client.prefer("p", "a", "b")
        with Client(url, api_key="right") as client:
            assert 0 < client.prefer("p", "a", "b") < 1
    assert (missing.value.code, wrong.value.code) == ("missing_key", "wrong_key")


def test_what_the_client_would_not_send_is_refused_by_the_service_alike(url):
    with httpx2.Client(base_url=url) as http:
        answer = http.post("/v1/preferences", json={"pairs": [], "pears": []})
    assert answer.status_code == 422
    with Client(url) as client, pytest.raises(RequestError) as caught:
        client.preferences([{"prompt": "p", "first": "a", "second": "b", "third": "c"}])
    assert answer.json()["error"]["code"] == caught.value.code == "invalid_request"


def test_a_server_that_is_shutting_down_is_asked_again_and_then_given_up(hosted):
    waits = []

    async def main():
        drain = Drain()
        drain.begun = True
        app = create_app(Settings(), hosted, drain=drain)

        async def sleep(seconds):
            waits.append(seconds)

        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app)
            async with AsyncClient(transport=transport, retries=2, sleep=sleep) as client:
                await client.prefer("p", "a", "b")

    with pytest.raises(UnavailableError) as caught:
        asyncio.run(main())
    assert caught.value.code == "shutting_down"
    assert len(waits) == 2
    assert min(waits) >= 1


def test_a_trainer_gets_win_rates(client):
    prompts = [PROMPT, "q"] * 3
    rewards = trl.reward_function(client)(prompts=prompts, completions=[*RESPONSES[:3], *RESPONSES[:3]])
    assert all(0 < reward < 1 for reward in rewards)
    assert sum(rewards) == pytest.approx(3)


def test_paragone_ask_prints_an_answer(url, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["ask", "--url", url, "--model", "bt", PROMPT, *RESPONSES[:2]])
    assert not end.value.code
    assert capsys.readouterr().out.startswith("first preferred: ")


def test_a_scalar_against_references_and_its_blocks_come_over_the_wire_split_or_not(hosted):
    items = [{"prompt": PROMPT, "response": one, "references": [r for r in RESPONSES if r != one]} for one in RESPONSES]
    with serving(hosted) as url, Client(url, model="gpm") as client, Client(url, max_items_per_request=5) as splitting:
        whole = client.rewards(items, return_=["blocks", "gate_scales"])
        parts = splitting.rewards(items, model="gpm", return_=["blocks", "gate_scales"])
        assert [row.reference_logit for row in whole.rewards] == [row.reference_logit for row in parts.rewards]
        assert whole.usage.forward_prompts == 1
        assert parts.usage.forward_prompts == len(items)  # one part each: a response and three references
        for row in whole.rewards:
            assert sum(row.blocks) == pytest.approx(row.reference_logit, abs=1e-9)
            assert sum(row.gate_scales) == pytest.approx(1.0, abs=1e-6)
        with pytest.raises(UnsupportedError, match="has no 2-blocks"):
            client.rewards(items, model="bt", return_=["blocks"])


def test_the_time_of_a_client_is_the_deadline_of_its_requests(hosted):
    class Silent:  # an engine that never answers
        name, shares_prompts = "silent", False

        async def encode(self, _):
            await asyncio.Event().wait()

        async def health(self):
            return Health(healthy=True)

        async def close(self):
            pass

    async def main():
        app = create_app(Settings(), {"bt": hosted["bt"]}, engines={"bt": Silent()})
        # ASGI has no timeout of its own: it is the server that answers.
        client = AsyncClient(transport=httpx2.ASGITransport(app=app), timeout_s=0.2)
        async with app.router.lifespan_context(app), client:
            await client.prefer("p", "a", "b")

    with pytest.raises(DeadlineError) as caught:
        asyncio.run(main())
    assert (caught.value.code, caught.value.status) == ("deadline_exceeded", 504)
    assert "0.2 s" in caught.value.message
