"""What a template leaves out of a text is told beside the number: cold, cached, in Redis, and whatever runs it."""

import httpx2
import pytest

from paragone.wire import PreferencesAnswer, RewardsAnswer, TournamentsAnswer
from paragone_models import load_model
from paragone_models.files.saving import export_backbone
from paragone_service.engine.vllm import open_vllm
from tests.service.conftest import TEMPLATE, serving
from tests.service.pooling import PoolingServer

pytestmark = pytest.mark.anyio

PLAIN, THOUGHT = "So it is.", "<think>hm</think>So it is."
ITEMS = [{"prompt": "Why?", "response": text} for text in (PLAIN, THOUGHT)]
PAIRS = [{"prompt": "Why?", "first": a, "second": b} for a in (PLAIN, THOUGHT) for b in (PLAIN, THOUGHT)]
GROUPS = [
    {"prompt": "Why?", "responses": [PLAIN, THOUGHT, "Who knows?"]},
    {"prompt": "Why?", "responses": [PLAIN, "Who knows?"], "references": [THOUGHT]},
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A template that cuts thoughts away, as a file."""
    path = tmp_path_factory.mktemp("template") / "cut.jinja"
    path.write_text(TEMPLATE.replace("['content']", "['content'].split('</think>')[-1]"))
    return str(path)


@pytest.fixture(scope="module")
def thoughtless(folders, template):
    """Models by name whose template cuts thoughts away."""
    return {name: load_model(folders[name], name=name, device="cpu", chat_template=template) for name in ("bt", "gpm")}


async def post(client, route, **body):
    response = await client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", ["bt", "gpm"])
async def test_every_answer_says_what_was_not_shown_from_the_cache_too(thoughtless, name):
    async with serving(thoughtless) as client:
        for _ in ("cold", "cached"):
            rewards = await post(client, "rewards", model=name, items=ITEMS)
            assert ["shown" in row for row in rewards["rewards"]] == [False, True]
            assert rewards["usage"]["not_shown"] == 1
            assert [row.shown for row in RewardsAnswer.model_validate(rewards).rewards] == [True, False]
            preferences = await post(client, "preferences", model=name, pairs=PAIRS)
            rows = PreferencesAnswer.model_validate(preferences).preferences
            assert [(row.first_shown, row.second_shown) for row in rows] == [
                (True, True),
                (True, False),
                (False, True),
                (False, False),
            ]
            assert "first_shown" not in preferences["preferences"][1]
            tournaments = await post(client, "tournaments", model=name, groups=GROUPS)
            answer = TournamentsAnswer.model_validate(tournaments)
            assert [row.shown for row in answer.tournaments] == [[True, False, True], None]
            assert "shown" not in tournaments["tournaments"][1]
            assert answer.usage.not_shown == 2  # references count
        assert rewards["usage"]["cached_responses"] == 2


async def test_a_model_that_sees_everything_says_nothing(client):
    answer = await post(client, "rewards", model="bt", items=ITEMS)
    assert "not_shown" not in answer["usage"]
    assert all("shown" not in row for row in answer["rewards"])


async def test_an_error_has_no_say_and_moves_nobody(thoughtless):
    items = [{"prompt": "", "response": "x"}, *ITEMS]
    async with serving(thoughtless) as client:
        answer = await post(client, "rewards", model="bt", items=items, on_error="report")
        assert ["error" in row for row in answer["rewards"]] == [True, False, False]
        assert [row.get("shown", True) for row in answer["rewards"]] == [True, True, False]
        pairs = [{"prompt": "", "first": "a", "second": "b"}, PAIRS[1]]
        answer = await post(client, "preferences", model="bt", pairs=pairs, on_error="report")
        assert answer["preferences"][1]["second_shown"] is False


async def test_another_replica_reads_it_from_redis(thoughtless, redis_server):
    async with serving({"bt": thoughtless["bt"]}, redis_url=redis_server.url) as client:
        await post(client, "rewards", items=ITEMS)
    async with serving({"bt": thoughtless["bt"]}, redis_url=redis_server.url) as client:
        answer = await post(client, "rewards", items=ITEMS)
    assert answer["usage"] | {"forward_responses": 0, "not_shown": 1} == answer["usage"]
    assert answer["rewards"][1]["shown"] is False


async def test_a_response_that_two_requests_share_on_its_way_is_told_of_to_both(thoughtless):
    async with serving({"bt": thoughtless["bt"]}) as client:
        twice = await post(client, "rewards", items=[ITEMS[1], ITEMS[1]])
    assert [row["shown"] for row in twice["rewards"]] == [False, False]


async def test_an_engine_elsewhere_changes_nothing(folders, template, tmp_path):
    away = load_model(folders["gpm"], name="gpm", elsewhere=True, chat_template=template)
    server = PoolingServer(export_backbone(str(folders["gpm"]), tmp_path / "bare"))
    engine = open_vllm(away, ["http://vllm"], transport=httpx2.ASGITransport(app=server.app))
    async with serving({"gpm": away}, engines={"gpm": engine}) as client:
        answer = await post(client, "preferences", pairs=[PAIRS[1]])
    assert answer["preferences"][0]["second_shown"] is False
    assert answer["usage"]["not_shown"] == 1


def test_an_offline_model_says_it_too(thoughtless):
    assert thoughtless["gpm"].score("Why?", [PLAIN, THOUGHT]).shown == [True, False]
