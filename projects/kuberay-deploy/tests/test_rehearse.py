"""What `action=rehearse` hands to the package that does it."""

import dataclasses
import importlib.util
import shlex
from pathlib import Path

import pytest
import yaml
from kuberay_deploy import rehearse
from ray_shared.errors import UserError
from ray_shared.report import Report

from .checked import REPOSITORY
from .conftest import StartJob
from .rendered import configured

REHEARSE = "action=rehearse"

in_the_repository = pytest.mark.skipif(
    REPOSITORY is None, reason="a starter has neither the workloads nor the rehearsal"
)


def rendered(*overrides: str) -> dict:
    documents = yaml.safe_load_all(rehearse._rendered(configured(REHEARSE, *overrides)))
    return list(documents)[-1]


@in_the_repository
def test_training_asks_for_as_many_workers_as_are_rehearsed():
    spec = rendered("workload=torch-ddp-train")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert "scaling.num_workers=2" in words
    assert "scaling.cpus_per_worker=2" in words  # One pod has room for one worker.
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["maxReplicas"]) == (2, 2)


@in_the_repository
def test_several_workers_in_each_pod_stay_several():
    spec = rendered("workload=core-parameter-server", "rehearse.max_workers=1")["spec"]
    assert "scaling.num_workers=2" in shlex.split(spec["entrypoint"])


@in_the_repository
def test_profile_and_more_workers_are_taken_as_given():
    chosen = ["workload=torch-ddp-train", "profile=dev", "rehearse.max_workers=8"]
    spec = rendered(*chosen)["spec"]
    assert "scaling.num_workers=1" in shlex.split(spec["entrypoint"])
    assert rendered("workload=serve-fastapi")["metadata"]["name"] == "serve-fastapi-dev"


@in_the_repository
def test_job_reports_every_step_unless_something_else_is_asked_for():
    def given(workload, *overrides):
        words = shlex.split(rendered(f"workload={workload}", *overrides)["spec"]["entrypoint"])
        return [word for word in words if word.startswith("tracking.every_steps=")]

    assert given("torch-ddp-train") == ["tracking.every_steps=1"]
    own = 'overrides=["tracking.every_steps=5"]'
    assert given("torch-ddp-train", own) == ["tracking.every_steps=5"]


def test_workload_without_tracking_is_asked_for_no_steps(tmp_path):
    config = tmp_path / "torch_ddp_train" / "conf" / "config.yaml"
    config.parent.mkdir(parents=True)
    chosen = configured(REHEARSE, "workload=torch-ddp-train", f"source={tmp_path}")
    config.write_text("defaults: [{cluster: local}, _self_]\n")
    assert not rehearse.tracks_steps(chosen)
    config.write_text("defaults: [{tracking: jsonl}, _self_]\n")
    assert rehearse.tracks_steps(chosen)


@in_the_repository
def test_secret_does_not_come_into_the_report(tmp_path):
    chosen = [f"manifest={tmp_path / 'none.yaml'}", 'rehearse.secrets=["keys/key=a-long-one"]']
    config = configured(REHEARSE, *chosen)
    report = Report("kuberay-deploy", tmp_path, dataclasses.asdict(config))
    with pytest.raises(UserError, match="none.yaml: No such file"):
        rehearse.rehearse(config, report)
    assert report.config["rehearse"]["secrets"] == ["keys/key=..."]
    assert "a-long-one" not in report.write("failed").read_text()


def test_secrets_of_a_workload_are_made_up():
    found = rehearse._made_up(configured(REHEARSE, "workload=serve-fastapi"))
    assert list(found) == ["serve-fastapi-keys/keys"]
    assert len(found["serve-fastapi-keys/keys"]) >= 32


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "workload=all: must be one workload, or manifest="),
        (["workload=tf-train", "kind=cron"], "kind=cron: must be auto, cluster, job or service"),
        (["workload=tf-train", "rehearse.timeout_s=0"], "rehearse.timeout_s=0"),
        (["workload=tf-train", "rehearse.max_workers=0"], "rehearse.max_workers=0: must be >= 1"),
        (["workload=tf-train", "rehearse.min_workers=-1"], "rehearse.min_workers=-1"),
        (["workload=tf-train", "rehearse.kil=worker@1s"], "did you mean 'rehearse.kill'"),
    ],
)
def test_wrong_rehearsal_is_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        configured(REHEARSE, *overrides)


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="the package ray-ref-rehearsal is not installed"):
        rehearse.prepare(configured(REHEARSE, "workload=torch-ddp-train"))


def test_wrong_start_leaves_nothing_behind(start: StartJob, tmp_path: Path):
    source = tmp_path / "src"
    (source / "torch_ddp_train").mkdir(parents=True)
    overrides = ["workload=torch-ddp-train", f"source={source}", "rehearse.kill=worker"]
    with start(REHEARSE, *overrides) as job:
        assert job.process.wait(60) == 2
    assert not (tmp_path / "outputs").exists()
