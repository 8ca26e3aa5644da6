"""Checkpoints are whole or nothing, and can be read in other slices than they were written."""

from pathlib import Path

import numpy as np
import pytest
from core_parameter_server import checkpoint as ckpt
from core_parameter_server.config import Config
from core_parameter_server.consistency import slices
from ray_shared.config import compose
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage

SIZE = 100
QUADRATIC = ["problem=quadratic", f"problem.size={SIZE}", "scaling.num_workers=2"]
VECTOR = np.arange(SIZE, dtype=np.float32)


def write(run_dir: Storage, version: int, num_shards: int, commit: bool = True) -> Storage:
    directory = ckpt.directory_of(run_dir, version)
    entries = []
    for index, (start, stop) in enumerate(slices(SIZE, num_shards)):
        arrays = {"weights": VECTOR[start:stop], "velocity": -VECTOR[start:stop]}
        entries.append(ckpt.write_shard(directory, index, start, arrays, "momentum", version))
    if commit:
        ckpt.commit(run_dir, version, [version, version], entries)
    return directory


def configured(*overrides: str) -> Config:
    return compose(Config, "core_parameter_server.conf", [*QUADRATIC, *overrides])


@pytest.fixture
def run_dir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_any_slices_can_be_read(run_dir: Storage, num_shards: int):
    write(run_dir, 5, num_shards=3)
    (found,) = ckpt.checkpoints(run_dir)
    parts = [found.read(start, stop) for start, stop in slices(SIZE, num_shards)]
    np.testing.assert_array_equal(np.concatenate([a["weights"] for a, _ in parts]), VECTOR)
    np.testing.assert_array_equal(np.concatenate([a["velocity"] for a, _ in parts]), -VECTOR)
    assert {num_steps for _, num_steps in parts} == {5}
    assert (found.version, found.clocks, found.size) == (5, [5, 5], SIZE)


def test_without_its_manifest_a_checkpoint_does_not_count(run_dir: Storage):
    write(run_dir, 5, 2)
    write(run_dir, 6, 2, commit=False)
    assert [c.version for c in ckpt.checkpoints(run_dir)] == [5]


def test_only_the_newest_are_kept(run_dir: Storage):
    for version in (5, 10, 15):
        write(run_dir, version, 2)
        ckpt.prune(run_dir, 2)
    assert [c.version for c in ckpt.checkpoints(run_dir)] == [10, 15]
    assert not ckpt.directory_of(run_dir, 5).exists()


def test_what_a_crash_left_goes_once_a_newer_checkpoint_is_whole(run_dir: Storage):
    for version in (5, 10):
        write(run_dir, version, 2)
    write(run_dir, 15, 2, commit=False)  # As when somebody is at it.
    ckpt.prune(run_dir, 2)
    assert ckpt.directory_of(run_dir, 15).exists()
    write(run_dir, 20, 2)
    ckpt.prune(run_dir, 2)
    assert run_dir.names() == ["checkpoint-00000010", "checkpoint-00000020"]


@pytest.mark.parametrize("left", [None, b"a half"])
def test_files_that_the_driver_does_not_see_make_no_checkpoint(
    run_dir: Storage, left: bytes | None
):
    directory = ckpt.directory_of(run_dir, 5)
    entries = [
        ckpt.write_shard(directory, i, 50 * i, {"weights": VECTOR[:50]}, "sgd", 5) for i in (0, 1)
    ]
    unseen = Path(directory.path) / "shard-001.npz"
    unseen.unlink() if left is None else unseen.write_bytes(left)
    found = "none" if left is None else "6"
    with pytest.raises(UserError, match=rf"storage.path: .*001.npz, the driver sees {found}: it"):
        ckpt.commit(run_dir, 5, [5, 5], entries)
    assert ckpt.checkpoints(run_dir) == []


@pytest.mark.parametrize("damage", [b"", b"x" * 50, None])
def test_damaged_shard_file_is_named(run_dir: Storage, damage: bytes | None):
    directory = write(run_dir, 5, 2)
    file = Path(directory.path) / "shard-001.npz"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(ckpt.DamagedCheckpointError, match="shard-001.npz: damaged"):
        ckpt.checkpoints(run_dir)[0].read(0, SIZE)
    ckpt.checkpoints(run_dir)[0].read(0, SIZE // 2)  # The other file is whole.
    with pytest.raises(UserError, match=r"shard-001.npz: damaged .*; remove .*00005"):
        ckpt.check_newest(run_dir, configured())


def test_damaged_manifest_is_named(run_dir: Storage):
    directory = write(run_dir, 5, 2)
    Path(directory.path, "manifest.json").write_text('{"version": 5')
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        ckpt.check_newest(run_dir, configured())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["problem.size=99"], "checkpoint-00000005: has 100 parameters, the model has 99"),
        (["train.optimizer=adam"], "train.optimizer=adam: .*-00000005 was made with momentum"),
        (["scaling.num_workers=3"], "scaling.num_workers=3: .*-00000005 was made with 2"),
    ],
)
def test_checkpoint_of_something_else_is_refused_without_a_record_of_the_run(
    run_dir: Storage, overrides: list[str], expected: str
):
    write(run_dir, 5, 2)
    ckpt.check_newest(run_dir, configured())
    with pytest.raises(UserError, match=expected):
        ckpt.check_newest(run_dir, configured(*overrides))


def test_run_that_must_resume_goes_by_its_checkpoints(run_dir: Storage):
    must = configured("run.name=run", "run.resume=must")
    directory = write(run_dir, 5, 2)
    ckpt.check_newest(run_dir, must)
    directory.delete()  # What the sentence about a damaged file advises.
    with pytest.raises(UserError, match="run.resume=must: .* has no checkpoint to resume from"):
        ckpt.check_newest(run_dir, must)
