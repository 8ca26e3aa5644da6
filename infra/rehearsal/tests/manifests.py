"""Manifests for the tests, as small as they can be."""

import copy
from pathlib import Path
from typing import Any

import yaml

GROUP: dict[str, Any] = {
    "groupName": "small",
    "replicas": 1,
    "minReplicas": 1,
    "maxReplicas": 4,
    "labels": {"pool": "small", "a": "b"},
    "rayStartParams": {},
    "template": {
        "metadata": {"labels": {"team": "x"}},
        "spec": {
            "terminationGracePeriodSeconds": 60,
            "containers": [
                {
                    "name": "ray-worker",
                    "image": "any",
                    "env": [
                        {"name": "PLAIN", "value": "1"},
                        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    ],
                    "resources": {"limits": {"cpu": "1500m", "memory": "2Gi", "nvidia.com/gpu": 1}},
                    "volumeMounts": [{"name": "runs", "mountPath": "/mnt/runs"}],
                }
            ],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": "shared"}}],
        },
    },
}
HEAD: dict[str, Any] = {
    "rayStartParams": {"num-cpus": "0", "include-dashboard": "true"},
    "template": {
        "spec": {
            "containers": [{"name": "ray-head", "resources": {"limits": {"memory": "2Gi"}}}],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": "shared"}}],
        }
    },
}
HEAD["template"]["spec"]["containers"][0]["volumeMounts"] = [
    {"name": "runs", "mountPath": "/mnt/runs"}
]


def cluster(**changes: Any) -> dict[str, Any]:
    """The spec of a RayCluster."""
    spec = {
        "rayVersion": "2.60.0",
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 60},
        "headGroupSpec": HEAD,
        "workerGroupSpecs": [GROUP],
    }
    return copy.deepcopy(spec | changes)


def document(kind: str, spec: dict[str, Any], name: str = "mine") -> dict[str, Any]:
    """A resource."""
    metadata = {"name": name, "namespace": "ray"}
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def write(path: Path, *documents: dict[str, Any]) -> str:
    """Puts a manifest into a file; its path."""
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)
