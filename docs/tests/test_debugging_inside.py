"""The commands under "How to look inside" on docs/debugging.md, against a real cluster.

Run by `nox -s faults -- docs`.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pytest
from ray_shared.testing import wait_for

from . import page
from .conftest import running

pytestmark = pytest.mark.fault

TAG = "bash manual: needs a running cluster"
PROGRAMS = Path(sys.executable).parent
COMMANDS = [
    line
    for section in page.sections()
    for block in section.blocks(TAG)
    for line in block.splitlines()
    if line and not line.startswith("export ")
]
# What each command must print; every command on the page is here.
EXPECTED = {
    "ray status": r"Demands:[^$]*\{'CPU': 8.0\}",
    "ray list nodes": r"ALIVE",
    "ray list actors": r"class_name: Sleeper[^$]*death_cause:[^$]*worker process has died",
    "ray list tasks": r"ZeroDivisionError",
    "ray list placement-groups": r"PENDING|INFEASIBLE",
    "ray list objects": r"8\.000 MiB",
    "ray list workers": r"SYSTEM_ERROR",
    "ray summary tasks": r"divide +.*FAILED: 1",
    "ray summary actors": r"Sleeper +ALIVE: 1\s+DEAD: 1",
    "ray memory --stats-only": r"Plasma memory usage 8 MiB",
    "ray memory": r"83\d{5}\.0 B +\| LOCAL_REFERENCE",
    "ray timeline": r"Trace file written to",
    "ray logs cluster": r"raylet\.out",
    "ray logs raylet.out": r"\(raylet\) |\[state-dump\]",
    "ray logs worker": r"the sleeper sleeps",
    "serve status": r"applications:\s+default:\s+status: RUNNING",
    "py-spy dump": r"sleep \(.*something_to_look_at\.py:\d+\)",
}


@dataclass
class Inside:
    """A cluster, and how a command reaches it."""

    env: dict[str, str]
    dashboard: str
    variables: dict[str, str]
    """Those that the commands on the page use."""
    session: Path


@pytest.fixture(scope="module")
def cluster(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    directory = tmp_path_factory.mktemp("inside")
    log = directory / "log"
    with running("something_to_look_at", (str(directory),), {}, log) as script:

        def ready() -> re.Match[str] | None:
            assert script.process.poll() is None, script.output()
            return re.search(r"^ready (\S+) (\S+) (\S+) (\d+)$", script.output(), re.MULTILINE)

        address, dashboard, node_ip, pid = wait_for(ready, "cluster", 120).groups()
        names = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
        env = {"RAY_ADDRESS": address} | dict.fromkeys(names, f"http://{dashboard}")
        session = ray_tmpdir / "ray" / "session_latest"
        yield Inside(env, f"http://{dashboard}", {"NODE_IP": node_ip, "PID": pid}, session)
        (directory / "stop").touch()
        assert script.wait() == 0, script.output()


def test_every_tool_is_on_the_page():
    missing = [known for known in EXPECTED if not any(c.startswith(known) for c in COMMANDS)]
    assert missing == []


@pytest.mark.parametrize("command", COMMANDS)
def test_command_shows_what_it_should(cluster: Inside, command: str):
    program, *args = shlex.split(Template(command).substitute(cluster.variables))
    done = subprocess.run(
        [PROGRAMS / program, *args],
        env=os.environ | cluster.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    text = page.COLOR.sub("", done.stdout + done.stderr)
    assert done.returncode == 0, text
    expected = next(EXPECTED[known] for known in EXPECTED if command.startswith(known))
    assert re.search(expected, text), text


def test_timeline_holds_the_tasks(cluster: Inside):
    (newest, *_) = sorted(cluster.session.parent.glob("ray-timeline-*.json"), reverse=True)
    names = {event.get("cat") for event in json.loads(newest.read_text())}
    assert any("divide" in str(name) for name in names), names


def test_dashboard_asks_for_the_token(cluster: Inside):
    url = f"{cluster.dashboard}/api/v0/nodes"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    assert refused.value.code in (401, 403)
    bearer = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=bearer), timeout=10) as answer:
        assert b"ALIVE" in answer.read()


def test_prometheus_finds_the_metrics(cluster: Inside):
    # What `ray metrics launch-prometheus` reads, and Grafana's dashboards.
    prometheus = (cluster.session / "metrics/prometheus/prometheus.yml").read_text()
    (discovery,) = re.findall(r"'(/.*service_discovery\.json)'", prometheus)
    dashboards = {p.name for p in (cluster.session / "metrics/grafana/dashboards").iterdir()}
    assert {"default_grafana_dashboard.json", "serve_grafana_dashboard.json"} <= dashboards

    def metrics() -> str:
        groups = json.loads(Path(discovery).read_text())
        text = ""
        for target in [target for group in groups for target in group["targets"]]:
            # The dashboard and the autoscaler listen where only this machine's own programs ask.
            with (
                contextlib.suppress(urllib.error.URLError),
                urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer,
            ):
                text += answer.read().decode()
        return text if "ray_tasks{" in text else ""

    wait_for(metrics, "metrics of tasks", 60)
