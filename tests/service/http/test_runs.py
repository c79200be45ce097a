"""Runs that are watched: the latest report of each is kept, for its tenant, within bounds, and no longer than a day."""

import httpx2
import pytest

from paragone.wire import RunReport
from paragone_service.api_keys import hash_of
from paragone_service.http.errors import ServiceError
from paragone_service.runs import Runs
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

REPORT = {
    "name": "judge",
    "kind": "model",
    "state": "running",
    "stage": "step 20 of 120",
    "unit": "steps",
    "done": 20,
    "total": 120,
    "rate": 0.5,
    "left_s": 200,
    "numbers": {"loss": 0.41},
    "lines": ["step 20"],
    "series": {"loss": [[10, 0.62], [20, 0.41]], "agreement": [[20, 0.7]]},
}
SUMMARY = {name: REPORT[name] for name in ("name", "kind", "state", "stage", "unit", "done", "total", "rate", "left_s")}


def report(name="judge", **changes):
    return RunReport.model_validate({**REPORT, "name": name, **changes})


async def test_the_latest_report_of_a_run_is_kept_and_shown(client):
    assert (await client.get("/v1/runs")).json() == {"runs": []}
    answer = await client.post("/v1/runs", json={**REPORT, "done": 10})
    assert answer.status_code == 200, answer.text
    await client.post("/v1/runs", json={**REPORT, "name": "other"})
    await client.post("/v1/runs", json=REPORT)
    runs = (await client.get("/v1/runs")).json()["runs"]
    assert [run["name"] for run in runs] == ["other", "judge"]  # the newest first, whatever news came later
    assert {name: runs[1][name] for name in SUMMARY} == SUMMARY
    assert 0 <= runs[1]["since_s"] < 60
    assert "series" not in runs[0]
    run = (await client.get("/v1/runs/judge")).json()
    assert {name: run[name] for name in REPORT} == REPORT
    assert list(run["series"]) == ["loss", "agreement"]  # as they are to be shown


async def test_a_run_that_nobody_told_of_is_not_found(client):
    answer = await client.get("/v1/runs/judge")
    assert answer.status_code == 404
    assert "knows no run 'judge' (any more): paragone watch RUN --url URL" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": "../judge"}, "name: "),
        ({"state": "dancing"}, "state: "),
        ({"done": -1}, "done: "),
        ({"lines": ["x"] * 21}, "lines: "),
        ({"lines": ["x" * 501]}, "lines[0]: "),
        ({"series": {"loss": [[1, 2, 3]]}}, "series.loss[0]: "),
        ({"series": {"loss": [[1, 2]] * 501}}, "series.loss: "),
        ({"series": {f"s{number}": [] for number in range(25)}}, "series: "),
        ({"numbers": {"loss": "low"}}, "numbers.loss: "),
        ({"colour": "red"}, "colour: unknown field"),
    ],
)
async def test_what_is_no_report_is_refused_and_named(client, change, place):
    answer = await client.post("/v1/runs", json={**REPORT, **change})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"
    assert answer.json()["error"]["message"].startswith(place)
    assert (await client.get("/v1/runs")).json() == {"runs": []}


async def test_runs_need_a_key_and_each_tenant_has_its_own(hosted, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name}:{hash_of(name)} tenant={name}\n" for name in ("acme", "zenith")))
    async with serving(hosted, api_key_file=keys) as client:
        acme, zenith = ({"authorization": f"Bearer {name}"} for name in ("acme", "zenith"))
        assert (await client.post("/v1/runs", json=REPORT)).status_code == 401
        assert (await client.post("/v1/runs", json=REPORT, headers=acme)).status_code == 200
        assert len((await client.get("/v1/runs", headers=acme)).json()["runs"]) == 1
        assert (await client.get("/v1/runs", headers=zenith)).json() == {"runs": []}
        assert (await client.get("/v1/runs/judge", headers=zenith)).status_code == 404


async def test_a_page_from_elsewhere_cannot_report(client: httpx2.AsyncClient):
    answer = await client.post("/v1/runs", json=REPORT, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403


def test_the_run_with_the_oldest_news_makes_room_by_number_and_by_bytes():
    runs = Runs(most_runs=2)
    for name in ("a", "b", "a", "c"):
        runs.put(None, report(name))
    runs.put("acme", report("d"))  # another owner's
    assert [run.name for run in runs.listed(None)] == ["c", "a"]  # a was heard of after b
    large = {"series": {"loss": [[float(step), 0.123456789] for step in range(500)]}}
    runs = Runs(most_bytes=25_000)
    for name in ("a", "b", "c"):
        runs.put(None, report(name, **large))
    assert len(runs.listed(None)) < 3
    assert runs.named(None, "c").series["loss"][-1] == [499.0, 0.123456789]


def test_news_grow_old_and_are_forgotten_after_a_day():
    now = 1_000.0
    runs = Runs(clock=lambda: now)
    runs.put(None, report())
    now += 90
    assert (runs.listed(None)[0].since_s, runs.listed(None)[0].heard) == (90, 1_000)
    now = 500.0  # a clock that was set back
    assert runs.named(None, "judge").since_s == 0
    now = 1_000.0 + 86_401
    assert runs.listed(None) == []
    with pytest.raises(ServiceError, match="knows no run 'judge'"):
        runs.named(None, "judge")
