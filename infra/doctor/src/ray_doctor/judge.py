"""Facts in, checks out: what is right, what is wrong, and what to do about it. Nothing is asked."""

from collections.abc import Sequence

from ray_doctor import judge_nodes
from ray_doctor.check import Check, failed, listed, not_checked, ok, size, warning
from ray_doctor.config import DoctorConfig
from ray_doctor.facts import Collective, Facts, Node, Serve


def judge(facts: Facts, doctor: DoctorConfig) -> list[Check]:
    """All checks of a cluster, in the order in which a person would look for a fault."""
    nodes = facts.responding
    return [
        alive(facts, doctor.expect_nodes),
        lost(facts),
        answers(facts),
        *judge_nodes.judge(nodes, facts.driver, doctor.packages),
        ports(facts),
        transfers(facts),
        authentication(facts),
        clocks(nodes, doctor.max_clock_skew_s),
        storage(facts),
        collective("gloo", facts.gloo),
        collective("NCCL", facts.nccl),
        serve(facts.serve),
        latency(nodes),
    ]


def alive(facts: Facts, expected: int | None) -> Check:
    """As many nodes as there should be."""
    shown = [f"{n.name} (head)" if n.head else n.name for n in facts.alive]
    found = f"{len(shown)} alive: {listed(shown)}"
    if expected is None:
        return ok("nodes", found)
    if len(facts.alive) < expected:
        hint = "start Ray on the missing nodes (ray start --address=...), or read why they ended."
        return failed("nodes", f"{found}; expected {expected}", hint)
    if len(facts.alive) > expected:
        hint = "raise doctor.expect_nodes, or find out who joined."
        return warning("nodes", f"{found}; expected {expected}", hint)
    return ok("nodes", found)


def lost(facts: Facts) -> Check:
    """Nodes that died since the head was started; those that left in order do not count."""
    gone = [f"{n.name}: {n.death}" for n in facts.nodes if not n.alive and n.death]
    if not gone:
        return ok("lost nodes", "none since the head was started")
    hint = "read raylet.out and raylet.err of that node, and the machine's log for the OOM killer."
    return warning("lost nodes", listed(gone), hint)


def answers(facts: Facts) -> Check:
    """Every node that is alive runs a task."""
    unresponsive = [f"{n.name}: {n.error}" for n in facts.alive if n.info is None]
    if not unresponsive:
        return ok("tasks", f"{len(facts.alive)} of {len(facts.alive)} nodes ran one")
    hint = "look whether its raylet hangs (py-spy, ray stack), and whether workers can start there."
    return failed("tasks", listed(unresponsive), hint)


def ports(facts: Facts) -> Check:
    """Every node reaches Ray's ports on all others."""
    shut = [
        f"{n.name} to {what}: {why}" for n in facts.responding for what, why in n.unreached.items()
    ]
    if shut:
        hint = (
            "start what listens there, or open the port between all nodes: firewall, security "
            "group or NetworkPolicy."
        )
        return failed("ports", listed(shut), hint)
    if not facts.num_targets:
        return not_checked("ports", "no node answers")
    return ok("ports", f"reached by every node: {facts.num_targets} connection(s) tried")


def transfers(facts: Facts) -> Check:
    """An object made on one node arrives on another."""
    lost = [f"{pair}: {why}" for pair, why in facts.transfers.items() if isinstance(why, str)]
    if lost:
        hint = "open the worker ports (--min-worker-port to --max-worker-port) between all nodes."
        return failed("objects", listed(lost), hint)
    seconds = [taken for taken in facts.transfers.values() if not isinstance(taken, str)]
    if not seconds:
        return not_checked("objects", "needs two nodes")
    slowest = max(seconds)
    return ok("objects", f"{size(facts.object_bytes)} came in at most {1000 * slowest:.0f} ms")


def authentication(facts: Facts) -> Check:
    """Nobody gets anything without a token."""
    found = facts.without_token
    parts = listed([f"{where}: {what}" for where, what in found.items()])
    if "answered" in found.values():
        hint = "set RAY_AUTH_MODE=token and a token on every node before ray start."
        return failed("authentication", f"without a token, {parts}", hint)
    if set(found.values()) != {"refused"}:
        return not_checked("authentication", parts or "nobody was asked")
    return ok("authentication", f"without a token, {parts}")


def clocks(nodes: Sequence[Node], allowed_s: float) -> Check:
    """All clocks agree, as far as the way to the node lets one tell."""
    known = [n for n in nodes if n.clock_offset_s is not None]
    if not known:
        return not_checked("clocks", "no node answers")
    off = [n for n in known if abs(_offset(n)) - n.clock_error_s > allowed_s]
    if off:
        parts = listed([f"{n.name}: {_offset(n):+.1f} s from the driver's" for n in off])
        return failed("clocks", parts, "start NTP (chrony, systemd-timesyncd) on these nodes.")
    most = max(max(abs(_offset(n)) - n.clock_error_s, 0) for n in known)
    return ok("clocks", f"at most {most:.3f} s from the driver's")


def storage(facts: Facts) -> Check:
    """Each node can write, and the others can read it."""
    unwritten = [
        f"{n.name}: {n.write_error}" for n in facts.responding if n.write_error is not None
    ]
    if unwritten:
        hint = "check storage.path, its mount, and the credentials in these nodes' environment."
        return failed("storage", f"{facts.storage}: not writable: {listed(unwritten)}", hint)
    unread = [
        f"{n.name} does not read what {other} wrote: {why}"
        for n in facts.responding
        for other, why in n.read_errors.items()
    ]
    if unread:
        hint = "set storage.path to what all nodes share: NFS, s3://, gs:// or abfs://."
        return failed("storage", f"{facts.storage}: not shared: {listed(unread)}", hint)
    if not facts.responding:
        return not_checked("storage", "no node answers")
    shared = " and read by all others" if len(facts.responding) > 1 else ""
    return ok("storage", f"{facts.storage}: written by {len(facts.responding)} node(s){shared}")


def collective(name: str, found: Collective) -> Check:
    """The sum came, and was right."""
    if found.skipped:
        return not_checked(name, found.skipped)
    if found.errors:
        hint = (
            f"set {name.upper()}_SOCKET_IFNAME on every node to the interface between them, and "
            "open all ports between the nodes."
        )
        return failed(name, listed([f"{n}: {why}" for n, why in found.errors.items()]), hint)
    if found.wrong:
        hint = "take the node out: its memory, GPU or network changes data."
        return failed(name, listed([f"{n}: sum {x:g}" for n, x in found.wrong.items()]), hint)
    return ok(name, f"the sum of all ranks, right everywhere, in {1000 * found.seconds:.0f} ms")


def serve(found: Serve) -> Check:
    """Each application runs, and each proxy says so."""
    if found.skipped:
        return not_checked("Serve", found.skipped)
    unhealthy = [
        f"{name} is {status}" + (f" ({message})" if message else "")
        for name, (status, message) in found.applications.items()
        if status != "RUNNING"
    ]
    unhealthy += [f"{url}: {what}" for url, what in found.proxies.items() if what != 200]
    if unhealthy:
        hint = "see serve status for the deployments, and logs/serve of the session for replicas."
        return failed("Serve", listed(unhealthy), hint)
    running, healthy = len(found.applications), len(found.proxies)
    if not running and not healthy:
        return not_checked("Serve", "neither an application nor a proxy")
    proxies = f"healthy at {healthy} address(es)" if healthy else "no proxy asked"
    return ok("Serve", f"{running} application(s) RUNNING, {proxies}")


def latency(nodes: Sequence[Node]) -> Check:
    """How long a small task takes: found, never judged."""
    known = {n.name: n.task_s for n in nodes if n.task_s is not None}
    if not known:
        return not_checked("latency", "no node answers")
    slowest = max(known, key=lambda name: known[name])
    return ok("latency", f"a small task takes at most {1000 * known[slowest]:.1f} ms ({slowest})")


def _offset(n: Node) -> float:
    return n.clock_offset_s or 0.0
