"""The staleness bound holds for any order in which workers finish, and nobody waits for ever."""

import itertools

import pytest
from core_parameter_server.consistency import Clocks, slices
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Clocks, list[int]]:
    """Clocks, and random numbers that decide who finishes next."""
    bound = draw(st.none() | st.integers(0, 4))
    clocks = Clocks(draw(st.integers(1, 6)), draw(st.integers(1, 12)), bound)
    return clocks, draw(st.lists(st.integers(0, 1000), min_size=80, max_size=80))


@settings(deadline=None)  # What is slow on a busy machine is not wrong.
@given(schedules())
def test_no_schedule_breaks_the_bound_or_blocks(schedule: tuple[Clocks, list[int]]):
    clocks, choices = schedule
    idle = set(range(len(clocks.clocks)))
    running: dict[int, list[int]] = {}
    finished = 0
    while not clocks.done:
        for worker in clocks.may_start(idle):
            idle.remove(worker)
            running[worker] = list(clocks.clocks)  # What the weights that it reads hold.
        assert running, "everybody waits"
        worker = sorted(running)[choices[finished % len(choices)] % len(running)]
        read = running.pop(worker)
        if clocks.max_staleness is not None:
            # It saw all of everybody's gradients but the last `max_staleness` before its clock.
            assert min(read) >= read[worker] - clocks.max_staleness
        clocks.tick(worker)
        idle.add(worker)
        finished += 1
    assert finished == len(clocks.clocks) * clocks.end


def test_worker_that_is_too_far_ahead_waits_for_the_slowest():
    clocks = Clocks(3, end=10, max_staleness=1)
    for _ in range(2):
        assert 0 in clocks.may_start({0})
        clocks.tick(0)
    assert clocks.staleness(0) == 2
    assert clocks.may_start({0, 1}) == [1]
    clocks.tick(1)
    assert clocks.may_start({0}) == []
    clocks.tick(2)
    assert clocks.may_start({0}) == [0]


def test_without_a_bound_nobody_waits():
    clocks = Clocks(2, end=50, max_staleness=None)
    for _ in range(50):
        assert clocks.may_start({0}) == [0]
        clocks.tick(0)
    assert clocks.may_start({0, 1}) == [1]


@pytest.mark.parametrize(("size", "num_shards"), [(10, 3), (7, 7), (1, 1), (25_000_000, 8)])
def test_slices_are_contiguous_and_nearly_equal(size: int, num_shards: int):
    bounds = slices(size, num_shards)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    lengths = [stop - start for start, stop in bounds]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1
