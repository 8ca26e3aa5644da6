"""What a person can ask for: serve, measure under load, write Serve's configuration file."""

import contextlib
import json
import logging
import time
from typing import Any

import ray
import yaml
from ray import serve
from ray._private import worker
from ray_shared.errors import JobError, UserError
from ray_shared.report import Report, show_artifacts

from serve_fastapi import app, builtin, load_test, models
from serve_fastapi.config import PROJECT, Config
from serve_fastapi.environment import free_port, variables

logger = logging.getLogger(__name__)
LOGS = {"encoding": "JSON", "enable_access_log": False}


def run(config: Config, report: Report) -> None:
    """`action=serve`, `deploy` and `load_test`, on the connected cluster.

    Raises:
        UserError: If it would take the place of one that is there to stay.
        JobError: If the application does not start, or does not answer.
    """
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    others = set(serve.status().applications)
    if PROJECT in others and config.action != "deploy":
        raise UserError(
            f"action={config.action}: {PROJECT} is there already: action=deploy gives it a new "
            "version, load.address=... measures it"
        )
    with report.timed("job_s"):
        started = time.perf_counter()
        try:
            address = start(config)
            bundles = builtin.named(config.settings())["models"]["bundles"]
            model = next(iter(models.find(bundles).values()))
            example = models.EXAMPLES[model.kind](model)
            body = {"image": example} if model.kind == "digits" else example
            first = load_test.ask(config, address, model.kind, body)
            report.metrics["first_answer_s"] = round(time.perf_counter() - started, 3)
            logger.info("serving %s at %s", ", ".join(bundles), address)
            if config.action == "load_test":
                measure(config, address, report)
            elif config.serve.block:
                wait()
            else:
                show_answer(first, report)
        finally:
            if config.action != "deploy":
                stopped = time.perf_counter()
                stop(keep_serve=bool(others))
                report.metrics["stop_s"] = round(time.perf_counter() - stopped, 3)


def start(config: Config) -> str:
    """Starts Serve and the application, and waits until it is ready; its address.

    Raises:
        JobError: If it does not start.
    """
    port = config.serve.port or free_port()
    options = {"host": config.serve.host, "port": port, "request_timeout_s": None}
    try:
        serve.start(proxy_location=proxy_location(), http_options=options, logging_config=LOGS)
        serve.run(app.build(config.settings()), name=PROJECT, route_prefix="/")
    except RuntimeError as error:
        reason = str(getattr(error, "cause", error)).strip().splitlines()[0]
        raise JobError(f"the application does not start: {reason}") from error
    host = "127.0.0.1" if config.serve.open_to_network else config.serve.host
    return f"http://{host}:{port}"


def proxy_location() -> str:
    """Nodes that share an address, as a simulated cluster's do, cannot each listen at one port."""
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    return "EveryNode" if len(set(addresses)) == len(addresses) else "HeadOnly"


def wait() -> None:
    """Until Ctrl-C, the usual end of a server, or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def stop(keep_serve: bool) -> None:
    """Lets requests under way end, then stops every replica, and the proxies.

    Args:
        keep_serve: Whether others serve on this cluster, too.
    """
    if PROJECT in serve.status().applications:
        serve.delete(PROJECT)
    if not keep_serve:
        # Serve's controller ends in the middle of the call that tells it to, and the driver would
        # print that this call failed.
        worker._worker_logs_enabled = False
        serve.shutdown()


def show_answer(first: dict[str, Any], report: Report) -> None:
    """What a person sees who has only tried it."""
    answer = first.get("label", first.get("minutes"))
    report.metrics |= {"answer": answer, "latency_ms": first["latency_ms"]}
    shown = {
        "answer": answer,
        "model": f"{first['model']} {first['version']}",
        "latency": f"{first['latency_ms']:.1f} ms",
        "start to first answer": f"{report.metrics['first_answer_s']:.1f} s",
    }
    report.show(shown)


def measure(config: Config, address: str, report: Report) -> None:
    """Asks for `load.duration_s`, from `load.concurrency` clients, and shows the counts.

    Raises:
        JobError: If no request was answered at all.
    """
    report.metrics |= load_test.run(config, address)
    m = report.metrics
    if m["num_requests"] == m["num_failed"]:
        raise JobError(f"{address}: no request was answered: {json.dumps(m['failures'])}")
    shown = {
        "requests": f"{m['num_requests']:,}, {m['num_failed']:,} failed",
        "requests/s": f"{m['rps']:,.0f}",
        "p50, p95, p99": f"{m['p50_ms']:.1f}, {m['p95_ms']:.1f}, {m['p99_ms']:.1f} ms",
    }
    if m["num_failed"]:
        shown["failures"] = json.dumps(m["failures"])
    report.show(shown, f"{PROJECT}: {config.load.concurrency} at a time")


def write_config(config: Config, report: Report) -> None:
    """`action=config`: what `serve deploy` and a RayService take."""
    settings = config.settings()
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.serve.host, "port": config.serve.port},
        "logging_config": LOGS,
        "applications": [
            {
                "name": PROJECT,
                "route_prefix": "/",
                "import_path": "serve_fastapi.app:build",
                "args": settings,
            }
        ],
    }
    head = "# Before the cluster starts, in every node's environment:\n"
    head += "".join(f"#   {name}={value}\n" for name, value in variables(config).items())
    path = report.output_dir / "serve_config.yaml"
    path.write_text(head + yaml.safe_dump(content, sort_keys=False))
    report.artifacts["serve_config"] = str(path)
    show_artifacts(report)
