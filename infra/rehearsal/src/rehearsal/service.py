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
from ray_shared.errors import JobError, UserError

from rehearsal.head import Head, LostError
from rehearsal.manifest import Plan, free_memory, plan
from rehearsal.operator import Operator
from rehearsal.pods import SERVE_PORT
from rehearsal.stage import Stage

DEPLOY_S = 600.0
"""For all applications to run."""
AFTER_S = 5.0
"""How long requests go on after an update."""
REQUEST_S = 30.0
PAUSE_S = 0.05
"""Between two requests of one client."""
NUM_CLIENTS = 2
NEWS = 10
"""Failed requests for each entry on the timeline."""


def run(stage: Stage) -> None:
    """Deploys, sends requests, updates if there is something to update to.

    Fills `service_ready_s`; with `load`: `requests`, `requests_failed`, `answers` (how often each
    status came).

    Raises:
        JobError: If the applications do not run, or a request fails.
    """
    service = Service(stage.operators[0], bool(stage.plan.spec.get("excludeHeadPodFromServeSvc")))
    deploy(stage, service.active, stage.plan)
    if not stage.wait_for(lambda: bool(service.endpoints()), DEPLOY_S):
        raise JobError("no pod of the service became ready")
    stage.timeline.add("job", stage.plan.name, "ready")
    stage.metrics["service_ready_s"] = round(stage.timeline.now(), 2)
    load = Load(stage, service)
    if stage.options.load is not None:
        load.start()
    stage.running.set()
    stage.pause(stage.options.hold_s)
    if stage.options.update is not None:
        update(stage, service, stage.options.update)
        stage.pause(AFTER_S)
    stage.timeline.add("job", stage.plan.name, "done", ended=True)
    load.stop()
    stage.metrics |= load.result()
    if load.failures:
        raise JobError(f"{len(load.failures)} requests failed; the first: {load.failures[0]}")


@dataclass
class Service:
    """The Kubernetes Service: which pods get requests."""

    active: Operator
    without_head: bool

    def endpoints(self) -> list[str]:
        """Addresses of the pods of the active cluster that are ready to serve."""
        pods = [p for p in self.active.pods if p.ready and not p.leaving]
        return [p.sandbox.ip for p in pods if p.spec.kind == "worker" or not self.without_head]


def deploy(stage: Stage, operator: Operator, wanted: Plan) -> None:
    """Sends the applications to a cluster, and waits until they run.

    Raises:
        JobError: If they do not.
    """
    config = yaml.safe_load(wanted.spec.get("serveConfigV2") or "")
    if not isinstance(config, dict) or not config.get("applications"):
        raise UserError(f"{wanted.kind}/{wanted.name}: serveConfigV2 holds no applications")
    head = stage.ready_head(operator)
    client = Head(head.sandbox.ip, operator.token)
    while True:
        try:
            client.deploy(config)
            break
        except LostError:
            stage.pause(1)
            if stage.stopped.is_set() or operator.head is not head:
                raise
    stage.timeline.add("job", wanted.name, "submitted", cluster=operator.name)
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
            stage.timeline.add("job", wanted.name, now, cluster=operator.name)
            last = now
        for name, state in states.items():
            if state == "DEPLOY_FAILED":
                raise JobError(f"{name}: {apps[name].get('message') or state}")
        return set(states.values()) == {"RUNNING"}

    stage.pause(1)  # A new configuration of a running application still says RUNNING for a moment.
    if not stage.wait_for(running, DEPLOY_S):
        raise JobError(f"after {DEPLOY_S:g} s: {last}")


def update(stage: Stage, service: Service, path: str) -> None:
    """Applies a new manifest to the service.

    If only its applications change, they are sent to the same cluster. Otherwise a second cluster
    is made; when that one serves, requests go there, and the first is deleted later.

    Raises:
        JobError: If the new version does not run.
    """
    same = replace(stage.options, memory_factor=stage.plan.memory_factor)
    wanted = plan(same, path, free_memory())
    stage.timeline.add("job", wanted.name, "update")
    began = stage.timeline.now()
    if wanted.cluster == stage.plan.cluster:
        deploy(stage, service.active, wanted)
    else:
        before = service.active
        new = Service(stage.new_operator(wanted), service.without_head)
        deploy(stage, new.active, wanted)
        if not stage.wait_for(lambda: bool(new.endpoints()), DEPLOY_S):
            raise JobError("no pod of the new cluster became ready")
        service.active = new.active
        stage.timeline.add("job", wanted.name, "switched", cluster=new.active.name)
        delay_s = float(wanted.spec.get("rayClusterDeletionDelaySeconds", 60))
        stage.pause(min(delay_s, stage.options.hold_s))
        before.close()
    stage.metrics["time_to_update_s"] = round(stage.timeline.now() - began, 2)


@dataclass
class Load:
    """Clients that request one path all the time, each request on a connection of its own."""

    stage: Stage
    service: Service
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
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
            thread.join(REQUEST_S)

    def result(self) -> dict[str, Any]:
        """What came of it; nothing if there was none."""
        if not self._threads:
            return {}
        total = sum(self.answers.values())
        answers = {str(status): count for status, count in sorted(self.answers.items())}
        return {
            "requests": total,
            "requests_failed": len(self.failures),
            "answers": answers,
            "failures": self.failures[:NEWS],
        }

    def _client(self, number: int) -> None:
        for count in itertools.count(number):
            if self._stop.wait(PAUSE_S):
                return
            endpoints = self.service.endpoints()
            status, reason = 0, "no pod is ready"
            if endpoints:
                status, reason = self._request(endpoints[count % len(endpoints)])
            self.answers[status] += 1
            if not 200 <= status < 400:
                moment = f"{self.stage.timeline.now():.1f} s"
                self.failures.append(f"{moment}: {status or 'no answer'} {reason}")
                if len(self.failures) % NEWS == 1:
                    self.stage.timeline.add("request", "client", self.failures[-1])
                time.sleep(PAUSE_S)

    def _request(self, host: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(host, SERVE_PORT, timeout=REQUEST_S)
        try:
            path = self.stage.options.load or "/"
            connection.request("GET", path, headers=self.stage.options.load_headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.reason
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{type(error).__name__}: {error}"
        finally:
            connection.close()
