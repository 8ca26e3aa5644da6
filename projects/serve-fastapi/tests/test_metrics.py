"""What Prometheus gets, and that the dashboard asks for nothing else.

Ray's agent on each node answers `/metrics`. A replica tells it everything at once, but only so
often (`RAY_metrics_report_interval_ms`): when a request of a kind that nobody else sends has come
through, all that was counted before it has, too.
"""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray_shared.testing import wait_for
from sklearn.datasets import load_digits

from .conftest import Server

MONITORING = Path(__file__).parents[1] / "monitoring"
GOOD = load_digits().images[0].tolist()
TRIP = {
    "pickup_at": "2026-01-07T17:30:00",
    "distance_miles": 3.2,
    "pickup_zone": 5,
    "dropoff_zone": 17,
}
MARK = ("/v1/models", "PURGE", "405")
"""Route, method and status of requests that only this file sends."""
SENT = Counter(
    {
        ("/v1/digits", "POST", "200"): 5,
        ("/v1/digits", "POST", "422"): 2,
        ("/v1/digits/batch", "POST", "200"): 1,
        ("/v1/trips", "POST", "200"): 2,
        ("other", "GET", "404"): 1,
    }
)
BATCHES = {"digits": {1: 3, 32: 4, 64: 6}, "digits-small": {1: 2, 64: 2}, "trips": {1: 2, 64: 2}}
"""Of each model: batches of at most so many rows. The 120 rows go as 50, 50 and 20."""


@dataclass
class Metrics:
    """What has been scraped from the running application so far."""

    ports: list[int]
    """Of the node's agent, and of HAProxy."""
    samples: list[Sample] = field(default_factory=list)
    """Of the last scrape."""
    seen: dict[str, set[str]] = field(default_factory=dict)
    """The labels of each name in any scrape: a gauge that nobody sets for a while goes."""

    def scrape(self, prefix: str = "") -> None:
        """Reads what begins so, because all of it, a megabyte, takes time."""
        self.samples = []
        for port in self.ports:
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status()
            lines = [line for line in answer.text.splitlines() if line.startswith(prefix)]
            for family in text_string_to_metric_families("\n".join(lines)):
                self.samples += family.samples
        for sample in self.samples:
            self.seen.setdefault(sample.name, set()).update(sample.labels)

    def count(self, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """Sums of the last scrape: values of those labels to a count."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return found

    def requests(self) -> Counter[tuple[str, ...]]:
        return self.count("ray_app_requests_total", "route", "method", "status")

    def routes(self) -> Counter[tuple[str, ...]]:
        return self.count("ray_app_latency_ms_bucket", "route", "le")

    def batches(self) -> Counter[tuple[str, ...]]:
        return self.count("ray_app_batch_rows_bucket", "model", "version", "le")

    def catch_up(self, client: httpx.Client) -> None:
        """Waits until all that the application has counted is there."""
        self.scrape("ray_app_")
        marks = self.requests()[MARK]
        assert client.request("PURGE", "/v1/models").status_code == 405

        def marked() -> bool:
            self.scrape("ray_app_")
            return self.requests()[MARK] > marks

        wait_for(marked, "mark in the metrics", 30)
        self.scrape(
            "ray_app_"
        )  # That one may have come while the agent was still taking things in.


@dataclass
class Counted:
    """What was counted of the requests in `SENT`."""

    requests: Counter[tuple[str, ...]]
    routes: Counter[tuple[str, ...]]
    batches: Counter[tuple[str, ...]]


@pytest.fixture(scope="module")
def metrics(served: Server, ray_tmpdir: Path) -> Metrics:
    # A session's directory has the driver's pid in its name.
    session = f"ray/session_*_{served.job.process.pid}"
    (path,) = ray_tmpdir.glob(f"{session}/metrics_export_port_*")
    ports = [int(path.read_text())]
    newest = served.pids("haproxy ")[-1:]  # Older ones end with their connections.
    ports += [int(psutil.Process(p).environ()["RAY_SERVE_HAPROXY_METRICS_PORT"]) for p in newest]
    # A mark says nothing of another replica.
    assert len(served.pids("ServeReplica:serve-fastapi:Ingress")) == 1
    return Metrics(ports)


@pytest.fixture(scope="module")
def client(served: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address) as session:
        yield session


@pytest.fixture(scope="module")
def counted(metrics: Metrics, client: httpx.Client) -> Counted:
    metrics.catch_up(client)
    requests, routes, batches = metrics.requests(), metrics.routes(), metrics.batches()
    answers = []
    for model in ("digits", "digits", "digits", "digits-small", "digits-small"):
        headers = {"X-Model": model}
        answers.append(client.post("/v1/digits", json={"image": GOOD}, headers=headers))
    answers += [client.post("/v1/digits", json={"image": []}) for _ in range(2)]
    answers += [client.post("/v1/trips", json=TRIP) for _ in range(2)]
    answers.append(client.post("/v1/digits/batch", json={"images": [GOOD] * 120}))
    answers.append(client.get("/nowhere"))
    assert [a.status_code for a in answers] == [200] * 5 + [422] * 2 + [200] * 3 + [404]
    metrics.catch_up(client)
    return Counted(
        metrics.requests() - requests, metrics.routes() - routes, metrics.batches() - batches
    )


def test_every_request_is_counted_once_by_route_method_and_status(counted: Counted):
    assert counted.requests == SENT + Counter([MARK])


def test_latency_histogram_holds_every_request(counted: Counted):
    expected: Counter[str] = Counter()
    for (route, _, _), number in (SENT + Counter([MARK])).items():
        expected[route] += number
    whole = {route: n for (route, le), n in counted.routes.items() if le == "+Inf"}
    assert whole == expected
    bounds = sorted({float(le) for _, le in counted.routes})
    assert len(bounds) > 5
    for route in whole:
        below = [counted.routes[route, "+Inf" if le == float("inf") else str(le)] for le in bounds]
        assert below == sorted(below)  # Cumulative, as histogram_quantile takes them.


def test_batches_are_counted_by_rows_model_and_version(counted: Counted, client: httpx.Client):
    versions = client.get("/version").json()["models"]
    assert {(model, version) for model, version, _ in counted.batches} == set(versions.items())
    found = {
        model: {rows: counted.batches[model, versions[model], f"{rows}.0"] for rows in bounds}
        for model, bounds in BATCHES.items()
    }
    assert found == BATCHES
    for model, bounds in BATCHES.items():
        assert counted.batches[model, versions[model], "+Inf"] == max(bounds.values())


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Expressions of the dashboard, and their legends."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target.get("legendFormat", "")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            ((name, label),) = re.findall(r"^label_values\((\w+), (\w+)\)$", variable["definition"])
            yield f"group by ({label}) ({name})", ""


def test_dashboard_asks_for_metrics_and_labels_that_there_are(counted: Counted, metrics: Metrics):
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    wanted: dict[str, set[str]] = {}
    for expression, legend in queries(dashboard):
        names = re.findall(r"\b(?:ray|haproxy)_\w+", expression)
        assert names, expression
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression))))
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= grouped, expression
        labels = grouped | set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', expression))
        for name in names:
            wanted.setdefault(name, set()).update(labels)
    assert {"ray_app_requests_total", "ray_app_waiting", "haproxy_backend_active_servers"} <= set(
        wanted
    )
    if sys.platform != "linux":  # Ray has HAProxy for Linux only.
        wanted = {name: labels for name, labels in wanted.items() if name.startswith("ray_")}

    def missing() -> dict[str, set[str]]:
        metrics.scrape()
        gaps = {name: labels - metrics.seen.get(name, set()) for name, labels in wanted.items()}
        return {n: gap for n, gap in gaps.items() if gap or n not in metrics.seen}

    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not missing(), "all metrics", 20)  # Other processes tell theirs later.
    assert missing() == {}


def test_scrape_configuration_names_the_file_that_ray_writes():
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    discovery, haproxy = config["scrape_configs"]
    (files,) = discovery["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert haproxy["static_configs"] == [{"targets": ["127.0.0.1:9101"]}]
