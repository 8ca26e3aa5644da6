"""Jobs and applications on a real Ray cluster, submitted through its dashboard."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from kuberay_deploy import dashboard, deploy, serve_config
from kuberay_deploy.dashboard import Dashboard
from ray.job_submission import JobStatus
from ray_shared.errors import JobError, UserError
from ray_shared.report import RESULT_LINE
from ray_shared.testing import free_port, wait_for

from .ray_cluster import hello, running, source

pytestmark = pytest.mark.fault  # Some minutes; the fast tier has its like in test_submit.py.

LONG_S = 240
CONNECT = """
import sys
from kuberay_deploy import dashboard
try:
    print("version", dashboard.connect(sys.argv[1]).get_version())
except dashboard.UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def cluster(ray_tmpdir: Path) -> Iterator[Dashboard]:
    with running(num_cpus=4) as address:
        yield dashboard.connect(address)


# --- Who may connect ---


def connect_with(address: str, home: Path, **env: str) -> str:
    """What a fresh process says, because Ray reads mode and token once."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    finished = subprocess.run(
        [sys.executable, "-c", CONNECT, address],
        env=given | {"HOME": str(home)} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert finished.stderr == ""
    (line,) = finished.stdout.splitlines()
    return line


def test_token_decides_who_may_connect(cluster: Dashboard, tmp_path: Path) -> None:
    address, token = cluster.get_address(), os.environ["RAY_AUTH_TOKEN"]
    assert connect_with(address, tmp_path, RAY_AUTH_TOKEN=token).startswith("version")
    wrong = connect_with(address, tmp_path, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.startswith(f"cluster.address={address}: the cluster refuses this token: set")
    missing = connect_with(address, tmp_path)
    assert missing.startswith(f"cluster.address={address}: no token to send: set RAY_AUTH_TOKEN")
    off = connect_with(address, tmp_path, RAY_AUTH_MODE="disabled")
    assert off.startswith(f"cluster.address={address}: the cluster wants a token, and none is")


def test_address_that_is_asked_for_wins_over_the_environment(
    cluster: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    address = cluster.get_address()
    assert dashboard.connect(address).get_address() == address
    assert "RAY_ADDRESS" in os.environ


# --- Jobs ---


def test_training_runs_on_the_cluster_and_gives_its_result(
    cluster: Dashboard, tmp_path: Path
) -> None:
    packages = [
        dashboard.locate("torch_ddp_train", source("torch-ddp-train")),
        dashboard.locate("ray_shared"),
    ]
    # What is not installed can only have been shipped.
    assert importlib.util.find_spec("torch_ddp_train") is None
    command = deploy.entrypoint(
        "torch_ddp_train",
        ["train.epochs=1", "scaling.num_workers=1", "run.name=mine", f"storage.path={tmp_path}"],
    )
    written: list[str] = []
    job_id = deploy.submit(cluster, command, packages, "train-1")
    assert job_id == "train-1"
    outcome = deploy.wait(cluster, job_id, LONG_S, written.append)
    log = "".join(written)
    outcome.check()
    assert outcome.result is not None, log
    assert outcome.result["status"] == "ok"
    assert outcome.result["config"]["train"]["epochs"] == 1
    assert outcome.result["metrics"]["accuracy"] > 0.5
    assert log.count("run mine: 1 worker(s)") == 1
    assert not [line for line in log.splitlines() if line.startswith(RESULT_LINE)]
    assert (tmp_path / "mine").is_dir()


def test_refused_override_is_the_users_mistake(cluster: Dashboard) -> None:
    packages = [
        dashboard.locate("torch_ddp_train", source("torch-ddp-train")),
        dashboard.locate("ray_shared"),
    ]
    command = deploy.entrypoint("torch_ddp_train", ["train.epohcs=1"])
    outcome = deploy.wait(cluster, deploy.submit(cluster, command, packages), LONG_S)
    assert (outcome.status, outcome.exit_code) == (JobStatus.FAILED, 2)
    with pytest.raises(UserError, match="unknown key 'train.epohcs': did you mean 'train.epochs'"):
        outcome.check()


def test_failed_command_is_not_done(cluster: Dashboard) -> None:
    job_id = deploy.submit(cluster, "echo about to fail; exit 3", [])
    outcome = deploy.wait(cluster, job_id, LONG_S)
    with pytest.raises(JobError, match=f"job {job_id} failed: its command ended with 3"):
        outcome.check()
    written: list[str] = []
    deploy.logs(cluster, job_id, written.append)
    assert "about to fail\n" in written


def test_environment_reaches_the_command(cluster: Dashboard, tmp_path: Path) -> None:
    package = hello(tmp_path)
    script = "import hello_app, os; print(hello_app.Hello.name, os.environ['WORD'])"
    job_id = deploy.submit(cluster, f'python -c "{script}"', [package], env={"WORD": "there"})
    written: list[str] = []
    deploy.wait(cluster, job_id, LONG_S, written.append).check()
    assert "Hello there\n" in written


def test_log_goes_on_where_it_broke_off(
    cluster: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done"
    tail, breaks = cluster.tail_job_logs, []

    async def breaking(job_id: str) -> Any:
        async for text in tail(job_id):
            yield text
            if "line 2" in text and not breaks:
                breaks.append(text)
                raise RuntimeError("the connection broke")

    monkeypatch.setattr(cluster, "tail_job_logs", breaking)
    written: list[str] = []
    deploy.wait(cluster, deploy.submit(cluster, command, []), LONG_S, written.append).check()
    assert len(breaks) == 1
    lines = [line for line in written if line.startswith("line")]
    assert lines == [f"line {i}\n" for i in range(1, 7)]


def test_job_that_is_waited_for_in_vain_goes_on_until_it_is_stopped(
    cluster: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = deploy.submit(cluster, "sleep 600", [])
    running_now = lambda: deploy.details(cluster, job_id).status == JobStatus.RUNNING  # noqa: E731
    wait_for(running_now, "running job")
    with pytest.raises(JobError, match=f"job {job_id} is still RUNNING after 1 s: it goes on"):
        deploy.wait(cluster, job_id, 1)
    assert running_now()
    ask = cluster.get_job_info
    with monkeypatch.context() as patch:  # From the second look on: as a head that was restarted.
        names = iter([job_id])
        patch.setattr(cluster, "get_job_info", lambda _: ask(next(names, "forgotten")))
        with pytest.raises(JobError, match=f"job {job_id}: the cluster has lost it"):
            deploy.wait(cluster, job_id, LONG_S)
    assert deploy.stop(cluster, job_id, LONG_S) == JobStatus.STOPPED
    with pytest.raises(JobError, match=f"job {job_id} was stopped"):
        deploy.wait(cluster, job_id, LONG_S).check()
    assert deploy.stop(cluster, job_id, LONG_S) == JobStatus.STOPPED  # Again does no harm.


def test_name_of_a_job_is_used_once(cluster: Dashboard) -> None:
    deploy.wait(cluster, deploy.submit(cluster, "true", [], "twice"), LONG_S).check()
    with pytest.raises(UserError, match=r"job.id=twice: there is such a job already \(SUCCEEDED\)"):
        deploy.submit(cluster, "true", [], "twice")


@pytest.mark.parametrize("verb", ["details", "wait", "logs", "stop"])
def test_unknown_job_is_named(cluster: Dashboard, verb: str) -> None:
    arguments = {"wait": (1,), "logs": (str,), "stop": (1,)}.get(verb, ())
    with pytest.raises(UserError, match="job.id=nobody: no such job on the cluster"):
        getattr(deploy, verb)(cluster, "nobody", *arguments)


# --- Applications ---


def test_application_is_served_and_answers(cluster: Dashboard, tmp_path: Path) -> None:
    port = free_port()
    overrides = ["scale.fused=true", "scale.ingress.max=1", f"serve.port={port}"]
    config = serve_config.content(str(tmp_path), [*overrides, "serve.host=127.0.0.1"])
    packages = [
        dashboard.locate("serve_fastapi", source("serve-fastapi")),
        dashboard.locate("ray_shared"),
    ]
    assert importlib.util.find_spec("serve_fastapi") is None
    addresses = deploy.deploy(cluster, config, packages, LONG_S)
    assert addresses == {"serve-fastapi": f"http://127.0.0.1:{port}/"}
    answer = httpx.get(f"{addresses['serve-fastapi']}readyz", timeout=30)
    assert answer.status_code == HTTPStatus.OK, answer.text
    assert deploy.applications(cluster)["serve-fastapi"][0] == "RUNNING"
    deploy.undeploy(cluster, "serve-fastapi", LONG_S)
    assert deploy.applications(cluster) == {}


def app(name: str, word: str, **more: Any) -> dict[str, Any]:
    route = f"/{name}"
    described = {"name": name, "route_prefix": route, "import_path": "hello_app:build"}
    return described | {"args": {"word": word}} | more


def test_each_application_comes_and_goes_without_the_others(
    cluster: Dashboard, tmp_path: Path
) -> None:
    package, port = hello(tmp_path), free_port()
    options = {"http_options": {"host": "127.0.0.1", "port": port}}

    def put(*apps: dict[str, Any]) -> dict[str, str]:
        return deploy.deploy(cluster, options | {"applications": list(apps)}, [package], LONG_S)

    one = put(app("one", "first"))["one"]
    two = put(app("two", "second"))["two"]
    assert [httpx.get(address, timeout=30).text for address in (one, two)] == ["first", "second"]
    put(app("one", "newer"))
    assert [httpx.get(address, timeout=30).text for address in (one, two)] == ["newer", "second"]

    with pytest.raises(JobError, match="three: DEPLOY_FAILED: .*no such word"):
        put(app("three", "bad"))
    with pytest.raises(JobError, match="four: DEPLOY_FAILED: .*nowhere"):
        put(app("four", "word", import_path="hello_app.nowhere:build"))
    with pytest.raises(UserError, match="Serve refuses the configuration"):
        put(app("five", "word", import_path=5))
    assert [httpx.get(address, timeout=30).text for address in (one, two)] == ["newer", "second"]

    for name in ("three", "four", "one"):
        deploy.undeploy(cluster, name, LONG_S)
    assert list(deploy.applications(cluster)) == ["two"]
    with pytest.raises(UserError, match="job.id=one: no such application .* known are two"):
        deploy.undeploy(cluster, "one", LONG_S)
    assert httpx.get(two, timeout=30).text == "second"
    deploy.undeploy(cluster, "two", LONG_S)


def test_application_without_room_is_reported_in_time(cluster: Dashboard, tmp_path: Path) -> None:
    needs = {"deployments": [{"name": "Hello", "ray_actor_options": {"num_cpus": 64}}]}
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [app("big", "word", **needs)],
    }
    started = time.monotonic()
    with pytest.raises(JobError, match="big: DEPLOYING .*after 8 s; it goes on"):
        deploy.deploy(cluster, config, [hello(tmp_path)], 8)
    assert time.monotonic() - started < 60
    deploy.undeploy(cluster, "big", LONG_S)
