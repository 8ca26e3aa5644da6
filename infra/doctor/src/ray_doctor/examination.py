"""Asks every node, from the driver: a task pinned to each, which takes no CPU of a busy cluster.

Node affinity that is not soft runs a task on one node or not at all; `ray.wait` bounds how long
anybody is waited for, since a node that hangs answers never.

Source: https://docs.ray.io/en/releases-2.60.0/ray-core/scheduling/index.html
"""

import logging
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_shared.storage import open_storage

from ray_doctor import access, collective, judge, node, serving
from ray_doctor.check import Check, first_line
from ray_doctor.config import Config, DoctorConfig
from ray_doctor.facts import Facts, Node

logger = logging.getLogger(__name__)
NUM_TASKS = 5
"""Small tasks on each node, of which the fastest counts."""
OBJECT_BYTES = 10_000_000


def examine(cfg: Config) -> list[Check]:
    """Looks at the cluster that the driver is connected to, and judges it."""
    return judge.judge(gather(cfg), cfg.doctor)


def gather(cfg: Config) -> Facts:
    """Everything that the nodes, and those who ask them, find out."""
    doctor = cfg.doctor
    facts = Facts(nodes=cluster_nodes())
    logger.info("looking at %d node(s)", len(facts.alive))
    facts.driver = {"python": platform.python_version(), "packages": node.packages()}
    config = access.spilling_config()
    questions = {n.id: (n.resources.get("GPU", 0), config) for n in facts.alive}
    answers, errors = ask(node.look, questions, doctor.node_timeout_s)
    for each in facts.alive:
        each.info, each.error = answers.get(each.id), errors.get(each.id, "")
    connect(facts, doctor)
    measure(facts, doctor.node_timeout_s)
    try_storage(facts, cfg.storage.path, doctor.node_timeout_s)
    facts.without_token = access.without_token(doctor.port_timeout_s)
    facts.serve = serving.look(facts.responding, ask, doctor.node_timeout_s)
    facts.gloo, facts.nccl = collective.try_both(facts, doctor)
    return facts


def cluster_nodes() -> list[Node]:
    """The nodes that the head knows, dead ones included; the head first."""
    found = ray.nodes()
    addresses = [each["NodeManagerAddress"] for each in found]
    nodes = []
    for each in found:
        address, head = each["NodeManagerAddress"], "node:__internal_head__" in each["Resources"]
        name = address if addresses.count(address) == 1 else f"{address}/{each['NodeID'][:6]}"
        ports = {"node manager": "NodeManagerPort", "object manager": "ObjectManagerPort"}
        nodes.append(
            Node(
                id=each["NodeID"],
                name=name,
                address=address,
                alive=each["Alive"],
                head=head,
                ports={what: each[key] for what, key in ports.items()},
                resources=each["Resources"],
                death=access.death_of(each),
            )
        )
    return sorted(nodes, key=lambda each: not each.head)


def ask(
    function: Callable[..., Any], arguments: Mapping[str, Sequence[Any]], timeout_s: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs a function on some nodes at the same time.

    Args:
        function: Of a module that the nodes can import.
        arguments: Those of each node, by its id.
        timeout_s: Seconds after which nobody is waited for any more.

    Returns:
        The answers, and why others did not come, by node id.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {}
    for node_id, args in arguments.items():
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked[task.options(num_cpus=0, scheduling_strategy=where).remote(*args)] = node_id
    answers: dict[str, Any] = {}
    errors: dict[str, str] = {}
    if not asked:
        return answers, errors
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for ref in ready:
        try:
            answers[asked[ref]] = ray.get(ref)
        except Exception as error:  # noqa: BLE001 - whatever it was: it is what is looked for
            errors[asked[ref]] = first_line(error)
    for ref in late:
        ray.cancel(ref, force=True)
        errors[asked[ref]] = f"no answer within {timeout_s:g} s"
    return answers, errors


def connect(facts: Facts, doctor: DoctorConfig) -> None:
    """Lets every node open connections to all others, to the head and to what else it needs."""
    extra = [("service", place) for place in doctor.reach]
    head = next((n for n in facts.alive if n.head), None)
    if head is not None:
        extra += [(f"{what} of", place) for what, place in access.head_ports(head.address).items()]
    arguments = {}
    for each in facts.responding:
        targets = [
            (f"{what} of {other.name}", f"{other.address}:{port}")
            for other in facts.alive
            if other is not each
            for what, port in other.ports.items()
        ]
        arguments[each.id] = (targets + extra, doctor.port_timeout_s)
        facts.num_targets += len(targets + extra)
    unreached, errors = ask(node.connect, arguments, doctor.node_timeout_s)
    for each in facts.responding:
        each.unreached = unreached.get(each.id) or {}
        if each.id in errors:
            each.unreached = {"anything": errors[each.id]}


def measure(facts: Facts, timeout_s: float) -> None:
    """Compares clocks, and times a small task on each node and an object between neighbours."""
    nodes = facts.responding
    for each in nodes:
        for _ in range(NUM_TASKS):
            sent, started = time.time(), time.perf_counter()
            answer, _ = ask(node.clock, {each.id: ()}, timeout_s)
            took = time.perf_counter() - started
            if each.id not in answer:
                break
            if each.task_s is None or took < each.task_s:
                each.task_s, each.clock_error_s = took, took / 2
                each.clock_offset_s = answer[each.id] - (sent + took / 2)
    if len(nodes) < 2:
        return
    facts.object_bytes = OBJECT_BYTES
    # Each node makes one, and its neighbour fetches it: from that node's object manager, after
    # asking the process that made it where it is.
    made, errors = ask(node.make_object, {n.id: (OBJECT_BYTES,) for n in nodes}, timeout_s)
    neighbours = dict(zip(nodes, nodes[1:] + nodes[:1], strict=True))
    arguments = {to.id: (made[n.id],) for n, to in neighbours.items() if n.id in made}
    fetched, late = ask(node.fetch_object, arguments, timeout_s)
    for n, to in neighbours.items():
        why = errors.get(n.id) or late.get(to.id, "")
        facts.transfers[f"{n.name} to {to.name}"] = fetched.get(to.id, why)


def try_storage(facts: Facts, path: str, timeout_s: float) -> None:
    """Every node writes a file, and every other one reads it; nothing is left behind."""
    storage = open_storage(path)
    # The driver's working directory counts, as in a project's run.
    facts.storage, folder = storage.uri, storage.child(f".doctor-{uuid.uuid4().hex[:8]}").uri
    nodes = facts.responding
    written, errors = ask(node.write_file, {n.id: (folder, n.id) for n in nodes}, timeout_s)
    try:
        for n in nodes:
            n.write_error = errors.get(n.id) or written[n.id]["error"]
        sound = [n.id for n in nodes if n.write_error is None]
        by_id = {n.id: n for n in nodes}
        read, errors = ask(node.read_files, dict.fromkeys(sound, (folder, sound)), timeout_s)
        for i in sound:
            missing = read.get(i) or {}
            by_id[i].read_errors = {by_id[other].name: why for other, why in missing.items()}
            if i in errors:
                by_id[i].read_errors = {"any node": errors[i]}
    finally:
        made = {i: sorted(done["made"], reverse=True) for i, done in written.items()}
        ask(node.delete_files, {i: (folder, paths) for i, paths in made.items()}, timeout_s)
        # Where nodes share the directory, one may have looked while another was not done.
        node.delete_files(folder, sorted({p for paths in made.values() for p in paths})[::-1])
