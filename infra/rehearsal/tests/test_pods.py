"""The pods are those that the operator would make; expectations are from its own tests."""

import copy

import pytest
from ray_shared.errors import UserError
from rehearsal.manifest import Plan, set_defaults
from rehearsal.pods import build, probe, start_command

from .manifests import GROUP, cluster


def make(kind: str, owner: str = "RayCluster", token: str | None = "t", **changes):
    spec = cluster(**changes)
    set_defaults(spec)
    plan = Plan(owner, "mine", "ray", {}, spec)
    group = spec["headGroupSpec"] if kind == "head" else spec["workerGroupSpecs"][0]
    return build(plan, "mine-abcde", kind, group, token, {}, "10.77.1.1")


def test_head_gets_the_operators_flags():
    assert make("head").command.split("; ")[1] == (
        "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 "
        "--include-dashboard=true --memory=2147483648 --metrics-export-port=8080 --no-monitor "
        "--num-cpus=0"
    )


def test_worker_gets_address_labels_and_resources():
    assert make("worker").command.split("; ")[1] == (
        "ray start --address=mine-abcde-head-svc.ray.svc.cluster.local:6379 --block "
        "--dashboard-agent-listen-port=52365 --labels=a=b,pool=small --memory=2147483648 "
        "--metrics-export-port=8080 --num-cpus=2 --num-gpus=1"
    )


def test_resources_of_the_group_take_the_place_of_the_containers():
    group = copy.deepcopy(GROUP) | {"resources": {"CPU": "3", "memory": "1Gi", "special": "2"}}
    line = start_command(group, "worker", "h:6379", autoscaled=True)
    assert "--num-cpus=3" in line
    assert "--memory=1073741824" in line
    assert """--resources='{"special": 2.0}'""" in line


def test_false_switch_is_left_out_but_a_value_is_not():
    group = copy.deepcopy(GROUP)
    group["rayStartParams"] = {"disable-usage-stats": "false", "log-color": "false"}
    line = start_command(group, "worker", "h:6379", autoscaled=True)
    assert "disable-usage-stats" not in line
    assert "--log-color=false" in line


def test_labels_and_environment_tell_ray_and_the_autoscaler_who_it_is():
    pod = make("worker")
    assert pod.name.startswith("mine-abcde-small-worker-")
    expected = {"ray.io/cluster": "mine-abcde", "ray.io/group": "small", "team": "x"}
    assert expected.items() <= pod.labels.items()
    assert pod.env["RAY_CLOUD_INSTANCE_ID"] == pod.env["POD"] == pod.name
    assert pod.env["RAY_NODE_TYPE_NAME"] == "small"
    assert pod.env["FQ_RAY_IP"] == "mine-abcde-head-svc.ray.svc.cluster.local"
    assert (pod.env["RAY_AUTH_MODE"], pod.env["RAY_AUTH_TOKEN"]) == ("token", "t")
    assert pod.env["PLAIN"] == "1"


def test_head_of_autoscaler_v2_says_so_and_v1_does_not():
    assert make("head").env["RAY_enable_autoscaler_v2"] == "true"
    assert "RAY_enable_autoscaler_v2" not in make("head", autoscalerOptions={}).env
    assert make("head").labels["ray.io/group"] == "headgroup"


def test_without_token_no_mode_is_set():
    assert "RAY_AUTH_MODE" not in make("head", token=None).env


def test_claim_is_shared_and_the_logs_are_not():
    assert make("worker").volumes == {"/tmp/ray": "ray-logs", "/mnt/runs": "claim/shared"}
    assert make("worker").shm_bytes == 2**31
    assert make("worker").grace_s == 60
    assert make("head").grace_s == 30  # Kubernetes' own.


def test_secret_that_nobody_gives_is_named():
    spec = cluster()
    reference = {"secretKeyRef": {"name": "keys", "key": "k"}}
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "KEY", "valueFrom": reference}]
    set_defaults(spec)
    plan = Plan("RayCluster", "mine", "ray", {}, spec)
    with pytest.raises(UserError, match="Secret keys/k: not in the manifest"):
        build(plan, "mine", "head", spec["headGroupSpec"], None, {}, "")
    pod = build(plan, "mine", "head", spec["headGroupSpec"], None, {"keys/k": "v"}, "")
    assert pod.env["KEY"] == "v"
    secret = {"data": {"k": "dw=="}}
    plan = Plan("RayCluster", "mine", "ray", {}, spec, objects={("Secret", "keys"): secret})
    assert build(plan, "mine", "head", spec["headGroupSpec"], None, {}, "").env["KEY"] == "w"


def test_operators_probe_of_a_serving_worker_asks_its_proxy():
    agent = (52365, "/api/local_raylet_healthz")
    ready = probe({}, "RayService", "worker", ready=True)
    assert (ready.urls, ready.failures) == ((agent, (8000, "/-/healthz")), 1)
    assert probe({}, "RayJob", "worker", ready=True).urls == (agent,)
    assert probe({}, "RayJob", "head", ready=False).urls[1] == (8265, "/api/gcs_healthz")


def test_probe_of_the_manifest_is_taken():
    given = {"httpGet": {"port": 8000, "path": "/x"}, "periodSeconds": 3, "failureThreshold": 1}
    found = probe({"readinessProbe": given}, "RayJob", "worker", ready=True)
    assert (found.urls, found.period_s, found.failures) == (((8000, "/x"),), 3, 1)
    assert found.delay_s == 0


def test_port_of_a_probe_may_be_a_name():
    container = {"livenessProbe": {"httpGet": {"port": "serve"}}}
    container["ports"] = [{"containerPort": 1}, {"name": "serve", "containerPort": 8000}]
    assert probe(container, "RayJob", "worker", ready=False).urls == ((8000, "/"),)
    with pytest.raises(UserError, match="livenessProbe: not of the type .* 'serve'"):
        probe(container | {"ports": []}, "RayJob", "worker", ready=False)


@pytest.mark.parametrize("kind", ["tcpSocket", "grpc"])
def test_other_probe_is_refused_by_name(kind):
    container = {"readinessProbe": {kind: {"port": 1}}}
    with pytest.raises(UserError, match=f"readinessProbe: found {kind}: must be httpGet or exec"):
        probe(container, "RayJob", "worker", ready=True)


def test_resource_of_a_group_that_is_no_number_is_named():
    group = copy.deepcopy(GROUP) | {"resources": {"special": "many"}}
    with pytest.raises(UserError, match="resources.special: not of the type .* 'many'"):
        start_command(group, "worker", "h:6379", autoscaled=True)
