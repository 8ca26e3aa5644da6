"""One pod, as the operator keeps it and the API shows it."""

import subprocess
import time
from pathlib import Path

from rehearsal import pods
from rehearsal.manifest import Document
from rehearsal.sandbox import Sandbox


class Pod:
    """A pod that exists, whether it runs or not."""

    def __init__(self, spec: pods.PodSpec, sandbox: Sandbox, version: str):
        self.spec = spec
        self.sandbox = sandbox
        self.version = version
        self.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.started = self.ready = self.leaving = self.unhealthy = False
        self.exit_code: int | None = None
        self.was_ready = False
        self.made_s = time.monotonic()
        self.autoscaler: subprocess.Popen[bytes] | None = None
        self.autoscaler_ended_s: float | None = None

    @property
    def name(self) -> str:
        """Unique in the rehearsal."""
        return self.spec.name

    def document(self) -> Document:
        """As the API shows it."""
        if self.exit_code is not None:
            state: Document = {"terminated": {"exitCode": self.exit_code}}
            phase = "Failed" if self.exit_code else "Succeeded"
        elif self.started:
            state, phase = {"running": {"startedAt": self.created}}, "Running"
        else:
            state, phase = {"waiting": {"reason": "PodInitializing"}}, "Pending"
        container = {"name": self.spec.container.get("name", "ray"), "ready": self.ready}
        metadata: Document = {
            "name": self.name,
            "labels": self.spec.labels,
            "resourceVersion": self.version,
            "creationTimestamp": self.created,
        }
        if self.leaving:
            metadata["deletionTimestamp"] = self.created
        status: Document = {"phase": phase, "podIP": self.sandbox.ip}
        status["containerStatuses"] = [container | {"state": state}]
        spec = {"containers": [self.spec.container]}
        return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def last_line(log: Path) -> str:
    """What a log says last, and where it is."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    return f"{lines[-1]} ({log})"
