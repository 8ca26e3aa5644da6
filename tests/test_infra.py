"""What lies in infra/ is taken by the tools that will read it, and is right by default.

The tools (hadolint, kubectl, shellcheck) are packages of the `contracts` session.
"""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from .infra_rules import REQUIRED, cluster_of, load, of_kind, problems, templates, traffic
from .infra_tools import INFRA, OVERLAYS, overlays, project_python, tool
from .repository import PROJECTS, ROOT, files, ids, kuberay_crds, texts

DOCKERFILE = INFRA / "docker/Dockerfile"
LOCKS = files("infra/docker/launcher/*.lock")
LAUNCHERS = files("infra/launcher/*.yaml")
SERVE_CONFIGS = files("infra/**/serve-config.yaml")
RAY = re.search(r'^RAY = "(.*)"$', (ROOT / "noxfile.py").read_text(), re.MULTILINE)[1]
# Behind a Service a replica waits longer than behind nothing.
LONGER = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "30",
}
LAUNCH = """
import json, sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
for path in sys.argv[1:]:
    try:
        validate_config(prepare_config(yaml.safe_load(open(path))))
    except Exception as error:
        print(path, str(error).splitlines()[0])
"""
COMPOSE = """
import sys
from importlib import import_module
from ray_shared.config import compose
package, *overrides = sys.argv[1:]
compose(import_module(f"{package}.config").Config, f"{package}.conf", overrides)
"""
DOWNLOAD = """
from kuberay_deploy import actions, crds
from ray_shared.errors import UserError
try:
    crds.download(actions.cache_directory())
    print(actions.cache_directory())
except UserError as error:
    print(f"NOT CHECKED against KubeRay's CRDs: set KUBERAY_CRDS ({error})")
"""
VALIDATE = """
import sys
from pathlib import Path
from kuberay_deploy import crds, manifests, validate
found = crds.from_directory(Path(sys.argv[1]))
for path in sys.argv[2:]:
    for finding in validate.check(manifests.read(Path(path)), found):
        print(Path(path).stem, finding)
"""


def test_image_is_built_from_the_lock_and_runs_without_pip_and_root() -> None:
    done = tool("hadolint", str(DOCKERFILE))
    assert done.returncode == 0, done.stdout
    text = DOCKERFILE.read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    (last,) = (stage for stage in stages if stage.partition("\n")[0].endswith(" AS cpu"))
    assert text.count("-r requirements.lock") == 2  # For nodes without and with GPUs.
    assert text.count("./shared ./project") == 1
    assert "pip uninstall --yes pip" in last
    assert "pip install" not in last
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["1000:1000"]
    for stage in stages[stages.index(last) + 1 :]:
        assert stage.startswith(("cpu AS gpu", "${FAMILY}"))
        assert not re.search(r"^(USER|RUN|COPY)", stage, re.MULTILINE)
    # What Ray's autoscaler calls in the head's container, and what Ray Serve does in every one.
    assert {"openssh-client", "rsync"} <= {word.partition("=")[0] for word in last.split()}
    program = "/usr/local/bin/ray-haproxy"
    assert f"infra/docker/haproxy.sh {program}" in last
    assert f"RAY_SERVE_HAPROXY_BINARY_PATH={program}" in last
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for source in re.findall(r"^COPY (?:--chmod=\d+ )?(infra/\S+)", text, re.MULTILINE):
        assert f"!{source}" in ignored


@pytest.mark.parametrize("path", LOCKS, ids=ids)
def test_cloud_library_fits_every_lock(path: Path) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE))
    assert pins or path.stem == "none"
    for lock in files("projects/*/requirements.lock"):
        locked = dict(re.findall(r"^([\w.-]+)==([^;\s]+)", lock.read_text(), re.MULTILINE))
        assert {n: v for n, v in pins.items() if locked.get(n, v) != v} == {}, lock


def test_bad_dockerfile_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.11\nRUN pip install ray\n")
    assert "DL3013" in tool("hadolint", str(tmp_path / "Dockerfile")).stdout


def test_ray_takes_the_launcher_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(LAUNCHERS[0].read_text().replace("idle_timeout_minutes", "idle_timeout_minute"))
    paths = [*map(str, LAUNCHERS), str(bad)]
    (refused,) = project_python(next(iter(PROJECTS)), "-c", LAUNCH, *paths).splitlines()
    assert refused.startswith(str(bad))
    assert "idle_timeout_minute" in refused


@pytest.mark.parametrize("path", LAUNCHERS, ids=ids)
def test_launched_cluster_asks_for_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    for name, node in config.get("available_node_types", {}).items():
        assert (node["resources"]["CPU"] == 0) == (name == config["head_node_type"])


@pytest.fixture
def built() -> dict[str, str]:
    """The YAML of each overlay."""
    return overlays()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_right_by_default(overlay: str, built: dict[str, str]) -> None:
    documents = load(built[overlay])
    assert {d["kind"] for d in documents} >= {
        "RayJob",
        "RayService",
        "PersistentVolumeClaim",
        "Role",
    }
    assert list(problems(documents)) == []


JOB, SERVICE = "RayJob spec.rayClusterSpec", "RayService spec.rayClusterConfig"
HEAD = f"{JOB}.headGroupSpec.template.spec"
WORKER = f"{SERVICE}.workerGroupSpecs.0.template.spec"
# An affinity that says something, but not of spot nodes.
OTHER = [{"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["a"]}]
ELSEWHERE = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": OTHER}]}}}


@pytest.mark.parametrize(
    ("where", "value", "problem"),
    [
        (f"{JOB}.rayVersion", "2.59.0", "image and rayVersion"),
        (f"{JOB}.authOptions", {"mode": "disabled"}, "no token"),
        (f"{JOB}.autoscalerOptions.version", "v1", "autoscaler"),
        (f"{SERVICE}.headGroupSpec.rayStartParams.num-cpus", "2", "tasks on the head"),
        (f"{HEAD}.affinity", {}, "head on a spot node"),
        (f"{HEAD}.affinity", ELSEWHERE, "head on a spot node"),
        (f"{HEAD}.securityContext.runAsNonRoot", False, "pod's security"),
        (f"{HEAD}.containers.0.securityContext", {}, "container's security"),
        (f"{HEAD}.containers.0.resources.requests.memory", "1Gi", "memory"),
        (f"{WORKER}.automountServiceAccountToken", True, "token of the service account"),
        (f"{WORKER}.terminationGracePeriodSeconds", 30, "grace shorter"),
        (f"{WORKER}.containers.0.readinessProbe.httpGet.path", "/api/healthz", "Serve's health"),
        (f"{WORKER}.containers.0.volumeMounts", [], "runs are lost"),
        (f"{WORKER}.containers.0.resources.requests.ephemeral-storage", "1Gi", "nobody asked for"),
        ("RayJob spec.entrypoint", "python -m x", "what another try starts from"),
        ("RayJob spec.entrypoint", "python -m x storage.path=/y", "what another try starts from"),
        ("RayJob spec.entrypoint", "python -m x run.name=y", "what another try starts from"),
        ("RayJob spec.deletionStrategy", {}, "who deletes the cluster"),
        ("RayJob spec.submitterPodTemplate.spec.restartPolicy", "Always", "restartPolicy"),
        ("PodDisruptionBudget spec.minAvailable", "50%", "not a whole number"),
        ("NetworkPolicy spec.ingress", [{}], "open by default"),
    ],
)
def test_what_is_wrong_would_be_found(
    where: str, value: Any, problem: str, built: dict[str, str]
) -> None:
    documents = load(built["gpu"])
    kind, _, path = where.partition(" ")
    for document in of_kind(documents, kind):
        place: Any = document
        *steps, last = path.split(".")
        for step in steps:
            place = place[int(step) if isinstance(place, list) else step]
        place[last] = copy.deepcopy(value)
    found = list(problems(documents))
    assert found
    assert [x for x in found if problem not in x] == []


def test_overlays_do_what_they_are_for(built: dict[str, str]) -> None:
    jobs = {name: of_kind(load(text), "RayJob")[0] for name, text in built.items()}
    (gpu,) = cluster_of(jobs["gpu"])["workerGroupSpecs"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert gpu["template"]["spec"]["containers"][0]["image"].endswith(f":{RAY}-gpu")
    groups = {g["groupName"]: g for g in cluster_of(jobs["spot"])["workerGroupSpecs"]}
    assert groups["spot"]["priority"] > groups["on-demand"]["priority"]
    assert "NotIn" in json.dumps(groups["on-demand"]["template"]["spec"]["affinity"])
    assert groups["spot"]["template"]["spec"]["tolerations"]
    (service,) = of_kind(load(built["prod"]), "RayService")
    assert service["spec"]["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    address = cluster_of(service)["gcsFaultToleranceOptions"]["redisAddress"]
    (redis,) = of_kind(load(built["prod"]), "Service")
    assert address == f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"


@pytest.fixture
def crds() -> Path:
    """KubeRay's CRDs; where CI is set, they must be there or to be had."""
    if found := kuberay_crds():
        return found
    told = project_python("kuberay-deploy", "-c", DOWNLOAD).strip()
    if told.startswith("NOT CHECKED"):
        end = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end(told)
    return Path(told)


def test_overlays_pass_the_validator(built: dict[str, str], tmp_path: Path, crds: Path) -> None:
    for name, text in built.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    bad = tmp_path / "bad.yaml"
    bad.write_text(built["dev"].replace("idleTimeoutSeconds", "idleTimeoutSecond"))
    paths = sorted(map(str, tmp_path.iterdir()))
    found = project_python("kuberay-deploy", "-c", VALIDATE, str(crds), *paths).splitlines()
    assert [x for x in found if not x.startswith("bad ")] == []
    assert any("idleTimeoutSecond" in x for x in found)


def test_commands_of_the_jobs_compose(built: dict[str, str]) -> None:
    jobs = [d for text in built.values() for d in of_kind(load(text), "RayJob")]
    assert len(jobs) == len(OVERLAYS)
    for document in jobs:
        python, m, module, *overrides = document["spec"]["entrypoint"].split()
        assert (python, m) == ("python", "-m")
        project_python(module.replace("_", "-"), "-c", COMPOSE, module, *overrides)


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=ids)
def test_configuration_of_serve_is_not_stale(path: Path, tmp_path: Path) -> None:
    first, _, content = path.read_text().partition("\n")
    program, *overrides = first.removeprefix("# Written by: ").split()
    arguments = ["-m", program.replace("-", "_"), *overrides, f"hydra.run.dir={tmp_path}"]
    project_python(program, *arguments)
    assert content == (tmp_path / "serve_config.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_a_service_have_what_serve_reads(overlay: str, built: dict[str, str]) -> None:
    (service,) = of_kind(load(built[overlay]), "RayService")
    text = service["spec"]["serveConfigV2"]
    own = INFRA / "kustomize" / ("overlays/prod" if overlay == "prod" else "base")
    assert text == (own / "serve-config.yaml").read_text()
    needed = dict(re.findall(r"^#   (\w+)=(.*)$", text, re.MULTILINE)) | LONGER
    for group, template in templates(service):
        env = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
        assert {k: env.get(k) for k in needed} == needed, group
        assert "SERVE_FASTAPI_KEYS" in env


def test_what_prometheus_reads_is_there_and_let_through(built: dict[str, str]) -> None:
    done = tool("kubectl", "kustomize", str(INFRA / "monitoring"))
    assert done.returncode == 0, done.stdout
    wanted = {e["port"] for m in load(done.stdout) for e in m["spec"]["podMetricsEndpoints"]}
    documents = load(built["prod"])
    pods = [t for d in of_kind(documents, "RayJob", "RayService") for _, t in templates(d)]
    ports = {
        p["name"]: p["containerPort"]
        for t in pods
        for p in t["spec"]["containers"][0].get("ports", [])
    }
    (policy,) = (
        d for d in of_kind(documents, "NetworkPolicy") if d["metadata"]["name"] == "metrics"
    )
    allowed = {p["port"] for p in policy["spec"]["ingress"][0]["ports"]}
    assert {ports[name] for name in wanted - {"haproxy"}} == allowed
    served = {"app.kubernetes.io/instance": "serve-fastapi", "ray.io/is-ray-node": "yes"}
    heard = {port for _, peer, port in traffic(served, documents) if peer == "monitoring"}
    assert heard == allowed | {ports["haproxy"]}
    (dashboard,) = re.findall(r"^dashboard=(\S+)$", (INFRA / "monitoring/up.sh").read_text(), re.M)
    assert json.loads((ROOT / dashboard).read_text())["title"]


def test_operator_has_the_gates_and_the_namespace(built: dict[str, str]) -> None:
    values = yaml.safe_load((INFRA / "helm/kuberay-operator.yaml").read_text())
    gates = {gate["name"]: gate["enabled"] for gate in values["featureGates"]}
    assert gates["RayServiceIncrementalUpgrade"]
    assert gates["RayCronJob"]
    assert not gates["RayClusterNetworkPolicy"]
    assert values["watchNamespace"] == [
        of_kind(load(built["dev"]), "Namespace")[0]["metadata"]["name"]
    ]


def test_one_version_of_ray_and_of_kuberay() -> None:
    text = "".join(texts("infra").values())
    assert set(re.findall(r":?(\d+\.\d+\.\d+)-[cg]pu", text)) == {RAY}
    assert set(re.findall(r"rayVersion: \"?([\d.]+)", text)) == {RAY}
    commands = re.sub(r"\\\n[# ]*", "", text)
    pins = r"(?:kuberay-operator kuberay-operator .*?--version |tag: v|ref=v)(\d+\.\d+\.\d+)"
    assert len(set(re.findall(pins, commands))) == 1
    assert len(re.findall(pins, commands)) >= 5
