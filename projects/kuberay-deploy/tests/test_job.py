"""The job end to end, as a user starts it."""

from pathlib import Path

from .conftest import PROJECT, StartJob


def test_default_renders_and_validates_all(start: StartJob, crds_path: Path, tmp_path: Path):
    with start("output=made", env={"KUBERAY_CRDS": str(crds_path)}) as job:
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    made = sorted((tmp_path / "made").iterdir())
    kept = sorted((PROJECT / "manifests").iterdir())
    assert [path.name for path in made] == [path.name for path in kept]
    assert metrics["num_manifests"] == len(kept) == 21
    assert metrics["schemas_checked"] is True
    assert "NO SCHEMA" not in job.output()


def test_missing_definitions_are_said_loudly(start: StartJob):
    with start("experiment=smoke", env={"KUBERAY_CRDS": ""}) as job:
        assert job.wait(60) == 0, job.output()
    assert "NO SCHEMA CHECKED" in job.output()
    assert job.result()["metrics"]["schemas_checked"] is False
    assert job.result()["metrics"]["num_manifests"] == 1


def test_good_file_validates(start: StartJob, crds_path: Path):
    manifest = PROJECT / "manifests" / "torch-ddp-train-spot.yaml"
    env = {"KUBERAY_CRDS": str(crds_path)}
    with start("action=validate", f"manifest={manifest}", env=env) as job:
        assert job.wait(60) == 0, job.output()
    assert job.result()["metrics"]["num_findings"] == 0


def test_bad_file_is_refused_with_every_mistake(start: StartJob, crds_path: Path, tmp_path: Path):
    good = (PROJECT / "manifests" / "torch-ddp-train-spot.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.replace("backoffLimit: 4", "backoffLimit: four"))
    env = {"KUBERAY_CRDS": str(crds_path)}
    with start("action=validate", f"manifest={bad}", env=env) as job:
        sentence = job.refusal()
    assert sentence.startswith(f"manifest={bad}: RayJob/torch-ddp-train-spot: spec.backoffLimit: ")
    assert "four" in sentence

    bad.write_text(bad.read_text().replace("minReplicas: 0", "minReplica: 0"))
    with start("action=validate", f"manifest={bad}", env=env) as job:
        assert job.wait(60) == 2
    assert "mistakes\n" in job.output()
    assert "minReplica" in job.output()
    assert "backoffLimit" in job.output()
