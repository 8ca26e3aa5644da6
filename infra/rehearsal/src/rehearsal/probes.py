"""The kubelet's probes of one pod."""

import http.client
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rehearsal.pods import Probe

if TYPE_CHECKING:
    from rehearsal.pod import Pod


class Prober:
    """Asks a pod whether it is ready, and then whether it is still alive."""

    def __init__(self, pod: "Pod", env: Mapping[str, str], on_change: Callable[[bool], None]):
        """Calls `on_change` with whether it is ready; commands get the environment `env`."""
        self._pod, self._env = pod, env
        self._on_change = on_change

    def run(self) -> None:
        """Returns when the pod goes."""
        pod = self._pod
        while not pod.started:
            if self._gone():
                return
            time.sleep(0.2)
        started = time.monotonic()
        probes = {"ready": pod.spec.ready, "alive": pod.spec.alive}
        due = {name: started + probe.delay_s for name, probe in probes.items()}
        failed = dict.fromkeys(probes, 0)
        while not self._gone():
            name = min(due, key=lambda each: due[each])
            time.sleep(max(0.05, min(0.5, due[name] - time.monotonic())))
            if time.monotonic() < due[name]:
                continue
            probe = probes[name]
            good = answers(pod, probe, self._env)
            due[name] = time.monotonic() + probe.period_s
            failed[name] = 0 if good else failed[name] + 1
            if name == "ready" and good:
                self._on_change(True)
            elif failed[name] >= probe.failures and name == "ready":
                self._on_change(False)
            elif failed[name] >= probe.failures:
                pod.unhealthy = True

    def _gone(self) -> bool:
        return self._pod.leaving or self._pod.sandbox.poll() is not None


def answers(pod: "Pod", probe: Probe, env: Mapping[str, str]) -> bool:
    """Whether a pod passes a probe once."""
    if probe.command:
        done = pod.sandbox.run(probe.command, env, probe.timeout_s)
        return done is not None and done[0] == 0
    return all(_answers(pod.sandbox.ip, *url, probe.timeout_s) for url in probe.urls)


def _answers(host: str, port: int, path: str, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
