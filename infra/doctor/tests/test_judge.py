"""Facts in, checks out: each fact that is wrong changes its own check and no other."""

from collections.abc import Callable
from typing import Any

import pytest
from ray_doctor.check import Check, listed, size
from ray_doctor.facts import Collective, Facts
from ray_doctor.judge import judge

from .conftest import by_name, configured, wrong
from .examples import GB, healthy, info, node


def judged(facts: Facts, *overrides: str) -> dict[str, Check]:
    return by_name(judge(facts, configured(*overrides).doctor))


def test_healthy_cluster_is_ok_everywhere():
    checks = judged(healthy(), "doctor.expect_nodes=2")
    assert {check.status for check in checks.values()} == {"ok"}
    assert all(check.found and not check.hint for check in checks.values())
    assert checks["objects"].found == "10 MB came in at most 20 ms"
    assert checks["ports"].found == "reached by every node: 8 connection(s) tried"


def second(**changes: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        facts.nodes[1] = node("b", **changes)

    return change


def second_reports(**changes: Any) -> Callable[[Facts], None]:
    return second(info=info(**changes))


def of_all(**changes: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        for name, value in changes.items():
            setattr(facts, name, value)

    return change


def packages(**changes: str | None) -> dict[str, str]:
    changed = info()["packages"] | {name.replace("_", "-"): v for name, v in changes.items()}
    return {name: version for name, version in changed.items() if version is not None}


def driver(facts: Facts) -> None:
    facts.driver = facts.driver | {"packages": {"ray": "2.59.0"}}


def full(share: float, error: str | None = None) -> list[dict[str, Any]]:
    first = {"path": "/first", "error": None, "full": 0.1, "free": GB}
    return [first, {"path": "/disk", "error": error, "full": share, "free": GB}]


def serve(**changes: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        for name, value in changes.items():
            setattr(facts.serve, name, value)

    return change


CASES = [
    (second(alive=False), "nodes", "failed", "1 alive: a (head); expected 2"),
    (
        second_reports(python="3.11.8"),
        "versions",
        "failed",
        "python 3.11.9 (a, the driver) / 3.11.8 (b)",
    ),
    (second_reports(packages=packages(torch="2.12.0")), "versions", "failed", "2.12.0 (b)"),
    (second_reports(packages=packages(torch=None)), "versions", "failed", "not installed (b)"),
    (second_reports(packages=packages(ray_ref_x="1")), "versions", "failed", "ray-ref-x"),
    (second_reports(packages=packages(six="1.16.0")), "versions", "warning", "six 1.17.0 (a"),
    (driver, "versions", "failed", "ray 2.60.0 (a, b) / 2.59.0 (the driver)"),
    (second_reports(allowed_cpus=0.5), "CPUs", "warning", "b: Ray was told 4, allowed are 0.5"),
    (second(resources={"CPU": 4.0, "GPU": 1.0}), "GPUs", "failed", "b: Ray was told 1, and none"),
    (
        second(resources={"GPU": 2.0}, info=info(gpus=1)),
        "GPUs",
        "failed",
        "b: Ray was told 2, there are 1",
    ),
    (second_reports(gpus=8), "GPUs", "warning", "b: there are 8, Ray was told 0"),
    (second_reports(memory_used=15.5 * GB), "memory", "failed", "b: 97% of 16 GB used"),
    (second_reports(memory_used=14 * GB), "memory", "warning", "b: 88% of 16 GB used"),
    (second(resources={"memory": 17.0 * GB}), "memory", "failed", "b: Ray was told 17 GB"),
    (
        second_reports(plasma_directory="/tmp/ray"),
        "/dev/shm",
        "failed",
        "b: the object store of 4 GB lies in /tmp/ray, /dev/shm has 8 GB",
    ),
    (second_reports(object_store=9 * GB), "/dev/shm", "failed", "b: 9 GB wanted"),
    (second_reports(spilling=full(0.96)), "spilling directory", "failed", "b: /disk is 96% full"),
    (second_reports(spilling=full(0.9)), "spilling directory", "warning", "b: /disk is 90% full"),
    (second_reports(spilling=full(0, "Read-only")), "spilling directory", "failed", "Read-only"),
    (second_reports(session=full(0.96)), "session directory", "failed", "b: /disk is 96% full"),
    (
        second(unreached={"GCS of a:6379": "timed out"}),
        "ports",
        "failed",
        "b to GCS of a:6379: timed out",
    ),
    (of_all(transfers={"a to b": "no answer"}), "objects", "failed", "a to b: no answer"),
    (
        of_all(without_token={"GCS": "refused", "dashboard": "answered"}),
        "authentication",
        "failed",
        "dashboard: answered",
    ),
    (second(clock_offset_s=-1.2, clock_error_s=0.1), "clocks", "failed", "b: -1.2 s"),
    (second(write_error="Permission denied"), "storage", "failed", "not writable: b: Permission"),
    (
        second(read_errors={"a": "No such file"}),
        "storage",
        "failed",
        "not shared: b does not read what a wrote: No such file",
    ),
    (of_all(gloo=Collective(errors={"b": "hangs"})), "gloo", "failed", "b: hangs"),
    (of_all(nccl=Collective(errors={"b": "hangs"})), "NCCL", "failed", "b: hangs"),
    (of_all(gloo=Collective(wrong={"b": 4})), "gloo", "failed", "b: sum 4"),
    (
        serve(applications={"app": ("DEPLOY_FAILED", "no such model")}),
        "Serve",
        "failed",
        "app is DEPLOY_FAILED (no such model)",
    ),
    (serve(proxies={"http://b:8000": 503}), "Serve", "failed", "http://b:8000: 503"),
]


@pytest.mark.parametrize(("change", "name", "status", "found"), CASES)
def test_broken_fact_is_found_by_its_own_check(
    change: Callable[[Facts], None], name: str, status: str, found: str
):
    facts = healthy()
    change(facts)
    checks = judged(facts, "doctor.expect_nodes=2")
    assert wrong(list(checks.values())) == {name: status}
    assert found in checks[name].found
    assert checks[name].hint.endswith(".")


def test_node_that_died_is_a_warning_and_one_that_left_is_not():
    facts = healthy()
    facts.nodes.append(node("c", alive=False, info=None, death="health check failed"))
    facts.nodes.append(node("d", alive=False, info=None))
    checks = judged(facts)
    assert wrong(list(checks.values())) == {"lost nodes": "warning"}
    assert checks["lost nodes"].found == "c: health check failed"


def test_unresponsive_node_fails_one_check_and_is_left_out_of_the_others():
    facts = healthy()
    facts.nodes[1] = node("b", info=None, error="no answer within 60 s")
    checks = judged(facts)
    assert wrong(list(checks.values())) == {"tasks": "failed"}
    assert checks["tasks"].found == "b: no answer within 60 s"
    assert "Ray counts on 4;" in checks["CPUs"].found


def test_without_any_answer_nothing_is_called_right():
    facts = Facts(nodes=[node("a", info=None, error="hangs", clock_offset_s=None, task_s=None)])
    facts.gloo.skipped = facts.nccl.skipped = facts.serve.skipped = "needs two nodes"
    checks = judged(facts)
    right = {name for name, check in checks.items() if check.status == "ok"}
    assert right == {"nodes", "lost nodes"}
    assert checks["tasks"].status == "failed"


def test_more_nodes_than_expected_are_a_warning():
    assert judged(healthy(), "doctor.expect_nodes=1")["nodes"].status == "warning"
    assert judged(healthy())["nodes"].status == "ok"


@pytest.mark.parametrize(
    ("change", "name", "why"),
    [
        (of_all(gloo=Collective(skipped="PyTorch is not installed on b")), "gloo", "PyTorch"),
        (
            of_all(without_token={"GCS": "it speaks TLS", "dashboard": "refused"}),
            "authentication",
            "TLS",
        ),
        (
            of_all(without_token={"GCS": "deadline exceeded", "dashboard": "refused"}),
            "authentication",
            "GCS: deadline exceeded; dashboard: refused",
        ),
        (of_all(without_token={}), "authentication", "nobody was asked"),
        (serve(applications={}, proxies={}), "Serve", "neither an application nor a proxy"),
        (serve(skipped="not running"), "Serve", "not running"),
        (
            second_reports(plasma_directory=None, object_store=0),
            "/dev/shm",
            "where the object store lies is not known on b",
        ),
        (second_reports(spilling="spills by smart_open"), "spilling directory", "b: spills by"),
        (second_reports(session="no raylet"), "session directory", "b: no raylet"),
        (
            second(resources={"GPU": 1.0}, info=info(gpus=None)),
            "GPUs",
            "b: Ray was told 1; neither",
        ),
    ],
)
def test_what_was_not_looked_at_says_why(change: Callable[[Facts], None], name: str, why: str):
    facts = healthy()
    change(facts)
    check = judged(facts)[name]
    assert check.status == "not checked"
    assert why in check.found


def test_serve_without_proxies_says_that_none_was_asked():
    facts = healthy()
    facts.serve.proxies = {}
    check = judged(facts)["Serve"]
    assert (check.status, check.found) == ("ok", "1 application(s) RUNNING, no proxy asked")


def test_slow_way_to_a_node_is_not_its_clock():
    facts = healthy()
    facts.nodes[1] = node("b", clock_offset_s=1.5, clock_error_s=0.6)
    assert judged(facts)["clocks"].status == "ok"


def test_important_packages_are_configured():
    facts = healthy()
    second_reports(packages=packages(six="1.16.0"))(facts)
    assert judged(facts, "doctor.packages=[six]")["versions"].status == "failed"


def test_long_lists_and_sizes_are_short():
    assert listed(list("abcdefg"), 3) == "a; b; c; and 4 more"
    assert [size(1), size(1.5e9), size(2e12), size(1e15)] == ["1 B", "1.5 GB", "2 TB", "1,000 TB"]
