"""Ray Core's errors on docs/debugging.md: made to happen, compared with the page, mended.

Each script makes its error, which it catches by type, prints the traceback and mends it.
Run by `nox -s faults -- docs`.
"""

import re

import pytest
import torch

from .conftest import RunScript, Shown

pytestmark = pytest.mark.fault


def test_actor_that_dies(run: RunScript, shown: Shown):
    text = run("actor_died")
    shown(text)
    # The State API keeps the reason.
    assert re.search(r"^Counter DEAD \{.*worker process has died", text, re.MULTILINE), text
    assert "value after the kill: 2\n" in text


def test_actor_that_never_starts(run: RunScript, shown: Shown):
    text = run("actor_init")
    shown(text)
    assert re.search(r"prediction: \d{3}", text), text


def test_task_whose_process_dies(run: RunScript, shown: Shown):
    text = run("worker_crashed")
    shown(text)
    assert "done at the second try\n" in text


def test_object_store_full(run: RunScript, shown: Shown):
    # Either mend is enough: fewer objects at a time, with a full disk; or room on the disk.
    for text in (run("object_store_full", "full"), run("object_store_full", "spilled")):
        shown(text)
        assert "sum: 190\n" in text


def test_out_of_memory(run: RunScript, shown: Shown):
    text = run("out_of_memory")
    shown(text)
    assert "total: 1770\n" in text


def test_too_many_small_tasks(run: RunScript, shown: Shown):
    text = run("small_tasks")
    shown(text)
    # The same result from 2,000 tasks and from 10. Times are no matter of a test.
    total = sum(i * i for i in range(2000))
    assert re.findall(r"^(?:broken|mended): sum (\d+)", text, re.MULTILINE) == [str(total)] * 2
    counts = dict(re.findall(r"^\d +(square\w*) +FINISHED: (\d+)", text, re.MULTILINE))
    assert counts == {"square": "2000", "square_batch": "10"}


def test_closure_that_cannot_be_serialized(run: RunScript, shown: Shown):
    text = run("serialization")
    shown(text)
    assert "total: 20\n" in text


def test_module_that_workers_lack(run: RunScript, shown: Shown):
    text = run("module_not_found")
    shown(text)
    assert "doubled: 8\n" in text


def test_workers_pending_for_ever(run: RunScript, shown: Shown):
    text = run("pending_forever")
    shown(text)
    assert "['PENDING']\n" in text
    assert "ready: 2 workers\n" in text


def test_actors_hold_every_cpu(run: RunScript, shown: Shown):
    text = run("actors_hold_cpus")
    shown(text)
    assert "tasks done after 10 s: 0\n" in text
    assert "with smaller actors: done\n" in text


def test_gpu_that_no_node_has(run: RunScript, shown: Shown):
    text = run("gpu_pending")
    shown(text)
    assert "GPUs of the task: [0]\n" in text


def test_gpu_that_torch_cannot_see(run: RunScript, request: pytest.FixtureRequest):
    text = run("gpu_torch")
    if torch.version.cuda is None:
        shown: Shown = request.getfixturevalue("shown")
        shown(text)
        assert "device: cpu\n" in text
    else:  # Where there is a driver and a GPU, nothing is wrong.
        assert "Found no NVIDIA driver on your system" in text or "device: cuda:0\n" in text
