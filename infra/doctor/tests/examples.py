"""A cluster of two nodes in best health, as facts."""

from typing import Any

from ray_doctor.facts import Collective, Facts, Node, Serve

GB = 10**9


def info(**changes: Any) -> dict[str, Any]:
    answer = {
        "python": "3.11.9",
        "packages": {"ray": "2.60.0", "torch": "2.13.0", "six": "1.17.0"},
        "allowed_cpus": 4,
        "gpus": 0,
        "memory_used": 4 * GB,
        "memory": 16 * GB,
        "memory_threshold": 0.95,
        "shm": {"total": 8 * GB, "used": 0, "free": 8 * GB},
        "plasma_directory": "/dev/shm",
        "object_store": 4 * GB,
        "spilling": [{"path": "/spill", "error": None, "full": 0.2, "free": 50 * GB}],
        "session": [{"path": "/session", "error": None, "full": 0.2, "free": 40 * GB}],
        "disk_threshold": 0.95,
    }
    return answer | changes


def node(name: str, **changes: Any) -> Node:
    values: dict[str, Any] = {
        "id": name * 8,
        "name": name,
        "address": f"10.0.0.{ord(name)}",
        "alive": True,
        "resources": {"CPU": 4.0, "memory": 10.0 * GB, "object_store_memory": 4.0 * GB},
        "info": info(),
        "clock_offset_s": 0.002,
        "clock_error_s": 0.001,
        "task_s": 0.001,
    }
    return Node(**(values | changes))


def healthy() -> Facts:
    return Facts(
        nodes=[node("a", head=True), node("b")],
        driver={"python": "3.11.9", "packages": {"ray": "2.60.0", "six": "1.17.0", "mine": "1"}},
        storage="s3://bucket/runs",
        num_targets=8,
        without_token={"GCS": "refused", "dashboard": "refused"},
        transfers={"a to b": 0.01, "b to a": 0.02},
        object_bytes=10_000_000,
        gloo=Collective(seconds=0.01),
        nccl=Collective(seconds=0.01),
        serve=Serve(applications={"app": ("RUNNING", "")}, proxies={"http://a:8000": 200}),
    )
