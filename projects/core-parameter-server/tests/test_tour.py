"""The tour of Ray Core: each station shows what it says."""

from pathlib import Path
from typing import Any

import pytest
from core_parameter_server.config import Config, TourConfig
from core_parameter_server.tour import most_at_once, run_tour
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.config import compose
from ray_shared.report import Report

SMALL = TourConfig(num_operations=1500, array_mb=1, stream_budget_mb=10)
Tour = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tour(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """What all stations of one small tour measured."""
    report = Report("core-parameter-server", tmp_path_factory.mktemp("out"), {})
    local = compose(Config, "core_parameter_server.conf", ["cluster.num_cpus=2"]).cluster
    with cluster.connect(local, Demand(1, 1), report, "core_parameter_server"):
        run_tour(SMALL, report, seed=7)
    stations: Tour = report.metrics["tour"]
    return stations


@pytest.mark.parametrize(
    ("spans", "most"),
    [
        ([(0, 1)], 1),
        ([(0, 1), (1, 2)], 1),
        ([(0, 2), (1, 3), (2, 4)], 2),
        ([(0, 9), (1, 2), (1, 2), (3, 4)], 3),
    ],
)
def test_overlapping_spans_are_counted(spans: list[tuple[float, float]], most: int):
    assert most_at_once(spans) == most


def test_tasks_compute_what_the_loop_does(tour: Tour):
    assert tour["tasks"]["same_result"]
    assert tour["tasks"]["num_cpus"] == 2


def test_actor_keeps_order_and_only_the_async_one_waits_for_many(tour: Tour):
    assert tour["actors"]["in_order"]
    assert tour["actors"]["naps_at_once"] == 1
    assert tour["actors"]["async_at_once"] > 1


def test_tasks_in_several_processes_read_one_array_that_they_cannot_write(tour: Tour):
    station = tour["shared_array"]
    assert station["same_result"]
    assert station["num_processes"] == 2
    assert station["writing"] == "assignment destination is read-only"
    if Path("/proc/self/maps").exists():
        assert station["num_places"] == 1
        assert "plasma" in station["file"]
    else:  # One address in each process.
        assert station["num_places"] == station["num_processes"]


def test_array_is_serialized_for_each_task_or_once_by_reference(tour: Tour):
    assert tour["references"]["by_value_copies"] == 4
    assert tour["references"]["by_reference_copies"] == 1


def test_get_after_each_call_runs_one_task_at_a_time(tour: Tour):
    assert tour["references"]["get_in_loop_at_once"] == 1
    assert tour["references"]["get_list_at_once"] == 2


def test_wait_does_not_let_the_slow_task_hold_up_the_others(tour: Tour):
    assert tour["wait"]["as_they_come_slow_handled_as"] > 1
    # While it waits for the slow one, it could have handled others.
    assert tour["wait"]["as_they_come_first_s"] < tour["wait"]["in_order_first_s"]


def test_batches_and_single_operations_give_the_same_sum(tour: Tour):
    station = tour["tiny_operations"]
    expected = sum(number**2 % 7 for number in range(SMALL.num_operations))
    # So few that none is left to extrapolate.
    assert station["num_one_by_one"] == SMALL.num_operations
    assert station["one_by_one_sum"] == station["batched_sum"] == expected
    assert station["num_batches"] == 20
    assert station["same_result"]


def test_stream_of_ten_times_its_budget_never_fills_it(tour: Tour):
    station = tour["streaming"]
    assert station["bounded_mb"] == station["unbounded_mb"] == 10 * SMALL.stream_budget_mb
    # Four wait, one is being handled.
    assert station["bounded_blocks_alive"] <= 5
    assert 0 < station["bounded_peak_store_mb"] <= SMALL.stream_budget_mb
    assert station["unbounded_blocks_alive"] > 5


def test_fractions_of_resources_bound_how_many_run_at_once(tour: Tour):
    assert tour["resources"] == {"quarter_cpus_at_once": 4, "halves_at_once": 2}


def test_killed_task_and_listed_error_are_attempted_twice_and_other_errors_once(tour: Tour):
    assert tour["retries"] == {
        "killed_num_attempts": 2,
        "listed_num_attempts": 2,
        "other_num_attempts": 1,
    }


def test_report_has_every_station(tour: Tour):
    stations = "tasks actors shared_array references wait tiny_operations streaming"
    assert [*tour] == [*stations.split(), "resources", "retries"]
