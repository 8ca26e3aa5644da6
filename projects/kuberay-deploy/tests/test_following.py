"""Manifests on a cluster once they are there: status, logs, and their end."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
from kuberay_deploy import actions, kubernetes
from kuberay_deploy.api_server import Api
from kuberay_deploy.config import Config
from ray_shared.config import compose
from ray_shared.errors import JobError, UserError
from ray_shared.report import RESULT_LINE, Report

from .fake_api import FakeApi, api, fake
from .test_kubernetes import DONE, MAP, job

__all__ = ["api", "fake"]


class Operator:
    """Gives a job its next status each time that somebody has looked."""

    def __init__(self, api: Api, fake: FakeApi, statuses: list[dict[str, Any]]):
        self.get, self.fake, self.statuses = api.get, fake, statuses

    def __call__(self, *args: Any) -> dict[str, Any] | None:
        found = self.get(*args)
        if self.statuses:
            self.fake.status("rayjobs", "train", self.statuses.pop(0))
        return found


@pytest.fixture
def submitted(fake: FakeApi, api: Api) -> Api:
    kubernetes.submit(api, [job()])
    return api


def test_job_is_followed_to_its_end(
    fake: FakeApi, submitted: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    retried = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    steps = [{"jobDeploymentStatus": "Initializing"}, retried, running, DONE]
    monkeypatch.setattr(submitted, "get", Operator(submitted, fake, steps))
    with caplog.at_level(logging.INFO):
        now = kubernetes.wait(submitted, "RayJob/train", 30)
    assert (now.phase, now.ok) == ("Complete, SUCCEEDED", True)
    now.check()
    phases = [record.args[1] for record in caplog.records if record.args and len(record.args) == 2]
    assert phases[-4:] == ["new", "Initializing", "Retrying, FAILED", "Running, RUNNING"]


def test_failed_job_gives_the_operators_reason(fake: FakeApi, submitted: Api) -> None:
    why = {"reason": "PreRunningDeadlineExceeded", "message": "not Running in 600 s"}
    fake.status("rayjobs", "train", {"jobDeploymentStatus": "Failed"} | why)
    now = kubernetes.wait(submitted, "RayJob/train", 30)
    with pytest.raises(JobError) as caught:
        now.check()
    words = "RayJob/train: Failed: PreRunningDeadlineExceeded: not Running in 600 s"
    assert str(caught.value) == words


def test_stopped_job_is_not_taken_for_a_good_one(fake: FakeApi, submitted: Api) -> None:
    fake.status("rayjobs", "train", {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"})
    with pytest.raises(JobError, match="Complete, STOPPED"):
        kubernetes.wait(submitted, "RayJob/train", 30).check()


def test_wait_that_is_over_names_the_pod_that_does_not_start(fake: FakeApi, submitted: Api) -> None:
    status = {"jobDeploymentStatus": "Initializing", "rayClusterName": "train-x"}
    fake.status("rayjobs", "train", status)
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    pod = {
        "metadata": {"labels": {"ray.io/cluster": "train-x"}},
        "status": {"containerStatuses": [{"state": {"waiting": waiting}}]},
    }
    fake.put("pods", "train-x-head", pod)
    with pytest.raises(JobError) as caught:
        kubernetes.wait(submitted, "RayJob/train", 0.1)
    assert "still Initializing after 0.1 s" in str(caught.value)
    assert "pod train-x-head: ImagePullBackOff: no such image" in str(caught.value)


def test_wait_outlasts_a_server_that_is_away_for_a_moment(fake: FakeApi, submitted: Api) -> None:
    get, asked = submitted.get, []

    def flaky(*args: Any) -> Any:
        asked.append(args)
        fake.num_lost = 1 if len(asked) == 2 else 0
        if len(asked) == 3:
            fake.status("rayjobs", "train", DONE)
        return get(*args)

    submitted.get = flaky  # type: ignore[method-assign]
    assert kubernetes.wait(submitted, "RayJob/train", 30).ok
    assert len(asked) == 3


def test_job_that_is_deleted_meanwhile_ends_the_wait(submitted: Api) -> None:
    get, asked = submitted.get, []

    def once(*args: Any) -> Any:
        found = get(*args)
        if not asked:
            asked.append(args)
            submitted.delete(found)
        return found

    submitted.get = once  # type: ignore[method-assign]
    with pytest.raises(JobError, match="RayJob/train: deleted while it was waited for"):
        kubernetes.wait(submitted, "RayJob/train", 30)


def test_server_that_stays_away_ends_the_wait(
    fake: FakeApi, submitted: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PATIENCE_S", 0.2)
    assert not kubernetes.state(submitted, "RayJob/train").ended
    get, asked = submitted.get, [0]

    def once(*args: Any) -> Any:
        fake.num_lost = 10**6 if asked[0] else 0
        asked[0] += 1
        return get(*args)

    submitted.get = once  # type: ignore[method-assign]
    with pytest.raises(JobError, match="the API server does not answer"):
        kubernetes.wait(submitted, "RayJob/train", 30)
    assert asked[0] > 2


def test_log_of_a_job_comes_from_the_pod_that_submits_it(fake: FakeApi, submitted: Api) -> None:
    with pytest.raises(UserError, match="no pod with a log"):
        kubernetes.logs(submitted, "RayJob/train", str)
    pod = {"metadata": {"labels": {"job-name": "train"}}, "status": {"phase": "Succeeded"}}
    fake.put("pods", "train-abc", pod | {"spec": {"containers": [{"name": "submitter"}]}})
    fake.logs["train-abc"] = '{"epoch": 1}\n' + RESULT_LINE + '{"status": "ok"}\nended'
    written: list[str] = []
    found = kubernetes.logs(submitted, "RayJob/train", written.append)
    assert written == ['{"epoch": 1}\n', "ended\n"]
    assert found == kubernetes.result(submitted, "RayJob/train") == {"status": "ok"}


def test_letter_that_is_cut_by_the_connection_is_whole_in_the_log(
    fake: FakeApi, submitted: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = {"metadata": {"labels": {"job-name": "train"}}, "status": {"phase": "Succeeded"}}
    fake.put("pods", "train-abc", pod | {"spec": {"containers": [{"name": "submitter"}]}})
    request = submitted.client.request

    class Bytewise:
        """The log, byte by byte, with one that belongs to no letter."""

        def stream(self, decode_content: bool) -> Any:
            yield from (bytes([byte]) for byte in "Größe: 1 µs\n".encode() + b"\xff\n")

    def cut(method: str, path: str, **options: Any) -> Any:
        return Bytewise() if path.endswith("/log") else request(method, path, **options)

    monkeypatch.setattr(submitted.client, "request", cut)
    written: list[str] = []
    kubernetes.logs(submitted, "RayJob/train", written.append)
    assert written == ["Größe: 1 µs\n", "\N{REPLACEMENT CHARACTER}\n"]


def test_result_of_a_job_without_a_log_is_none(submitted: Api) -> None:
    assert kubernetes.result(submitted, "RayJob/train") is None


@pytest.mark.parametrize(
    ("plural", "kind"), [("rayclusters", "RayCluster"), ("rayservices", "RayService")]
)
def test_log_of_a_head_is_that_of_ray_and_not_of_its_autoscaler(
    fake: FakeApi, api: Api, plural: str, kind: str
) -> None:
    status = {"activeServiceStatus": {"rayClusterName": "it"}}
    fake.put(plural, "it", {"spec": {}, "status": status})
    labels = {"ray.io/cluster": "it", "ray.io/node-type": "head"}
    spec = {"containers": [{"name": "ray-head"}, {"name": "autoscaler"}]}
    fake.put("pods", "it-head", {"metadata": {"labels": labels}, "spec": spec, "status": {}})
    fake.logs["it-head"] = "started\n"
    written: list[str] = []
    kubernetes.logs(api, f"{kind}/it", written.append)
    assert written == ["started\n"]


def test_stop_takes_along_what_a_rendered_file_holds_around_the_pods(
    fake: FakeApi, api: Api
) -> None:
    labels = {"app.kubernetes.io/part-of": "ray-ref", "app.kubernetes.io/instance": "train"}
    around = [("networking.k8s.io/v1", "NetworkPolicy"), ("policy/v1", "PodDisruptionBudget")]
    for instance in ("train", "other"):
        own = labels | {"app.kubernetes.io/instance": instance}
        documents = [
            {"apiVersion": api_version, "kind": kind, "metadata": {"name": instance, "labels": own}}
            for api_version, kind in around
        ]
        resource = job()
        resource["metadata"] = {"name": instance, "labels": own}
        kubernetes.submit(api, [*documents, resource])
    kubernetes.stop(api, "RayJob/train", 30)
    rest = {"networkpolicies/other", "poddisruptionbudgets/other", "rayjobs/other"}
    assert fake.names() == rest


def test_policies_stay_until_the_last_pod_is_gone(
    fake: FakeApi, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"app.kubernetes.io/part-of": "ray-ref", "app.kubernetes.io/instance": "train"}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    resource = job()
    for document in (policy, resource):
        document["metadata"] = {"name": "train", "labels": labels}
    kubernetes.submit(api, [policy, resource])
    fake.put("rayclusters", "train-x", {"metadata": {"labels": labels}, "spec": {}})
    running, done = ({"status": {"phase": phase}} for phase in ("Running", "Succeeded"))
    fake.put("pods", "train-x-head", running | {"metadata": {"labels": labels}})
    fake.put("pods", "train-abc", done | {"metadata": {"labels": labels}})
    gone = ["rayclusters/train-x", "pods/train-x-head"]
    while_waiting: list[set[str]] = []

    def sleep(_: float) -> None:
        while_waiting.append(fake.names())
        plural, name = gone.pop(0).split("/")
        del fake.objects[plural, "default", name]

    monkeypatch.setattr(kubernetes.time, "sleep", sleep)
    kubernetes.stop(api, "RayJob/train", 30)
    assert [("networkpolicies/train" in names) for names in while_waiting] == [True, True]
    assert fake.names() == {"pods/train-abc"}


def test_policies_stay_if_the_pods_do(fake: FakeApi, api: Api) -> None:
    labels = {"app.kubernetes.io/part-of": "ray-ref", "app.kubernetes.io/instance": "train"}
    kubernetes.submit(api, [job() | {"metadata": {"name": "train", "labels": labels}}])
    fake.put("networkpolicies", "train", {"metadata": {"labels": labels}})
    fake.put("pods", "head", {"metadata": {"labels": labels}, "status": {"phase": "Running"}})
    with pytest.raises(JobError, match="RayJob/train, or a pod of it, is still there after 0.1 s"):
        kubernetes.stop(api, "RayJob/train", 0.1)
    assert fake.names() == {"networkpolicies/train", "pods/head"}


@pytest.mark.parametrize(
    ("kind", "spec", "at_least_s"),
    [
        ("RayJob", {"activeDeadlineSeconds": 14400, "backoffLimit": 2}, 3 * 14400),
        ("RayJob", {"activeDeadlineSeconds": 7200}, 7200),
        ("RayJob", {}, 3600),
        ("RayService", {}, 3600),
    ],
)
def test_wait_is_no_shorter_than_the_jobs_own_deadlines(
    kind: str, spec: dict[str, Any], at_least_s: int
) -> None:
    assert kubernetes.patience_s({"kind": kind, "spec": spec}) >= at_least_s


@pytest.mark.parametrize(
    ("overrides", "timeout_s"),
    [
        (["action=submit", "workload=torch-ddp-train"], 14400),
        (["action=submit", "workload=core-parameter-server"], 7200),
        (["action=submit", "workload=serve-fastapi"], 3600),
        (["action=stop", "job.id=x", "workload=torch-ddp-train"], 3600),
        (["action=wait", "job.id=x"], 3600),
        (["action=submit", "workload=torch-ddp-train", "job.timeout_s=5"], 5),
    ],
)
def test_wait_on_a_ray_cluster_is_the_workloads_deadline(
    overrides: list[str], timeout_s: float
) -> None:
    address = ["target=ray", "cluster=existing", "cluster.address=http://127.0.0.1:8265"]
    config = compose(Config, "kuberay_deploy.conf", ["profile=dev", *address, *overrides])
    assert actions._timeout_s(config) == timeout_s


def test_stop_deletes_the_resource_and_nothing_else(fake: FakeApi, submitted: Api) -> None:
    kubernetes.submit(submitted, [MAP])
    kubernetes.stop(submitted, "RayJob/train", 30)
    assert fake.names() == {"configmaps/settings"}
    with pytest.raises(UserError, match="job.id=RayJob/train: not in the namespace default"):
        kubernetes.stop(submitted, "RayJob/train", 30)


@pytest.mark.parametrize("reference", ["train", "Job/train", "RayJob/"])
def test_reference_that_is_no_resource_is_refused(api: Api, reference: str) -> None:
    with pytest.raises(UserError, match="must be a resource of KubeRay's, such as RayJob/name"):
        kubernetes.state(api, reference)


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_wait_gives_the_jobs_own_result(
    fake: FakeApi, submitted: Api, tmp_path: Path, status: str
) -> None:
    end = "Complete" if status == "SUCCEEDED" else "Failed"
    fake.status("rayjobs", "train", {"jobDeploymentStatus": end, "jobStatus": status})
    pod = {"metadata": {"labels": {"job-name": "train"}}, "status": {"phase": "Succeeded"}}
    fake.put("pods", "train-abc", pod | {"spec": {"containers": [{"name": "submitter"}]}})
    fake.logs["train-abc"] = RESULT_LINE + '{"metrics": {"accuracy": 0.5}}\n'
    overrides = ["action=wait", "job.id=RayJob/train", "kubernetes.namespace=default"]
    config = compose(Config, "kuberay_deploy.conf", overrides)
    report = Report("kuberay-deploy", tmp_path, {})
    with pytest.raises(JobError) if status == "FAILED" else contextlib.nullcontext():
        actions.on_kubernetes(config, report)
    assert report.metrics["result"] == {"metrics": {"accuracy": 0.5}}
    assert report.metrics["status"] == f"{end}, {status}"
