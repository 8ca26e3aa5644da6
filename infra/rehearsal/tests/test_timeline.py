from rehearsal.sandbox import other_mounts
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


def test_mounts_of_the_machine_are_seen_once():
    points = ["/", "/proc", "/dev/shm", "/srv", "/srv/x", "/run/netns", "/data"]
    info = "\n".join(f"1 2 0:1 / {point} rw - x x rw" for point in points)
    assert other_mounts(info) == ["/data", "/srv"]
