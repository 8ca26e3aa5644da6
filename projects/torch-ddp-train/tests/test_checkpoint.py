"""Checkpoints hold the whole state, and a damaged one is found before it is used."""

import os
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint
from torch import nn
from torch_ddp_train import checkpoint as ckpt

CPU = torch.device("cpu")


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.chdir(tmp_path)
    model, optimizer = network()
    position = ckpt.Position(epoch=2, offset=64, step=11, world_size=1)
    return ckpt.save(model, optimizer, position, rank=0, device=CPU)


def test_restore_brings_back_weights_optimizer_position_and_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model, optimizer = network()
    torch.manual_seed(7)
    position = ckpt.Position(epoch=1, offset=32, step=5, best_metric=0.9)
    checkpoint = ckpt.save(model, optimizer, position, rank=0, device=CPU)
    drawn = torch.rand(4)

    other, other_optimizer = network()
    found = ckpt.restore(checkpoint, other, other_optimizer, rank=0, device=CPU)
    assert found == position
    assert torch.equal(torch.rand(4), drawn)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert torch.equal(
        optimizer.state_dict()["state"][0]["exp_avg"],
        other_optimizer.state_dict()["state"][0]["exp_avg"],
    )


def test_rank_without_a_part_in_the_checkpoint_keeps_its_own_generator(saved: Checkpoint):
    model, optimizer = network()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ckpt.restore(saved, model, optimizer, rank=1, device=CPU)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", [ckpt.WEIGHTS, ckpt.OPTIMIZER, ckpt.POSITION, "random-0.pt"])
def test_truncated_file_is_damage(saved: Checkpoint, name: str):
    assert ckpt.damage(saved) is None
    path = Path(saved.path) / name
    os.truncate(path, path.stat().st_size // 2)
    assert ckpt.damage(saved) == f"{name} is damaged"


@pytest.mark.parametrize("name", [ckpt.WEIGHTS, "manifest-0.json"])
def test_missing_file_is_damage(saved: Checkpoint, name: str):
    (Path(saved.path) / name).unlink()
    assert ckpt.damage(saved) == f"{name} is missing"


def test_damaged_checkpoints_before_a_whole_one_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model, optimizer = network()
    old, new = (
        ckpt.save(model, optimizer, ckpt.Position(step=step, world_size=1), rank=0, device=CPU)
        for step in (1, 2)
    )
    os.truncate(Path(new.path) / ckpt.WEIGHTS, 10)
    assert ckpt.damaged_first([new, old]) == [f"{Path(new.path).name}: {ckpt.WEIGHTS} is damaged"]
    assert ckpt.damaged_first([old, new]) == []


def test_missing_part_of_a_rank_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model, optimizer = network()
    checkpoint = ckpt.save(model, optimizer, ckpt.Position(world_size=2), rank=0, device=CPU)
    assert ckpt.damage(checkpoint) == "manifest-1.json is missing"
