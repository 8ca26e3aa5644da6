"""Runs a RayService: deploys its applications, and updates them while requests come.

Source: ray-project/kuberay, ray-operator/controllers/ray/rayservice_controller.go
"""

import http.client
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from ray_shared.errors import JobError

from rehearsal.context import Context
from rehearsal.head import Head, LostError
from rehearsal.manifest import Document, Plan, free_memory, plan
from rehearsal.operator import Operator
from rehearsal.pods import SERVE_PORT

DEPLOY_TIMEOUT_S = 600.0
"""For all applications to run."""
AFTER_UPDATE_S = 5.0
"""How long requests go on after an update."""
REQUEST_TIMEOUT_S = 30.0
REQUEST_PAUSE_S = 0.05
"""Between two requests of one client."""
NUM_CLIENTS = 2
FAILURES_SHOWN = 10
"""In the metrics; on the timeline there is one of so many."""
MAX_BODIES = 20
"""Different answers that are counted each by itself."""
MAX_BODY = 200
"""Characters of an answer that are kept."""
SCALING = ("replicas", "minReplicas", "maxReplicas")
"""Fields of a worker group for whose sake the operator makes no new cluster."""


def run(context: Context) -> None:
    """Deploys, sends requests, updates if there is something to update to.

    Fills `service_ready_s`; with `load`: see `Load.result`.

    Raises:
        JobError: If the applications do not run, or a request fails.
    """
    service = Service(
        context.operators[0], bool(context.plan.spec.get("excludeHeadPodFromServeSvc"))
    )
    deploy(context, service.active, context.plan)
    if not context.wait_for(lambda: bool(service.endpoints()), DEPLOY_TIMEOUT_S):
        raise JobError("no pod of the service became ready")
    context.timeline.add("job", context.plan.name, "ready")
    context.metrics["service_ready_s"] = round(context.timeline.now(), 2)
    load = Load(context, service)
    if context.options.load is not None:
        load.start()
    context.running.set()
    hold(context, service.active)
    if context.options.update is not None:
        update(context, service, context.options.update)
        context.pause(AFTER_UPDATE_S)
    context.finished.set()
    context.timeline.add("job", context.plan.name, "done", ended=True)
    load.stop()
    context.metrics |= load.result()
    if load.failures:
        raise JobError(f"{len(load.failures)} requests failed; the first: {load.failures[0]}")


def hold(context: Context, operator: Operator) -> None:
    """Watches a service for `hold_s`, and until its faults are over.

    To a head that takes the place of another the applications are sent again, as the operator does.
    """
    head, until = operator.head, time.monotonic() + context.options.hold_s

    def over() -> bool:
        nonlocal head
        if operator.head is not head:
            head = context.ready_head(operator)
            deploy(context, operator, context.plan)
        return time.monotonic() >= until and context.faults_done()

    context.wait_for(over, context.options.timeout_s)


@dataclass
class Service:
    """The Kubernetes Service: which pods get requests."""

    active: Operator
    without_head: bool

    def endpoints(self) -> list[str]:
        """Addresses of the pods of the active cluster that are ready to serve."""
        pods = [p for p in self.active.all_pods() if p.ready and not p.leaving]
        return [p.sandbox.ip for p in pods if p.spec.kind == "worker" or not self.without_head]


def deploy(context: Context, operator: Operator, wanted: Plan) -> None:
    """Sends the applications to a cluster, and waits until they run.

    Raises:
        JobError: If they do not.
    """
    config = yaml.safe_load(wanted.spec["serveConfigV2"])
    head = context.ready_head(operator)
    client = Head(head.sandbox.ip, operator.token)
    while True:
        sent = time.time()
        try:
            client.deploy(config)
            break
        except LostError:
            context.pause(1)
            if context.stopped.is_set() or operator.head is not head:
                raise
    context.timeline.add("job", wanted.name, "submitted", cluster=operator.name)
    names = {app["name"] for app in config["applications"]}
    last = ""

    def running() -> bool:
        nonlocal last
        try:
            apps = client.applications()
        except LostError:
            return False
        states = {name: apps[name]["status"] if name in apps else "UNKNOWN" for name in names}
        now = ", ".join(f"{name} {state.lower()}" for name, state in sorted(states.items()))
        if now != last:
            context.timeline.add("job", wanted.name, now, cluster=operator.name)
            last = now
        # Serve's clock is this one. Until it has taken the configuration, it tells of the old one.
        if not all(name in apps and apps[name]["last_deployed_time_s"] >= sent for name in names):
            return False
        for name, state in states.items():
            if state == "DEPLOY_FAILED":
                raise JobError(f"{name}: {apps[name].get('message') or state}")
        return set(states.values()) == {"RUNNING"}

    if not context.wait_for(running, DEPLOY_TIMEOUT_S):
        raise JobError(f"after {DEPLOY_TIMEOUT_S:g} s: {last}")


def update(context: Context, service: Service, path: str) -> None:
    """Applies a new manifest to the service.

    If only its applications change, or how far its groups scale, the applications are sent to the
    same cluster. Otherwise a second cluster is made; when that one serves, requests go there, and
    the first is deleted later.

    Raises:
        JobError: If the new version does not run.
    """
    same = replace(context.options, memory_factor=context.plan.memory_factor)
    wanted = plan(same, path, free_memory(), "update")
    context.timeline.add("job", wanted.name, "update")
    began = context.timeline.now()
    strategy = (wanted.spec.get("upgradeStrategy") or {}).get("type", "NewCluster")
    if stays(context.plan.cluster, wanted.cluster) or strategy == "None":
        if wanted.cluster != context.plan.cluster:
            context.note_change("update: the running cluster stays as it is")
        deploy(context, service.active, wanted)
    else:
        before = service.active
        new = Service(context.new_operator(wanted), service.without_head)
        deploy(context, new.active, wanted)
        if not context.wait_for(lambda: bool(new.endpoints()), DEPLOY_TIMEOUT_S):
            raise JobError("no pod of the new cluster became ready")
        service.active = new.active
        context.timeline.add("job", wanted.name, "switched", cluster=new.active.name)
        delay_s = float(wanted.spec.get("rayClusterDeletionDelaySeconds", 60))
        if delay_s > context.options.hold_s:
            hold_s = context.options.hold_s
            context.note_change(f"rayClusterDeletionDelaySeconds: {delay_s:g} -> {hold_s:g}")
        context.pause(min(delay_s, context.options.hold_s))
        before.close()
    context.metrics["time_to_update_s"] = round(context.timeline.now() - began, 2)


def stays(before: Document, after: Document) -> bool:
    """Whether the operator would keep the cluster: it compares all but how far groups scale."""

    def compared(cluster: Document) -> Document:
        groups = []
        for group in cluster["workerGroupSpecs"]:
            kept = {key: value for key, value in group.items() if key not in SCALING}
            strategy = dict(kept["scaleStrategy"])
            strategy.pop("workersToDelete", None)
            groups.append(kept | {"scaleStrategy": strategy})
        return cluster | {"workerGroupSpecs": groups}

    return compared(before) == compared(after)


@dataclass
class Load:
    """Clients that request one path all the time, each request on a connection of its own."""

    context: Context
    service: Service
    answers: Counter[int] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    last_body: str | None = None
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begins; returns at once."""
        for number in range(NUM_CLIENTS):
            thread = threading.Thread(target=self._client, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends, once every request under way has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join(REQUEST_TIMEOUT_S)

    def result(self) -> dict[str, Any]:
        """What came of it; nothing if there was none.

        Returns:
            `requests`, `requests_failed`, `answers` (how often each status came), `bodies` (how
            often each text came, in the order of their first), `last_body`, `failures`.
        """
        if not self._threads:
            return {}
        with self._lock:
            return {
                "requests": sum(self.answers.values()),
                "requests_failed": len(self.failures),
                "answers": {str(status): n for status, n in sorted(self.answers.items())},
                "bodies": dict(self.bodies),
                "last_body": self.last_body,
                "failures": self.failures[:FAILURES_SHOWN],
            }

    def _client(self, number: int) -> None:
        for count in itertools.count(number):
            if self._stop.wait(REQUEST_PAUSE_S):
                return
            endpoints = self.service.endpoints()
            status, text = 0, "no pod is ready"
            if endpoints:
                status, text = self._request(endpoints[count % len(endpoints)])
            self._count(status, text[:MAX_BODY])

    def _count(self, status: int, text: str) -> None:
        with self._lock:
            self.answers[status] += 1
            if 200 <= status < 400:
                if text in self.bodies or len(self.bodies) < MAX_BODIES:
                    self.bodies[text] += 1
                self.last_body = text
                return
            moment = f"{self.context.timeline.now():.1f} s"
            self.failures.append(f"{moment}: {status or 'no answer'} {text}")
            if len(self.failures) % FAILURES_SHOWN == 1:
                self.context.timeline.add("request", "client", self.failures[-1])

    def _request(self, host: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(host, SERVE_PORT, timeout=REQUEST_TIMEOUT_S)
        try:
            path = self.context.options.load or "/"
            connection.request("GET", path, headers=self.context.options.load_headers)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
            return answer.status, body if answer.status < 400 else answer.reason
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{type(error).__name__}: {error}"
        finally:
            connection.close()
