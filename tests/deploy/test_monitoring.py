"""Prometheus and Grafana ask for what the service tells, and for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import jobs
from api.metrics import Metrics
from jobs import RedisServer
from tests.api.running import Running, picture, serving, settings_in
from tests.deploy.files import ROOT, command_of, services
from tests.deploy.test_compose import LISTENS
from worker.webhook_sender import JITTER

promql = pytest.importorskip("promql_parser")

DOCKER = ROOT / "docker"
DASHBOARD: dict[str, Any] = json.loads(
    (DOCKER / "grafana" / "dashboards" / "nif.json").read_text("utf-8")
)
ALERTS: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text("utf-8"))
SCRAPE: dict[str, Any] = yaml.safe_load(
    (DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8")
)
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [
    (f"{panel['title']}: {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel["targets"]
] + [(rule["alert"], rule["expr"]) for rule in RULES]
# Made by Prometheus itself.
BY_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
ADDED_LABELS = {"job", "instance"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that met a little of everything."""
    settings = settings_in(tmp_path_factory.mktemp("service"))
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as running:
        with running.client(running.key("acme")) as client:
            for seed in (1, 2):
                client.post(
                    "/v1/jobs", files={"file": ("a.png", picture(seed), "image/png")}
                ).raise_for_status()
            for job_id in list(running.wakeups.published):
                running.succeed(job_id)
            job_id = running.wakeups.published[-1]
            client.get(f"/v1/jobs/{job_id}/image").raise_for_status()
            assert client.get("/v1/jobs/none").status_code in (404, 422)
        yield running


@pytest.fixture(scope="module")
def told(service: Running) -> dict[str, set[str]]:
    """Return every metric that the service tells, with the labels it may have."""
    found: dict[str, set[str]] = defaultdict(set)
    text = httpx2.get(f"{service.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    # What is counted when it happens has no sample before, but is announced.
    announced = set(re.findall(r"^# TYPE (\w+) ", text, re.M))
    for counter in jobs.COUNTERS:
        assert f"nif_{counter.name}" in announced
        found[f"nif_{counter.name}"] |= set(counter.labels)
    return found


def selectors(expression: str) -> Iterator[tuple[Any, set[str]]]:
    """Yield every selector of a query, with the labels that it is asked for or grouped by."""

    def visit(node: Any, grouped: set[str]) -> Iterator[tuple[Any, set[str]]]:
        if isinstance(node, promql.VectorSelector):
            asked = {matcher.name for matcher in node.matchers.matchers}
            yield node, asked | grouped
            return
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped = grouped | set(node.modifier.labels)
        for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
            below = getattr(node, name, None)
            if below is not None and below is not node:
                yield from visit(below, grouped)
        for below in getattr(node, "args", ()):
            yield from visit(below, grouped)

    yield from visit(promql.parse(expression.replace("$__rate_interval", "1m")), set())


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_queries_ask_for_metrics_and_labels_that_there_are(
    name: str, expression: str, told: dict[str, set[str]]
) -> None:
    found = list(selectors(expression))
    mentioned = set(re.findall(r"\bnif_\w+|\bALERTS\b|\bup\b", expression))
    assert {selector.name for selector, _ in found} == mentioned, "a selector was not looked at"
    for selector, labels in found:
        known = BY_PROMETHEUS.get(selector.name) or told.get(selector.name)
        assert known is not None, f"{name}: {selector.name} is told by nobody"
        assert labels <= known | ADDED_LABELS, f"{name}: {selector.name} has labels {known}"


def test_a_query_for_what_is_not_told_would_be_found(told: dict[str, set[str]]) -> None:
    ((selector, labels),) = selectors('sum by (tenant) (rate(nif_nothing{state="x"}[1m]))')
    assert selector.name == "nif_nothing"
    assert labels == {"state", "tenant"}
    assert "nif_nothing" not in told


def test_counters_of_the_store_are_not_added_up_over_api_containers() -> None:
    # The rest is counted by each API process for itself, and may be added up.
    own = re.compile("|".join(family.name for family in Metrics().registry.collect()))
    for name, expression in QUERIES:
        if "nif_" not in expression or own.search(expression):
            continue
        assert re.search(r"\b(max|min)\b", expression), name


def test_everything_that_is_told_is_shown(told: dict[str, set[str]]) -> None:
    shown = " ".join(expression for _, expression in QUERIES)
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in told}
    families = {name for name in families if name.startswith("nif_")}
    # Deleting and withdrawing are housekeeping.
    quiet = {"nif_jobs_deleted", "nif_jobs_withdrawn"}
    assert not {name for name in families - quiet if not re.search(rf"\b{name}", shown)}


def test_prometheus_asks_the_api_where_it_is(service: Running) -> None:
    (job,) = (each for each in SCRAPE["scrape_configs"] if each["job_name"] == "nif")
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["api"]
    assert found["port"] == LISTENS["api"]
    assert set(services()["prometheus"]["networks"]) & set(services()["api"]["networks"])
    reply = httpx2.get(service.url + job["metrics_path"])
    assert reply.status_code == 200, "and it needs no key"
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")


def inside(service: str, path: str) -> Path:
    """Return the file of the repository that a container sees at ``path``."""
    for volume in services()[service]["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith(".") and path.startswith(target):
            return ROOT / source / path.removeprefix(target).lstrip("/")
    raise AssertionError(f"{service} does not mount {path}")


def test_files_are_where_they_are_looked_for() -> None:
    command = services()["prometheus"]["command"]
    (config,) = (word.partition("=")[2] for word in command if word.startswith("--config.file"))
    assert inside("prometheus", config).is_file()
    assert all(inside("prometheus", path).is_file() for path in SCRAPE["rule_files"])
    providers = yaml.safe_load(
        (DOCKER / "grafana/provisioning/dashboards/nif.yml").read_text("utf-8")
    )
    for provider in providers["providers"]:
        assert (inside("grafana", provider["options"]["path"]) / "nif.json").is_file()
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert inside("grafana", home).is_file()


def test_grafana_asks_the_prometheus_that_there_is() -> None:
    sources = yaml.safe_load(
        (DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    )
    (source,) = sources["datasources"]
    assert source["url"] == f"http://prometheus:{LISTENS['prometheus']}"
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {source["uid"]}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alerts_say_how_bad_and_what() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_webhooks_that_nobody_sends_are_noticed() -> None:
    rules = {rule["alert"]: rule for rule in RULES}
    assert rules["NifWebhooksUntold"]["expr"] == "max(nif_webhook_untold) > 0"
    assert rules["NifWebhooksUntold"]["for"] == "10m"
    assert "increase(nif_webhooks_disabled[" in rules["NifWebhooksDisabled"]["expr"]
    # Whatever goes by the schedule, however unlucky, has ended before.
    left, _, right = rules["NifWebhooksOverdue"]["expr"].partition(" > ")
    assert left == "max(nif_webhook_oldest_pending_seconds)"
    settings = jobs.load_settings()
    waits = settings.webhook_waits
    longest = sum(waits) * (1 + JITTER) + (len(waits) + 1) * settings.webhook_timeout_seconds
    assert longest < float(right) < 1.05 * longest


def test_prometheus_accepts_its_files(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here (it comes with Prometheus)")
    text = (DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8")
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus", str(DOCKER / "prometheus")), "utf-8")
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = {"groups": [{"name": "panels", "rules": [
        {"record": f"panel:query_{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, (_, expression) in enumerate(QUERIES)
    ]}]}  # fmt: skip
    queries = tmp_path / "queries.yml"
    queries.write_text(yaml.safe_dump(rules), "utf-8")
    done = subprocess.run(["promtool", "check", "rules", queries], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_api_that_is_scraped_is_one_process() -> None:
    # With several in a container each scrape would meet another one's counters.
    assert "--workers" not in command_of(services()["api"])
