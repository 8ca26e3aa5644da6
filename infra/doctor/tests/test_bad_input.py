"""A user's mistake: exit code 2, one sentence, no Ray."""

from pathlib import Path

import pytest
from ray_shared.errors import UserError

from .conftest import StartJob, configured


def sentence(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        configured(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["doctor.expect_nodes=0"], "doctor.expect_nodes=0: must be null or >= 1"),
        (["doctor.node_timeout_s=0"], "doctor.node_timeout_s=0.0: must be > 0 seconds"),
        (["doctor.port_timeout_s=-1"], "doctor.port_timeout_s=-1.0: must be > 0 seconds"),
        (["doctor.max_clock_skew_s=0"], "doctor.max_clock_skew_s=0.0: must be > 0 seconds"),
        (["doctor.collective_timeout_s=0"], "doctor.collective_timeout_s=0.0: must be > 0"),
        (["doctor.reach=[redis]"], "doctor.reach=redis: must be a list of host:port"),
        (["doctor.reach=[':6379']"], "doctor.reach=:6379: must be a list of host:port"),
        (["doctor.project=' '"], "doctor.project=' ': must be a name or a path"),
        (
            ["doctor.project=x", "doctor.checklist=false"],
            "doctor.project=x: only with doctor.checklist=true",
        ),
        (["doctor.nodes=2"], "unknown key 'doctor.nodes'"),
        (["cluster=existing"], "cluster.address=null: must be host:port of a Ray cluster"),
        (
            ["cluster=existing", "cluster.address=a:1", "cluster.install=true"],
            "cluster.install=true: the doctor looks at what is there, as it is",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_refused_by_key(overrides: list[str], expected: str):
    assert sentence(*overrides).startswith(expected)


def test_project_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        configured("doctor.project=mine").project_folders()
    assert str(caught.value) == "doctor.project=mine: must be a folder with pyproject.toml and src"
    starter = tmp_path / "projects" / "first"
    (starter / "src").mkdir(parents=True)
    (starter / "pyproject.toml").write_text("")
    # Somebody's folder of projects is none of ours.
    assert configured().project_folders() == []
    (tmp_path / "shared" / "src" / "ray_shared").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        configured("doctor.project=mine").project_folders()
    assert str(caught.value).endswith("with pyproject.toml and src, or one of first")
    assert configured().project_folders() == [starter]
    assert configured("doctor.project=first").project_folders() == [starter]
    assert configured(f"doctor.project={starter}").project_folders() == [starter]
    assert configured("doctor.checklist=false").project_folders() == []
    (tmp_path / "projects" / "second" / "src").mkdir(parents=True)
    (tmp_path / "projects" / "second" / "pyproject.toml").write_text("")
    assert [p.name for p in configured().project_folders()] == ["first", "second"]
    monkeypatch.chdir(starter)
    assert configured().project_folders() == [starter]


def test_mistake_ends_before_ray_starts(start: StartJob):
    with start("doctor.project=mine") as job:
        assert job.refusal().startswith("doctor.project=mine: must be a folder")


def test_address_where_nobody_is_ends_with_a_sentence(start: StartJob):
    env = {"RAY_AUTH_TOKEN": "0" * 64}
    with start("cluster=existing", "cluster.address=127.0.0.1:1", env=env) as job:
        assert job.wait(60) == 2
        assert "cluster.address=127.0.0.1:1: no cluster answers there" in job.output()
