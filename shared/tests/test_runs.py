"""Names of runs, and what a second start under the same name may change."""

import json
from pathlib import Path

import pytest
from ray_shared.errors import UserError
from ray_shared.groups import RunConfig
from ray_shared.runs import TRAIN_SNAPSHOT, check_run, record_run, run_name
from ray_shared.storage import Storage, open_storage

LOCKED = {"data": {"name": "digits", "path": None}, "model": {"width": 32}}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def begun(storage: Storage, checkpoint: bool) -> None:
    """A run named `mine`, recorded with `LOCKED`."""
    record_run(storage.child("mine"), LOCKED)
    if checkpoint:
        storage.child("mine").child(TRAIN_SNAPSHOT).write_bytes(b"{}")


def refusal(resume: str, storage: Storage, locked: dict[str, object]) -> str:
    with pytest.raises(UserError) as caught:
        check_run(RunConfig("mine", resume), storage, locked)
    return str(caught.value)


def test_default_names_differ_even_within_a_second():
    names = {run_name(RunConfig(None, "auto"), "tiny-job") for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("tiny-job-2") for name in names)


def test_given_name_is_kept():
    assert run_name(RunConfig("mine", "auto"), "tiny-job") == "mine"


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "", "a b", "a\\b"])
def test_name_that_is_no_plain_directory_name_is_refused(name: str):
    with pytest.raises(UserError, match=r"run\.name=.*must be letters, digits"):
        RunConfig(name, "auto")


def test_must_without_a_name_is_refused():
    with pytest.raises(UserError, match=r"run\.resume=must needs run\.name"):
        RunConfig(None, "must")


def test_unknown_resume_mode_is_refused():
    with pytest.raises(UserError, match=r"run\.resume=yes: must be one of auto, never, must"):
        RunConfig("mine", "yes")


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_new_name_is_allowed(storage: Storage, resume: str):
    check_run(RunConfig("mine", resume), storage, LOCKED)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_run_with_a_checkpoint_may_go_on(storage: Storage, resume: str):
    begun(storage, checkpoint=True)
    check_run(RunConfig("mine", resume), storage, LOCKED)


def test_auto_allows_a_run_without_a_checkpoint(storage: Storage):
    begun(storage, checkpoint=False)
    check_run(RunConfig("mine", "auto"), storage, LOCKED)


def test_never_refuses_a_name_that_is_taken(storage: Storage, tmp_path: Path):
    begun(storage, checkpoint=False)
    message = refusal("never", storage, LOCKED)
    assert message.startswith(f"run.resume=never: {tmp_path}/mine exists already")


@pytest.mark.parametrize("exists", [False, True])
def test_must_refuses_a_run_without_a_checkpoint(storage: Storage, exists: bool):
    if exists:
        begun(storage, checkpoint=False)
    assert "has no checkpoint to resume from" in refusal("must", storage, LOCKED)


@pytest.mark.parametrize("resume", ["auto", "must"])
@pytest.mark.parametrize(
    ("locked", "message"),
    [
        (LOCKED | {"model": {"width": 64}}, "model.width=64: run 'mine' was started with 32;"),
        (
            LOCKED | {"data": {"name": "digits", "path": "/x"}},
            "data.path=/x: run 'mine' was started with None;",
        ),
        ({"data": LOCKED["data"]}, "model.width=None: run 'mine' was started with 32;"),
    ],
)
def test_changed_key_is_refused_by_name(
    storage: Storage, resume: str, locked: dict[str, object], message: str
):
    begun(storage, checkpoint=True)
    assert refusal(resume, storage, locked).startswith(message)


def test_unnamed_run_is_never_compared(storage: Storage):
    begun(storage, checkpoint=True)
    check_run(RunConfig(None, "auto"), storage, {})


def test_record_of_the_first_start_is_kept(storage: Storage, tmp_path: Path):
    begun(storage, checkpoint=False)
    record_run(storage.child("mine"), {"model": {"width": 64}})
    assert json.loads((tmp_path / "mine" / "run.json").read_text()) == LOCKED
