"""Ray Core in nine stations, each of which measures one idea (`action=tour`).

A task is a function call in another process, an actor an object in another process, and what they
take and return lies in an object store that the processes of a node share.

    python -m core_parameter_server action=tour tour.num_operations=100000

Source: https://docs.ray.io/en/releases-2.60.0/ray-core/patterns/index.html and
https://docs.ray.io/en/releases-2.60.0/ray-core/ray-generator.html
"""

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_shared.report import Report

from core_parameter_server.config import TourConfig

logger = logging.getLogger(__name__)
Measured = dict[str, Any]
Span = tuple[float, float]  # Start and end in seconds, by the clock of one machine.
MB = 1_000_000


def run_tour(config: TourConfig, report: Report, seed: int = 0) -> None:
    """Visits all stations on the connected cluster; fills `report.metrics["tour"]`."""
    stations: dict[str, Callable[[], Measured]] = {
        "tasks": tasks_against_loop,
        "actors": actors_and_async_actors,
        "shared_array": lambda: shared_array(config.array_mb, seed),
        "references": lambda: references_against_values(config.array_mb, seed),
        "wait": results_as_they_come,
        "tiny_operations": lambda: tiny_operations(config.num_operations),
        "streaming": lambda: streaming(config.stream_budget_mb),
        "resources": fractional_and_custom_resources,
        "retries": retries,
    }
    with report.timed("job_s"):
        for name, station in stations.items():
            measured = report.metrics.setdefault("tour", {})[name] = station()
            shown = ", ".join(f"{key} {value}" for key, value in measured.items())
            logger.info("%-16s %s", name, shown)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` returns, and the seconds it took."""
    start = time.perf_counter()
    return call(), round(time.perf_counter() - start, 3)


def most_at_once(spans: Iterable[Span]) -> int:
    """How many of the spans overlap at most; not those that only touch."""
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    return int(np.cumsum([change for _, change in changes]).max())


def tasks_against_loop() -> Measured:
    """Runs the same calls in a loop, and as tasks, in as many processes as there are CPUs.

    The gain cannot exceed the number of CPUs; two that share a core give less than two.
    """

    def count_primes(start: int, stop: int) -> int:
        numbers = range(max(start, 2), stop)
        return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in numbers)

    task = ray.remote(num_cpus=1)(count_primes)
    num_cpus = int(ray.cluster_resources()["CPU"])
    parts = [(start, start + 50_000) for start in range(0, 600_000, 50_000)]
    loop, loop_s = timed(lambda: [count_primes(*part) for part in parts])
    # Worker processes start with the first tasks, and stay for those that follow.
    ray.get([task.remote(0, 100_000) for _ in range(num_cpus)])
    tasks, tasks_s = timed(lambda: ray.get([task.remote(*part) for part in parts]))
    measured: Measured = {"num_cpus": num_cpus, "loop_s": loop_s, "tasks_s": tasks_s}
    return measured | {"speedup": round(loop_s / tasks_s, 2), "same_result": tasks == loop}


def nap(seconds: float) -> Span:
    """Takes so long."""
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


class Counter:
    """Keeps its state between calls, of which it runs one at a time."""

    count = 0

    def add(self) -> int:
        """Counts one more."""
        self.count += 1
        return self.count

    def nap(self, seconds: float) -> Span:
        """Keeps the actor from all other calls."""
        return nap(seconds)


def actors_and_async_actors() -> Measured:
    """Calls an actor in order; waits in it, and in an async one, whose calls wait together."""

    class AsyncActor:
        async def nap(self, seconds: float) -> Span:
            start = time.time()
            await asyncio.sleep(seconds)
            return start, time.time()

    plain: Any = ray.remote(num_cpus=0)(Counter).remote()
    async_: Any = ray.remote(num_cpus=0)(AsyncActor).remote()
    ray.get([plain.nap.remote(0), async_.nap.remote(0)])  # Both have started.
    counts, calls_s = timed(lambda: ray.get([plain.add.remote() for _ in range(1000)]))
    naps, naps_s = timed(lambda: ray.get([plain.nap.remote(0.01) for _ in range(100)]))
    awaited, awaited_s = timed(lambda: ray.get([async_.nap.remote(0.01) for _ in range(100)]))
    measured: Measured = {"calls_1000_s": calls_s, "in_order": counts == list(range(1, 1001))}
    measured |= {"naps_100_s": naps_s, "naps_at_once": most_at_once(naps)}
    return measured | {"async_naps_100_s": awaited_s, "async_at_once": most_at_once(awaited)}


def place_of(array: np.ndarray) -> tuple[str, int]:
    """The mapped file in which the array lies, and where; without /proc, process and address."""
    address, maps = array.ctypes.data, Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        span, _, offset, _, inode, *path = line.split()
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return " ".join([inode, *path]), address - start + int(offset, 16)
    return f"process {os.getpid()}", address


def shared_array(array_mb: int, seed: int) -> Measured:
    """Puts an array into the store once; tasks on that node read these very bytes.

    The same offset in the same file is the same memory for all processes, so none may write it.
    """

    @ray.remote(num_cpus=1)
    def look_at(references: list[ray.ObjectRef]) -> Measured:
        array = ray.get(references[0])  # In a list, it is not fetched before the task starts.
        look = {"sum": array.sum(dtype=float), "place": place_of(array), "pid": os.getpid()}
        time.sleep(0.1)  # Long enough that one process does not run all the tasks.
        try:
            array[0] = 0
        except ValueError as error:  # Others read the same bytes. To write, `array.copy()`.
            look["writing"] = str(error)
        return look

    array = np.random.default_rng(seed).random(array_mb * MB // 4, dtype=np.float32)
    reference, put_s = timed(lambda: ray.put(array))
    looks, tasks_s = timed(lambda: ray.get([look_at.remote([reference]) for _ in range(8)]))
    measured: Measured = {"array_mb": array_mb, "put_s": put_s, "tasks_8_s": tasks_s}
    measured["num_processes"] = len({look["pid"] for look in looks})
    measured["num_places"] = len({look["place"] for look in looks})
    measured["same_result"] = {look["sum"] for look in looks} == {array.sum(dtype=float)}
    return measured | {"file": looks[0]["place"][0], "writing": looks[0].get("writing")}


@dataclass
class Parcel:
    """An array that counts how often this process serializes it."""

    array: np.ndarray
    num_serialized: ClassVar[int] = 0

    def __getstate__(self) -> dict[str, Any]:
        Parcel.num_serialized += 1
        return self.__dict__


def references_against_values(array_mb: int, seed: int) -> Measured:
    """Stores an array for each of 4 tasks that are passed it, or once for all (`ray.put`).

    And `ray.get` right after each call runs one task at a time: call all, then get all.
    """
    parcel = Parcel(np.random.default_rng(seed).random(array_mb * MB // 4, dtype=np.float32))
    task: Any = ray.remote(num_cpus=1)(lambda parcel: float(parcel.array[0]))
    Parcel.num_serialized = 0
    _, by_value_s = timed(lambda: ray.get([task.remote(parcel) for _ in range(4)]))
    measured: Measured = {"by_value_s": by_value_s, "by_value_copies": Parcel.num_serialized}
    Parcel.num_serialized = 0
    reference, put_s = timed(lambda: ray.put(parcel))
    _, tasks_s = timed(lambda: ray.get([task.remote(reference) for _ in range(4)]))
    measured["by_reference_s"] = round(put_s + tasks_s, 3)
    measured["by_reference_copies"] = Parcel.num_serialized
    task = ray.remote(num_cpus=1)(nap)
    spans, seconds = timed(lambda: [ray.get(task.remote(0.05)) for _ in range(8)])
    measured |= {"get_in_loop_s": seconds, "get_in_loop_at_once": most_at_once(spans)}
    spans, seconds = timed(lambda: ray.get([task.remote(0.05) for _ in range(8)]))
    return measured | {"get_list_s": seconds, "get_list_at_once": most_at_once(spans)}


def results_as_they_come() -> Measured:
    """Takes whichever result is there (`ray.wait`), not what the slow first task holds up."""
    task = ray.remote(num_cpus=1)(nap)
    measured: Measured = {}
    for way in ("in_order", "as_they_come"):
        start, came_s = time.perf_counter(), {}
        pending = [task.remote(seconds) for seconds in (0.6, *[0.05] * 6)]
        slow = pending[0]
        while pending:
            ready = pending[0] if way == "in_order" else ray.wait(pending, num_returns=1)[0][0]
            ray.get(ready)
            came_s[ready] = round(time.perf_counter() - start, 3)
            time.sleep(0.05)  # What the driver does with a result.
            pending.remove(ready)
        measured |= {f"{way}_first_s": min(came_s.values()), f"{way}_last_s": max(came_s.values())}
        measured[f"{way}_slow_handled_as"] = list(came_s).index(slow) + 1
    return measured


def tiny_operations(num_operations: int) -> Measured:
    """Runs a task for each operation (a sample of them), and tasks of many operations (all).

    A task costs hundreds of microseconds; here a plain loop takes no longer than the batches.
    """

    def tiny(start: int, stop: int) -> int:
        return sum(number * number % 7 for number in range(start, stop))

    task = ray.remote(num_cpus=1)(tiny)
    num_sample, step = min(2000, num_operations), math.ceil(num_operations / 20)
    batches = [(i, min(i + step, num_operations)) for i in range(0, num_operations, step)]
    sample, sample_s = timed(lambda: ray.get([task.remote(i, i + 1) for i in range(num_sample)]))
    batched, batched_s = timed(lambda: ray.get([task.remote(*batch) for batch in batches]))
    loop, loop_s = timed(lambda: tiny(0, num_operations))
    measured: Measured = {"num_operations": num_operations, "num_one_by_one": num_sample}
    measured["one_by_one_s_extrapolated"] = round(sample_s * num_operations / num_sample, 3)
    measured |= {"num_batches": len(batches), "batched_s": batched_s, "loop_s": loop_s}
    measured["same_result"] = sum(sample) == tiny(0, num_sample) and sum(batched) == loop
    return measured | {"one_by_one_sum": sum(sample), "batched_sum": sum(batched)}


def streaming(budget_mb: float) -> Measured:
    """Streams ten times `budget_mb` through the store, which never holds as much as `budget_mb`.

    The task waits while 4 blocks wait; without a bound, Ray stores or spills all it is ahead.
    """

    @ray.remote(num_cpus=1, num_returns="streaming")
    def produce(num_blocks: int, block_mb: float) -> Iterator[np.ndarray]:
        for _ in range(num_blocks):
            yield np.full(int(block_mb * MB / 8), time.time())

    measured: Measured = {"budget_mb": budget_mb}
    store = "object_store_memory"
    for way, num_waiting in {"bounded": 4, "unbounded": -1}.items():
        # The underscore is Ray's: this option is there for Ray Data, and may change.
        task: Any = produce.options(num_cpus=1, _generator_backpressure_num_objects=num_waiting)
        spans, streamed_mb, peak_mb = [], 0.0, 0.0
        for reference in task.remote(100, budget_mb / 10):
            block = ray.get(reference)
            streamed_mb += block.nbytes / MB
            time.sleep(0.01)  # The consumer is slower than the producer.
            used = ray.cluster_resources()[store] - ray.available_resources().get(store, 0.0)
            peak_mb = max(peak_mb, used / MB)  # As the nodes report it, every 0.1 s.
            spans.append((float(block[0]), time.time()))
            del block, reference  # With the last name for it, the block leaves the store.
        measured |= {f"{way}_mb": round(streamed_mb), f"{way}_peak_store_mb": round(peak_mb)}
        measured[f"{way}_blocks_alive"] = most_at_once(spans)
    return measured


def admitted(actor: Any, places: int) -> int:
    """How many of `places + 1` actors run by when a later one does that needs nothing."""
    started = {each.add.remote(): each for each in [actor.remote() for _ in range(places + 1)]}
    inside = ray.wait(list(started), num_returns=places, timeout=60)[0]
    ray.get(ray.remote(num_cpus=0)(Counter).remote().add.remote())  # type: ignore[attr-defined]
    at_once, waiting = ray.wait(list(started), num_returns=places + 1, timeout=0)
    ray.kill(started[inside[0]])
    ray.get(waiting, timeout=60)
    return len(at_once)


def fractional_and_custom_resources() -> Measured:
    """Starts actors that take a quarter of one CPU each, or half of a resource with a name.

    Head nodes have the one used here; `ray start --resources='{"licence": 2}'` declares others.
    """
    one_cpu = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(one_cpu)
    quarter = ray.remote(num_cpus=0.25, scheduling_strategy=strategy)(Counter)
    half = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.5})(Counter)
    measured = {"quarter_cpus_at_once": admitted(quarter, 4), "halves_at_once": admitted(half, 2)}
    remove_placement_group(one_cpu)
    return measured


def retries() -> Measured:
    """Runs a task again if its process died, or if it raised one of `retry_exceptions`."""

    def fail_at(attempts: Any, number: int, error: Exception | None) -> None:
        if ray.get(attempts.add.remote()) == number:
            if error:
                raise error
            os.kill(os.getpid(), signal.SIGKILL)

    logger.info("retries: Ray will now report a worker that died; it was killed on purpose")
    attempts: Any = ray.remote(num_cpus=0)(Counter).remote()
    options: Any = {"max_retries": 2, "retry_exceptions": [ConnectionError]}
    task = ray.remote(num_cpus=1, **options)(fail_at)
    measured: Measured = {}
    for name, error in (("killed", None), ("listed", ConnectionError()), ("other", ValueError())):
        first = ray.get(attempts.add.remote()) + 1
        with suppress(ValueError):
            ray.get(task.remote(attempts, first, error))
        measured[f"{name}_num_attempts"] = ray.get(attempts.add.remote()) - first
    return measured
