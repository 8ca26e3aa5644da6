"""A user's mistake: exit code 2, one sentence, no Ray, nothing overwritten."""

import json
from pathlib import Path

import numpy as np
import pytest
from core_parameter_server import checkpoint as ckpt
from core_parameter_server.config import Config
from ray_shared.config import compose
from ray_shared.errors import UserError
from ray_shared.storage import open_storage

from .conftest import StartJob
from .counting import weights
from .test_checkpoint import write


def sentence(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(Config, "core_parameter_server.conf", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["problem=quadratic", "problem.size=3", "server.num_shards=4"],
            "server.num_shards=4: must be <= 3, the number of parameters",
        ),
        (["server.max_staleness=-1"], "server.max_staleness=-1: must be >= 0"),
        (["server.num_backup=3"], "server.num_backup=3: must be < scaling.num_workers=3"),
        (
            ["server.num_backup=1", "server.mode=async"],
            "server.num_backup=1: only with server.mode=sync",
        ),
        (["server.mode=bsp"], "server.mode=bsp: must be one of sync, async, ssp"),
        (["server.shards=2"], "unknown key 'server.shards': did you mean 'server.num_shards'?"),
        (["+server.num_shard=2"], "unknown key 'server.num_shard'"),
        (["server.compression=zip"], "server.compression=zip: must be one of none, fp16, topk"),
        (["server.topk_fraction=0"], "server.topk_fraction=0.0: must be in (0, 1]"),
        (["server.num_shards=two"], "server.num_shards=two: must be an integer"),
        (["train.lr=0"], "train.lr=0.0: must be > 0"),
        (["scaling.num_workers=0"], "scaling.num_workers=0: must be >= 1"),
        (
            ["action=straggler", "scaling.num_workers=1"],
            "scaling.num_workers=1: action=straggler needs at least 2",
        ),
        (["action=compare", "run.name=mine"], "run.name=mine: only with action=train"),
        (["action=tour", "run.name=mine"], "run.name=mine: only with action=train"),
        (["action=compare", "server.mode=ssp"], "server.mode=ssp: only with action=train"),
        (
            ["action=compare", "server.num_backup=1"],
            "server.num_backup=1: only with action=train",
        ),
        (
            ["server.compression=topk", "server.num_backup=1"],
            "server.compression=topk: not with backup workers",
        ),
        (
            ["server.compression=topk", "action=straggler"],
            "server.compression=topk: not with backup workers",
        ),
        (["action=fly"], "action=fly: must be one of train, compare, straggler, tour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_refused_by_key(overrides: list[str], expected: str):
    assert sentence(*overrides).startswith(expected)


def refused(start: StartJob, *overrides: str) -> str:
    """Runs the job, which must be refused, and returns its sentence."""
    with start(*overrides) as job:
        return job.refusal()


def test_more_actors_than_the_cluster_has_room_for_are_refused(start: StartJob, tmp_path: Path):
    message = refused(start, "scaling.num_workers=9", "cluster.num_cpus=2")
    assert message.startswith("scaling.num_workers=9: each needs 0.5 CPU, and the cluster")
    message = refused(start, "server.num_shards=4", "scaling.num_workers=4", "cluster.num_cpus=2")
    assert message.startswith("4 worker(s) of 0.5 CPU and 1 CPU for the shards are more than")
    assert not (tmp_path / "runs").exists()


def test_strict_placement_without_the_nodes_for_it_is_refused(start: StartJob, tmp_path: Path):
    message = refused(start, "server.placement=STRICT_SPREAD", "cluster.num_cpus=4")
    assert message == (
        "server.placement=STRICT_SPREAD: needs a node for each of 5 shards and workers; the "
        "cluster has 1 node(s), the largest with 4 CPU"
    )
    nodes = ["cluster=simulated", "cluster.num_nodes=3", "cluster.num_cpus=1"]
    message = refused(start, "server.placement=STRICT_PACK", *nodes)
    assert message.startswith(
        "server.placement=STRICT_PACK: needs one node with 2 CPU; the cluster"
    )
    assert not (tmp_path / "runs").exists()


def existing_run(tmp_path: Path, size: int = 100) -> Path:
    """A run of a quadratic with a checkpoint of 3 shards."""
    run = tmp_path / "runs" / "mine"
    overrides = ["problem=quadratic", f"problem.size={size}", "scaling.num_workers=2"]
    locked = compose(Config, "core_parameter_server.conf", overrides).locked()
    write(open_storage(str(run)), 5, num_shards=3)
    (run / "run.json").write_text(json.dumps(locked))
    return run


MINE = ["run.name=mine", "problem=quadratic", "scaling.num_workers=2"]


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_checkpoint_of_another_model_is_refused_by_key(start: StartJob, tmp_path: Path):
    run = existing_run(tmp_path)
    before = content(run)
    message = refused(start, *MINE, "problem.size=101")
    assert message.startswith("problem.size=101: run 'mine' was started with 100; keep it")
    # A version is one gradient of each worker, or one gradient.
    message = refused(start, *MINE, "problem.size=100", "server.mode=ssp")
    assert message.startswith("server.mode=async or ssp: run 'mine' was started with sync; keep it")
    assert content(run) == before


def test_corrupt_shard_file_is_refused_by_name_and_stays(start: StartJob, tmp_path: Path):
    run = existing_run(tmp_path)
    file = run / "checkpoint-00000005" / "shard-002.npz"
    file.write_bytes(file.read_bytes()[:-10])
    before = content(run)
    message = refused(start, *MINE, "problem.size=100")
    assert message.startswith(f"{file}: damaged (")
    assert message.endswith("remove " + str(file.parent) + " to do without it")
    assert content(run) == before


def test_resume_must_have_a_checkpoint(start: StartJob):
    message = refused(start, "run.name=none", "run.resume=must")
    assert message.endswith("has no checkpoint to resume from")


@pytest.mark.fault  # Three jobs; test_checkpoint.py holds the same without a cluster.
def test_checkpoint_of_another_number_of_shards_is_cut_anew(start: StartJob, tmp_path: Path):
    options = ["problem=quadratic", "problem.size=100", "train.optimizer=adam"]
    options += ["scaling.num_workers=2", "run.name=cut"]
    with start(*options, "train.epochs=1", "server.num_shards=3") as first:
        assert first.wait() == 0, first.output()
    with start(*options, "train.epochs=2", "server.num_shards=2") as second:
        assert second.wait() == 0, second.output()
    assert "resumes after update 16" in second.output()
    newest = ckpt.checkpoints(open_storage(str(tmp_path / "runs" / "cut")))[-1]
    assert [s["stop"] - s["start"] for s in newest.shards] == [50, 50]
    with start(*options, "run.name=whole", "train.epochs=2", "server.num_shards=1") as whole:
        assert whole.wait() == 0, whole.output()
    # Not to the last bit: on some CPUs BLAS rounds otherwise near the end of a slice.
    np.testing.assert_allclose(weights(tmp_path, "cut"), weights(tmp_path, "whole"), rtol=1e-5)
