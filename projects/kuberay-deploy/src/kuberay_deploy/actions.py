"""What a person can ask for: render, validate, submit, and follow what was submitted."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_shared.errors import UserError
from ray_shared.report import Report

from kuberay_deploy import crds, manifests, pods, serve_config
from kuberay_deploy import overrides as given_overrides
from kuberay_deploy import rehearse as rehearsing
from kuberay_deploy import render as rendering
from kuberay_deploy.config import PROJECT, Config
from kuberay_deploy.sections import WAIT_S, check_output
from kuberay_deploy.validate import DEFAULT_GATES, check

logger = logging.getLogger(__name__)

# Overrides of this command that a rendered file's first line does not repeat as they were.
OWN_KEYS = ("action", "workload", "profile", "output", "wait", "crds", "hydra")


def prepare(config: Config) -> None:
    """Renders or reads what the action is about, and checks it, before anything is written.

    Raises:
        UserError: If a value, a file or a manifest is wrong.
    """
    if config.manifest is None:
        given_overrides.check(config)
    if config.action == "render" and config.output:
        check_output(Path(config.output))
    if config.target == "ray" and config.action == "submit":
        given_overrides.of_command(config)
        list(_packages(config))
    elif config.action == "rehearse":
        rehearsing.prepare(config)
    else:
        _refuse(config)


def render(config: Config, report: Report) -> None:
    """`action=render`: writes a file for each workload and profile, which `prepare` has checked."""
    with report.timed("job_s"):
        plans = _plans(config)
        directory = Path(config.output) if config.output else report.output_dir / "manifests"
        given = _given_overrides()
        texts = {p.name: rendering.manifest(p, command(p, given)) for p in plans}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (directory / f"{name}.yaml").write_text(text)
        except OSError as error:
            why = f"{error.strerror}: must be a directory to write into"
            raise UserError(f"output={directory}: {why}") from None
    report.artifacts["manifests"] = str(directory)
    report.metrics |= {
        "num_manifests": len(plans),
        "num_documents": sum(len(rendering.render(plan)) for plan in plans),
        "num_findings": 0,
        "schemas_checked": _has_schemas(config),
    }
    rows = {"manifests": len(plans), "documents": report.metrics["num_documents"]}
    report.show(rows | {"checked against": _checked_against(config)})


def validate(config: Config, report: Report) -> None:
    """`action=validate`: what is known of a file in which `prepare` has found no mistake."""
    documents = manifests.read(Path(str(config.manifest)))
    report.metrics |= {
        "num_documents": len(documents),
        "num_findings": 0,
        "schemas_checked": _has_schemas(config),
    }
    rows = {"manifest": config.manifest, "documents": len(documents)}
    report.show(rows | {"checked against": _checked_against(config)})


def rehearse(config: Config, report: Report) -> None:
    """`action=rehearse`: runs a manifest on this machine, and lets things go wrong in it."""
    report.show(rehearsing.rehearse(config, report))


def on_ray(config: Config, report: Report) -> None:
    """`target=ray`: submits to a running cluster, through its dashboard, or follows a job there.

    Raises:
        UserError: If the address, the token or the job's id is wrong.
        JobError: If the job fails, or the cluster does.
    """
    from kuberay_deploy import dashboard, deploy

    cluster = dashboard.connect(str(config.cluster.address))
    timeout_s, name = _timeout_s(config), config.job.id or ""
    with report.timed("job_s"):
        if config.action == "submit":
            _submit_to_ray(config, cluster, report)
        elif _is_service(config):
            apps = deploy.applications(cluster)
            if config.action == "stop":
                deploy.undeploy(cluster, name, timeout_s)
            elif name not in apps:
                known = f"known are {', '.join(apps)}" if apps else "there is none"
                raise UserError(f"job.id={name}: no such application on the cluster: {known}")
            else:
                if config.action == "wait":
                    deploy.wait_until_running(cluster, {name}, timeout_s)
                    apps = deploy.applications(cluster)
                report.metrics["status"], message = apps[name]
                logger.info("%s: %s %s", name, report.metrics["status"], message)
        elif config.action == "logs":
            deploy.logs(cluster, name, write)
        elif config.action == "stop":
            report.metrics["status"] = str(deploy.stop(cluster, name, timeout_s).value)
        elif config.action == "wait":
            _follow_on_ray(config, cluster, name, report)
        else:
            report.metrics["status"] = str(deploy.details(cluster, name).status.value)
            logger.info("%s: %s", name, report.metrics["status"])


def on_kubernetes(config: Config, report: Report) -> None:
    """`target=kubernetes`: applies a manifest, or follows a resource of KubeRay's.

    Raises:
        UserError: If the context, a secret or a name is wrong, or the API server refuses.
        JobError: If the job fails, or the cluster does.
    """
    from kuberay_deploy import api_server, kubernetes

    timeout_s, name = config.job.timeout_s, config.job.id or ""
    with report.timed("job_s"):
        if config.action == "submit":
            documents = _documents(config)
            api = api_server.connect(config.kubernetes.context, config.kubernetes.namespace)
            names = kubernetes.submit(api, documents)
            report.metrics["submitted"] = names
            for each in names if config.wait else []:
                _follow_on_kubernetes(api, each, timeout_s, report)
            return
        api = api_server.connect(config.kubernetes.context, config.kubernetes.namespace)
        if config.action == "logs":
            kubernetes.logs(api, name, write)
        elif config.action == "stop":
            kubernetes.stop(api, name, timeout_s or WAIT_S)
        elif config.action == "wait":
            _follow_on_kubernetes(api, name, timeout_s, report)
        else:
            state = kubernetes.state(api, name)
            report.metrics["status"] = state.phase
            logger.info("%s: %s %s", name, state.phase, state.message)


def command(plan: pods.Plan, given: Sequence[str]) -> str:
    """What makes this one file again, from a project's folder.

    Args:
        plan: Of the file.
        given: The overrides of the command that makes it now.
    """
    keys = {override: override.lstrip("+~").partition("=")[0] for override in given}
    others = [override for override, key in keys.items() if key.split(".")[0] not in OWN_KEYS]
    chosen = [f"workload={plan.workload}", f"profile={plan.profile}", "output=manifests"]
    return shlex.join(["kuberay-deploy", *chosen, *others])


def write(text: str) -> None:
    """Passes text of a log on to the console as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _plans(config: Config) -> list[pods.Plan]:
    return [rendering.make_plan(config, w, p) for w, p in config.plans()]


def _documents(config: Config) -> list[manifests.Document]:
    """Those of `manifest`, or else of everything that is rendered."""
    if config.manifest is not None:
        return manifests.read(Path(config.manifest))
    return [document for plan in _plans(config) for document in rendering.render(plan)]


def _refuse(config: Config) -> None:
    """Ends if there are mistakes in the manifests, with all of them, one a line.

    Raises:
        UserError: Then.
    """
    gates = DEFAULT_GATES | set(config.kubernetes.feature_gates)
    findings = check(_documents(config), _schemas(config), gates)
    what = f"manifest={config.manifest}" if config.manifest else "rendered"
    if len(findings) == 1:
        raise UserError(f"{what}: {findings[0]}")
    if findings:
        lines = "".join(f"\n  {finding}" for finding in findings)
        raise UserError(f"{what}: {len(findings)} mistakes{lines}")


def _checked_against(config: Config) -> str:
    rules = "Kubernetes' types, the operator's rules, Ray's parser"
    if _has_schemas(config):
        return f"KubeRay's schemas, {rules}"
    return f"{rules}; NOT KubeRay's schemas: crds.path=DIRECTORY or crds=download"


def _has_schemas(config: Config) -> bool:
    return config.crds.source != "directory" or config.crds.path is not None


def _schemas(config: Config) -> crds.Crds | None:
    """KubeRay's definitions; None, said loudly, where none were named."""
    if config.crds.source == "cluster":
        return _schemas_of_cluster(config.kubernetes.context, config.kubernetes.namespace)
    if config.crds.source == "download":
        return crds.download(cache_directory())
    if config.crds.path is None:
        return None
    return crds.from_directory(Path(config.crds.path))


def _schemas_of_cluster(context: str | None, namespace: str) -> crds.Crds:
    from kuberay_deploy import api_server

    api = api_server.connect(context, namespace)

    def get(path: str) -> manifests.Document:
        with api_server.explained(path):
            return dict(api.client.request("get", path).to_dict())

    return crds.from_cluster(get)


def cache_directory() -> Path:
    """Where downloads are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / PROJECT / "crds"


def _given_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _is_service(config: Config) -> bool:
    """Whether it is about an application of Ray Serve, and not about a job."""
    return config.is_service(config.workload if config.action == "submit" else str(config.job.id))


def _timeout_s(config: Config) -> float:
    """How long to wait on a Ray cluster, where no deadline but this one ends a job."""
    waits = config.action in ("submit", "wait") and config.workload != "all"
    if config.job.timeout_s is None and waits and not _is_service(config):
        return float(config.describe(config.workload).deadline_s)
    return config.job.timeout_s or WAIT_S


def _packages(config: Config) -> Iterator[Path]:
    from kuberay_deploy.dashboard import locate

    source = Path(config.source) if config.source else None
    yield locate(config.workload.replace("-", "_"), source)
    yield locate("ray_shared")


def _submit_to_ray(config: Config, cluster: Any, report: Report) -> None:
    from kuberay_deploy import deploy

    overrides, packages = given_overrides.of_command(config), list(_packages(config))
    if _is_service(config):
        content = serve_config.content(config.storage.path, overrides)
        addresses = deploy.deploy(cluster, content, packages, _timeout_s(config))
        report.metrics["addresses"] = addresses
        report.show(addresses)
        return
    line = deploy.entrypoint(config.workload.replace("-", "_"), overrides)
    job_id = deploy.submit(cluster, line, packages, config.job.id, config.job.env)
    report.metrics["job_id"] = job_id
    logger.info("submitted %s", job_id)
    if config.wait:
        _follow_on_ray(config, cluster, job_id, report)


def _follow_on_ray(config: Config, cluster: Any, job_id: str, report: Report) -> None:
    from kuberay_deploy import deploy

    outcome = deploy.wait(cluster, job_id, _timeout_s(config), write)
    report.metrics |= {
        "job_id": job_id,
        "status": str(outcome.status.value),
        "result": outcome.result,
    }
    outcome.check()
    report.show({"job": job_id, "status": report.metrics["status"]})


def _follow_on_kubernetes(api: Any, name: str, timeout_s: float | None, report: Report) -> None:
    from kuberay_deploy import kubernetes

    state = kubernetes.wait(api, name, timeout_s)
    report.metrics |= {"status": state.phase, "cluster": state.cluster}
    if name.startswith("RayJob/"):
        report.metrics["result"] = kubernetes.result(api, name)
    state.check()
    report.show({state.name: state.phase, "cluster": state.cluster})
