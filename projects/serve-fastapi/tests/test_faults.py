"""What breaks under load, and what that costs: failed requests, counted."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from ray_shared.testing import wait_for
from sklearn.datasets import load_digits

from .conftest import Server, StartServer
from .loading import under_load

pytestmark = pytest.mark.fault

GOOD = {"image": load_digits().images[0].tolist()}
CLIENTS = 8
# What is lost is counted here, and not how fast this machine starts a process.
PATIENT = "limits.deadline_s=60"


@pytest.mark.parametrize("title", ["Ingress", "Preprocessor", "Model", "Postprocessor"])
def test_killed_replica_is_replaced(serve: StartServer, title: str):
    replica = f"ServeReplica:serve-fastapi:{title}"
    num_kills = 3  # Not each of them finds a request inside the process.
    with serve(PATIENT) as server, under_load(server.address, CLIENTS, 0) as load:
        for _ in range(num_kills):
            load.wait_for_answers(200)
            dead = server.kill(replica)
            load.wait_until(lambda dead=dead: set(server.pids(replica)) - {dead})
        load.wait_for_answers(200)
        load.stop()
    # At most what was inside the dead process; what was inside a stage is sent to it again.
    allowed = num_kills * CLIENTS if title == "Ingress" else 0
    assert load.counts["num_failed"] <= allowed, load.counts["failures"]


def test_client_that_tries_again_does_not_notice_a_killed_ingress(serve: StartServer):
    with serve() as server, under_load(server.address, CLIENTS, 8) as load:
        for _ in range(2):
            load.wait_for_answers(200)
            dead = server.kill("ServeReplica:serve-fastapi:Ingress")
            load.wait_until(lambda dead=dead: set(server.pids(":Ingress")) - {dead})
        load.wait_for_answers(200)
        load.stop()
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_killed_proxy_is_replaced(serve: StartServer):
    with serve() as server, under_load(server.address, CLIENTS, 8) as load:
        load.wait_for_answers(200)
        front = "haproxy -" if server.pids("haproxy -") else "ProxyActor"
        dead = server.kill(front)
        load.wait_until(lambda: set(server.pids(front)) - {dead})
        load.wait_for_answers(200)
        load.stop()
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_killed_controller_is_not_noticed(serve: StartServer):
    with serve(PATIENT) as server, under_load(server.address, CLIENTS, 0) as load:
        load.wait_for_answers(200)
        dead = server.kill("ServeController")
        load.wait_until(lambda: set(server.pids("ServeController")) - {dead})
        load.wait_for_answers(500)
        # It is the same as before: a replica that dies now is replaced.
        dead = server.kill("ServeReplica:serve-fastapi:Model")
        load.wait_until(lambda: set(server.pids(":Model")) - {dead})
        load.wait_for_answers(200)
        load.stop()
        server.job.process.send_signal(signal.SIGINT)
        assert server.job.wait(60) == 0, server.job.output()
        server.job.wait_until_gone()
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_ten_times_the_load_is_answered_or_refused_at_once(serve: StartServer):
    limits = ["limits.max_ongoing=8", "limits.deadline_s=5"]
    with serve(*limits, "scale.ingress.max=1") as server:

        async def storm() -> list[tuple[int, float, str | None]]:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def one() -> tuple[int, float, str | None]:
                    began = time.perf_counter()
                    async with session.post(f"{server.address}/v1/digits", json=GOOD) as answer:
                        await answer.read()
                        after = answer.headers.get("retry-after")
                        return answer.status, time.perf_counter() - began, after

                return await asyncio.gather(*(one() for _ in range(160)))

        answers = asyncio.run(storm())
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 8
        assert {after for status, _, after in answers if status == 503} == {"1"}
        assert max(seconds for _, seconds, _ in answers) < 10
        assert httpx.post(f"{server.address}/v1/digits", json=GOOD).status_code == 200


def test_slow_clients_hold_up_nobody(serve: StartServer):
    with serve() as server:
        host, port = server.address.removeprefix("http://").split(":")

        async def dribble() -> None:
            """A request whose body never ends."""
            _, writer = await asyncio.open_connection(host, int(port))
            head = "POST /v1/digits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write((head + "Content-Length: 500\r\n\r\n").encode())
            try:
                for _ in range(400):
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.2)
            except OSError:
                pass
            finally:
                writer.close()

        async def beside() -> list[int]:
            slow = [asyncio.create_task(dribble()) for _ in range(300)]
            await asyncio.sleep(1)
            async with aiohttp.ClientSession() as session:
                statuses = []
                for _ in range(200):
                    async with session.post(f"{server.address}/v1/digits", json=GOOD) as answer:
                        statuses.append(answer.status)
            for task in slow:
                task.cancel()
            return statuses

        assert asyncio.run(beside()) == [200] * 200


def test_scaled_to_zero_the_first_request_is_served(serve: StartServer):
    scale = [
        *["scale.fused=true", "scale.ingress.min=0", "scale.downscale_delay_s=1"],
        "scale.upscale_delay_s=0",
    ]
    with serve(*scale) as server:
        wait_for(lambda: not server.pids(":Ingress"), "scale to zero", 60)
        answer = httpx.post(f"{server.address}/v1/digits", json=GOOD, timeout=60)
        assert answer.status_code == 200
        assert server.pids(":Ingress")


def test_two_clusters_on_one_machine_do_not_answer_for_each_other(
    serve: StartServer, bundles: dict[str, str]
):
    """While no replica is ready, Serve's fallback answers: it must be the cluster's own."""
    scale = ["scale.fused=true", "scale.ingress.min=0", "scale.downscale_delay_s=1"]
    mine, other = f"+models.bundles.mine={bundles['digits']}", bundles["digits-small"]
    with serve(f"+models.bundles.other={other}") as two, serve(*scale, mine) as one:
        assert {port for *_, port in one.listening()}.isdisjoint(p for *_, p in two.listening())
        wait_for(lambda: not one.pids(":Ingress"), "scale to zero", 60)
        headers = {"X-Model": "mine"}
        answer = httpx.post(f"{one.address}/v1/digits", json=GOOD, headers=headers, timeout=60)
        assert answer.json()["model"] == "mine"


def test_rays_own_proxy_serves_as_well(serve: StartServer):
    with serve("serve.front=python") as server, under_load(server.address, CLIENTS, 0) as load:
        load.wait_for_answers(200)
        load.stop()
        assert not server.pids("haproxy -")
        assert server.open_sockets() == []
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_request_that_is_given_up_does_not_reach_the_model(serve: StartServer):
    """The model is stopped; its queue must be empty once nobody waits any more."""
    with serve("limits.deadline_s=1") as server:
        (model,) = server.pids("ServeReplica:serve-fastapi:Model")
        os.kill(model, signal.SIGSTOP)
        try:
            statuses = [
                httpx.post(f"{server.address}/v1/digits", json=GOOD, timeout=30).status_code
                for _ in range(3)
            ]
        finally:
            os.kill(model, signal.SIGCONT)
        assert statuses == [504] * 3
        answers_within(server, 2)


def test_clients_that_go_away_are_no_work(serve: StartServer, ray_tmpdir: Path):
    at_once = {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"}
    names = {f"went-away-{number}" for number in range(20)}
    with serve("log.requests=all", env=at_once) as server:
        (model,) = server.pids("ServeReplica:serve-fastapi:Model")
        os.kill(model, signal.SIGSTOP)
        try:
            for name in names:
                headers = {"X-Request-ID": name}
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(
                        f"{server.address}/v1/digits", json=GOOD, headers=headers, timeout=0.3
                    )
            # Before the deadline of 10 s.
            wait_for(lambda: logged(ray_tmpdir).keys() >= names, "lines of the log", 12)
        finally:
            os.kill(model, signal.SIGCONT)
        answers_within(server, 2)
    lines = logged(ray_tmpdir)
    assert {lines[name]["status"] for name in names} == {499}


def logged(ray_tmpdir: Path) -> dict[str, dict[str, Any]]:
    """The lines about requests in the logs of the ingress replicas, by the requests' names."""
    found = {}
    for path in ray_tmpdir.glob("ray/session_*/logs/serve/*Ingress*.log"):
        for line in path.read_text().splitlines():
            if '"status"' in line:
                found[json.loads(line)["request_id"]] = json.loads(line)
    return found


def answers_within(server: Server, seconds: float) -> None:
    began = time.perf_counter()
    assert httpx.post(f"{server.address}/v1/digits", json=GOOD, timeout=30).status_code == 200
    assert time.perf_counter() - began < seconds
