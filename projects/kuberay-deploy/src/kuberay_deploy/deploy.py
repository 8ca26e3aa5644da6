"""Submits jobs and applications to a running Ray cluster, and follows them: the file to read.

A job is a shell command that Ray runs on the cluster's head as a driver (Job Submission API). An
application is what Ray Serve is told to keep running, by a declaration of all of them (Serve's
REST API). Both go over HTTP to the dashboard, so this machine needs neither to be a node nor to
hold the workload's libraries. The workload's own code travels with the request; what it imports
comes with the cluster's image.

    python -m kuberay_deploy action=submit target=ray workload=torch-ddp-train profile=dev \
        wait=true cluster=existing cluster.address=http://127.0.0.1:8265

Source: https://docs.ray.io/en/releases-2.60.0/cluster/running-applications/job-submission/sdk.html,
https://docs.ray.io/en/releases-2.60.0/serve/api/index.html#serve-rest-api and
https://docs.ray.io/en/releases-2.60.0/ray-security/token-auth.html
"""

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus
from ray_shared.errors import JobError, UserError
from ray_shared.report import RESULT_TO_LOG

from kuberay_deploy.dashboard import POLL_S, Dashboard, RefusedError, why_not
from kuberay_deploy.outcome import JobLog, Outcome, Write
from kuberay_deploy.overrides import refuse_ours

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a dashboard may be away, say while a port is forwarded anew, until a wait gives up."""
LOG_END_S = 10.0
"""For the last lines of the log, once the job has ended."""
OURS = ("hydra.run.dir", "cluster", "cluster.mode", "cluster.address")
"""Keys of a workload that `entrypoint` sets."""


def entrypoint(module: str, overrides: Sequence[str]) -> str:
    """The shell command of a job: the workload joins the cluster that runs it.

    Args:
        module: Import package of the workload, run with `python -m`.
        overrides: Hydra overrides for it.

    Raises:
        UserError: If an override sets what is set here.
    """
    for override in overrides:
        refuse_ours(override, OURS, below=False)
    command = shlex.join(["python", "-m", module, *overrides])
    return (
        # Whoever stops the job stops its shell, too; that one still has to clean up.
        "trap : TERM; out=$(mktemp -d); "
        f'{command} hydra.run.dir="$out" cluster=existing cluster.address="$RAY_ADDRESS"; '
        'code=$?; cat "$out/error.log" 2>/dev/null; rm -rf "$out"; exit $code'
    )


def submit(
    dashboard: Dashboard,
    command: str,
    packages: Sequence[Path],
    job_id: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Starts a job.

    Args:
        dashboard: The cluster.
        command: What to run, as from `entrypoint`.
        packages: Directories of the import packages to ship: the workload's and `ray_shared`.
        job_id: A name of its own for the job; None: Ray makes one.
        env: Environment variables of the job and its workers.

    Returns:
        The job's id.

    Raises:
        UserError: If a job of this name exists.
        JobError: If the cluster cannot start it.
    """
    if job_id is not None and any(job_id == job.submission_id for job in dashboard.list_jobs()):
        status = dashboard.get_job_status(job_id)
        raise UserError(f"job.id={job_id}: there is such a job already ({status})")
    # The workload ships its packages to its workers itself, where it joins a cluster; Ray takes
    # this and what came with the job for a conflict, unless told which one wins.
    variables = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1", RESULT_TO_LOG: "1"} | dict(env or {})
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if packages:  # Ray stumbles over an empty list.
        runtime_env["py_modules"] = [str(package) for package in packages]
    return dashboard.submit_job(entrypoint=command, submission_id=job_id, runtime_env=runtime_env)


def details(dashboard: Dashboard, job_id: str) -> JobDetails:
    """What the cluster knows about a job: `status`, `message`, `start_time` in milliseconds, ...

    Raises:
        UserError: If there is no such job.
    """
    try:
        return dashboard.get_job_info(job_id)
    except RefusedError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        known = [job.submission_id for job in dashboard.list_jobs() if job.submission_id]
        shown = f"known are {', '.join(known)}" if known else "there is none"
        raise UserError(f"job.id={job_id}: no such job on the cluster: {shown}") from None


def wait(
    dashboard: Dashboard, job_id: str, timeout_s: float, write: Write | None = None
) -> Outcome:
    """Waits for the end of a job.

    Args:
        dashboard: The cluster.
        job_id: Which job.
        timeout_s: For how long. The job goes on after it.
        write: Gets the log's lines as they come, without the one that holds the result.

    Raises:
        UserError: If there is no such job.
        JobError: If it does not end in time, if the cluster loses it, or the dashboard stays away.
    """
    log = JobLog(write or (lambda _: None))
    info = asyncio.run(_wait(dashboard, job_id, timeout_s, log))
    if log.result is None:  # The log broke off, or could not be followed.
        with contextlib.suppress(RuntimeError):
            log = JobLog(lambda _: None)
            log.add(0, dashboard.get_job_logs(job_id))
    return Outcome(job_id, info.status, info.driver_exit_code, info.message or "", log.result)


async def _wait(dashboard: Dashboard, job_id: str, timeout_s: float, log: JobLog) -> JobDetails:
    """Asks for the status, while the log is followed: that connection may break at any time."""
    info = await asyncio.to_thread(details, dashboard, job_id)
    ended = asyncio.Event()
    following = asyncio.create_task(_follow(dashboard, job_id, log, ended))
    try:
        async with asyncio.timeout(timeout_s):
            seen = time.monotonic()
            while not info.status.is_terminal():
                await asyncio.sleep(POLL_S)
                try:
                    info = await asyncio.to_thread(details, dashboard, job_id)
                    seen = time.monotonic()
                except JobError:
                    if time.monotonic() - seen > PATIENCE_S:
                        raise
                except UserError as error:  # It was there a moment ago.
                    reason = "the cluster has lost it; was its head started anew?"
                    raise JobError(f"job {job_id}: {reason}") from error
        ended.set()
        await asyncio.wait([following], timeout=LOG_END_S)
    except TimeoutError:
        raise JobError(
            f"job {job_id} is still {info.status} after {timeout_s:g} s: it goes on; "
            f"action=wait waits longer, action=stop ends it (job.id={job_id})"
        ) from None
    finally:
        following.cancel()
        log.flush()
    return info


async def _follow(dashboard: Dashboard, job_id: str, log: JobLog, ended: asyncio.Event) -> None:
    """Reads the log to its end; each new connection starts at the first line again."""
    while True:
        over = ended.is_set()
        position = 0
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            async for text in dashboard.tail_job_logs(job_id):
                log.add(position, text)
                position += len(text)
        if over:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 2 * POLL_S)


def logs(dashboard: Dashboard, job_id: str, write: Write) -> None:
    """Writes the log of a job so far, without the line that holds the result.

    Raises:
        UserError: If there is no such job.
    """
    details(dashboard, job_id)
    log = JobLog(write)
    log.add(0, dashboard.get_job_logs(job_id))
    log.flush()


def stop(dashboard: Dashboard, job_id: str, timeout_s: float) -> JobStatus:
    """Ends a job, unless it has ended; how it ended.

    Ray sends SIGTERM to its processes, and SIGKILL 3 s later (`RAY_JOB_STOP_WAIT_TIME_S` in the
    environment of the head).

    Raises:
        UserError: If there is no such job.
        JobError: If it does not end in time.
    """
    info = details(dashboard, job_id)
    if not info.status.is_terminal():
        dashboard.stop_job(job_id)
        info = asyncio.run(_wait(dashboard, job_id, timeout_s, JobLog(lambda _: None)))
    return info.status


# --- Applications of Ray Serve ---


def deploy(
    dashboard: Dashboard, config: dict[str, Any], packages: Sequence[Path], timeout_s: float
) -> dict[str, str]:
    """Deploys applications, or new versions of them, and waits until they run.

    The cluster's other applications stay: the API takes the declaration of all, and stops what is
    missing in it.

    Args:
        dashboard: The cluster.
        config: Content of a Serve configuration file.
        packages: Directories of the import packages to ship.
        timeout_s: For how long to wait.

    Returns:
        The address of each application.

    Raises:
        UserError: If Serve finds a mistake in the configuration.
        JobError: If an application does not start, or not in time.
    """
    runtime_env = {"py_modules": dashboard.upload(packages)} if packages else {}
    ours = [
        app | {"runtime_env": app.get("runtime_env", {}) | runtime_env}
        for app in config["applications"]
    ]
    names = {app["name"] for app in ours}
    before = dashboard.serve("GET")["applications"]
    if before.keys() - names:  # Serve runs: its proxies stay as they are.
        common = {key: config[key] for key in ("logging_config",) if key in config}
        ours = [common | app for app in ours]
        config = {"applications": [*_declared(before, names), *ours]}
    else:
        config = config | {"applications": ours}
    dashboard.serve("PUT", config)
    return _addresses(dashboard, wait_until_running(dashboard, names, timeout_s))


def wait_until_running(dashboard: Dashboard, names: set[str], timeout_s: float) -> dict[str, Any]:
    """Waits until these applications run; what Serve then says about each.

    Raises:
        JobError: If one fails, or they do not run in time.
    """
    logger.info("waiting until %s runs", ", ".join(sorted(names)))
    now: dict[str, Any] = {}
    for found in dashboard.serve_states(timeout_s):
        now = {name: app for name, app in found.items() if name in names}
        for name, app in now.items():
            if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise JobError(f"{name}: {why_not(app)}")
        if {name for name, app in now.items() if app["status"] == "RUNNING"} == names:
            return now
    state = "; ".join(f"{name}: {why_not(app)}" for name, app in now.items()) or "nothing known"
    raise JobError(f"{state} after {timeout_s:g} s; it goes on, action=status shows how")


def undeploy(dashboard: Dashboard, name: str, timeout_s: float) -> None:
    """Stops an application, and Serve with the last one. The others stay.

    Raises:
        UserError: If there is no such application, or none that this API has deployed.
        JobError: If it does not end in time.
    """
    before = dashboard.serve("GET")["applications"]
    if name not in before:
        shown = f"known are {', '.join(before)}" if before else "there is none"
        raise UserError(f"job.id={name}: no such application on the cluster: {shown}")
    if before.keys() == {name}:
        dashboard.serve("DELETE")
    elif before[name]["deployed_app_config"] is None:
        raise UserError(f"job.id={name}: deployed by a driver's serve.run: stop it there")
    else:
        dashboard.serve("PUT", {"applications": _declared(before, {name})})
    for now in dashboard.serve_states(timeout_s):
        if name not in now:
            return
    raise JobError(f"{name}: still there after {timeout_s:g} s")


def applications(dashboard: Dashboard) -> dict[str, tuple[str, str]]:
    """Name to status and message of everything that Serve runs."""
    found = dashboard.serve("GET")["applications"]
    return {name: (app["status"], app["message"]) for name, app in found.items()}


def _declared(apps: dict[str, Any], without: set[str]) -> list[dict[str, Any]]:
    """The configurations of those applications that came by this API, as they were given."""
    configs = {name: app["deployed_app_config"] for name, app in apps.items()}
    return [config for name, config in configs.items() if config and name not in without]


def _addresses(dashboard: Dashboard, apps: dict[str, Any]) -> dict[str, str]:
    """Where the applications answer, as seen from here if they listen on all interfaces."""
    http = dashboard.serve("GET")["http_options"]
    here = urlsplit(dashboard.get_address()).hostname
    host = here if http["host"] in ("0.0.0.0", "::") else http["host"]
    return {n: f"http://{host}:{http['port']}{apps[n]['route_prefix'] or ''}" for n in sorted(apps)}
