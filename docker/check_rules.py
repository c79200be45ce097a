"""Has promtool check what Prometheus and Grafana are given: settings, alerts, what each alert fires at, every panel.

python docker/check_rules.py [PROMTOOL]
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
A = 'instance="a"'
# By what each alert fires: a time, and series in promtool's notation, a sample a minute.
FIRES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ParagoneDown": ("10m", {'up{job="paragone",instance="a"}': "1x5 0x10"}),
    "ParagoneServerErrors": ("20m", {f'paragone_requests_total{{{A},status="500"}}': "0+1x60"}),
    "ParagoneEngineUnhealthy": ("5m", {f'paragone_engine_healthy{{{A},model="m"}}': "0x60"}),
    "ParagoneOverloaded": (
        "30m",
        {f'paragone_requests_total{{{A},status="200"}}': "0+60x60", f"paragone_refused_wait_total{{{A}}}": "0+9x60"},
    ),
    "ParagoneDeadlinesMissed": (
        "30m",
        {
            f'paragone_requests_total{{{A},status="200"}}': "0+60x60",
            f'paragone_requests_total{{{A},status="504"}}': "0+1x60",
        },
    ),
    "ParagoneSlow": (
        "30m",
        {
            f'paragone_request_seconds_bucket{{{A},phase="total",le="30"}}': "0+60x60",
            f'paragone_request_seconds_bucket{{{A},phase="total",le="60"}}': "0+61x60",
            f'paragone_request_seconds_bucket{{{A},phase="total",le="+Inf"}}': "0+61x60",
        },
    ),
    "ParagoneRedisDown": ("5m", {f"paragone_redis_up{{{A}}}": "0x60"}),
    "ParagoneCacheCorrupted": ("12m", {f"paragone_cache_corrupted_total{{{A}}}": "0x10 1x10"}),
    "ParagoneNonFinite": ("12m", {f'paragone_non_finite_total{{{A},model="m"}}': "0x10 1x10"}),
    "ParagoneCacheUseless": (
        "12h",
        {
            f'paragone_cache_responses_total{{{A},tier="memory"}}': "0+1x800",
            f'paragone_cache_responses_total{{{A},tier="redis"}}': "0+1x800",
            f'paragone_cache_responses_total{{{A},tier="miss"}}': "0+600x800",
        },
    ),
}
# A replica that is well, with as much of everything bad as nobody is to be woken for.
WELL = {
    'up{job="paragone",instance="a"}': "1x800",
    f'paragone_requests_total{{{A},status="200"}}': "0+600x800",
    f'paragone_requests_total{{{A},status="503"}}': "0+5x800",
    f'paragone_requests_total{{{A},status="504"}}': "0+5x800",
    f"paragone_refused_wait_total{{{A}}}": "0+50x800",
    f'paragone_engine_healthy{{{A},model="m"}}': "1x800",
    f"paragone_redis_up{{{A}}}": "1x800",
    f'paragone_request_seconds_bucket{{{A},phase="total",le="30"}}': "0+600x800",
    f'paragone_request_seconds_bucket{{{A},phase="total",le="+Inf"}}': "0+603x800",
    f"paragone_cache_corrupted_total{{{A}}}": "3x800",
    f'paragone_cache_responses_total{{{A},tier="memory"}}': "0+10x800",
    f'paragone_cache_responses_total{{{A},tier="redis"}}': "0+10x800",
    f'paragone_cache_responses_total{{{A},tier="miss"}}': "0+600x800",
}


def alert_tests(rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return promtool's test file: each alert fires by its own series, and none by those of a replica that is well.

    Raises:
        SystemExit: if an alert has no series here.
    """
    untried = {rule["alert"] for rule in rules} ^ set(FIRES)
    if untried:
        sys.exit(f"{', '.join(sorted(untried))}: each alert of alerts.yml needs an entry in FIRES, and no other")
    tests = []
    for rule in rules:
        name = rule["alert"]
        when, series = FIRES[name]
        aggregated = re.search(r"sum by \(([\w, ]+)\)", rule["expr"])
        kept = {"instance"} if aggregated else {"instance", "model", "job"}
        labels = {} if "sum(" in rule["expr"] else _labels(next(iter(series)), kept)
        notes = {key: _filled(text, labels) for key, text in rule["annotations"].items()}
        expected = {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": notes}
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in series.items()],
                "alert_rule_test": [{"alertname": name, "eval_time": when, "exp_alerts": [expected]}],
            }
        )
    quiet = [{"alertname": rule["alert"], "eval_time": "12h", "exp_alerts": []} for rule in rules]
    well = [{"series": one, "values": values} for one, values in WELL.items()]
    tests.append({"interval": "1m", "input_series": well, "alert_rule_test": quiet})
    return {"rule_files": [str(HERE / "alerts.yml")], "evaluation_interval": "1m", "tests": tests}


def panel_rules() -> dict[str, Any]:
    """Return the queries of all panels as rules, since promtool parses rules and nothing else."""
    rules = []
    for path in sorted((HERE / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "1m").replace("$__interval", "1m")
                rules.append({"record": f"panel:{panel['id']}:{target['refId'].lower()}", "expr": query})
    return {"groups": [{"name": "panels", "rules": rules}]}


def _labels(series: str, kept: set[str]) -> dict[str, str]:
    return {name: value for name, value in re.findall(r'(\w+)="([^"]*)"', series) if name in kept}


def _filled(text: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels[match[1]], text)


def main(promtool: str = "promtool") -> None:
    rules = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"][0]["rules"]
    with tempfile.TemporaryDirectory() as temporary:
        tests, panels = Path(temporary) / "tests.yml", Path(temporary) / "panels.yml"
        tests.write_text(yaml.safe_dump(alert_tests(rules)))
        panels.write_text(yaml.safe_dump(panel_rules()))
        for command in (
            ("check", "config", "--syntax-only", str(HERE / "prometheus.yml")),
            ("check", "rules", str(HERE / "alerts.yml"), str(panels)),
            ("test", "rules", str(tests)),
        ):
            if subprocess.run([promtool, *command], check=False).returncode:
                sys.exit(f"promtool {' '.join(command)} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
