"""Mistakes that are found before anything starts."""

import sys
from pathlib import Path

import pytest
from ray_shared.errors import UserError
from rehearsal.command import in_own_words, parse
from rehearsal.options import Options
from rehearsal.run import make_output, prepare
from rehearsal.service import stays

from .manifests import cluster, document, write

SERVE = "applications: [{name: a, import_path: 'm:app'}]"


def manifest(tmp_path: Path, kind: str = "RayCluster", name: str = "m.yaml", **spec) -> str:
    where = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(kind)
    content = cluster() if where is None else {where: cluster()} | spec
    return write(tmp_path / name, document(kind, content))


def job(tmp_path: Path, **spec) -> str:
    return manifest(tmp_path, "RayJob", **{"entrypoint": "true"} | spec)


def service(tmp_path: Path, **spec) -> str:
    return manifest(tmp_path, "RayService", **{"serveConfigV2": SERVE} | spec)


def refused(path: str, tmp_path: Path, sentence: str, **options) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(Options(manifest=path, output=str(tmp_path / "out"), **options))


def test_good_manifests_pass(tmp_path):
    for path in (manifest(tmp_path), job(tmp_path, name="job"), service(tmp_path, name="service")):
        prepare(Options(manifest=path, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["load", "update"])
def test_option_of_a_service_is_refused_for_a_job(tmp_path, option):
    sentence = f"rehearse.{option}=/x: must be left out: only a RayService has it"
    refused(job(tmp_path), tmp_path, sentence, **{option: "/x"})


def test_update_needs_load_and_the_same_kind(tmp_path):
    first, second = service(tmp_path), job(tmp_path, name="second.yaml")
    refused(first, tmp_path, "rehearse.load=null: must be a path", update=first)
    sentence = "update=.*second.yaml: must be a file with a RayService"
    refused(first, tmp_path, sentence, update=second, load="/")
    missing = str(tmp_path / "none.yaml")
    refused(first, tmp_path, "update=.*none.yaml: No such file", update=missing, load="/")


def test_step_of_a_service_is_refused(tmp_path):
    sentence = "rehearse.kill=worker@step3: a RayService reports no steps: must be in seconds"
    refused(service(tmp_path), tmp_path, sentence, faults=["kill=worker@step3"])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"entrypoint": None}, "m.yaml: spec.entrypoint: not there: a RayJob needs one"),
        ({"runtimeEnvYAML": "a: ["}, "spec.runtimeEnvYAML: while parsing"),
        ({"runtimeEnvYAML": "text"}, "spec.runtimeEnvYAML=text: must be YAML with keys"),
    ],
)
def test_job_that_cannot_run_is_refused(tmp_path, spec, sentence):
    refused(job(tmp_path, **spec), tmp_path, sentence)


def test_service_without_applications_is_refused(tmp_path):
    path = service(tmp_path, serveConfigV2="applications: []")
    refused(path, tmp_path, "spec.serveConfigV2: holds no applications")


def test_wrong_group_is_named(tmp_path):
    spec = cluster()
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["livenessProbe"] = {"tcpSocket": {"port": 1}}
    path = write(tmp_path / "m.yaml", document("RayCluster", spec))
    refused(path, tmp_path, "manifest=.*m.yaml: small: livenessProbe: found tcpSocket")


def test_output_must_be_new_and_visible_inside(tmp_path):
    assert make_output(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "file").touch()
    with pytest.raises(UserError, match="output=.*/a: must be a new or an empty directory"):
        make_output(tmp_path / "a")
    with pytest.raises(UserError, match="output=.*/a/file/x: Not a directory"):
        make_output(tmp_path / "a" / "file" / "x")
    with pytest.raises(UserError, match="/dev/shm/x: must lie outside /dev/shm"):
        make_output(Path("/dev/shm/x"))
    assert not Path("/dev/shm/x").exists()


def test_secret_may_be_a_file(tmp_path):
    (tmp_path / "key").write_text("from-a-file\n")
    secrets = {"keys/a": f"@{tmp_path / 'key'}", "keys/b": "plain"}
    options = Options(manifest="m", output="o", secrets=secrets)
    assert options.secret_values() == {"keys/a": "from-a-file", "keys/b": "plain"}
    options = Options(manifest="m", output="o", secrets={"keys/a": "@/no/such"})
    with pytest.raises(UserError, match="secret keys/a=@/no/such: .*No such file"):
        options.secret_values()


def test_command_has_its_own_words(monkeypatch, capsys):
    assert in_own_words("rehearse.idle_timeout_s=-1: must") == "--idle-timeout-s=-1: must"
    monkeypatch.setattr(sys, "argv", ["rehearse", "m", "--reclaim=head@1s", "--secret=a/b=c=d"])
    options = parse()
    assert (options.faults, options.secrets) == (["reclaim=head@1s"], {"a/b": "c=d"})
    monkeypatch.setattr(sys, "argv", ["rehearse", "--help"])
    with pytest.raises(SystemExit):
        parse()
    lines = " ".join(capsys.readouterr().out.split())
    assert "--kill TARGET@WHEN SIGKILL for a pod" in lines


def test_update_keeps_the_cluster_unless_more_than_its_scaling_changes():
    first = cluster()
    first["workerGroupSpecs"][0]["scaleStrategy"] = {"workersToDelete": ["a"]}
    second = cluster()
    second["workerGroupSpecs"][0] |= {"scaleStrategy": {}, "replicas": 3, "maxReplicas": 9}
    assert stays(first, second)
    assert not stays(first, second | {"rayVersion": "2.61.0"})
