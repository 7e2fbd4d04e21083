"""The Prometheus rules and the Grafana dashboard: promtool accepts them, and every metric in them exists."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.test import Client

from repositories_app.mirror import cache
from tests.support.deployment import UNITS

RULES = UNITS / "monitoring" / "prometheus-rules.yaml"
DASHBOARD = UNITS / "monitoring" / "grafana-dashboard.json"
OF_PROMETHEUS = {"up"}


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def expressions() -> Iterator[str]:
    """Yield every expression of the dashboard, as Prometheus gets it."""
    found = dashboard()
    for panel in found["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (annotation["expr"] for annotation in found["annotations"]["list"])


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:docora|process)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


@pytest.fixture
def exported(db, redis_client, tmp_path: Path, settings) -> dict[str, set[str]]:
    """Name of each sample in /metrics → its labels."""
    settings.REPOS_DIR = tmp_path
    cache.maintain()  # the mirror metrics exist only after this
    redis_client.set("docora:heartbeat:sweep", 1_700_000_000)
    Client().get("/docs/")  # counted as a request
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"(?m)^(\w+)(?:{(.*)})? \S+$", Client().get("/metrics").text):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_promtool_accepts_the_metrics(exported: dict[str, set[str]]) -> None:
    page = Client().get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
    assert (done.stdout + done.stderr, done.returncode) == (b"", 0)


def test_promtool_accepts_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_rules_fire_when_something_is_wrong(tmp_path: Path) -> None:
    for file in (RULES, Path(__file__).with_name("prometheus_rules_test.yaml")):
        shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / "prometheus_rules_test.yaml")


def test_promtool_parses_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [
        {"record": f"of:panel:{number}", "expr": one.replace("$__rate_interval", "5m")}
        for number, one in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"SUCCESS: {len(recorded)} rules found" in promtool("check", "rules", file)


def test_every_metric_and_label_exists(exported: dict[str, set[str]]) -> None:
    alerts = [rule["expr"] for rule in rules()]
    used = [metrics_in(expression) for expression in [*alerts, *expressions()]]
    assert all(used)
    assert set.union(*used) - OF_PROMETHEUS - exported.keys() == set()
    given_by_prometheus = {"job", "instance"}
    for expression in [*alerts, *expressions()]:
        grouped = {label.strip() for by in re.findall(r"\bby \(([^)]+)\)", expression) for label in by.split(",")}
        matched = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression))
        known = set.union(given_by_prometheus, *(exported.get(name, set()) for name in metrics_in(expression)))
        assert grouped | matched <= known, expression


def test_dashboard_shows_every_metric_but_the_details(exported: dict[str, set[str]]) -> None:
    """What it leaves out is implied by what it shows."""
    bases = {re.sub("_(bucket|count|sum|total|created)$", "", name) for name in exported if name.startswith("docora_")}
    shown = {re.sub("_(bucket|count|sum|total)$", "", name) for one in expressions() for name in metrics_in(one)}
    assert bases - shown == {"docora_mirrors"}


def test_dashboard_can_be_imported() -> None:
    found = dashboard()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (column, line)
        for panel in found["panels"]
        for place in [panel["gridPos"]]
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))  # no panel covers another
    assert all(0 <= column < 24 for column, _ in cells)
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(found)))
    assert used == variables == {"datasource", "job"}
    assert all(panel["title"] and (panel["type"] == "row" or panel["description"]) for panel in found["panels"])
