"""Serve's health: its controller's view of the applications, and its proxies' own answer."""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from ray_doctor import node
from ray_doctor.check import first_line
from ray_doctor.facts import Node, Serve

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
ANYWHERE = ("", "0.0.0.0", "::")
HEALTH_S = 10.0
"""For a proxy to say that it is well."""


def look(nodes: Sequence[Node], ask: Callable[..., Any], timeout_s: float) -> Serve:
    """Asks the controller for the applications, and each proxy whether it is well.

    Args:
        nodes: Those that answer.
        ask: Runs a function on some of them.
        timeout_s: Seconds to wait for an answer.
    """
    try:
        controller: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return Serve(skipped="not running")
    except ImportError as error:
        return Serve(skipped=f"ray[serve] is not installed where the doctor runs ({error})")
    try:
        asked = controller.get_serve_instance_details.remote()
        details = ray.get(asked, timeout=timeout_s)
    except ImportError as error:
        return Serve(skipped=f"ray[serve] is not installed where the doctor runs ({error})")
    except Exception as error:  # noqa: BLE001 - dead, hanging, unhealthy: all worth a line
        return Serve(applications={"Serve's controller": ("NO ANSWER", first_line(error))})
    found = Serve()
    for name, application in (details.get("applications") or {}).items():
        lines = str(application.get("message") or "").strip().splitlines() or [""]
        found.applications[name] = (_text(application["status"]), lines[0])
    options = details.get("http_options") or {}
    host, port = options.get("host", ""), options.get("port", 8000)
    questions, places = {}, {}
    by_id = {each.id: each for each in nodes}
    for node_id, proxy in (details.get("proxies") or {}).items():
        url = f"http://{proxy['node_ip'] if host in ANYWHERE else host}:{port}/-/healthz"
        if node_id in by_id:
            questions[node_id] = (url, HEALTH_S)
            places[node_id] = f"{url} on {by_id[node_id].name}"
        else:
            found.proxies[url] = "its node gives no answer"
    answers, errors = ask(node.http_status, questions, timeout_s)
    for node_id, place in places.items():
        found.proxies[place] = answers.get(node_id, errors.get(node_id, ""))
    return found


def _text(status: Any) -> str:
    """The name of one of Serve's enumerations."""
    return str(getattr(status, "value", status))
