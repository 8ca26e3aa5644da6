"""An all-reduce over all nodes, as the first step of a distributed training makes it.

One actor on each node joins a process group by gloo, and by NCCL where every node has a GPU; then
the ranks add 1, 2, 3, ... in a tensor, and each must see the sum. A collective that cannot work
usually hangs, so the actors are killed once somebody has failed or the time is up.

Source: https://docs.pytorch.org/docs/2.13/distributed.html
"""

import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_doctor.check import first_line
from ray_doctor.config import DoctorConfig
from ray_doctor.facts import Collective, Facts, Node, names

NUM_ELEMENTS = 1_000_000
"""float32: 4 MB."""


class Rank:
    """One process of the group."""

    def address(self, host: str) -> str:
        """A TCP address of this node where nobody listens yet, for the ranks to meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def all_reduce(
        self, backend: str, place: str, rank: int, world_size: int, timeout_s: float
    ) -> tuple[float, float, float]:
        """Joins the group and adds `rank + 1` to the others' sum.

        Returns:
            The smallest and the largest element of the result, and the seconds of the all-reduce.
        """
        import torch
        from torch import distributed

        device = torch.device("cuda" if backend == "nccl" else "cpu")
        distributed.init_process_group(
            backend,
            init_method=place,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        tensor = torch.full((NUM_ELEMENTS,), float(rank + 1), device=device)
        started = time.perf_counter()
        distributed.all_reduce(tensor)
        smallest, largest = tensor.min().item(), tensor.max().item()
        seconds = time.perf_counter() - started
        distributed.destroy_process_group()
        return smallest, largest, seconds


def try_both(facts: Facts, doctor: DoctorConfig) -> tuple[Collective, Collective]:
    """gloo over all nodes, and NCCL if each of them has a GPU."""
    nodes = facts.responding
    without_torch = [n for n in nodes if n.info and "torch" not in n.info["packages"]]
    without_gpu = [n for n in nodes if not n.resources.get("GPU")]
    why = ""
    if not doctor.collective:
        why = "doctor.collective=false"
    elif len(nodes) < 2:
        why = "needs two nodes"
    elif without_torch:
        why = f"PyTorch is not installed on {names(without_torch)}"
    gloo = Collective(skipped=why) if why else try_one("gloo", nodes, doctor.collective_timeout_s)
    if not why and without_gpu:
        why = f"no GPU on {names(without_gpu)}"
    nccl = Collective(skipped=why) if why else try_one("nccl", nodes, doctor.collective_timeout_s)
    return gloo, nccl


def try_one(backend: str, nodes: Sequence[Node], timeout_s: float) -> Collective:
    """One all-reduce over `nodes`."""
    actor = ray.remote(num_cpus=0, max_restarts=0)(Rank)
    ranks: list[Any] = []
    for each in nodes:
        where = NodeAffinitySchedulingStrategy(each.id, soft=False)
        gpus = 1 if backend == "nccl" else 0
        ranks.append(actor.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=where).remote())
    try:
        return _all_reduce(backend, nodes, ranks, timeout_s)
    finally:
        for rank in ranks:
            ray.kill(rank)


def _all_reduce(
    backend: str, nodes: Sequence[Node], ranks: Sequence[Any], timeout_s: float
) -> Collective:
    found = Collective()
    # Each is asked, not the first alone: an actor that waits for a GPU is not a broken network.
    started = {rank.address.remote(n.address): n for rank, n in zip(ranks, nodes, strict=True)}
    _, late = ray.wait(list(started), num_returns=len(started), timeout=timeout_s)
    if late and backend == "nccl":
        busy = [started[ref] for ref in late]
        return Collective(skipped=f"no free GPU within {timeout_s:g} s on {names(busy)}")
    found.errors = {started[ref].name: f"no process within {timeout_s:g} s" for ref in late}
    if found.errors:
        return found
    try:
        place = ray.get(next(iter(started)))
    except ray.exceptions.RayError as error:
        return Collective(errors={nodes[0].name: first_line(error)})
    world_size = len(ranks)
    running = {
        rank.all_reduce.remote(backend, place, i, world_size, timeout_s): nodes[i]
        for i, rank in enumerate(ranks)
    }
    expected = world_size * (world_size + 1) / 2
    deadline = time.monotonic() + timeout_s
    while running and not found.errors:
        left = max(deadline - time.monotonic(), 0)
        done, waiting = ray.wait(list(running), timeout=left)
        if not done:
            found.errors = {
                running[ref].name: f"hangs: no sum within {timeout_s:g} s" for ref in waiting
            }
        for ref in done:
            where = running.pop(ref).name
            try:
                smallest, largest, seconds = ray.get(ref)
            except ray.exceptions.RayError as error:
                found.errors[where] = first_line(error)
                continue
            found.seconds = max(found.seconds, seconds)
            if (smallest, largest) != (expected, expected):
                found.wrong[where] = largest if largest != expected else smallest
    return found
