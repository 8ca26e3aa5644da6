"""Faults that happen and that do not, and pods that end. They run plain programs here, not Ray."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from ray_shared.errors import JobError
from rehearsal.context import Context
from rehearsal.faults import Injection
from rehearsal.manifest import Plan
from rehearsal.options import Options
from rehearsal.timeline import Timeline
from rehearsal.watch import Watch

from .manifests import cluster, document, write

READY = {"exec": {"command": ["sh", "-c", "test -e /tmp/up"]}, "periodSeconds": 1}


def heads_only(tmp_path: Path, program: str, autoscaled: bool = False, **fields: Any) -> str:
    """A cluster without workers, whose head runs a line of shell."""
    spec = cluster(enableInTreeAutoscaling=autoscaled, workerGroupSpecs=[])
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    container |= {"command": [program, "# ray start"], "readinessProbe": READY} | fields
    objects = [document("ConfigMap", {}, "settings"), document("Secret", {}, "keys")]
    objects[0]["data"] = {"a.txt": "first", "b.txt": "second"}
    objects[1]["stringData"] = {"key": "a-long-secret"}
    pod = spec["headGroupSpec"]["template"]["spec"]
    pod["volumes"] += [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    return write(tmp_path / "heads.yaml", *objects, document("RayCluster", spec))


def events(command: Any) -> list[dict[str, Any]]:
    return json.loads((command.output / "timeline.json").read_text())


def test_killed_pod_is_replaced_before_the_rehearsal_ends(rehearse, tmp_path):
    manifest = heads_only(tmp_path, "touch /tmp/up; sleep 1000")
    with rehearse(manifest, "--kill=head@0.5s") as command:
        assert command.process.wait(60) == 0, command.text()
    kinds = [event["kind"] for event in events(command)]
    assert [kinds.count(kind) for kind in ("fault", "pod", "ready")] == [1, 2, 2]
    assert (
        kinds.index("fault") < kinds.index("removed") < len(kinds) - 1 - kinds[::-1].index("ready")
    )


def test_fault_that_does_not_happen_is_an_error(tmp_path):
    options = Options(manifest="m", output=str(tmp_path), faults=["kill=worker@20s"])
    context = Context(Plan("RayJob", "mine", "ray", {}, {}), options, Timeline())
    (fault,) = options.parsed_faults()
    injection = Injection(context, Watch(context), fault)
    context.finished.set()
    injection.run()
    assert not injection.replaced()
    with pytest.raises(JobError, match="rehearse.kill=worker@20s did not happen"):
        injection.check()


def test_pods_that_end_before_they_are_ready_are_an_error_with_their_last_words(rehearse, tmp_path):
    with rehearse(heads_only(tmp_path, "echo no such file; exit 3")) as command:
        assert command.process.wait(60) == 1
    assert "error: headgroup: 3 pods, one after the other, ended" in command.text()
    assert "the last: no such file (" in command.text()
    assert [event["kind"] for event in events(command)].count("pod") == 3


def test_autoscaler_that_crashes_is_an_error_with_its_last_words(rehearse, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ray").write_text("#!/bin/sh\necho no such cluster; exit 3\n")
    (programs / "ray").chmod(0o755)
    with rehearse(heads_only(tmp_path, "sleep 1000", True), f"--python={programs}") as command:
        assert command.process.wait(60) == 1
    assert "error: the autoscaler ended with 3: no such cluster (" in command.text()


def test_probe_has_the_pods_environment_and_leaves_no_process(rehearse, tmp_path):
    key = {"secretKeyRef": {"name": "keys", "key": "key"}}
    ready = ["sh", "-c", 'test "${#KEY}" = 13 && command -v python && exec sleep 0.5']
    alive = {"exec": {"command": ["sleep", "54321"]}, "periodSeconds": 1, "timeoutSeconds": 1}
    manifest = heads_only(
        tmp_path,
        "sleep 1000",
        env=[{"name": "KEY", "valueFrom": key}],
        readinessProbe={"exec": {"command": ready}, "periodSeconds": 1, "timeoutSeconds": 20},
        livenessProbe=alive | {"failureThreshold": 1000},
    )
    # The fault never comes, so that there is time to look.
    with rehearse(manifest, "--kill=head@1000s") as command:
        wait_until(lambda: "ready" in command.text() and asleep())
        (first, *_) = asleep()
        wait_until(lambda: first not in asleep())
        assert not any(b"a-long-secret" in each for each in arguments().values())


def asleep() -> list[str]:
    """Numbers of the processes of the liveness probe."""
    probe = b"sleep\0" + b"54321\0"
    return [number for number, words in arguments().items() if words == probe]


def arguments() -> dict[str, bytes]:
    """Those of every process, by its number."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended.
            found[entry.name] = (entry / "cmdline").read_bytes()
    return found


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_pod_finds_what_it_refers_to(rehearse, tmp_path):
    program = (
        "cat /etc/settings/a.txt /etc/app/only.txt /etc/keys/key; echo; ls /etc/settings /etc/app; "
        'echo x > /one/file; ls /two; echo "$FROM_key $POD_IP"; touch /tmp/up; sleep 1000'
    )
    mounts = [
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "settings", "mountPath": "/etc/app/only.txt", "subPath": "b.txt"},
        {"name": "keys", "mountPath": "/etc/keys"},
        {"name": "scratch", "mountPath": "/one"},
        {"name": "scratch", "mountPath": "/two"},
    ]
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    manifest = heads_only(
        tmp_path,
        program,
        volumeMounts=mounts,
        env=[pod_ip],
        envFrom=[{"secretRef": {"name": "keys"}, "prefix": "FROM_"}],
    )
    with rehearse(manifest) as command:
        assert command.process.wait(60) == 0, command.text()
    (log,) = (command.output / "logs").glob("*.log")
    words = log.read_text().split()
    assert words[0] == "firstseconda-long-secret"
    assert words[1:] == [
        *("/etc/app:", "only.txt", "/etc/settings:", "a.txt", "b.txt", "file"),
        *("a-long-secret", "10.77.1.1"),
    ]
