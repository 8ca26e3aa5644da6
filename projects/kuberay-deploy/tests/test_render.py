"""What is rendered: whole, the same every time, right by default."""

import os
import shlex
import subprocess
import sys

import pytest
import ray
import yaml
from kuberay_deploy import actions, cross_checks, render, validate
from kuberay_deploy.config import WORKLOADS, Config
from kuberay_deploy.crds import Crds
from kuberay_deploy.pods import Plan
from ray_shared.config import compose

from .conftest import PROJECT
from .rendered import (
    PLANS,
    PLATFORMS,
    cluster_of,
    configured,
    groups,
    planned,
    pod_specs,
    ray_resource,
)


@pytest.fixture(params=PLANS, ids=lambda plan: plan.name)
def plan(request: pytest.FixtureRequest) -> Plan:
    found: Plan = request.param
    return found


def test_every_workload_has_every_profile_but_gpu_where_it_uses_none():
    names = {plan.name for plan in PLANS}
    expected = {f"{w}-{p}" for w in WORKLOADS for p in ("dev", "spot", "prod")}
    assert names - expected == {"torch-ddp-train-gpu", "tf-train-gpu", "asha-pbt-tune-gpu"}
    assert expected <= names


def test_workloads_that_cannot_be_of_a_kind_are_left_out():
    kinds = {
        kind: configured(f"kind={kind}", "profile=dev").plans() for kind in ("cron", "service")
    }
    assert kinds["service"] == [("serve-fastapi", "dev")]
    assert kinds["cron"] == [(w, "dev") for w in WORKLOADS if w != "serve-fastapi"]


def test_kept_file_is_what_would_be_written_now(plan: Plan):
    kept = PROJECT / "manifests" / f"{plan.name}.yaml"
    command = actions.command(plan, [])
    assert kept.read_text() == render.manifest(plan, command), f"stale; run in {PROJECT}: {command}"


def test_nothing_else_is_kept():
    kept = {path.stem for path in (PROJECT / "manifests").iterdir()}
    assert kept == {plan.name for plan in PLANS}


def test_rendering_again_gives_the_same_bytes():
    config = compose(Config, "kuberay_deploy.conf", ["profile=all"])
    again = [render.make_plan(config, *pair) for pair in config.plans()]
    assert [render.manifest(p, "x") for p in again] == [render.manifest(p, "x") for p in PLANS]


def test_text_reads_back_as_the_documents(plan: Plan):
    assert list(yaml.safe_load_all(render.manifest(plan, "x"))) == render.render(plan)


def refused(config: Config, definitions: Crds) -> list[str]:
    """What validation finds in everything that this configuration renders."""
    documents = []
    for pair in config.plans():
        documents += render.render(render.make_plan(config, *pair))
    assert documents
    return [str(finding) for finding in validate.check(documents, definitions)]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_manifest_passes_validation_on_every_platform(definitions: Crds, platform: str):
    assert refused(configured(f"platform={platform}"), definitions) == []


@pytest.mark.parametrize("path", ["s3://bucket/runs", "gs://bucket/x", "/mnt/runs/team"])
def test_manifests_pass_validation_with_other_storage(definitions: Crds, path: str):
    overrides = [f"storage.path={path}", "profile=spot", "image.pull_secret=registry"]
    overrides += ["kubernetes.head_service_account=a", "kubernetes.worker_service_account=b"]
    assert refused(configured(*overrides), definitions) == []


@pytest.mark.parametrize(
    ("kind", "workload"),
    [
        ("cluster", "torch-ddp-train"),
        ("cluster", "serve-fastapi"),
        ("cron", "data-preprocessing"),
        ("cron", "core-parameter-server"),
    ],
)
def test_other_kinds_pass_validation(definitions: Crds, kind: str, workload: str):
    assert refused(configured(f"kind={kind}", f"workload={workload}"), definitions) == []


def test_image_and_ray_version_are_those_of_the_installed_ray(plan: Plan):
    cluster = cluster_of(ray_resource(plan))
    assert cluster["rayVersion"] == ray.__version__
    for spec in pod_specs(ray_resource(plan)):
        assert ray.__version__ in spec["containers"][0]["image"]


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("2.61.0-7", "2.61.0"),
        ("0.1.0-ray2.60.0", "2.60.0"),
        ("3.1.0-ray2.60.0", "2.60.0"),
        ("2.60.0-ray", "2.60.0"),
    ],
)
def test_version_follows_the_tag_and_the_check_reads_the_same(tag: str, version: str):
    plan = planned("tf-train", "gpu", f"image.tag={tag}")
    resource = ray_resource(plan)
    assert cluster_of(resource)["rayVersion"] == version
    images = {spec["containers"][0]["image"] for spec in pod_specs(resource)}
    assert images == {f"registry.example.com/ray-ref/tf-train:{tag}-gpu"}
    assert cross_checks.version_of(plan.image) == version
    assert validate.check([resource], None) == []


def test_head_runs_no_tasks(plan: Plan):
    head = cluster_of(ray_resource(plan))["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}


def test_images_name_the_registry_that_they_come_from(plan: Plan):
    # Without a host they would be looked for at Docker Hub.
    for spec in pod_specs(ray_resource(plan)):
        host, slash, _ = spec["containers"][0]["image"].partition("/")
        assert (slash, "." in host) == ("/", True)


def test_disk_that_a_pod_may_fill_is_asked_for(plan: Plan):
    for spec in pod_specs(ray_resource(plan)):
        limits = [v["emptyDir"]["sizeLimit"] for v in spec.get("volumes", []) if "emptyDir" in v]
        (container,) = spec["containers"]
        requested = container["resources"]["requests"].get("ephemeral-storage")
        assert [requested] * len(limits) == limits
        # No limit: what is written beside the volume would count, too.
        assert "ephemeral-storage" not in container["resources"]["limits"]


def test_every_pod_meets_the_restricted_standard_and_gets_no_token(plan: Plan):
    specs = pod_specs(ray_resource(plan))
    assert len(specs) >= 2
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["restartPolicy"] == "Never"
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {k: v for k, v in requests.items() if k != "ephemeral-storage"} == limits


def test_only_the_autoscalers_container_gets_the_api_token(plan: Plan):
    cluster = cluster_of(ray_resource(plan))
    (mount,) = cluster["autoscalerOptions"]["volumeMounts"]
    for spec in pod_specs(ray_resource(plan)):
        for container in spec["containers"]:
            assert mount not in container.get("volumeMounts", [])
    volumes = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert [v for v in volumes if v["name"] == mount["name"] and "projected" in v]


def test_autoscaler_and_authentication_are_said(plan: Plan):
    cluster = cluster_of(ray_resource(plan))
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}


def test_pods_have_longer_than_ray_needs_to_drain(plan: Plan):
    for group in (cluster_of(ray_resource(plan))["headGroupSpec"], *groups(plan)):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_autoscaler_gives_spot_nodes_up_before_anybody_else_does():
    name = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    spots = [plan for plan in PLANS if plan.profile == "spot"]
    for plan in spots:
        resource = ray_resource(plan)
        env = cluster_of(resource)["autoscalerOptions"]["env"]
        (timeout_s,) = [int(variable["value"]) for variable in env if variable["name"] == name]
        words = resource["spec"].get("entrypoint", "").split()
        waits = [int(word.partition("=")[2]) for word in words if "timeout_s=" in word]
        assert len(waits) == (plan.kind == "job")
        assert 2 * timeout_s < min(
            [*waits, resource["spec"].get("preRunningDeadlineSeconds", 1800)]
        )
    assert len(spots) == len(WORKLOADS)
    assert name not in render.manifest(planned("torch-ddp-train", "prod"), "x")


def test_variable_of_the_fallback_is_one_that_ray_reads(monkeypatch: pytest.MonkeyPatch):
    (variable,) = cluster_of(ray_resource(planned("tf-train", "spot")))["autoscalerOptions"]["env"]
    code = "from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig as C\n"
    code += "print(C().allocate_status_timeout_s)"
    env = os.environ | {variable["name"]: variable["value"]}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [variable["value"]]


def test_job_that_has_ended_keeps_no_workers_and_no_cluster_for_ever(plan: Plan):
    spec = ray_resource(plan)["spec"]
    if plan.kind == "job":  # Rules would not see a job that was stopped; a time to live does.
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] <= 3600
        assert [group["minReplicas"] for group in groups(plan)] == [0] * len(groups(plan))


def test_failed_jobs_head_stays_by_rules_where_that_is_asked_for():
    plan = planned("torch-ddp-train", "prod", "profiles.prod.keep_failed_s=7200")
    spec = ray_resource(plan)["spec"]
    rules = {rule["condition"]["ttlSeconds"] for rule in spec["deletionStrategy"]["deletionRules"]}
    assert rules == {3600, 7200}
    assert "shutdownAfterJobFinishes" not in spec
    assert "ttlSecondsAfterFinished" not in spec


def test_jobs_of_a_cron_job_are_kept_for_a_week_and_not_for_ever(definitions: Crds):
    plan = planned("torch-ddp-train", "spot", "kind=cron", "profiles.spot.keep_failed_s=7200")
    spec = ray_resource(plan)["spec"]["jobTemplate"]
    assert "shutdownAfterJobFinishes" not in spec  # It would delete the cluster alone.
    rules = {
        (rule["policy"], *map(str, rule["condition"].values()))
        for rule in spec["deletionStrategy"]["deletionRules"]
    }
    assert rules == {
        ("DeleteCluster", "SUCCEEDED", "300"),
        ("DeleteSelf", "SUCCEEDED", f"{300 + 7 * 86400}"),
        ("DeleteCluster", "Failed", "7200"),
        ("DeleteSelf", "Failed", f"{7200 + 7 * 86400}"),
    }
    assert validate.check([ray_resource(plan)], definitions) == []


def test_first_line_makes_the_file_again_in_a_shell():
    plan = planned("torch-ddp-train", "dev")
    given = ["overrides=['run.name=a b']", "crds.path=/mine", "crds=download", "namespace=x\ny"]
    first = render.manifest(plan, actions.command(plan, given))
    comment = "".join(line for line in first.splitlines(True) if line.startswith("#"))
    words = shlex.split(comment.removeprefix("# Written by: ").replace("\n# ", "\n"))
    assert words[4:] == [given[0], given[3]]
    assert list(yaml.safe_load_all(first)) == render.render(plan)


def test_service_knows_its_health_keeps_its_state_and_moves_step_by_step():
    resource = ray_resource(planned("serve-fastapi", "prod", "platform=aws"))
    spec = resource["spec"]
    options = spec["upgradeStrategy"]["clusterUpgradeOptions"]
    assert options["stepSizePercent"] <= options["maxSurgePercent"]
    assert spec["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > 30 + int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert int(env["RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"]) >= 30
    assert "SERVE_FASTAPI_KEYS" in env
    config = yaml.safe_load(spec["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["applications"][0]["args"]["scale"]["ingress"]["max"] == 8


def test_without_a_gateway_an_update_moves_at_once():
    spec = ray_resource(planned("serve-fastapi", "prod", "platform=bare"))["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
