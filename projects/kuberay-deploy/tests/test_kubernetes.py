"""Manifests on a cluster: all of a file or nothing, and what the operator says about it."""

import logging
from pathlib import Path
from typing import Any

import pytest
from kuberay_deploy import api_server, kubernetes
from kuberay_deploy.api_server import Api
from ray_shared.errors import JobError, UserError

from .fake_api import FakeApi, api, fake

__all__ = ["api", "fake"]

MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def job(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    pods = {"spec": {"containers": [{"name": "ray-head", **(container or {})}]}}
    cluster = {"headGroupSpec": {"template": pods}}
    metadata = {"name": "train"}
    described = {"entrypoint": "python train.py", "rayClusterSpec": cluster} | spec
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": described}


def env_of(secret: str, **more: Any) -> dict[str, Any]:
    reference = {"name": secret, "key": "password", **more}
    return {"env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": reference}}]}


def test_whole_file_is_tried_before_any_of_it_is_applied(fake: FakeApi, api: Api) -> None:
    assert kubernetes.submit(api, [MAP, job()]) == ["RayJob/train"]
    tried = ["PATCH configmaps/settings dry", "PATCH rayjobs/train dry"]
    assert fake.calls == [*tried, "PATCH configmaps/settings", "PATCH rayjobs/train"]
    assert fake.names() == {"configmaps/settings", "rayjobs/train"}


def test_nothing_is_applied_if_the_server_refuses_one(fake: FakeApi, api: Api) -> None:
    fake.refused["train"] = (422, 'RayJob.ray.io "train" is invalid: spec.entryPoint: unknown')
    with pytest.raises(UserError, match=r"RayJob/train: .* spec\.entryPoint: unknown"):
        kubernetes.submit(api, [MAP, job()])
    assert fake.names() == set()


def test_what_is_new_is_taken_back_if_a_later_one_fails(fake: FakeApi, api: Api) -> None:
    fake.put("configmaps", "older", {"data": {}})
    fake.refused_for_good["train"] = (403, "exceeded quota: pods")
    older = MAP | {"metadata": {"name": "older"}}
    with pytest.raises(UserError, match="RayJob/train: exceeded quota: pods"):
        kubernetes.submit(api, [older, MAP, job()])
    assert fake.names() == {"configmaps/older"}


def test_failing_server_is_not_the_users_mistake(fake: FakeApi, api: Api) -> None:
    fake.refused["train"] = (500, "etcdserver: request timed out")
    with pytest.raises(JobError, match="RayJob/train: etcdserver: request timed out"):
        kubernetes.submit(api, [MAP, job()])
    assert fake.names() == set()


def test_namespace_of_the_file_is_made_first(fake: FakeApi, api: Api) -> None:
    inside = MAP | {"metadata": {"name": "settings", "namespace": "team"}}
    kubernetes.submit(api, [inside, NAMESPACE])
    assert fake.names() == {"namespaces/team", "configmaps/settings"}
    fake.objects.clear()
    fake.refused["settings"] = (400, "json: unknown field")
    with pytest.raises(UserError, match="unknown field"):
        kubernetes.submit(api, [inside, NAMESPACE])
    assert fake.names() == set()


def test_missing_namespace_is_named(api: Api) -> None:
    inside = MAP | {"metadata": {"name": "settings", "namespace": "team"}}
    with pytest.raises(UserError, match='namespaces "team" not found'):
        kubernetes.submit(api, [inside])


def test_cluster_without_the_operator_is_named(fake: FakeApi) -> None:
    fake.without.add("ray.io")
    with pytest.raises(UserError, match=r"no RayJob of ray\.io/v1: is KubeRay's operator inst"):
        kubernetes.submit(api_server.connect(), [job()])


@pytest.mark.parametrize(
    ("document", "missing"),
    [
        (job(env_of("redis")), "secret default/redis is missing"),
        (job(env_of("other-keys")), "secret default/other-keys lacks the key password"),
        (job({"envFrom": [{"secretRef": {"name": "cloud"}}]}), "secret default/cloud is missing"),
        (job(volumes=[{"secret": {"secretName": "tls"}}]), "secret default/tls is missing"),
        (job(imagePullSecrets=[{"name": "registry"}]), "secret default/registry is missing"),
        (job(authOptions={"secretName": "other-keys"}), "lacks the key auth_token"),
    ],
)
def test_missing_secret_is_refused(
    fake: FakeApi, api: Api, document: dict[str, Any], missing: str
) -> None:
    fake.put("secrets", "other-keys", {"data": {"user": "eA=="}})
    with pytest.raises(UserError, match=f"RayJob/train: the {missing}|{missing}"):
        kubernetes.submit(api, [MAP, document])
    assert fake.names() == {"secrets/other-keys"}


def test_secret_that_is_there_or_optional_or_in_the_file_is_enough(fake: FakeApi, api: Api) -> None:
    fake.put("secrets", "redis", {"data": {"password": "eA=="}})
    kubernetes.submit(api, [job(env_of("redis"))])
    kubernetes.submit(api, [job(env_of("nowhere", optional=True))])
    mine = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}}
    kubernetes.submit(api, [job(env_of("mine")), mine])
    assert fake.names() == {"secrets/redis", "secrets/mine", "rayjobs/train"}


def test_secret_that_may_not_be_read_does_not_hinder(
    fake: FakeApi, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refused["redis"] = (403, 'secrets "redis" is forbidden')
    with caplog.at_level(logging.WARNING):
        kubernetes.submit(api, [job(env_of("redis"))])
    assert "not checked whether secret redis is there" in caplog.text
    assert fake.names() == {"rayjobs/train"}


def test_job_that_has_ended_is_not_applied_again(fake: FakeApi, api: Api) -> None:
    kubernetes.submit(api, [job()])
    fake.status("rayjobs", "train", DONE)
    fake.calls.clear()
    with pytest.raises(UserError, match=r"RayJob/train: has already run \(Complete, SUCCEEDED\)"):
        kubernetes.submit(api, [MAP, job()])
    assert fake.calls == []


def test_forbidden_request_is_explained(fake: FakeApi, api: Api) -> None:
    fake.refused["train"] = (403, 'User "me" cannot patch resource "rayjobs"')
    with pytest.raises(UserError, match='RayJob/train: User "me" cannot patch resource "rayjobs"'):
        kubernetes.submit(api, [job()])


def test_nothing_is_left_behind_on_the_disk(fake: FakeApi, api: Api, tmp_path: Path) -> None:
    kubernetes.submit(api, [job()])
    assert {path.name for path in tmp_path.iterdir()} == {"kubeconfig", "ca.pem"}


# --- Following ---


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
    fake.put("pods", "train-abc", pod)
    fake.logs["train-abc"] = '{"epoch": 1}\n'
    written: list[str] = []
    kubernetes.logs(submitted, "RayJob/train", written.append)
    assert "".join(written) == '{"epoch": 1}\n'


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
