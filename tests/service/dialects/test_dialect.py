"""What all dialects share: which are on, whose model answers, the shape of errors, and kinds without a scalar."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from paragone_service.config import ConfigError
from paragone_service.dialects.dialect import error_shapes, scoring_paths
from paragone_service.dialects.dialects import DIALECTS
from paragone_service.dialects.elsewhere import ELSEWHERE
from paragone_service.dialects.settings import DIALECT_NAMES
from paragone_service.settings_sources import load_settings
from tests.service.conftest import serving
from tests.service.doubles import metric
from tests.service.http.test_overload import JSON, busy

from .conftest import PROMPT, RESPONSES, chatml, rendered

pytestmark = pytest.mark.anyio

QUERY = {"query": [PROMPT + response for response in RESPONSES], "prompts": [PROMPT] * len(RESPONSES)}


def test_the_settings_name_every_dialect_and_no_other():
    assert [dialect.name for dialect in DIALECTS] != []
    assert sorted(dialect.name for dialect in DIALECTS) == sorted(DIALECT_NAMES)


def test_dialects_are_named_by_a_text_or_a_table_and_flags_keep_the_files_other_settings(tmp_path):
    path = tmp_path / "paragone.toml"
    path.write_text('[dialects]\nscalar = "group"\non = ["openrlhf"]\n[aliases]\nx = "a"\n[models.a]\nsource = "a"')
    settings = load_settings({"dialects": "none"}, path)
    assert (settings.dialects.on, settings.dialects.scalar, settings.aliases) == ((), "group", {"x": "a"})
    assert load_settings({}, path).dialects.on == ("openrlhf",)
    assert load_settings({}).dialects.on == DIALECT_NAMES
    path.write_text('dialects = "openrlhf"')
    assert load_settings({}, path).dialects.on == ("openrlhf",)
    with pytest.raises(ConfigError, match="did you mean 'openrlhf'"):
        load_settings({"dialects": "openrhlf"})
    path.write_text("[dialects]\nscaler = 1")
    with pytest.raises(ConfigError, match="did you mean 'scalar'"):
        load_settings({}, path)


def test_the_table_on_the_page_can_be_used(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "paragone.toml"
    path.write_text(text + '[models.judge]\nsource = "a"', encoding="utf-8")
    settings = load_settings({}, path)
    settings.check_aliases(settings.models)
    assert settings.dialects.scalar == "group"
    assert all(f"| `{name}` |" in page for name in DIALECT_NAMES)


async def test_an_alias_must_lead_to_a_model(mini):
    with pytest.raises(ConfigError, match="there is no model 'judge'"):
        async with serving(mini, aliases={"dummy": "judge"}):
            pass


async def test_a_dialect_that_is_off_says_what_to_set_and_the_others_have_no_path(mini):
    async with serving(mini, dialects="none") as client:
        answer = await client.post("/get_reward", json=QUERY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dialect_off")
    assert "--dialects openrlhf" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "status"),
    [(None, 200), ("", 200), ("bt", 200), ("dummy", 200), ("reward_model", 200), ("judge", 200),
     ("/models/elsewhere", 200), ("BAAI/bge-reranker-base", 404), ("bf", 404), (3, 422)],
)  # fmt: skip
async def test_names_from_elsewhere_stand_for_hosted_models(hosted, name, status):
    async with serving({"bt": hosted["bt"], "gpm": hosted["gpm"]}, aliases={"judge": "bt"}) as client:
        answer = await client.post("/get_reward", json={**QUERY, "model": name})
    assert answer.status_code == status, answer.text
    if status == 404:
        assert answer.json()["error"]["code"] == "unknown_model"
        assert "[aliases]" in answer.json()["error"]["message"]


async def test_the_alias_of_any_name_answers_those_who_name_none_too(hosted):
    async with serving({"gpm": hosted["gpm"], "bt": hosted["bt"]}, aliases={"*": "bt"}) as client:
        answers = [await client.post("/get_reward", json={**QUERY, "model": name}) for name in (None, "bf", "bt")]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.text for answer in answers}) == 1
        # The folder that a model was loaded from, or one of its name, is the model.
        gpm = await client.post("/get_reward", json={**QUERY, "model": "/elsewhere/gpm"})
        assert gpm.status_code == 422


async def test_a_model_without_a_scalar_refuses_or_holds_responses_against_each_other(hosted):
    gpm = hosted["gpm"]
    async with serving({"gpm": gpm}) as client:
        answer = await client.post("/get_reward", json=QUERY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "reference_required")
    async with serving({"gpm": gpm}, dialects={"scalar": "group"}) as client:
        other = {
            "query": [*QUERY["query"], "Another?yes", "Another?no"],
            "prompts": [*QUERY["prompts"], *["Another?"] * 2],
        }
        rewards = (await client.post("/get_reward", json=other)).json()["rewards"]
        matrix = gpm.score(PROMPT, RESPONSES).probabilities
        logits = np.log(matrix / matrix.T)
        assert rewards[:3] == pytest.approx(logits.sum(axis=1) / 2, abs=1e-4)
        assert rewards[3] == -rewards[4] != 0
        for body in ({"query": other["query"][2:4], "prompts": other["prompts"][2:4]}, {"query": [rendered("a", "b")]}):
            alone = await client.post("/get_reward", json=body)
            assert (alone.status_code, alone.json()["error"]["code"]) == (422, "reference_required")


async def test_a_model_without_a_scalar_holds_responses_against_a_stored_reference_set(hosted):
    gpm = hosted["gpm"]
    async with serving({"gpm": gpm, "bt": hosted["bt"]}, dialects={"scalar": "references:policy-0"}) as client:
        unknown = await client.post("/get_reward", json=QUERY)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "reference_unknown")
        references = ["Maybe.", "No."]
        await client.post(
            "/v1/references", json={"name": "policy-0", "items": [{"prompt": PROMPT, "responses": references}]}
        )
        rewards = (await client.post("/get_reward", json=QUERY)).json()["rewards"]
        items = [{"prompt": PROMPT, "response": response, "references": references} for response in RESPONSES]
        rows = (await client.post("/v1/rewards", json={"items": items})).json()["rewards"]
        assert rewards == pytest.approx([row["reference_logit"] for row in rows], abs=1e-9)
        for body, code in (
            ({"query": ["Another?yes"], "prompts": ["Another?"]}, "reference_missing"),
            ({"query": [rendered("a", "b")]}, "reference_required"),
        ):
            refused = await client.post("/get_reward", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, code)
        # A model that has a scalar needs no references.
        assert (await client.post("/get_reward", json={**QUERY, "model": "bt"})).status_code == 200


async def test_a_text_over_the_limit_is_cut_from_the_left_only_where_that_is_set(last):
    texts = ["b" * 200, "c" * 1000 + "b" * 200]
    async with serving(last) as client:
        refused = await client.post("/get_reward", json={"query": texts})
        assert refused.json()["error"]["code"] == "conversation_truncated"
    async with serving(last, dialects={"truncation": "prompt"}) as client:
        answer = await client.post("/get_reward", json={"query": texts})
        assert answer.headers["x-truncated-texts"] == "2"
        assert answer.json()["rewards"][0] == pytest.approx(answer.json()["rewards"][1], abs=1e-5)
        long_response = {"query": [chatml(("user", "a"), ("assistant", "b" * 200))]}
        assert (await client.post("/get_reward", json=long_response)).json()["error"]["code"] == "response_too_long"


@pytest.mark.parametrize("body", [QUERY, {"query": [rendered(PROMPT, "lol no")]}])
async def test_what_was_seen_before_is_not_run_again(ask_mini, body):
    first, again = [await ask_mini.post("/get_reward", json=body) for _ in range(2)]
    assert first.text == again.text
    assert await metric(ask_mini, 'paragone_cache_responses_total{tier="miss"}') == len(body["query"])


async def test_a_key_is_asked_for_as_everywhere_and_basic_will_do(mini):
    basic = base64.b64encode(b"any:secret").decode()
    async with serving(mini, api_key="secret") as client:
        assert (await client.post("/get_reward", json=QUERY)).status_code == 401
        answer = await client.post("/get_reward", json=QUERY, headers={"authorization": f"Basic {basic}"})
        assert answer.status_code == 200


async def test_overload_is_503_and_says_when_to_come_back_before_the_body_is_parsed(hosted):
    async with serving({"bt": hosted["bt"]}) as client:
        with busy(client.app):
            long = {"query": [text * 20 for text in QUERY["query"]]}
            # OpenRLHF waits for three minutes, and so would be admitted; this one says that it does not.
            impatient = {**JSON, "x-deadline-s": "2"}
            for content in (json.dumps(long), b'{"model": "dummy", "query": [' + b"oops" * 1_000):
                answer = await client.post("/get_reward", content=content, headers=impatient)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1


async def test_paths_of_other_servers_that_nobody_answers_say_what_to_ask_instead(mini):
    async with serving(mini, dialects="all") as client:
        for path in ELSEWHERE:
            answer = await client.post(path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
            assert ELSEWHERE[path] in answer.json()["error"]["message"]
        # What they name is there.
        named = {path.rstrip(",.;)") for hint in ELSEWHERE.values() for path in re.findall(r"/[a-z]\S+", hint)}
        for path in named:
            assert "not_found" not in (await client.get(path)).text, path


async def test_a_wrong_method_is_refused_in_the_dialects_shape(ask_mini):
    answer = await ask_mini.get("/get_reward")
    assert (answer.status_code, answer.json()["detail"][:20]) == (405, "GET is not allowed o")


def test_the_paths_that_are_judged_unparsed_are_those_that_are_on():
    assert "/get_reward" in scoring_paths(DIALECTS, ["openrlhf"])
    assert scoring_paths(DIALECTS, []) == {}
    assert error_shapes(DIALECTS, []).of("/get_reward") is not None
    assert error_shapes(DIALECTS, []).of("/v1/rewards") is None
