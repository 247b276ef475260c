"""What deploy/ says of metrics, ports, paths and settings is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockstep.cli.coordinator import METRICS_PORT as COORDINATOR_PORT
from lockstep.cli.relay import METRICS_PORT as RELAY_PORT
from lockstep.cli.worker import METRICS_PORT as WORKER_PORT
from lockstep.config import COLLECTORS, VARIABLES
from lockstep.telemetry.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PORTS = {"coordinator": COORDINATOR_PORT, "worker": WORKER_PORT, "relay": RELAY_PORT}
LABELS = {metric.name: set(metric.labels) for metric in CATALOGUE}
HISTOGRAMS = {f"{m.name}{end}": m.name for m in CATALOGUE if m.kind == "histogram" for end in ("_bucket", "_sum", "_count")}
SCRAPED = {"job", "instance", "role", "le"}
"""Labels that whoever scrapes adds."""


def loaded(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def rules() -> list[dict[str, Any]]:
    return [rule for group in loaded("prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    scaling = [trigger["metadata"]["query"] for trigger in loaded("kubernetes/scaling.yaml")["spec"]["triggers"]]
    return [*panels, *(rule["expr"] for rule in rules()), *scaling]


def test_all_metrics_that_are_asked_for_exist_with_their_labels() -> None:
    for expression in expressions():
        names = set(re.findall(r"\b(?:lockstep|langgraph)_\w+", expression))
        assert names, expression
        known = {name: HISTOGRAMS.get(name, name) for name in names}
        assert set(known.values()) <= LABELS.keys(), expression
        labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        labels |= set(re.findall(r"[{,]\s*(\w+)=", expression))
        assert labels <= SCRAPED.union(*(LABELS[name] for name in known.values())), expression


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = " ".join(expressions())
    shown = {metric.name for metric in CATALOGUE if re.search(rf"\b{metric.name}(_bucket|_sum|_count)?\b", asked)}
    assert shown == {metric.name for metric in CATALOGUE}


def test_every_alert_has_its_line_in_the_runbook() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    described = re.findall(r"^\| `(Lockstep\w+)` \|", page, re.MULTILINE)
    assert described == [rule["alert"] for rule in rules()]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] in ("page", "warn") for rule in rules())


def test_compose_names_settings_and_ports_that_there_are() -> None:
    compose = loaded("compose.yaml")
    for role, port in PORTS.items():
        service = compose["services"][role]
        assert set(service["environment"]) <= {*VARIABLES, *COLLECTORS}
        assert service["command"][0] == role
        assert f":{port}/livez" in " ".join(service["healthcheck"]["test"])
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    replicas = {role: compose["services"][role].get("deploy", {}).get("replicas", 1) for role in PORTS}
    assert replicas == {"coordinator": 2, "worker": 3, "relay": 1}
    scraped = {
        config["job_name"]: config["dns_sd_configs"][0]["port"]
        for config in loaded("prometheus/prometheus.yml")["scrape_configs"]
    }
    assert scraped == PORTS


@pytest.mark.parametrize("role", PORTS)
def test_kubernetes_probes_and_guards_each_role(role: str) -> None:
    [deployment] = [
        one
        for one in documents("kubernetes/lockstep.yaml")
        if one["kind"] == "Deployment" and one["metadata"]["labels"]["role"] == role
    ]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"][0] == role
    assert container["ports"] == [{"name": "metrics", "containerPort": PORTS[role]}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert {entry["name"] for entry in container["env"]} <= set(VARIABLES)
    # Workers get no address of the database.
    assert ("LOCKSTEP_STORE_URL" in {entry["name"] for entry in container["env"]}) is (role != "worker")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_image_runs_as_nobody_in_particular() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert f"EXPOSE {' '.join(map(str, PORTS.values()))}" in lines
