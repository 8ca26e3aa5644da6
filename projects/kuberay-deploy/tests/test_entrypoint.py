"""The driver's command: what it says, and that it arrives as it was given."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from kuberay_deploy.pods import Plan

from .rendered import planned, ray_resource


def test_retried_job_resumes_because_all_tries_have_one_name():
    spec = ray_resource(planned("torch-ddp-train", "prod"))["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "torch_ddp_train"]
    assert "run.name=torch-ddp-train-prod" in words
    assert "storage.path=/mnt/runs" in words
    assert spec["backoffLimit"] == 2
    assert spec["activeDeadlineSeconds"] == 14400
    assert spec["preRunningDeadlineSeconds"] == 1800


def test_own_run_name_takes_the_place_of_the_default():
    plan = planned("torch-ddp-train", "dev", 'overrides=["run.name=mine","train.lr=0.1"]')
    words = shlex.split(ray_resource(plan)["spec"]["entrypoint"])
    assert [w for w in words if w.startswith("run.name=")] == ["run.name=mine"]
    assert "train.lr=0.1" in words


def driver_words(plan: Plan, directory: Path, **env: str) -> list[str]:
    """What the driver gets: through the submitter's shell, Ray's command line and the head's."""
    spec = ray_resource(plan)["spec"]
    line = spec.get("jobTemplate", spec)["entrypoint"]
    joined = "import shlex, sys; print(shlex.join(sys.argv[1:]))"  # As Ray's command line does it.
    submit = shlex.join([sys.executable, "-c", joined])
    submitted = subprocess.run(
        ["bash", "-c", f"{submit} {line}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    driver = directory / "python"
    driver.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    driver.chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        submitted, shell=True, env={"PATH": path} | env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_driver_gets_its_overrides_as_they_were_given(tmp_path: Path):
    given = ["compare.variants=[random, asha]", "run.name=$HOME;`id`", "a='b'"]
    plan = planned("asha-pbt-tune", "dev", f"overrides={json.dumps(given)}")
    words = driver_words(plan, tmp_path)
    assert words[:2] == ["-m", "asha_pbt_tune"]
    assert [word for word in given if word not in words] == []
    assert "cluster.address=${oc.env:RAY_ADDRESS}" in words  # For Hydra, on the head.


def test_tries_of_a_cron_jobs_job_share_a_name_that_no_other_has(tmp_path: Path):
    plan = planned("data-preprocessing", "prod", "kind=cron")
    names = []
    for cluster in ("nightly-29000000-abcde", "nightly-29000000-fghij", "nightly-29001440-klmno"):
        words = driver_words(plan, tmp_path, RAY_CLUSTER_NAME=cluster)
        assert words[:2] == ["-m", "data_preprocessing"]
        assert "cluster.address=${oc.env:RAY_ADDRESS}" in words
        names += [word for word in words if word.startswith("run.name=")]
    assert names == ["run.name=nightly-29000000"] * 2 + ["run.name=nightly-29001440"]


def test_cron_job_says_when():
    spec = ray_resource(planned("tf-train", "prod", "kind=cron", "job.schedule=0 5 * * 1"))["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 5 * * 1", "Etc/UTC")
