"""What a node can say of itself and of its way to others: plain functions that run on the node.

They import nothing but Ray, what Ray itself needs, and `ray_shared`: a node need not have all that
the driver has.

Ray starts every worker process from the node's raylet, whose command line holds what Ray decided
when the node was started: where the object store lies, and where it spills to.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any

import ray

SHARED_MEMORY = Path("/dev/shm")
NUM_CONNECTIONS = 32
"""How many are tried at a time."""
GPU_TIMEOUT_S = 30.0
"""For `nvidia-smi`, which hangs with a broken driver, or for the import of PyTorch."""
NO_RAYLET = "its raylet is not found among the processes"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""What is asked for lies in the cluster."""


def look(ray_gpus: float, spilling_config: str) -> dict[str, Any]:
    """Everything about this node.

    Args:
        ray_gpus: The GPUs that Ray was told of.
        spilling_config: The cluster's `object_spilling_config`.

    Returns:
        Sizes in bytes, shares in [0, 1]; None for what there is not, or is not known; directories,
        or a sentence why they are not known.
    """
    from ray._private import utils  # What Ray itself takes for the limits of a container.
    from ray_shared.cluster import available_cpus

    flags, environment = raylet()
    cpus = available_cpus()
    memory = utils.get_cgroup_mem_stats() or _machine_memory()
    configs = [spilling_config, environment.get("RAY_object_spilling_config", "")]
    spilling = spilling_directories(flags, configs)
    return {
        "python": platform.python_version(),
        "packages": packages(),
        "allowed_cpus": min(cpus, utils._get_docker_cpus() or cpus),
        "gpus": visible_gpus(ray_gpus, environment),
        "memory_used": memory[0],
        "memory": memory[1],
        "memory_threshold": float(environment.get("RAY_memory_usage_threshold", 0.95)),
        "shm": shutil.disk_usage(SHARED_MEMORY)._asdict() if SHARED_MEMORY.is_dir() else None,
        "plasma_directory": flags.get("plasma_directory"),
        "object_store": int(flags.get("object_store_memory", 0)),
        "spilling": spilling if isinstance(spilling, str) else [directory(p) for p in spilling],
        "session": [directory(flags["session_dir"])] if flags else NO_RAYLET,
        "disk_threshold": float(environment.get("RAY_local_fs_capacity_threshold", 0.95)),
    }


def packages() -> dict[str, str]:
    """Version of every installed distribution, as an import here would find it."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # Along the search path: the first one is the one that counts.
        with suppress(KeyError, TypeError):
            name = distribution.metadata["Name"].lower().replace("_", "-")
            found.setdefault(name, distribution.version)
    return found


def raylet() -> tuple[dict[str, str], dict[str, str]]:
    """Options and environment of the raylet that started this process."""
    import psutil

    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            command = process.cmdline()
            if command and Path(command[0]).name == "raylet":
                options = [x[2:].partition("=") for x in command if x.startswith("--")]
                return {name: value for name, _, value in options}, process.environ()
    return {}, dict(os.environ)


def spilling_directories(flags: dict[str, str], configs: Sequence[str]) -> list[str] | str:
    """Where this node spills objects to, or why nobody knows.

    The raylet is told one directory: of several the first, and the temporary one where objects do
    not go to a filesystem.

    Args:
        flags: Options of the raylet.
        configs: What an `object_spilling_config` of the cluster and one of the node say, as JSON;
            empty for none.
    """
    if not flags:
        return NO_RAYLET
    found = [flags["fallback_directory"]]
    for config in map(json.loads, filter(None, configs)):
        if config["type"] != "filesystem":
            return f"spills by {config['type']}, which is not looked at"
        named = config["params"]["directory_path"]
        found += named if isinstance(named, list) else []
    return list(dict.fromkeys(found))


def directory(path: str) -> dict[str, Any]:
    """How full a directory's filesystem is, and what kept a file from being written there."""
    error, usage = None, None
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
            file.write(b"doctor")
            file.flush()
        usage = shutil.disk_usage(path)
    except OSError as caught:
        error = caught.strerror or str(caught)
    # As Ray counts: what only root may use is not free.
    full = 1 - usage.free / usage.total if usage and usage.total else 0.0
    return {"path": path, "error": error, "full": full, "free": usage.free if usage else None}


def visible_gpus(ray_gpus: float, environment: dict[str, str]) -> int | None:
    """GPUs that Ray can use here, as nvidia-smi lists them, or else PyTorch.

    Args:
        ray_gpus: The GPUs that Ray was told of.
        environment: Of the raylet: it may see some of the node's GPUs only.

    Returns:
        None where nobody can tell.
    """
    program = shutil.which("nvidia-smi")
    if program is not None:
        done = _run([program, "-L"], dict(os.environ))
        if done is None:
            return None
        count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
        chosen = environment.get("CUDA_VISIBLE_DEVICES")
        return count if chosen is None else min(count, len(list(filter(None, chosen.split(",")))))
    if not ray_gpus or util.find_spec("torch") is None:
        return None
    # In a process of its own: Ray hides the GPUs from a task that has asked for none.
    script = "import torch; print(torch.cuda.device_count())"
    done = _run([sys.executable, "-c", script], environment)
    return int(done.stdout) if done is not None and done.returncode == 0 else None


def clock() -> float:
    """Seconds since the epoch."""
    return time.time()


def make_object(num_bytes: int) -> list[ray.ObjectRef]:
    """Puts an object into this node's store."""
    return [ray.put(bytes(num_bytes))]


def fetch_object(refs: list[ray.ObjectRef]) -> float:
    """Seconds until the object is here."""
    started = time.perf_counter()
    ray.get(refs[0])
    return time.perf_counter() - started


def connect(targets: Sequence[tuple[str, str]], timeout_s: float) -> dict[str, str]:
    """Opens and closes a TCP connection to each of `targets`.

    Args:
        targets: What listens there, and `host:port`.
        timeout_s: Seconds to wait for each.

    Returns:
        What could not be reached, and why.
    """

    def try_one(target: tuple[str, str]) -> tuple[str, str | None]:
        what, address = target
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        except TimeoutError:
            return f"{what} {address}", f"no answer within {timeout_s:g} s"
        except OSError as error:
            return f"{what} {address}", error.strerror or str(error)
        return "", None

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        return {what: why for what, why in pool.map(try_one, targets) if why is not None}


def http_status(url: str, timeout_s: float) -> int | str:
    """The status of a GET without any credentials, or why there was no answer."""
    try:
        with NO_PROXY.open(url, timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(getattr(error, "reason", None) or error)


def write_file(folder: str, name: str) -> dict[str, Any]:
    """Writes a file whose content is its name.

    Returns:
        `error`: why it failed, or None; `made`: local directories that were not there before.
    """
    from ray_shared.storage import open_storage, reason_of

    made: list[str] = []
    try:
        storage = open_storage(folder, retries=2)
        if "://" not in storage.uri:
            path = Path(storage.path)
            made = [str(p) for p in (path, *path.parents) if not p.exists()]
        storage.child(name).write_bytes(name.encode())
    except Exception as error:  # noqa: BLE001 - each storage's client has errors of its own
        return {"error": reason_of(error), "made": made}
    return {"error": None, "made": made}


def read_files(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Reads what other nodes have written.

    Returns:
        The names of those that could not be read, and why.
    """
    from ray_shared.storage import open_storage, reason_of

    wrong: dict[str, str] = {}
    for name in names:
        try:
            if open_storage(folder, retries=2).child(name).read_bytes() != name.encode():
                wrong[name] = "another content than was written"
        except Exception as error:  # noqa: BLE001 - as above
            wrong[name] = reason_of(error)
    return wrong


def delete_files(folder: str, made: Sequence[str]) -> None:
    """Removes the folder and the directories that were made for it; what is gone is gone."""
    from ray_shared.storage import open_storage

    with suppress(Exception):
        open_storage(folder, retries=2).delete()
    for path in made:
        with suppress(OSError):
            Path(path).rmdir()


def _run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str] | None:
    """Runs a program; None if it does not end in time."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": GPU_TIMEOUT_S}
    try:
        return subprocess.run(command, env=env, check=False, **options)
    except subprocess.TimeoutExpired:
        return None


def _machine_memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.total - memory.available, memory.total
