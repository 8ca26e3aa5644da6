"""The head from outside: its ports, and what it answers a client without a token."""

import os
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.services import get_webui_url_from_internal_kv
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]

from ray_doctor import node

ORDERLY = ("EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE")
"""Ways for a node to go that nobody has to worry about."""
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What every client asks for first."""
CLOSED_PAGE = "/nodes?view=summary"
"""A page of the dashboard that is not open to everybody."""


def death_of(listed: dict[str, Any]) -> str:
    """Why a node is gone; empty if it lives or left as it should.

    Args:
        listed: What `ray.nodes()` says of it.
    """
    if listed["Alive"]:
        return ""
    reason = NodeDeathInfo.Reason.Name(listed.get("DeathReason") or 0)
    if reason in ORDERLY:
        return ""
    message = str(listed.get("DeathReasonMessage") or "").strip().splitlines()
    return message[0] if message else reason.lower().replace("_", " ")


def head_ports(address: str) -> dict[str, str]:
    """What else listens on the head, and where others must reach it.

    Args:
        address: The head's, as the nodes know it.
    """
    found = {"GCS": str(ray.get_runtime_context().gcs_address)}
    dashboard = dashboard_address()
    if dashboard is not None:
        host = dashboard.rpartition(":")[0]
        # Open to the head's own machine alone, as it is by default: nothing of Ray's needs more.
        if host not in ("127.0.0.1", "localhost") or address == host:
            found["dashboard"] = dashboard
    return found


def dashboard_address() -> str | None:
    """`host:port` of the dashboard; None if there is none."""
    url = get_webui_url_from_internal_kv()
    return url.removeprefix("http://") if url else None


def spilling_config() -> str:
    """The cluster's `object_spilling_config`, as its head has it; empty for none."""
    return str(ray._private.state.state.get_system_config().get("object_spilling_config") or "")


def without_token(timeout_s: float) -> dict[str, str]:
    """Asks the GCS and the dashboard without a token.

    Returns:
        For each endpoint: `refused`, `answered`, or why nobody knows.
    """
    found = {"GCS": _gcs(str(ray.get_runtime_context().gcs_address), timeout_s)}
    dashboard = dashboard_address()
    if dashboard is not None:
        status = node.http_status(f"http://{dashboard}{CLOSED_PAGE}", timeout_s)
        answered = "answered" if isinstance(status, int) else status
        found["dashboard"] = "refused" if status in (401, 403) else answered
    return found


def _gcs(address: str, timeout_s: float) -> str:
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return "it speaks TLS, with certificates of its own"
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            refused = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return "refused" if refused else code.name.lower().replace("_", " ")
    return "answered"
