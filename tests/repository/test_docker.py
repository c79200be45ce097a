"""What runs the service elsewhere is checked by the tools of each format, and agrees with the code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from paragone_service.config import Settings
from paragone_service.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
MANIFESTS = sorted((DOCKER / "kubernetes" / "base").glob("[!k]*.yaml"))
LOCKS = sorted(path for path in (DOCKER / "requirements").glob("*-c*.txt"))


def passes(*command: str | Path, timeout_s: float = 60) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    passes(BIN / "hadolint", DOCKER / "Dockerfile")


@pytest.mark.parametrize("folder", [DOCKER, DOCKER / "kubernetes" / "base"], ids=["compose", "kubernetes"])
def test_the_proxy_takes_its_settings(folder: Path) -> None:
    passes(BIN / "caddy", "validate", "--adapter", "caddyfile", "--config", folder / "Caddyfile")


def test_the_manifests_are_of_the_schemas_of_kubernetes() -> None:
    assert MANIFESTS
    passes(BIN / "kubernetes-validate", "--strict", *MANIFESTS)


def test_kustomize_names_every_manifest() -> None:
    named = yaml.safe_load((DOCKER / "kubernetes" / "base" / "kustomization.yaml").read_text())["resources"]
    assert sorted(named) == [path.name for path in MANIFESTS]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_images_have_the_versions_that_the_tests_run_with(lock: Path) -> None:
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    versions = {_canonical(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;+]+)", lock.read_text(), flags=re.MULTILINE))
    assert len(locked) > 50
    other = {name: version for name, version in locked.items() if versions.get(_canonical(name), version) != version}
    assert not other, "run docker/lock"
    assert lock.read_text().count("--hash=sha256:") >= len(locked)


def test_alerts_and_panels_ask_for_metrics_that_exist() -> None:
    known = {
        sample
        for family in Metrics().registry.collect()
        for sample in (
            family.name,
            f"{family.name}_total",
            f"{family.name}_bucket",
            f"{family.name}_sum",
            f"{family.name}_count",
        )
    }
    rules = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((DOCKER / "grafana" / "dashboards" / "paragone.json").read_text())["panels"]
    queries = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"paragone_\w+", query)}
    assert len(asked) > 15
    assert asked <= known
    assert all(rule["annotations"]["action"] for rule in rules)


def test_panels_stand_side_by_side_and_ask_the_source_that_grafana_is_given() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "paragone.json").read_text())
    sources = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    known = {(source["type"], source["uid"]) for source in sources}
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    places = set()
    for panel in dashboard["panels"]:
        assert (panel["datasource"]["type"], panel["datasource"]["uid"]) in known, panel["title"]
        queries = " ".join(target["expr"] for target in panel["targets"])
        assert set(re.findall(r"\$(?!__)(\w+)", queries)) <= set(variables), panel["title"]
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24, f"{panel['title']} is cut at the right"
                assert (x, y) not in places, f"{panel['title']} covers another panel"
                places.add((x, y))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) > 10


def test_every_profile_of_compose_is_whole() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    common = {"redis", "proxy", "prometheus", "grafana"}
    scoring = {"service-a", "service-b"}
    parts = {"cpu": scoring, "gpu": {"gpu-a", "gpu-b"}, "triton": {*scoring, "triton"}, "vllm": {*scoring, "vllm"}}
    for profile, own in parts.items():
        assert {name for name, service in services.items() if profile in service["profiles"]} == common | own


@pytest.mark.docker
def test_the_images_are_built_and_the_topology_answers() -> None:
    passes(sys.executable, DOCKER / "trial.py", timeout_s=3600)


def test_the_service_takes_the_settings_of_compose_and_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())["x-service"]["environment"]
    deployment = next(yaml.safe_load_all((DOCKER / "kubernetes" / "base" / "service.yaml").read_text()))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for environment in (compose, {one["name"]: one["value"] for one in container["env"]}):
        # Those without a value are taken from the shell.
        values = {name: value for name, value in environment.items() if value is not None}
        assert {"PARAGONE_API_KEY_FILE", "PARAGONE_CACHE_SECRET_FILE"} <= set(values)
        assert {name.removeprefix("PARAGONE_").lower() for name in values} <= set(Settings.model_fields)
        with monkeypatch.context() as patched:
            for name, value in values.items():
                patched.setenv(name, value)
            Settings()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
