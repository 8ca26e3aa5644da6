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


@pytest.mark.parametrize("how", ["refused", "unanswered"])
def test_what_was_there_gets_its_content_back_if_a_later_one_fails(
    fake: FakeApi, api: Api, how: str
) -> None:
    labels = {"labels": {"owner": "me"}}
    fake.put("configmaps", "older", {"data": {"epochs": "1"}, "metadata": labels})
    new = MAP | {"metadata": {"name": "older"}, "data": {"epochs": "2"}}
    if how == "refused":
        fake.refused_for_good["train"] = (403, "exceeded quota: pods")
    else:  # It was changed, but nobody said so.
        fake.interrupted.add("older")
    with pytest.raises(UserError if how == "refused" else JobError):
        kubernetes.submit(api, [new, job()])
    older = fake.objects["configmaps", "default", "older"]
    assert older["data"] == {"epochs": "1"}
    assert older["metadata"]["labels"] == {"owner": "me"}
    assert fake.names() == {"configmaps/older"}


def test_what_cannot_be_taken_back_is_named(
    fake: FakeApi, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refused_for_good["train"] = (403, "exceeded quota: pods")

    def forbidden(document: dict[str, Any]) -> None:
        raise UserError(f"ConfigMap/{document['metadata']['name']}: may not be deleted")

    monkeypatch.setattr(api, "delete", forbidden)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="exceeded quota"):
        kubernetes.submit(api, [MAP, job()])
    assert "not taken back: ConfigMap/settings: may not be deleted" in caplog.text


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
        (job(env_of("redis")), "redis is missing"),
        (job(env_of("other-keys")), "other-keys lacks the key password"),
        (job({"envFrom": [{"secretRef": {"name": "cloud"}}]}), "cloud is missing"),
        (job(volumes=[{"secret": {"secretName": "tls"}}]), "tls is missing"),
        (job(imagePullSecrets=[{"name": "registry"}]), "registry is missing"),
        (job(authOptions={"secretName": "other-keys"}), "other-keys lacks the key auth_token"),
    ],
)
def test_missing_secret_is_refused(
    fake: FakeApi, api: Api, document: dict[str, Any], missing: str
) -> None:
    fake.put("secrets", "other-keys", {"data": {"user": "eA=="}})
    with pytest.raises(UserError) as refusal:
        kubernetes.submit(api, [MAP, document])
    assert str(refusal.value).startswith(f"RayJob/train: the secret default/{missing}: create it")
    assert fake.names() == {"secrets/other-keys"}


def test_secret_that_is_there_or_optional_or_in_the_file_is_enough(fake: FakeApi, api: Api) -> None:
    fake.put("secrets", "redis", {"data": {"password": "eA=="}})
    mine = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}}
    for more in ([job(env_of("redis"))], [job(env_of("nowhere", optional=True))]):
        kubernetes.submit(api, more)
        kubernetes.stop(api, "RayJob/train", 30)
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


def test_job_that_runs_is_not_applied_again(fake: FakeApi, api: Api) -> None:
    kubernetes.submit(api, [job()])
    fake.status("rayjobs", "train", {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    fake.calls.clear()
    with pytest.raises(UserError, match=r"train: is there already \(Running, RUNNING\): follow it"):
        kubernetes.submit(api, [MAP, job()])
    assert fake.calls == []
    fake.status("rayjobs", "train", {"jobDeploymentStatus": "Suspended"})
    kubernetes.submit(api, [job(suspend=False)])


def test_what_is_new_is_taken_back_on_ctrl_c(
    fake: FakeApi, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = api.apply

    def interrupted(document: dict[str, Any], dry_run: bool) -> None:
        apply(document, dry_run)  # The answer has not been read yet.
        if document["kind"] == "RayJob" and not dry_run:
            raise KeyboardInterrupt

    monkeypatch.setattr(api, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kubernetes.submit(api, [MAP, job()])
    assert fake.calls[-2:] == ["DELETE rayjobs/train", "DELETE configmaps/settings"]
    assert fake.names() == set()


def test_what_is_applied_though_the_answer_is_lost_is_taken_back(fake: FakeApi, api: Api) -> None:
    fake.interrupted.add("train")
    with pytest.raises(JobError, match="RayJob/train: the API server does not answer"):
        kubernetes.submit(api, [MAP, job()])
    assert fake.names() == set()


def test_name_that_the_server_would_make_is_refused(fake: FakeApi, api: Api) -> None:
    nameless = job() | {"metadata": {"generateName": "train-"}}
    with pytest.raises(UserError, match=r"RayJob: metadata\.generateName: .* metadata\.name"):
        kubernetes.submit(api, [MAP, nameless])
    assert fake.calls == []


def test_forbidden_request_is_explained(fake: FakeApi, api: Api) -> None:
    fake.refused["train"] = (403, 'User "me" cannot patch resource "rayjobs"')
    with pytest.raises(UserError, match='RayJob/train: User "me" cannot patch resource "rayjobs"'):
        kubernetes.submit(api, [job()])


def test_nothing_is_left_behind_on_the_disk(fake: FakeApi, api: Api, tmp_path: Path) -> None:
    kubernetes.submit(api, [job()])
    assert {path.name for path in tmp_path.iterdir()} == {"kubeconfig", "ca.pem"}
