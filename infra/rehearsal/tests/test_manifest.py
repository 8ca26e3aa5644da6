from pathlib import Path

import pytest
from ray_shared.errors import UserError
from rehearsal.manifest import memory_of, plan, quantity, whole
from rehearsal.options import Options

from .manifests import cluster, document, write

GIB = 2**30


def planned(tmp_path: Path, *documents, free: int = 100 * GIB, **options):
    path = write(tmp_path / "m.yaml", *documents)
    return plan(Options(manifest=path, output=str(tmp_path), **options), path, free)


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), ("8Gi", 8 * GIB), ("1k", 1000), ("1.5M", 1.5e6)]
)
def test_quantity_means_what_kubernetes_means(text, number):
    assert float(quantity(text)) == number


def test_quantity_is_rounded_up_like_the_operators():
    assert whole("1500m") == 2


@pytest.mark.parametrize("text", ["", "8 Gi", "GB", "1Gb", "-1", "1..2", "."])
def test_wrong_quantity_is_refused(text):
    with pytest.raises(UserError, match="quantity"):
        quantity(text)


def test_cluster_is_found_in_each_kind(tmp_path):
    job = document("RayJob", {"entrypoint": "true", "rayClusterSpec": cluster()})
    service = document("RayService", {"rayClusterConfig": cluster()})
    for each in (document("RayCluster", cluster()), job, service):
        found = planned(tmp_path, {"kind": "ConfigMap", "metadata": {"name": "c"}}, each)
        assert found.kind == each["kind"]
        assert found.cluster["workerGroupSpecs"][0]["groupName"] == "small"
        assert (found.token, found.autoscaled) == (True, True)


def test_manifest_without_or_with_two_clusters_is_refused(tmp_path):
    one = document("RayCluster", cluster())
    for documents in ([{"kind": "Pod"}], [one, one]):
        with pytest.raises(UserError, match="must hold one of RayCluster, RayJob, RayService"):
            planned(tmp_path, *documents)


def test_memory_is_scaled_by_one_stated_factor_until_it_fits(tmp_path):
    # Head and four workers of 2 GiB want 10 GiB; half of 4 GiB are there: a fifth of it.
    found = planned(tmp_path, document("RayCluster", cluster()), free=4 * GIB)
    group = found.cluster["workerGroupSpecs"][0]
    assert found.memory_factor == 0.2
    assert memory_of(group) == 512 * 2**20  # Ray's own processes need so much.
    assert found.changes == [
        "head.memory: 2147483648 -> 536870912 (no pod gets less)",
        "small.memory: 2147483648 -> 536870912 (no pod gets less)",
    ]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1500m"


def test_manifest_that_fits_stays_as_it_is(tmp_path):
    found = planned(tmp_path, document("RayCluster", cluster()))
    assert (found.memory_factor, found.changes) == (1.0, [])
    group = found.cluster["workerGroupSpecs"][0]
    assert group["scaleStrategy"] == {}  # The autoscaler replaces it, which needs it to be there.


def test_workers_and_idle_time_are_limited_and_told(tmp_path):
    options = {"min_workers": 0, "max_workers": 2, "idle_timeout_s": 5}
    found = planned(tmp_path, document("RayCluster", cluster()), **options)
    group = found.cluster["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 2)
    assert found.cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 5
    assert found.changes == [
        "small.minReplicas: 1 -> 0",
        "small.replicas: 1 -> 0",
        "small.maxReplicas: 4 -> 2",
        "idleTimeoutSeconds: 60 -> 5",
    ]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"faults": ["kill=worker"]}, "rehearse.kill=worker: must be head or worker"),
        (
            {"faults": ["melt=head@1s"]},
            "melt=head@1s: must be one of kill, reclaim, partition",
        ),
        ({"memory_factor": 2.0}, "rehearse.memory_factor=2.0"),
        ({"min_workers": 3, "max_workers": 2}, "rehearse.min_workers=3"),
        ({"timeout_s": 0.0}, "rehearse.timeout_s=0.0"),
        ({"max_workers": 0}, "rehearse.max_workers=0: must be >= 1"),
        ({"load": "healthz"}, "rehearse.load=healthz: must be a path that begins with /"),
        ({"steps": "/runs/*.jsonl"}, "rehearse.steps=/runs/.*: must be a pattern below"),
    ],
)
def test_wrong_option_is_refused_by_name(options, names):
    with pytest.raises(UserError, match=names):
        Options(manifest="m", output="o", **options)


def test_nulls_mean_nothing(tmp_path):
    spec = cluster()
    spec["headGroupSpec"] |= {"rayStartParams": None, "resources": None}
    spec["headGroupSpec"]["template"]["metadata"] = None
    found = planned(tmp_path, document("RayCluster", spec | {"autoscalerOptions": None}))
    assert found.cluster["headGroupSpec"]["rayStartParams"] == {}
    assert "metadata" not in found.cluster["headGroupSpec"]["template"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"replicas": "two"}, "not of the type that Kubernetes wants"),
        ({"template": {"spec": {}}}, "small: resources.memory: containers is missing"),
        ({"template": "none"}, "small: resources.memory: not of the type"),
    ],
)
def test_group_that_is_not_as_kubernetes_wants_it_is_one_sentence(tmp_path, change, sentence):
    spec = cluster()
    spec["workerGroupSpecs"][0] |= change
    with pytest.raises(UserError, match=f"manifest=.*m.yaml: {sentence}"):
        planned(tmp_path, document("RayCluster", spec))


def test_wrong_quantity_names_its_group(tmp_path):
    spec = cluster()
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "1..2"
    with pytest.raises(UserError, match="small: resources.memory: quantity 1..2: must be as in"):
        planned(tmp_path, document("RayCluster", spec))


def test_config_map_without_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="m.yaml: name is missing"):
        planned(tmp_path, {"kind": "ConfigMap", "metadata": {}}, document("RayCluster", cluster()))


def test_what_is_not_honoured_is_told(tmp_path):
    spec = cluster()
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    pod["initContainers"] = [{"name": "fetch"}]
    pod["containers"].append({"name": "logs"})
    pod["volumes"].append({"name": "data", "hostPath": {"path": "/data"}})
    node = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    container = pod["containers"][0]
    container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
    container["env"].append(node)
    container |= {"startupProbe": {}, "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}
    assert planned(tmp_path, document("RayCluster", spec)).changes == [
        "small.initContainers.fetch: does not run",
        "small.containers.logs: does not run",
        "small.startupProbe: not asked",
        "small.lifecycle.postStart: not done",
        "small.volumes.data: an empty directory in place of hostPath",
        "small.env.NODE: empty in place of spec.nodeName",
    ]


def test_fault_says_when():
    faults = Options("m", "o", faults=["kill=worker@2.5s", "reclaim=head@step30"]).parsed_faults()
    assert [(f.kind, f.target, f.seconds, f.step) for f in faults] == [
        ("kill", "worker", 2.5, None),
        ("reclaim", "head", None, 30),
    ]
