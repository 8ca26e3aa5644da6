"""The application from end to end, and its headline fault: a replica killed under load."""

import signal
import time
from pathlib import Path

import httpx
import pytest
from ray_shared.testing import free_port
from sklearn.datasets import load_digits

from .conftest import Server, StartJob, StartServer
from .loading import under_load

GOOD = load_digits().images[0].tolist()


def test_job_serves_calls_itself_and_stops(start: StartJob, ray_tmpdir: Path):
    others = set(ray_tmpdir.glob("h-*"))
    with start() as job:
        assert job.wait(120) == 0, job.output()
    job.wait_until_gone()
    result = job.result()
    assert result["metrics"]["answer"] == "0"
    assert 0 < result["metrics"]["latency_ms"] < 10_000
    lines = job.output().splitlines()
    assert lines[0].startswith("serving digits, digits-small, trips at http://127.0.0.1:")
    assert "start to first answer" in job.output()
    assert [line for line in lines if "raylet" in line or "Warning" in line or "pid=" in line] == []
    assert set(ray_tmpdir.glob("h-*")) == others


def test_every_port_is_on_the_loopback_interface(served: Server):
    assert served.pids("haproxy ") or not Path("/proc").exists()
    assert served.open_sockets() == []


def test_model_version_and_request_id_come_back_once(served: Server):
    with httpx.Client(base_url=served.address) as client:
        for model in ("digits", "digits-small"):
            answer = client.post("/v1/digits", json={"image": GOOD}, headers={"X-Model": model})
            assert answer.json()["model"] == model
            assert answer.json()["label"] == "0"
        named = client.get("/version", headers={"X-Request-ID": "mine"})
        assert named.headers.get_list("x-request-id") == ["mine"]
        assert set(named.json()["models"]) == {"digits", "digits-small", "trips"}
        assert client.get("/readyz").status_code == 200
        assert client.get("/openapi.json").status_code == 200


def test_wrong_requests_get_their_answers_over_http(served: Server):
    with httpx.Client(base_url=served.address) as client:
        long = client.post("/v1/digits", content=b" " * (2 << 20))
        assert long.status_code == 413
        chunked = client.post("/v1/digits", content=(b" " * 65536 for _ in range(32)))
        assert chunked.status_code == 413
        for content in (b'{"image": [[NaN]]}', b"{"):
            headers = {"content-type": "application/json"}
            answer = client.post("/v1/digits", content=content, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_batch_is_streamed_over_http(served: Server):
    with httpx.stream(
        "POST", f"{served.address}/v1/digits/batch", json={"images": [GOOD] * 120}
    ) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert events == ["event: answers"] * 3 + ["event: done"]


def test_killed_replica_fails_only_what_was_inside_it(served: Server):
    with under_load(served.address, concurrency=8, retries=0) as load:
        load.wait_for_answers(200)
        dead = served.kill("ServeReplica:serve-fastapi:Model")
        load.wait_for_answers(200)
        load.wait_until(lambda: dead not in served.pids(":Model") and served.pids(":Model"))
        load.wait_for_answers(200)
    # The batch that was inside it is sent again: to predict twice does no harm.
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_ctrl_c_is_the_end_of_a_server(serve: StartServer):
    port = free_port()
    with serve(f"serve.port={port}") as server:
        server.job.remember_family()
        began = time.monotonic()
        server.job.process.send_signal(signal.SIGINT)
        assert server.job.wait(60) == 0, server.job.output()
        seconds = time.monotonic() - began
        server.job.wait_until_gone()
    assert server.job.result()["status"] == "ok"
    assert seconds < 30
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_load_test_counts_requests(start: StartJob, served: Server):
    address = f"load.address={served.address}"
    with start("action=load_test", address, "load.duration_s=2", "load.kind=trips") as job:
        assert job.wait(60) == 0, job.output()
    metrics = job.result()["metrics"]
    assert {"rps", "p50_ms", "p99_ms", "num_requests", "num_failed"} <= metrics.keys()
    assert metrics["num_failed"] == 0
    assert metrics["num_requests"] > 50
    assert 0 < metrics["p50_ms"] <= metrics["p99_ms"]
