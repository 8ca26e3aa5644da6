"""On which nodes pods are put: by the labels of each platform, as its documentation has them."""

import pytest

from .rendered import PLATFORMS, Document, cluster_of, groups, planned, ray_resource

STAYS = {
    "bare": ("ray-ref/spot", "DoesNotExist", []),
    "aws": ("karpenter.sh/capacity-type", "In", ["on-demand"]),
    "aws-auto": ("karpenter.sh/capacity-type", "In", ["on-demand"]),
    "aws-managed": ("eks.amazonaws.com/capacityType", "In", ["ON_DEMAND"]),
    "gcp": ("cloud.google.com/gke-spot", "DoesNotExist", []),
}
GPU_NODES = {
    "bare": ("nvidia.com/gpu.present", "true"),
    "aws": ("karpenter.k8s.aws/instance-gpu-manufacturer", "nvidia"),
    "aws-auto": ("eks.amazonaws.com/instance-gpu-manufacturer", "nvidia"),
    "aws-managed": ("nvidia.com/gpu.present", "true"),
    "gcp": ("cloud.google.com/gke-accelerator", "nvidia-l4"),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_head_stays_off_spot_nodes_and_those_with_gpus(platform: str):
    (key, value), stays = GPU_NODES[platform], STAYS[platform]
    for profile, avoided in (("spot", []), ("gpu", [(key, "NotIn", [value])])):
        resource = ray_resource(planned("torch-ddp-train", profile, f"platform={platform}"))
        head = cluster_of(resource)["headGroupSpec"]
        assert node_expressions(head) == [stays, *avoided]
    (workers,) = cluster_of(resource)["workerGroupSpecs"]
    assert (key, "In", [value]) in node_expressions(workers)


def node_expressions(group: Document) -> list[tuple[str, str, list[str]]]:
    affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [(e["key"], e["operator"], e.get("values", [])) for e in term["matchExpressions"]]


def node_labels(group: Document) -> dict[str, list[str]]:
    return {key: values for key, _, values in node_expressions(group)}


def test_spot_has_a_fallback_of_lower_priority_on_other_nodes():
    spot, fallback = groups(planned("torch-ddp-train", "spot", "platform=aws"))
    assert spot["priority"] > fallback["priority"]
    for group in (spot, fallback):  # A cluster without spot nodes is ready all the same.
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
    wanted = [node_labels(group)["karpenter.sh/capacity-type"] for group in (spot, fallback)]
    assert wanted == [["spot"], ["on-demand"]]
    assert spot["template"]["spec"]["tolerations"]
    assert "tolerations" not in fallback["template"]["spec"]


def test_gpus_are_asked_for_on_nodes_that_have_them():
    plan = planned("torch-ddp-train", "gpu", "platform=gcp")
    (group,) = groups(plan)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert node_labels(group)["cloud.google.com/gke-accelerator"] == ["nvidia-l4"]
    assert group["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    head = cluster_of(ray_resource(plan))["headGroupSpec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    # Its image would let in all of the node's.
    hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    assert hidden in head["containers"][0]["env"]
    assert hidden not in container["env"]
    assert "experiment=gpu" in ray_resource(plan)["spec"]["entrypoint"]
