"""The shell scripts of infra/ do what they say, with stand-ins for Docker and the cluster."""

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from .infra_rules import cluster_of, load, of_kind
from .infra_tools import INFRA, overlays, project_python, tool
from .repository import ROOT, files, ids

SCRIPTS = files("infra/**.sh")
GIB = {"Mi": 1 / 1024, "Gi": 1.0}
# Ray's own template, filled in as Ray does it, for a Serve without an application.
WRITE = """
import sys
from ray.serve._private import haproxy
from ray.serve.config import HTTPOptions
config = haproxy.HAProxyConfig(
    http_options=HTTPOptions(host="0.0.0.0", port=int(sys.argv[2])),
    socket_path=sys.argv[1] + "/admin",
    metrics_port=int(sys.argv[3]),
    stats_port=int(sys.argv[4]),
    enable_hap_optimization=False,
    is_head=True,
)
api = haproxy.HAProxyApi(cfg=config, config_file_path=sys.argv[1] + "/haproxy.cfg")
api._generate_config_file_internal()
"""
OWN_EDIT = "from serve_fastapi import environment; print(environment._EDIT)"


@pytest.mark.parametrize("path", SCRIPTS, ids=ids)
def test_script_is_plain_sh(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", path], check=True)
    done = tool("shellcheck", str(path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "args", "problem"),
    [
        ("kind/up.sh", ["torch-dpp-train"], "must be torch-ddp-train or serve-fastapi"),
        ("kind/up.sh", [], "docker is not installed"),
        ("monitoring/up.sh", [], "usage: "),
        ("monitoring/up.sh", ["kind-ray-ref"], "kubectl is not installed"),
    ],
)
def test_script_refuses_with_one_sentence(
    script: str, args: list[str], problem: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["/bin/sh", INFRA / script, *args],
        env={"PATH": str(tmp_path)},  # No program at all.
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def kind(tmp_path: Path):
    """Runs kind/up.sh with programs that note how they are called; the job ends as it is told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls = tmp_path / "calls"
    for name in ("docker", "kind", "helm", "kubectl"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {calls}\n'
            'case "$*" in\n'
            # Twice it runs still: the loop must ask again.
            f"*jobDeploymentStatus*) [ $(grep -c jobDeploymentStatus {calls}) -gt 2 ] &&"
            ' echo "$ENDS" || echo Running ;;\n'
            "*.status.reason*) echo AppFailed ;;\n"
            '*" logs "*) echo the log; exit "$NO_LOG" ;;\n'
            '*" wait "*) exit "$NOT_READY" ;;\n'
            "esac\n"
        )
        (programs / name).chmod(0o700)

    def run(workload: str, **env: str) -> tuple[int, str, str, list[str]]:
        calls.write_text("")
        defaults = {"ENDS": "Complete", "NO_LOG": "0", "NOT_READY": "0", "POLL_S": "0"}
        done = subprocess.run(
            ["/bin/sh", INFRA / "kind/up.sh", workload],
            env={"PATH": f"{programs}:/usr/bin:/bin"} | defaults | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("ends", "code"), [("Complete", 0), ("Failed", 1), ("ValidationFailed", 1)]
)
def test_job_shows_its_log_however_it_ends(kind, ends: str, code: int) -> None:
    found, out, err, calls = kind("torch-ddp-train", ENDS=ends)
    assert (found, out) == (code, "the log\n")
    assert (f"error: the job failed: {ends} AppFailed" in err) == (code == 1)
    # What ran before goes first, or it would not run again and its log be shown.
    deleted, applied, asked = (
        next(i for i, call in enumerate(calls) if part in call)
        for part in ("delete rayjob torch-ddp-train", "apply -k", "jobDeploymentStatus")
    )
    assert deleted < applied < asked


def test_job_without_a_log_and_service_that_is_not_ready_show_the_pods(kind) -> None:
    code, _, err, calls = kind("torch-ddp-train", ENDS="Failed", NO_LOG="1")
    assert (code, "error: the job failed" in err) == (1, True)
    assert any(call.endswith("get pods") for call in calls)
    assert kind("serve-fastapi")[:2][0] == 0
    code, _, _, calls = kind("serve-fastapi", NOT_READY="1")
    assert code == 1
    assert calls[-1].endswith("get rayservice,pods")


def test_what_kind_is_asked_for_fits_into_what_the_script_says() -> None:
    values = yaml.safe_load((INFRA / "helm/kuberay-operator.yaml").read_text())
    text = (INFRA / "kind/up.sh").read_text()
    assert "--set replicas=1" in text
    (said,) = {
        int(gb)
        for file in ("kind/up.sh", "README.md")
        for gb in re.findall(r"about 4 CPUs and (\d+) GB", (INFRA / file).read_text())
    }
    for document in of_kind(load(overlays()["dev"]), "RayJob", "RayService"):
        cluster = cluster_of(document)
        asked = [values["resources"], cluster["autoscalerOptions"]["resources"]]
        pods = [(1, cluster["headGroupSpec"]["template"])]
        pods += [(group["maxReplicas"], group["template"]) for group in cluster["workerGroupSpecs"]]
        if "submitterPodTemplate" in document["spec"]:
            pods.append((1, document["spec"]["submitterPodTemplate"]))
        for count, template in pods:
            asked += [template["spec"]["containers"][0]["resources"]] * count
        memory = [each["requests"]["memory"] for each in asked]
        total = sum(float(each[:-2]) * GIB[each[-2:]] for each in memory)
        # Kubernetes' own pods ask for 0.3 GiB, and Docker's machine keeps as much.
        assert total + 0.6 <= said * 1e9 / 2**30, document["metadata"]["name"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answer(port: int, path: str) -> tuple[int, str | None]:
    """Status and Retry-After of an answer, once somebody listens."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            found = connection.getresponse()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return found.status, found.headers["Retry-After"]
        finally:
            connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray has HAProxy only for Linux")
def test_haproxy_of_the_image_does_what_ray_has_no_setting_for() -> None:
    with tempfile.TemporaryDirectory(prefix="h-", dir="/tmp") as name:  # A socket's path is short.
        ports = [free_port() for _ in range(3)]
        project_python("serve-fastapi", "-c", WRITE, name, *map(str, ports))
        file = Path(name) / "haproxy.cfg"
        before = file.read_text()
        assert "option splice-" in before
        environment = ROOT / ".nox/serve-fastapi/bin"
        process = subprocess.Popen(
            [INFRA / "docker/haproxy.sh", "-db", "-f", file],
            env=os.environ
            | {
                "PATH": f"{environment}:{os.environ['PATH']}",
                # As in the image: the script itself, which must not start itself.
                "RAY_SERVE_HAPROXY_BINARY_PATH": str(INFRA / "docker/haproxy.sh"),
            },
        )
        try:
            # Serve's port, for a path of which no application is known; Prometheus' port.
            assert answer(ports[0], "/predict") == (503, "1")
            assert answer(ports[1], "/metrics") == (200, None)
        finally:
            process.terminate()
            process.wait(timeout=30)
        after = file.read_text()
        assert "option splice-" not in after
        assert after.count("defaults\n    timeout http-request 10s\n") == 1
        binds = re.findall(r"^ +bind (\S+)", after, re.MULTILINE)
        assert binds == re.findall(r"^ +bind (\S+)", before, re.MULTILINE)


def test_haproxy_of_the_image_is_edited_as_serve_fastapi_edits_its_own() -> None:
    own = re.sub(r"\\\n *", " ", project_python("serve-fastapi", "-c", OWN_EDIT))
    here = re.sub(r"\\\n *", " ", (INFRA / "docker/haproxy.sh").read_text())
    (edit,) = re.findall(r"^sed -i (.*) \"\$3\"$", here, re.MULTILINE)
    expressions = re.findall(r"-e '[^']*'", edit)
    assert len(expressions) == len(re.findall(r"-e '[^']*'", own.partition("for section")[0]))
    assert [each for each in expressions if each not in own] == []
