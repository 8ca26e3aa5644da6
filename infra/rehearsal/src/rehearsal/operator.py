"""Does what KubeRay's operator does with a RayCluster: makes its pods, and takes them away.

Source: ray-project/kuberay, ray-operator/controllers/ray/raycluster_controller.go
"""

import copy
import math
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

from ray_shared.errors import JobError

from rehearsal import autoscaler, pods
from rehearsal.api import Document, Server, Store
from rehearsal.autoscaler import CREDENTIALS
from rehearsal.manifest import Plan
from rehearsal.options import Options
from rehearsal.pod import Pod, last_line
from rehearsal.probes import Prober
from rehearsal.sandbox import Sandbox, address
from rehearsal.timeline import Timeline

TICK_S = 0.25
MAX_FAILED_STARTS = 3
"""Pods of a group, one after the other, that end before they are ready."""
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Operator:
    """The pods of one RayCluster."""

    def __init__(
        self, plan: Plan, options: Options, store: Store, server: Server, timeline: Timeline
    ):
        self.plan, self.options, self.timeline = plan, options, timeline
        self.store, self.server = store, server
        self.name = plan.name
        if plan.kind != "RayCluster":  # Jobs and services make theirs with a name of its own.
            self.name = f"{plan.name}-{pods.random_suffix()}"
        self.token = secrets.token_hex(16) if plan.token else None
        self._pods: list[Pod] = []
        self._failed_starts: dict[str, list[float]] = {}
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
        return next((p for p in self.all_pods() if p.spec.kind == "head" and not p.leaving), None)

    def workers(self) -> list[Pod]:
        """The workers' pods that are not going."""
        return [p for p in self.all_pods() if p.spec.kind == "worker" and not p.leaving]

    def all_pods(self) -> list[Pod]:
        """Those that are going, too."""
        with self.store.lock:
            return list(self._pods)

    def complete(self) -> bool:
        """Whether the head is ready, and as many workers as the RayCluster says now."""
        with self.store.lock:
            ready = [pod for pod in self.workers() if pod.ready]
            groups = self.store.clusters[self.name]["spec"]["workerGroupSpecs"]
            enough = all(
                sum(pod.spec.group == group["groupName"] for pod in ready) >= wanted_pods(group)
                for group in groups
            )
            return enough and self.head is not None and self.head.ready

    def tick(self) -> None:
        """Looks at all pods, and makes and deletes what the RayCluster says."""
        with self.store.lock:
            spec = self.store.clusters[self.name]["spec"]
            for pod in self.all_pods():
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
                log = self._log(f"{pod.name}-autoscaler")
                image = self.environment(pod.spec)
                autoscaler.start(pod, self.plan, self.name, image, self.server, log)
        code = pod.sandbox.poll()
        if code is not None and pod.exit_code is None:
            pod.exit_code = code
            pod.ready = False
            if not pod.leaving:
                self._tell("note", pod, f"ended by itself with {code}")
                self._count_failed_start(pod)
        autoscaler.check(pod, self._log(f"{pod.name}-autoscaler"))
        if (pod.exit_code is not None or pod.unhealthy) and not pod.leaving:
            self.delete(pod, "its container has ended" if not pod.unhealthy else "is not alive")

    def _count_failed_start(self, pod: Pod) -> None:
        failed = self._failed_starts.setdefault(pod.spec.group, [])
        if pod.was_ready:
            failed.clear()
        # Pods that were there together may have ended for one reason, such as the head's end.
        elif not failed or pod.made_s > failed[-1]:
            failed.append(time.monotonic())
        if len(failed) >= MAX_FAILED_STARTS:
            raise JobError(
                f"{pod.spec.group}: {len(failed)} pods, one after the other, ended before they "
                f"were ready; the last: {last_line(self._log(pod.name))}"
            )

    def _match(self, group: Document) -> None:
        """Makes and deletes workers of one group."""
        going = group["scaleStrategy"].get("workersToDelete") or []
        for pod in self.workers():
            if pod.name in going:
                self.delete(pod, "the autoscaler wants it so")
        there = [pod for pod in self.workers() if pod.spec.group == group["groupName"]]
        wanted = wanted_pods(group)
        for _ in range(wanted - len(there)):
            self.make("worker", group)
        if not self.plan.autoscaled:  # With an autoscaler none is deleted at random.
            for pod in there[wanted:]:
                self.delete(pod, "more than replicas")

    def make(self, kind: str, group: Document) -> Pod:
        """Makes a pod and starts it."""
        number = self.store.next_number()
        spec = pods.build(
            self.plan, self.name, kind, group, self.token, self.options.secrets, address(number)
        )
        pod = Pod(spec, Sandbox(spec.name, number), self.store.next_version())
        with self.store.lock:
            self._pods.append(pod)
        self._tell("pod", pod, group=spec.group)
        volumes = {path: self.volume(pod, name) for path, name in spec.volumes.items()}
        if kind == "head":
            volumes[CREDENTIALS] = self.server.directory
        hosts = self._hosts(pod.sandbox.ip if kind == "head" else None)
        if kind == "head":
            for worker in self.workers():
                worker.sandbox.set_hosts(hosts)
        with self._log(pod.name).open("wb") as log:
            pod.sandbox.start(
                spec.command,
                self.environment(spec),
                spec.wait_for,
                volumes,
                spec.shm_bytes,
                hosts,
                log,
            )
        prober = Prober(
            pod, self.environment(spec), lambda ready: self._changed_readiness(pod, ready)
        )
        threading.Thread(target=prober.run, name=f"probe {pod.name}", daemon=True).start()
        return pod

    def environment(self, spec: pods.PodSpec) -> dict[str, str]:
        """The variables of a pod, with those that stand for what the image would hold."""
        image = {"PATH": f"{self.options.python}:{PROGRAMS}"}
        image |= {"HOME": "/tmp/home", "LANG": "C.UTF-8"}
        if self.options.sources:
            image["PYTHONPATH"] = ":".join(self.options.sources)
        return image | spec.env | self.options.env

    def volume(self, pod: Pod, name: str) -> Path:
        """The directory or file behind a volume: in the output, or for a pod's own with the pod."""
        volume, _, inside = name.removeprefix("claim/").partition("/")
        root = self.output.resolve() if name.startswith("claim/") else pod.sandbox.directory
        directory = root / "volumes" / volume
        if not directory.exists():
            directory.mkdir(parents=True)
            for path, content in pod.spec.files.get(volume, {}).items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(content)
        place = directory / inside
        if not place.exists():
            place.mkdir(parents=True)
        return place

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
                pod.sandbox.run(pod.spec.pre_stop, self.environment(pod.spec), grace_s)
            pod.sandbox.signal(signal.SIGTERM)
            while pod.sandbox.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        killed = pod.sandbox.started and pod.sandbox.poll() is None
        pod.sandbox.remove()
        with self.store.lock:
            self._pods.remove(pod)
            self._tell("removed", pod, "killed after its grace" if killed else "")

    def _hosts(self, head_ip: str | None = None) -> str:
        ip = head_ip or (self.head.sandbox.ip if self.head else "127.0.0.1")
        full = pods.head_service(self.name, self.plan.namespace)
        return f"{ip} {full} {full.split('.')[0]}\n"

    def _changed_readiness(self, pod: Pod, ready: bool) -> None:
        with self.store.lock:
            if pod.ready == ready or pod.leaving:
                return
            pod.ready = ready
            pod.was_ready = pod.was_ready or ready
            self._tell("ready" if ready else "unready", pod)

    def _log(self, name: str) -> Path:
        directory = self.output / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{name}.log"

    def _tell(self, kind: str, pod: Pod, text: str = "", **data: Any) -> None:
        self.timeline.add(kind, pod.name, text, role=pod.spec.kind, cluster=self.name, **data)

    def close(self) -> None:
        """Deletes all pods, as KubeRay does with a cluster, and waits until they are gone."""
        self.closing = True
        with self.store.lock:
            for pod in self.all_pods():
                self.delete(pod, "the cluster is deleted")
        while self.all_pods():
            time.sleep(TICK_S)


def wanted_pods(group: Document) -> int:
    """How many pods a worker group should have."""
    replicas = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
    return int(replicas * group["numOfHosts"])
