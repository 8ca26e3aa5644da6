"""The driver's loop on two nodes of this process's own, where what dies, and when, is exact."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from core_parameter_server import checkpoint as ckpt
from core_parameter_server import placement
from core_parameter_server.parameter_server import Shard
from core_parameter_server.placement import Actors, reserve
from core_parameter_server.tour import place_of
from core_parameter_server.training import Training
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_shared import cluster
from ray_shared.errors import JobError, UserError
from ray_shared.report import Report
from ray_shared.storage import Storage, open_storage
from ray_shared.testing import wait_for

from .driving import (
    NUM_CLOCKS,
    SIZE,
    Event,
    at,
    configured,
    files,
    final_weights,
    kill_shard,
    of,
    started,
    train,
)


@pytest.fixture(scope="module", autouse=True)
def two_nodes(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    simulated = ["cluster=simulated", "cluster.num_nodes=2", "cluster.num_cpus=2"]
    report = Report("core-parameter-server", tmp_path_factory.mktemp("out"), {})
    demand = cluster.Demand(1, 1)
    with cluster.connect(configured(*simulated).cluster, demand, report, "core_parameter_server"):
        yield


@pytest.fixture(scope="module")
def actors(two_nodes: None) -> Iterator[Actors]:
    """What every run without another compression or learning rate can use."""
    with started(configured()) as found:
        yield found


@pytest.fixture
def run_dir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def calm(actors: Actors, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The weights of an undisturbed synchronous run."""
    run_dir = open_storage(str(tmp_path_factory.mktemp("calm") / "run"))
    train(actors, configured(), run_dir)
    return final_weights(run_dir)


@pytest.mark.parametrize(
    ("mode", "num_updates"), [("sync", NUM_CLOCKS), ("async", 2 * NUM_CLOCKS), ("ssp", 48)]
)
def test_every_mode_converges_with_every_gradient_once(
    actors: Actors, run_dir: Storage, mode: str, num_updates: int
):
    training, events = train(actors, configured(f"server.mode={mode}"), run_dir)
    assert training.server.version == num_updates
    done = Counter((w, c) for e in of(events, "step") for w, c, _ in e["applied"])
    assert done == Counter((w, c) for w in range(2) for c in range(NUM_CLOCKS))
    losses = [e["val_loss"] for e in of(events, "eval") if e["split"] == "val"]
    assert losses[0] > 0.3
    assert of(events, "eval")[-1]["test_loss"] < 1e-4
    metrics = training.counts.metrics(seconds=2.0)
    assert metrics["bytes_sent"] == metrics["bytes_read"] == 48 * SIZE * 4
    assert metrics["bytes_per_s"] == 48 * SIZE * 4
    assert len(metrics["queued_ms"]) == 2
    assert 0 < max(metrics["queued_ms"]) < 60_000
    assert 0 < metrics["grad_norm"] < 1


@pytest.mark.parametrize(("mode", "last"), [("sync", NUM_CLOCKS), ("async", 2 * NUM_CLOCKS)])
def test_shard_lost_after_the_last_checkpoint_does_not_train_past_the_end(
    actors: Actors, run_dir: Storage, calm: np.ndarray, mode: str, last: int
):
    lost = [1]

    class LosesAShardAtTheEnd(Training):
        def evaluate(self, split: str) -> None:
            if self.done and lost:
                self.commit(wait=True)
                kill_shard(self, lost.pop())
            super().evaluate(split)

    # The last version becomes a checkpoint before the end is reached.
    config = configured(f"server.mode={mode}", "checkpoint.every_updates=12")
    training, events = train(actors, config, run_dir, kind=LosesAShardAtTheEnd)
    (recovery,) = of(events, "recovery")
    assert (recovery["step"], recovery["redone"], recovery["shards"]) == (last, 0, [1])
    assert training.server.version == last
    assert training.clocks.clocks == [NUM_CLOCKS] * 2
    assert len(of(events, "step")) == last
    assert of(events, "eval")[-1]["split"] == "test"
    if mode == "sync":
        np.testing.assert_array_equal(final_weights(run_dir), calm)


def test_shard_lost_in_the_first_save_starts_anew(
    actors: Actors, run_dir: Storage, calm: np.ndarray
):
    lost = [0]

    class LosesAShard(Training):
        def save(self, wait: bool = False) -> None:
            if self.saved is None and lost:
                kill_shard(self, lost.pop())
            super().save(wait)

    training, events = train(actors, configured(), run_dir, kind=LosesAShard)
    assert len(of(events, "start")) == 1
    assert [e["shards"] for e in of(events, "recovery")] == [[0]]
    assert training.server.version == NUM_CLOCKS
    np.testing.assert_array_equal(final_weights(run_dir), calm)


def test_damaged_newest_checkpoint_gives_way_to_the_one_before(
    actors: Actors, run_dir: Storage, calm: np.ndarray
):
    def damage(training: Training) -> None:
        files(run_dir, 20)[0].write_bytes(b"not what it was")
        kill_shard(training, 0)

    _, events = train(actors, configured(), run_dir, at("checkpoint", 20, damage))
    (found,) = of(events, "damaged")
    assert found["step"] == 20
    assert "shard-00" in found["reason"]
    assert "damaged (15 bytes" in found["reason"]
    assert "\n" not in found["reason"]
    (recovery,) = of(events, "recovery")
    assert recovery["step"] == 10
    np.testing.assert_array_equal(final_weights(run_dir), calm)


def test_no_whole_checkpoint_ends_the_job(actors: Actors, run_dir: Storage):
    def damage(training: Training) -> None:
        for checkpoint in ckpt.checkpoints(run_dir):
            files(run_dir, checkpoint.version)[0].unlink()
        kill_shard(training, 0)

    with pytest.raises(JobError, match="no whole checkpoint is left: .*missing or empty"):
        train(actors, configured(), run_dir, at("checkpoint", 10, damage))


def test_shard_lost_while_it_saves_leaves_the_checkpoint_before(
    actors: Actors, run_dir: Storage, calm: np.ndarray
):
    lost = [0]

    class LosesASavingShard(Training):
        def save(self, wait: bool = False) -> None:
            if self.server.version != 20 or not lost:
                return super().save(wait)
            self.commit(wait=True)
            shard = self.server.pids[lost[0]]
            os.kill(shard, signal.SIGSTOP)  # The other one writes its file.
            super().save(wait)
            wait_for(lambda: files(run_dir, 20), "file of the other shard")
            kill_shard(self, lost.pop())
            left.extend(path.name for path in files(run_dir, 20))
            return None

    left: list[str] = []
    _, events = train(actors, configured(), run_dir, kind=LosesASavingShard)
    assert left == ["shard-001.npz"]
    (recovery,) = of(events, "recovery")
    assert recovery["step"] == 10
    assert [e["step"] for e in of(events, "checkpoint")] == [0, 10, 20, NUM_CLOCKS]
    np.testing.assert_array_equal(final_weights(run_dir), calm)


@pytest.mark.fault
def test_each_actor_may_be_lost_as_often_as_max_failures_says(run_dir: Storage):
    config = configured("failure.max_failures=1")
    first = at("step", 5, lambda training: kill_shard(training, 0))
    other = at("step", 12, lambda training: kill_shard(training, 1))
    second = at("step", 18, lambda training: kill_shard(training, 0))
    recoveries: list[list[int]] = []

    def react(training: Training, event: Event) -> None:
        if event["event"] == "recovery":
            recoveries.append(event["shards"])
        for action in (first, other, second):
            action(training, event)

    with started(config) as actors:
        expected = "an actor died more than failure.max_failures=1 times"
        with pytest.raises(JobError, match=expected):
            train(actors, config, run_dir, react)
    assert recoveries == [[0], [1]]


def test_node_out_of_memory_is_a_loss_like_others(
    actors: Actors, run_dir: Storage, calm: np.ndarray
):
    class RunsOutOfMemory(Training):
        def next_gradient(self) -> Any:
            if self.server.version == 15 and not self.counts.recoveries:
                raise ray.exceptions.OutOfMemoryError("no memory left")
            return super().next_gradient()

    _, events = train(actors, configured(), run_dir, kind=RunsOutOfMemory)
    (recovery,) = of(events, "recovery")
    assert (recovery["lost_at"], recovery["shards"]) == (15, [])
    np.testing.assert_array_equal(final_weights(run_dir), calm)


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path: Path):
    # One update from a finite loss leads to weights that no float32 can hold.
    options = ["train.lr=3e38", "problem.num_samples=2", "train.epochs=1"]
    with started(configured(*options)) as actors:
        for mode in ("sync", "async"):
            run_dir = open_storage(str(tmp_path / mode))
            config = configured(*options, f"server.mode={mode}", "checkpoint.every_updates=1")
            with pytest.raises(JobError, match="not finite at update [12]; a smaller train.lr"):
                train(actors, config, run_dir)
            for checkpoint in ckpt.checkpoints(run_dir):
                weights, _ = checkpoint.read(0, SIZE)
                assert np.isfinite(weights["weights"]).all(), (mode, checkpoint.version)


def test_fp16_sends_half_the_bytes_and_converges(run_dir: Storage):
    config = configured("server.compression=fp16")
    with started(config) as actors:
        training, events = train(actors, config, run_dir)
    assert training.counts.bytes_sent == 48 * SIZE * 2
    assert of(events, "eval")[-1]["test_loss"] < 1e-4


def test_recovery_forgets_what_topk_held_back_and_says_so(run_dir: Storage):
    config = configured("server.compression=topk", "server.topk_fraction=0.2")
    with started(config) as actors:
        react = at("step", 15, lambda training: kill_shard(training, 0))
        training, events = train(actors, config, run_dir, react)
        assert len(ray.get([w.forget.remote() for w in actors.workers])) == 2
        assert ray.get([w.forget.remote() for w in actors.workers]) == [0, 0]
    (recovery,) = of(events, "recovery")
    assert len(recovery["held_back"]) == 2
    assert min(recovery["held_back"]) > 0
    assert training.server.version == NUM_CLOCKS
    first, *_, last = (e["val_loss"] for e in of(events, "eval") if e["split"] == "val")
    assert last < first / 10


@pytest.mark.parametrize(
    ("strategy", "num_nodes"), [("STRICT_PACK", 1), ("SPREAD", 2), ("STRICT_SPREAD", 2)]
)
def test_placement_lays_actors_out_over_nodes(strategy: str, num_nodes: int):
    few = ["scaling.num_workers=1", "server.num_shards=1"]
    group = reserve(configured(f"server.placement={strategy}", *few))
    nodes = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    assert len(set(nodes.values())) == num_nodes


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["server.placement=STRICT_SPREAD"], "a node for each of 4 shards and workers"),
        (["server.placement=STRICT_PACK", "scaling.num_workers=8"], "one node with 2.5 CPU"),
    ],
)
def test_strict_placement_that_cannot_be_met_is_refused(overrides: list[str], needs: str):
    expected = f"{overrides[0]}: needs {needs}; the cluster has 2 node.s., the largest with 2 CPU"
    with pytest.raises(UserError, match=expected):
        reserve(configured(*overrides))


def test_no_room_beside_others_is_refused_by_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "ROOM_TIMEOUT_S", 0.5)
    others = placement_group([{"CPU": 1.2}])  # Then one worker finds room, not two.
    assert others.wait(30)
    try:
        config = configured("server.placement=SPREAD", "scaling.cpus_per_worker=1.4")
        with pytest.raises(UserError, match=r"server.placement=SPREAD: no room for 4 actors of"):
            reserve(config)
    finally:
        remove_placement_group(others)


def test_published_weights_are_one_read_only_array_for_all_readers():
    node = next(n["NodeID"] for n in ray.nodes() if n["Alive"])
    here = NodeAffinitySchedulingStrategy(node, soft=False)

    class Reader:
        def read(self, weights: np.ndarray) -> tuple[int, bool, tuple[str, int]]:
            return os.getpid(), weights.flags.writeable, place_of(weights)

    length = 100_000  # 400 kB; what has less than 100 kB travels inside the reply.
    shard_here: Any = ray.remote(num_cpus=0.1, scheduling_strategy=here)(Shard)
    reader_here: Any = ray.remote(num_cpus=0.1, scheduling_strategy=here)(Reader)
    shard = shard_here.remote(configured().train, 0, 0, length)
    ray.get(shard.load.remote(np.ones(length, np.float32)))
    readers = [reader_here.remote() for _ in range(2)]
    weights = shard.publish.remote(0)
    looks = ray.get([reader.read.remote(weights) for reader in readers])
    assert len({pid for pid, _, _ in looks}) == 2
    assert not any(writeable for _, writeable, _ in looks)
    if Path("/proc/self/maps").exists():
        ((file, _),) = {place for _, _, place in looks}
        assert "plasma" in file
