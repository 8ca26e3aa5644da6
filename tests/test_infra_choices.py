"""What infra/ leaves to choose: storage, nodes, the way in. And: what it takes has a version."""

import os
import re
from pathlib import Path

import pytest
import yaml

from .infra_rules import Document, cluster_of, in_a_bucket, load, of_kind, problems, words
from .infra_tools import INFRA, OVERLAYS, overlays, tool
from .repository import texts

CLUSTER_WIDE = ("Namespace",)
OWN_IMAGES = "registry.example.com/ray-ref/"


def in_a_store(overlay: str, directory: Path) -> list[Document]:
    """What a user's own directory makes of an overlay and the component object-store."""
    parts = (f"overlays/{overlay}", "components/object-store")
    paths = [os.path.relpath(INFRA / "kustomize" / part, directory.resolve()) for part in parts]
    resource, component = paths
    content = {"resources": [resource], "components": [component]}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(content))
    done = tool("kubectl", "kustomize", str(directory))
    assert done.returncode == 0, done.stdout
    return load(done.stdout)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_object_store_takes_the_place_of_the_claim(overlay: str, tmp_path: Path) -> None:
    before, after = load(overlays()[overlay]), in_a_store(overlay, tmp_path)
    assert (in_a_bucket(before), in_a_bucket(after)) == (False, True)
    assert list(problems(after)) == []
    assert "persistentVolumeClaim" not in yaml.safe_dump(of_kind(after, "RayJob", "RayService"))
    # One word of the command is another; the rest of the job is as it was.
    (old,), (new,) = (of_kind(documents, "RayJob") for documents in (before, after))
    changed = words(old["spec"]["entrypoint"]) | {"storage.path=": "s3://bucket/runs"}
    assert words(new["spec"]["entrypoint"]) == changed
    names = {(d["kind"], d["metadata"]["name"]) for d in after}
    lost = {(d["kind"], d["metadata"]["name"]) for d in before} - names
    assert lost == {("PersistentVolumeClaim", "runs")}
    assert names >= {("NetworkPolicy", "object-store")}
    assert not names & {("ConfigMap", "bucket"), ("Volume", "runs")}
    assert {d["metadata"].get("namespace") for d in after} == {None, "ray"}


def test_claim_beside_an_object_store_would_be_found(tmp_path: Path) -> None:
    documents = in_a_store("prod", tmp_path)
    claims = of_kind(load(overlays()["prod"]), "PersistentVolumeClaim")
    assert list(problems([*documents, *claims])) == ["storage: a claim that nobody mounts"]
    (job,) = of_kind(documents, "RayJob")
    claim = {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}
    cluster_of(job)["headGroupSpec"]["template"]["spec"]["volumes"].append(claim)
    assert list(problems(documents)) == ["torch-ddp-train head: runs are lost with the pod"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_lies_in_the_namespace(overlay: str) -> None:
    # What an overlay adds to the base would else go wherever the user's context points.
    for document in load(overlays()[overlay]):
        if document["kind"] not in CLUSTER_WIDE:
            assert document["metadata"].get("namespace") == "ray", document["metadata"]["name"]


def test_dns_that_only_pods_answer_would_be_found() -> None:
    documents = load(overlays()["prod"])
    (dns,) = (p for p in of_kind(documents, "NetworkPolicy") if p["metadata"]["name"] == "dns")
    system = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    dns["spec"]["egress"][0]["to"] = [{"namespaceSelector": system}]
    found = list(problems(documents))
    assert found
    assert [x for x in found if not x.endswith(": names only where pods answer")] == []


def test_gpu_nodes_are_found_on_every_platform_and_left_to_the_workers() -> None:
    (job,) = of_kind(load(overlays()["gpu"]), "RayJob")
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    (group,) = cluster_of(job)["workerGroupSpecs"]
    wanted = {e["key"] for term in terms(group["template"]["spec"]) for e in term}
    assert wanted == {
        "nvidia.com/gpu.present",
        "cloud.google.com/gke-accelerator",
        "karpenter.k8s.aws/instance-gpu-manufacturer",
        "eks.amazonaws.com/instance-gpu-manufacturer",
    }
    assert all(len(term) == 1 for term in terms(group["template"]["spec"]))  # Any of them.
    (term,) = terms(head)
    avoided = {e["key"] for e in term if e["operator"] in ("NotIn", "DoesNotExist")}
    assert avoided >= wanted
    hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    assert hidden in head["containers"][0]["env"]
    assert hidden not in group["template"]["spec"]["containers"][0]["env"]


def terms(pod: Document) -> list[list[Document]]:
    """The expressions of each alternative of a pod's node affinity."""
    (required,) = pod["affinity"]["nodeAffinity"].values()
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


def test_gateway_of_the_class_can_be_kept_inside_the_cluster() -> None:
    (defaults,) = load((INFRA / "kustomize/istio/gateway-defaults.yaml").read_text())
    (service,) = of_kind(load(overlays()["prod"]), "RayService")
    options = service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    label = defaults["metadata"]["labels"]["gateway.istio.io/defaults-for-class"]
    assert label == options["gatewayClassName"]
    assert yaml.safe_load(defaults["data"]["service"]) == {"spec": {"type": "ClusterIP"}}


def test_disk_that_the_page_says_is_what_the_pods_of_dev_ask_for() -> None:
    page = " ".join((INFRA / "README.md").read_text().split())
    (said,) = re.findall(r"of whose disk the pods ask for (\d+) GiB", page)
    for document in of_kind(load(overlays()["dev"]), "RayJob", "RayService"):
        asked = re.findall(r"ephemeral-storage: (\d+)Gi", yaml.safe_dump(document))
        assert sum(map(int, asked)) == int(said)  # One of the two runs at a time.


def test_what_comes_from_elsewhere_has_a_version() -> None:
    pages = "".join(texts("infra/*.sh", "infra/*.md").values()).replace("\\\n", "")
    charts = re.findall(r"^ *helm upgrade .*$", pages, re.MULTILINE)
    assert len(charts) == 3
    assert [c for c in charts if not re.search(r" --version \d+\.\d+\.\d+ ", c)] == []
    images = set(re.findall(r"image: (\S+)$", "".join(overlays().values()), re.MULTILINE))
    others = {image for image in images if not image.startswith((OWN_IMAGES, "ray-ref/"))}
    assert others  # Redis.
    assert [image for image in others if not re.search(r":\d+\.\d+\.\d+-", image)] == []
