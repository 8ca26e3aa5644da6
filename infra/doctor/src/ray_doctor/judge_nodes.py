"""Judges what each node says of itself: versions, CPUs, GPUs, memory, `/dev/shm`, disks."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ray_doctor.check import Check, failed, listed, not_checked, ok, size, warning
from ray_doctor.facts import Node

NEARLY = 0.9
"""The share of a limit from which on it is worth a warning."""
MISSING = "not installed"
NAMES = (
    "versions",
    "CPUs",
    "GPUs",
    "memory",
    "/dev/shm",
    "spilling directory",
    "session directory",
)


def judge(nodes: Sequence[Node], driver: dict[str, Any], important: Iterable[str]) -> list[Check]:
    """The checks of `NAMES`.

    Args:
        nodes: Those that have answered.
        driver: `python` and `packages` of the driver.
        important: Packages in which a difference is a failure.
    """
    if not nodes:
        return [not_checked(name, "no node answers") for name in NAMES]
    return [
        versions(nodes, driver, important),
        cpus(nodes),
        gpus(nodes),
        memory(nodes),
        object_store(nodes),
        disk("spilling directory", "spilling", nodes),
        disk("session directory", "session", nodes),
    ]


def versions(nodes: Sequence[Node], driver: dict[str, Any], important: Iterable[str]) -> Check:
    """The same Python and packages on all nodes, and on the driver what both have."""
    told = {n.name: _info(n) for n in nodes}
    severe: list[str] = []
    slight: list[str] = []
    if split := _split({where: info["python"] for where, info in told.items()}, driver["python"]):
        severe.append(f"python {split}")
    for package in sorted({p for info in told.values() for p in info["packages"]}):
        found = {where: info["packages"].get(package, MISSING) for where, info in told.items()}
        if split := _split(found, driver["packages"].get(package)):
            own = package.startswith("ray-ref-")
            (severe if package in important or own else slight).append(f"{package} {split}")
    if severe or slight:
        hint = "build one image for all nodes from one lock, and start the driver from it too."
        parts = listed([*severe, *slight])
        return (failed if severe else warning)("versions", parts, hint)
    count = len(next(iter(told.values()))["packages"])
    info = next(iter(told.values()))
    ray = info["packages"].get("ray", "?")
    return ok("versions", f"Python {info['python']}, Ray {ray} and {count} packages are the same")


def cpus(nodes: Sequence[Node]) -> Check:
    """Ray was told of no more CPUs than the node's cgroup allows."""
    too_many = [
        f"{n.name}: Ray was told {n.resources.get('CPU', 0):g}, allowed are {allowed:g}"
        for n in nodes
        if n.resources.get("CPU", 0) > (allowed := _info(n)["allowed_cpus"])
    ]
    if too_many:
        hint = "start the node with --num-cpus as many, or raise the container's CPU limit."
        return warning("CPUs", listed(too_many), hint)
    total = sum(n.resources.get("CPU", 0) for n in nodes)
    allowed_in_all = sum(_info(n)["allowed_cpus"] for n in nodes)
    return ok("CPUs", f"Ray counts on {total:g}; the nodes may use {allowed_in_all:g}")


def gpus(nodes: Sequence[Node]) -> Check:
    """Ray knows the GPUs that there are, and no others."""
    missing, unused, unknown, total = [], [], [], 0.0
    for n in nodes:
        told, there = n.resources.get("GPU", 0), _info(n)["gpus"]
        total += told
        if there is None:
            unknown += [f"{n.name}: Ray was told {told:g}"] if told else []
        elif told > there:
            are = f"there are {there}" if there else "and none is found"
            missing.append(f"{n.name}: Ray was told {told:g}, {are}")
        elif told < there:
            unused.append(f"{n.name}: there are {there}, Ray was told {told:g}")
    if missing:
        hint = "check the driver (nvidia-smi), the container's GPU request and --num-gpus."
        return failed("GPUs", listed(missing + unused), hint)
    if unused:
        return warning("GPUs", listed(unused), "start the node with --num-gpus as many.")
    if unknown:
        return not_checked("GPUs", f"{listed(unknown)}; neither nvidia-smi nor PyTorch counts any")
    return ok("GPUs", f"{total:g}" if total else "none")


def memory(nodes: Sequence[Node]) -> Check:
    """What Ray may hand out fits the limit, and use is below the mark from which Ray kills."""
    severe, slight = [], []
    for n in nodes:
        info = _info(n)
        used, limit, threshold = info["memory_used"], info["memory"], info["memory_threshold"]
        told = n.resources.get("memory", 0) + n.resources.get("object_store_memory", 0)
        share = (
            f"{n.name}: {used / limit:.0%} of {size(limit)} used, Ray kills from {threshold:.0%}"
        )
        if used >= threshold * limit:
            severe.append(share)
        elif used >= NEARLY * threshold * limit:
            slight.append(share)
        # Ray rounds; and without a limit of its own a node's whole memory is what it is told.
        if told > 1.01 * limit:
            severe.append(f"{n.name}: Ray was told {size(told)}, the limit is {size(limit)}")
    if severe or slight:
        hint = "lower --memory or the tasks on that node, state memory= for large ones, or add RAM."
        return (failed if severe else warning)("memory", listed(severe + slight), hint)
    fullest = max((_info(n)["memory_used"] / _info(n)["memory"] for n in nodes), default=0)
    total = sum(_info(n)["memory"] for n in nodes)
    return ok("memory", f"{size(total)} in all, the fullest node at {fullest:.0%}")


def object_store(nodes: Sequence[Node]) -> Check:
    """The object store lies in shared memory, and there is room for it."""
    shm_nodes = [n for n in nodes if _info(n)["shm"] is not None]
    if not shm_nodes:
        return not_checked("/dev/shm", "these nodes have none")
    slow, small, unknown = [], [], []
    for n in shm_nodes:
        info = _info(n)
        where, shm, wanted = info["plasma_directory"], info["shm"], info["object_store"]
        if where is None:
            unknown.append(n.name)
        elif not where.startswith("/dev/shm"):
            slow.append(
                f"{n.name}: the object store of {size(wanted)} lies in {where}, /dev/shm has "
                f"{size(shm['total'])}"
            )
        elif wanted > shm["total"]:
            small.append(f"{n.name}: {size(wanted)} wanted, /dev/shm has {size(shm['total'])}")
    if slow or small:
        hint = (
            "give the container a larger /dev/shm (--shm-size, or an emptyDir with medium Memory), "
            "or start the node with a smaller --object-store-memory."
        )
        return failed("/dev/shm", listed(slow + small), hint)
    if unknown:
        why = f"where the object store lies is not known on {listed(unknown)}"
        return not_checked("/dev/shm", why)
    stores = sum(_info(n)["object_store"] for n in shm_nodes)
    smallest = min(_info(n)["shm"]["total"] for n in shm_nodes)
    return ok(
        "/dev/shm", f"object stores of {size(stores)} in it; the smallest has {size(smallest)}"
    )


def disk(name: str, key: str, nodes: Sequence[Node]) -> Check:
    """Directories of Ray's can be written, and are not full."""
    severe, slight, unknown, free = [], [], [], []
    for n in nodes:
        directories, limit = _info(n)[key], _info(n)["disk_threshold"]
        if isinstance(directories, str):
            unknown.append(f"{n.name}: {directories}")
            continue
        for each in directories:
            place = f"{n.name}: {each['path']}"
            if each["error"] is not None:
                severe.append(f"{place}: {each['error']}")
                continue
            free.append(each["free"])
            if each["full"] >= limit:
                severe.append(f"{place} is {each['full']:.0%} full, Ray stops at {limit:.0%}")
            elif each["full"] >= NEARLY * limit:
                slight.append(f"{place} is {each['full']:.0%} full, Ray stops at {limit:.0%}")
    if severe or slight:
        hint = (
            "free space there or mount a larger disk, and check that Ray's user may write; "
            "--object-spilling-directory and --temp-dir name another place."
        )
        return (failed if severe else warning)(name, listed(severe + slight), hint)
    if unknown:
        return not_checked(name, listed(unknown))
    return ok(name, f"writable everywhere, at least {size(min(free))} free")


def _info(n: Node) -> dict[str, Any]:
    return n.info or {}


def _split(found: dict[str, str], driver: str | None) -> str:
    """`2.1 (a, b) / 2.0 (c)`, or nothing where all are the same."""
    places = defaultdict(list)
    for where, version in found.items():
        places[version].append(where)
    if driver is not None:
        places[driver].append("the driver")
    if len(places) == 1:
        return ""
    return " / ".join(f"{version} ({_some(where)})" for version, where in places.items())


def _some(where: list[str]) -> str:
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    return ", ".join(where[:3]) + more
