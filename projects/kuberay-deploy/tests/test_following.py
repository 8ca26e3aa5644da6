"""Manifests on a cluster once they are there: status, logs, and their end."""

import logging
from typing import Any

import pytest
from kuberay_deploy import kubernetes
from kuberay_deploy.api_server import Api
from ray_shared.errors import JobError, UserError

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
    fake.logs["train-abc"] = '{"epoch": 1}\n'
    written: list[str] = []
    kubernetes.logs(submitted, "RayJob/train", written.append)
    assert "".join(written) == '{"epoch": 1}\n'


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
