"""Does what KubeRay's operator does with a RayCluster: makes its pods, and takes them away.

Source: ray-project/kuberay, ray-operator/controllers/ray/raycluster_controller.go
"""

import contextlib
import copy
import math
import secrets
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from rehearsal import pods
from rehearsal.api import PORT, Document, Server, Store
from rehearsal.manifest import Plan
from rehearsal.namespaces import GATEWAY
from rehearsal.options import Options
from rehearsal.probes import Prober
from rehearsal.sandbox import Sandbox
from rehearsal.timeline import Timeline

TICK_S = 0.25
CREDENTIALS = "/rehearsal-api"
"""Where the autoscaler finds its certificates, in its pod only."""
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Pod:
    """A pod that exists, whether it runs or not."""

    def __init__(self, spec: pods.PodSpec, sandbox: Sandbox, version: str):
        self.spec = spec
        self.sandbox = sandbox
        self.version = version
        self.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.started = self.ready = self.leaving = self.unhealthy = False
        self.exit_code: int | None = None

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


class Operator:
    """The pods of one RayCluster."""

    numbers = iter(range(250 * 200))

    def __init__(
        self, plan: Plan, options: Options, store: Store, server: Server, timeline: Timeline
    ):
        self.plan, self.options, self.timeline = plan, options, timeline
        self.store, self.server = store, server
        self.name = plan.name
        if plan.kind != "RayCluster":  # Jobs and services make theirs with a name of its own.
            self.name = f"{plan.name}-{pods.random_suffix()}"
        self.token = secrets.token_hex(16) if plan.token else None
        self.pods: list[Pod] = []
        self.closing = False
        self.output = Path(options.output)
        with store.lock:
            store.clusters[self.name] = {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": {
                    "name": self.name,
                    "namespace": plan.namespace,
                    "annotations": plan.annotations,
                    "resourceVersion": store.next_version(),
                },
                "spec": copy.deepcopy(plan.cluster),
            }

    @property
    def head(self) -> Pod | None:
        """The head's pod, unless it is going."""
        return next((p for p in self.pods if p.spec.kind == "head" and not p.leaving), None)

    def workers(self) -> list[Pod]:
        """The workers' pods that are not going."""
        return [p for p in self.pods if p.spec.kind == "worker" and not p.leaving]

    def tick(self) -> None:
        """Looks at all pods, and makes and deletes what the RayCluster says."""
        with self.store.lock:
            spec = self.store.clusters[self.name]["spec"]
            for pod in list(self.pods):
                self._look_at(pod)
            if self.closing:
                return
            if self.head is None:
                self.make("head", spec["headGroupSpec"])
            for group in spec["workerGroupSpecs"]:
                self._match(group)

    def _look_at(self, pod: Pod) -> None:
        if not pod.started and pod.sandbox.started:
            pod.started = True
            self._tell("started", pod)
            if pod.spec.kind == "head" and self.plan.autoscaled:
                self._start_autoscaler(pod)
        code = pod.sandbox.poll()
        if code is not None and pod.exit_code is None:
            pod.exit_code = code
            pod.ready = False
            if not pod.leaving:
                self._tell("note", pod, f"ended by itself with {code}")
        if (pod.exit_code is not None or pod.unhealthy) and not pod.leaving:
            self.delete(pod, "its container has ended" if not pod.unhealthy else "is not alive")

    def _match(self, group: Document) -> None:
        """Makes and deletes workers of one group."""
        going = group["scaleStrategy"].get("workersToDelete") or []
        for pod in self.workers():
            if pod.name in going:
                self.delete(pod, "the autoscaler wants it so")
        there = [pod for pod in self.workers() if pod.spec.group == group["groupName"]]
        wanted = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
        wanted *= group["numOfHosts"]
        for _ in range(wanted - len(there)):
            self.make("worker", group)
        if not self.plan.autoscaled:  # With an autoscaler none is deleted at random.
            for pod in there[wanted:]:
                self.delete(pod, "more than replicas")

    def make(self, kind: str, group: Document) -> Pod:
        """Makes a pod and starts it."""
        secret = self.options.secrets
        spec = pods.build(self.plan, self.name, kind, group, self.token, secret)
        pod = Pod(spec, Sandbox(spec.name, next(self.numbers)), self.store.next_version())
        self.pods.append(pod)
        self._tell("pod", pod, group=spec.group)
        volumes: dict[str, Path | None] = {
            path: self.volume(name) for path, name in spec.volumes.items()
        }
        if kind == "head":
            volumes[CREDENTIALS] = self.server.directory
        hosts = self._hosts(pod.sandbox.ip if kind == "head" else None)
        if kind == "head":
            for worker in self.workers():
                worker.sandbox.set_hosts(hosts)
        with (self._logs() / f"{pod.name}.log").open("wb") as log:
            pod.sandbox.start(
                spec.command,
                self.environment(spec),
                spec.wait_for,
                volumes,
                spec.shm_bytes,
                hosts,
                log,
            )
        prober = Prober(pod, lambda: self._became_ready(pod))
        threading.Thread(target=prober.run, name=f"probe {pod.name}", daemon=True).start()
        return pod

    def environment(self, spec: pods.PodSpec) -> dict[str, str]:
        """The variables of a pod, with those that stand for what the image would hold."""
        image = {"PATH": f"{self.options.python}:{PROGRAMS}"}
        image |= {"HOME": "/tmp/home", "LANG": "C.UTF-8"}
        if self.options.sources:
            image["PYTHONPATH"] = ":".join(self.options.sources)
        return image | spec.env | self.options.env

    def volume(self, name: str) -> Path | None:
        """The directory behind a volume; None for one that goes with its pod."""
        if not name.startswith("claim/"):
            return None
        directory = self.output / "volumes" / name.removeprefix("claim/")
        directory.mkdir(parents=True, exist_ok=True)
        return directory.resolve()

    def delete(self, pod: Pod, reason: str, at_most_s: float = math.inf) -> None:
        """Deletes a pod as the kubelet does; returns at once.

        Args:
            pod: Which one.
            reason: Why, for the timeline.
            at_most_s: Seconds of its grace that it gets, as when its node is about to go.
        """
        with self.store.lock:
            if pod.leaving:
                return
            pod.leaving = True
            pod.ready = False
            self._tell("leaving", pod, reason)
        grace_s = pod.spec.grace_s if self.options.grace_s is None else self.options.grace_s
        grace_s = min(grace_s, at_most_s)
        threading.Thread(target=self._end, args=(pod, grace_s), daemon=True).start()

    def _end(self, pod: Pod, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        if pod.sandbox.started and pod.sandbox.poll() is None:
            if pod.spec.pre_stop:
                command = pod.sandbox.execute(pod.spec.pre_stop, self.environment(pod.spec))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(command, capture_output=True, timeout=grace_s)
            pod.sandbox.signal(signal.SIGTERM)
            while pod.sandbox.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        killed = pod.sandbox.poll() is None
        pod.sandbox.remove()
        with self.store.lock:
            self.pods.remove(pod)
            self._tell("removed", pod, "killed after its grace" if killed else "")

    def _hosts(self, head_ip: str | None = None) -> str:
        ip = head_ip or (self.head.sandbox.ip if self.head else "127.0.0.1")
        full = pods.head_service(self.name, self.plan.namespace)
        return f"{ip} {full} {full.split('.')[0]}\n"

    def _became_ready(self, pod: Pod) -> None:
        if not pod.ready and not pod.leaving:
            pod.ready = True
            self._tell("ready", pod)

    def _start_autoscaler(self, pod: Pod) -> None:
        """The second container of the head's pod, which shares the first one's network and logs."""
        image = self.environment(pod.spec)
        keep = ("PATH", "HOME", "LANG", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        env = {name: image[name] for name in keep if name in image} | {
            "RAY_CLUSTER_NAME": self.name,
            "RAY_CLUSTER_NAMESPACE": self.plan.namespace,
            "RAY_HEAD_POD_NAME": pod.name,
            "KUBERAY_CRD_VER": "v1",
            "KUBERNETES_SERVICE_HOST": GATEWAY,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(PORT),
        }
        env |= {name: f"{CREDENTIALS}/{path.name}" for name, path in self.server.files.items()}
        options = self.plan.cluster.get("autoscalerOptions") or {}
        env |= {e["name"]: str(e["value"]) for e in options.get("env") or [] if "value" in e}
        command = ["ray", "kuberay-autoscaler", "--cluster-name", self.name]
        command += ["--cluster-namespace", self.plan.namespace]
        with (self._logs() / f"{pod.name}-autoscaler.log").open("wb") as log:
            subprocess.Popen(
                pod.sandbox.execute(command, env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _logs(self) -> Path:
        directory = self.output / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _tell(self, kind: str, pod: Pod, text: str = "", **data: Any) -> None:
        self.timeline.add(kind, pod.name, text, role=pod.spec.kind, cluster=self.name, **data)

    def close(self) -> None:
        """Deletes all pods, as KubeRay does with a cluster, and waits until they are gone."""
        self.closing = True
        with self.store.lock:
            for pod in list(self.pods):
                self.delete(pod, "the cluster is deleted")
        while self.pods:
            time.sleep(TICK_S)
