"""Metrics of a training run: always as JSON lines, on request also in TensorBoard or MLflow.

`Tracker` is a Ray Train callback. Ray runs it in the controller process, on the driver's node, and
hands it what every worker reported. The driver starts it, follows it, and finishes it. A tracker
that breaks says so once and never breaks the run.

The training loop reports *events*: dicts whose key `event` is `start`, `step`, `epoch`, ...; the
numbers in them are the metrics. What a worker puts under `worker` is kept for every rank.

Source: https://docs.ray.io/en/releases-2.60.0/train/user-guides/monitoring-logging.html
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray.train import Checkpoint, UserCallback

from ray_shared.groups import TrackingConfig
from ray_shared.report import flat

logger = logging.getLogger(__name__)
Event = dict[str, Any]
FOLLOW_INTERVAL_S = 0.1


class Backend(Protocol):
    """Where events go. Pickled to the controller, so it holds names and no open files."""

    def start(self, params: dict[str, Any]) -> None:
        """Called once on the driver, with the flat configuration."""

    def log(self, event: Event) -> None:
        """Called for every event, in the controller and, for the last ones, on the driver."""

    def finish(self, status: str) -> None:
        """Called once on the driver; `status` is `ok` or `failed`."""


class Tracker(UserCallback):  # type: ignore[misc] # Ray's decorator hides the class's type
    """Writes the events of one run to `metrics.jsonl` and to the configured backend."""

    def __init__(self, config: TrackingConfig, output_dir: Path, project: str, run_name: str):
        self._max_failures = self._failures = 0
        self.events_path = output_dir / "metrics.jsonl"
        self._backends: list[Backend] = [JsonLines(self.events_path)]
        if config.backend == "tensorboard":
            self._backends.append(TensorBoard(output_dir / "tensorboard"))
        elif config.backend == "mlflow":
            uri = config.uri or f"sqlite:///{Path('mlflow.db').absolute()}"
            self._backends.append(MLflow(uri, project, run_name))

    def start(self, params: dict[str, Any]) -> None:
        """Opens the backends and records the configuration. Runs on the driver.

        Args:
            params: The configuration; `failure.max_failures`, if it has it, says how often Ray
                Train will start the workers again.
        """
        self._max_failures = params.get("failure", {}).get("max_failures", 0)
        self._each(lambda backend: backend.start(flat(params)))

    def after_report(
        self, run_context: Any, metrics: list[Event], checkpoint: Checkpoint | None
    ) -> None:
        """Ray's hook: every rank has reported."""
        event = dict(metrics[0])
        if event.pop("worker", None) is not None:
            event["workers"] = [m.get("worker") for m in metrics]
        if checkpoint is not None:
            event["checkpoint"] = checkpoint.path
        self.log(event)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray's hook: one worker or more failed."""
        errors = {rank: in_a_line(error) for rank, error in worker_exceptions.items()}
        event: Event = {"event": "failure", "errors": errors}
        if any(map(_preempted, worker_exceptions.values())):
            self.log(event | {"preempted": True})  # Counted apart by Ray Train, without a limit.
            return
        self._failures += 1
        if self._failures <= self._max_failures or self._max_failures < 0:
            event |= {"retry": self._failures, "max_failures": self._max_failures}
        self.log(event)

    def log(self, event: Event) -> None:
        """Records one event."""
        stamped = {"time": round(time.time(), 3), **event}
        self._each(lambda backend: backend.log(stamped))

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Records the end of the run. Runs on the driver, also when the run failed."""
        self.log({"event": "end", "status": status, **metrics})
        self._each(lambda backend: backend.finish(status))

    def events(self) -> list[Event]:
        """Everything recorded so far."""
        return read_events(self.events_path)

    @contextmanager
    def follow(self, show: Callable[[Event], None]) -> Iterator[None]:
        """Calls `show` on the driver with every event, as it comes, for the length of a block."""
        stop = threading.Event()

        def run() -> None:
            seen = 0
            while True:
                last_look = stop.wait(FOLLOW_INTERVAL_S)
                events, seen = read_new_events(self.events_path, seen)
                for event in events:
                    show(event)
                if last_look:
                    return

        thread = threading.Thread(target=run, name="follow-events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _each(self, action: Callable[[Backend], None]) -> None:
        for backend in list(self._backends):
            try:
                action(backend)
            except Exception as error:  # noqa: BLE001 - whatever breaks there, the run goes on
                self._backends.remove(backend)
                logger.warning("tracking with %s stopped: %s", type(backend).__name__, error)


class JsonLines:
    """One JSON object a line."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, params: dict[str, Any]) -> None:
        self.path.write_text("")  # A run directory that is used again starts over.
        self.log({"time": round(time.time(), 3), "event": "params", **params})

    def log(self, event: Event) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(event, default=str) + "\n")

    def finish(self, status: str) -> None:
        pass


class TensorBoard:
    """Scalars by optimizer step; `tensorboard --logdir DIR` shows them."""

    def __init__(self, directory: Path):
        self.directory = directory

    def start(self, params: dict[str, Any]) -> None:
        with self._writer() as writer:
            writer.add_text("params", json.dumps(params, indent=2, default=str))

    def log(self, event: Event) -> None:
        with self._writer() as writer:
            for name, value in _numbers(event).items():
                writer.add_scalar(f"{event['event']}/{name}", value, event.get("step", 0))
            if "checkpoint" in event:
                writer.add_text("checkpoint", event["checkpoint"], event.get("step", 0))

    def finish(self, status: str) -> None:
        with self._writer() as writer:
            writer.add_text("status", status)

    def _writer(self) -> Any:
        from tensorboardX import SummaryWriter

        # A file for each call: nothing stays open in a process that may be killed.
        suffix = f".{time.time_ns()}"
        return SummaryWriter(str(self.directory), filename_suffix=suffix)


class MLflow:
    """A run in MLflow's tracking store, by default an SQLite file."""

    def __init__(self, uri: str, project: str, run_name: str):
        self.uri = uri
        self.project = project
        self.run_name = run_name
        self.run_id = ""

    def start(self, params: dict[str, Any]) -> None:
        client = self._client()
        experiment = client.get_experiment_by_name(self.project)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(self.project)
        )
        self.run_id = client.create_run(experiment_id, run_name=self.run_name).info.run_id
        for name, value in params.items():
            client.log_param(self.run_id, name, value)

    def log(self, event: Event) -> None:
        client = self._client()
        for name, value in _numbers(event).items():
            key = f"{event['event']}/{name}"
            client.log_metric(self.run_id, key, value, step=int(event.get("step", 0)))
        if "checkpoint" in event:
            client.set_tag(self.run_id, "checkpoint", event["checkpoint"])

    def finish(self, status: str) -> None:
        self._client().set_terminated(self.run_id, "FINISHED" if status == "ok" else "FAILED")

    def _client(self) -> Any:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


def in_a_line(error: Exception) -> str:
    """Type and last line of an exception, whose message may be a whole traceback."""
    line = (str(error).strip() or "no message").splitlines()[-1]
    name = type(error).__name__
    return line if line.startswith(f"{name}: ") else f"{name}: {line}"


def _preempted(error: Exception) -> bool:
    """Whether a worker died because its node was taken away; Ray Train asks the same."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def read_events(path: Path) -> list[Event]:
    """The events in a `metrics.jsonl`; none if there is no such file yet."""
    return read_new_events(path, 0)[0]


def read_new_events(path: Path, start: int) -> tuple[list[Event], int]:
    """The events from byte `start` on, and the byte after the last of them.

    A last line that is still being written waits for the next time; one that is torn, because its
    writer was killed, is left out.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            logger.warning("%s: a torn line is left out", path)
    return events, start + sum(map(len, lines))


def _numbers(event: Event) -> dict[str, float]:
    kinds = (int, float)
    skip = ("time", "step")
    return {k: float(v) for k, v in event.items() if isinstance(v, kinds) and k not in skip}
