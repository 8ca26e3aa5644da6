"""A job for the tests: two actors count steps, and a driver that dies goes on where it was.

python -m counting_job STEPS DIRECTORY
"""

import json
import sys
import time
from pathlib import Path

import ray

CHECKPOINT_EVERY = 20


@ray.remote(num_cpus=2, max_restarts=-1, max_task_retries=-1)
class Counter:
    """Needs a worker pod of its own."""

    def step(self, number: int) -> int:
        """Takes a moment."""
        time.sleep(0.2)
        return number


def main() -> None:
    """Counts to `STEPS`, and leaves the sum of all steps in `result.json`."""
    steps, directory = int(sys.argv[1]), Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint, events = directory / "checkpoint.json", directory / "metrics.jsonl"
    state = {"step": 0, "sum": 0}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
    ray.init(address="auto")
    counters = [Counter.remote() for _ in range(2)]
    ray.get([counter.step.remote(0) for counter in counters])
    with events.open("a") as file:

        def tell(kind: str) -> None:
            file.write(json.dumps({"event": kind, "step": state["step"]}) + "\n")
            file.flush()

        tell("start")
        while state["step"] < steps:
            number = state["step"] + 1
            answers = ray.get([counter.step.remote(number) for counter in counters])
            state = {"step": number, "sum": state["sum"] + sum(answers)}
            tell("step")
            if number % CHECKPOINT_EVERY == 0:
                part = checkpoint.with_suffix(".part")
                part.write_text(json.dumps(state))
                part.replace(checkpoint)
    (directory / "result.json").write_text(json.dumps(state))


if __name__ == "__main__":
    main()
