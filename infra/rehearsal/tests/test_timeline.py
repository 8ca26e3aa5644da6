from rehearsal.timeline import Event, Timeline, draw, metrics, phases, steps_redone


def worker(time_s: float, kind: str, name: str) -> Event:
    return Event(time_s, kind, name, data={"role": "worker"})


def step(number: int, kind: str = "step") -> Event:
    return Event(0, "step", kind, data={"step": number, "event": kind})


STORY = [
    Event(0, "pod", "head", data={"role": "head"}),
    Event(1, "ready", "head", data={"role": "head"}),
    Event(10, "job", "j", "submitted"),
    worker(12, "pod", "a"),
    worker(12, "pod", "b"),
    worker(20, "ready", "a"),
    worker(25, "ready", "b"),
    worker(40, "leaving", "a"),
    worker(41, "removed", "a"),
    worker(42, "pod", "c"),
    worker(50, "ready", "c"),
    Event(60, "job", "j", "SUCCEEDED", {"ended": True}),
    worker(70, "leaving", "b"),
    worker(72, "removed", "b"),
    worker(75, "removed", "c"),
]


def test_metrics_tell_how_far_and_how_fast_it_scaled():
    assert metrics(STORY) == {
        "scaled_up_to": 2,
        "scaled_down_to": 0,
        "time_to_scale_up_s": 15,
        "time_to_scale_down_s": 15,
        "steps_redone": None,
    }


def test_worker_that_stays_counts():
    found = metrics(STORY[:-1])
    assert (found["scaled_down_to"], found["time_to_scale_down_s"]) == (1, 12)
    assert metrics(STORY[:7])["time_to_scale_down_s"] is None


def test_steps_between_checkpoint_and_loss_are_redone():
    first = [step(0, "start"), *map(step, range(1, 36))]
    again = [step(30, "start"), *map(step, range(31, 41))]
    assert steps_redone(first) == 0
    assert steps_redone([*first, *again]) == 5
    assert steps_redone([*first, *again, step(20, "start")]) == 25


def test_pods_life_has_phases():
    assert phases(STORY, "a", 80) == [(12, 20, "pending"), (20, 40, "ready"), (40, 41, "leaving")]
    assert phases(STORY, "head", 80) == [(0, 1, "pending"), (1, 80, "ready")]


def test_timeline_is_saved_as_numbers_and_picture(tmp_path):
    timeline = Timeline()
    timeline.add("pod", "a", role="worker")
    timeline.patched("mine", [{"op": "replace", "path": "/spec/x/0/replicas", "value": 2}])
    timeline.write(tmp_path / "t.json")
    assert '"replicas: 2"' in (tmp_path / "t.json").read_text()
    draw([*STORY, step(1)], tmp_path / "t.png", "story")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_workers_that_were_there_before_the_job_are_no_scaling_up():
    early = [worker(5, "pod", "a"), worker(6, "ready", "a"), Event(10, "job", "j", "submitted")]
    assert metrics(early)["time_to_scale_up_s"] is None
    more = [*early, worker(12, "pod", "b"), worker(17, "ready", "b")]
    assert metrics(more)["time_to_scale_up_s"] == 7


def test_worker_that_is_not_ready_any_more_does_not_count():
    story = [worker(1, "ready", "a"), worker(2, "unready", "a"), worker(3, "ready", "b")]
    assert metrics(story)["scaled_up_to"] == 1


def test_workers_of_an_updated_services_clusters_are_not_added_up():
    story = [worker(1, "ready", "a"), worker(2, "ready", "b")]
    second = [Event(e.time_s, e.kind, e.subject, data=e.data | {"cluster": "2"}) for e in story]
    assert metrics([*story, *second])["scaled_up_to"] == 2


def test_every_tenth_step_is_printed(caplog):
    caplog.set_level("INFO")
    timeline = Timeline()
    for number in range(25):
        timeline.add("step", "step", f"step {number}", step=number, event="step")
    timeline.add("step", "start", "start 7", step=7, event="start")
    printed = [record.getMessage().rpartition("  ")[2] for record in caplog.records]
    assert printed == ["step 0", "step 10", "step 20", "start 7"]
