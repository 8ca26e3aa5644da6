"""From raw trips to an answered request: four projects that meet in files, and their manifests.

    nox -s handoff                  # everything lies in runs/handoff-TIME afterwards
    nox -s handoff -- my/directory  # or there

Each step is a command that a person could type; its log is kept. The last but one asks the served
model over HTTP and compares each answer with the batch prediction for the same raw trip.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

NUM_ROWS = 200_000
NUM_TRIALS = 8
NUM_REQUESTS = 2_000
ROWS_PER_REQUEST = 500
# An answer has four decimals; the batch prediction is a 32-bit float.
TOLERANCE_MIN = 1e-4
START_S = 120.0
STOP_S = 60.0


class StepError(Exception):
    """A step ended badly; the text says which, and shows the end of its log."""


class Story:
    """The directory of a hand-off, and what came of each step so far."""

    def __init__(self, directory: Path, programs: dict[str, Path]):
        self.directory, self.programs = directory, programs
        self.storage = directory / "storage"
        self.rows: list[tuple[str, str, str, str]] = []
        self.hyperparameters: dict[str, float] = {}
        self.live = Live(self.table(), console=Console(), auto_refresh=False)

    def table(self) -> Table:
        """What has been done."""
        table = Table("step", "project", "handed on", "s", title="handoff", title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def step(self, name: str, project: str, work: Callable[[], str]) -> None:
        """Does one step and shows it; `work` says what it hands on."""
        self.rows.append((name, project, "...", ""))
        self.live.update(self.table(), refresh=True)
        started = time.monotonic()
        told = work()
        self.rows[-1] = (name, project, told, f"{time.monotonic() - started:.0f}")
        self.live.update(self.table(), refresh=True)

    def command(self, project: str, name: str, overrides: list[str]) -> list[str]:
        """The command of a project's job, with a place of its own for its results."""
        module = project.replace("-", "_")
        out = f"hydra.run.dir={self.directory / 'results' / name}"
        return [str(self.programs[project] / "python"), "-m", module, *overrides, out]

    def run(self, project: str, name: str, *overrides: str) -> dict[str, Any]:
        """Runs a job to its end; its `result.json`.

        Raises:
            StepError: If it fails.
        """
        log = self.log(name)
        with log.open("wb") as file:
            done = subprocess.run(
                self.command(project, name, list(overrides)),
                cwd=self.directory,
                env=environment(self.programs[project]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise failure(name, log, f"ended with {done.returncode}")
        path = self.directory / "results" / name / "result.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def log(self, name: str) -> Path:
        """Where a step's output is kept."""
        return self.directory / "logs" / f"{name}.log"


def environment(programs: Path) -> dict[str, str]:
    """The variables of a job: the programs of its own environment come first."""
    return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def failure(name: str, log: Path, what: str) -> StepError:
    """What to say about a step that ended badly."""
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return StepError(f"{name} {what}; the end of {log}:\n{end}")


def prepare(story: Story) -> str:
    """Raw trips to features: checked rows in Parquet, and the fitted preprocessor."""
    storage = f"storage.path={story.storage}"
    size = [f"data.num_rows={NUM_ROWS}", "run.name=trips"]
    metrics = story.run("data-preprocessing", "prepare", storage, *size)["metrics"]
    rejected = f"{metrics['rows_quarantined']:,} in quarantine"
    return f"{metrics['rows_out']:,} rows of features, {rejected}"


def tune(story: Story) -> str:
    """Features to hyperparameters: those that the other project's training knows, too."""
    objective = ["objective=xgboost", f"objective.path={story.storage / 'trips'}", "space=trips"]
    size = [f"tune.num_trials={NUM_TRIALS}", "train.epochs=36", "run.name=study"]
    storage = f"storage.path={story.storage}"
    metrics = story.run("asha-pbt-tune", "tune", *objective, *size, storage)["metrics"]
    preset = story.directory / "results/tune/best/experiment/best.yaml"
    best = yaml.safe_load(preset.read_text())["objective"]["hyperparameters"]
    story.hyperparameters = {
        "train.lr": round(best["learning_rate"], 4),
        "train.max_depth": best["max_depth"],
    }
    pruned = f"{metrics['num_pruned']} of {metrics['num_trials']} trials pruned"
    return f"{' '.join(chosen(story))}; {pruned}"


def train(story: Story) -> str:
    """Features and hyperparameters to a model bundle."""
    storage = f"storage.path={story.storage}"
    what = ["action=train", f"dataset={story.storage / 'trips'}", "run.name=model", *chosen(story)]
    metrics = story.run("data-preprocessing", "train", storage, *what)["metrics"]
    return f"a bundle; test RMSE {metrics['rmse']:.2f} minutes"


def score(story: Story) -> str:
    """Other raw trips and the bundle to predictions, in batches."""
    storage = f"storage.path={story.storage}"
    what = ["action=score", "run.name=scores", f"score.bundle={story.storage / 'model/bundle'}"]
    trips = ["data.seed=1", "data.num_rows=20000", "data.num_files=2", "data.broken_fraction=0"]
    metrics = story.run("data-preprocessing", "score", storage, *what, *trips)["metrics"]
    return f"{metrics['rows_out']:,} predictions, RMSE {metrics['rmse']:.2f}"


def serve(story: Story) -> str:
    """The bundle to answers over HTTP; they must be the batch predictions.

    Raises:
        StepError: If the application does not start or stop, or an answer differs.
    """
    name, project = "serve", "serve-fastapi"
    overrides = ["serve.block=true", "serve.port=0", "experiment=smoke"]
    overrides += [f"+models.bundles.tuned={story.storage / 'model/bundle'}"]
    log = story.log(name)
    with log.open("wb") as file:
        server = subprocess.Popen(
            story.command(project, name, [*overrides, f"storage.path={story.storage}"]),
            cwd=story.directory,
            env=environment(story.programs[project]),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        address = address_in(log, server)
        trips, predicted = batch_predictions(story.storage)
        started = time.perf_counter()
        answered = ask(address, trips)
        seconds = time.perf_counter() - started
    except (OSError, ValueError) as error:
        raise failure(name, log, f"did not answer ({error})") from None
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            raise failure(name, log, f"did not stop in {STOP_S:g} s") from None
    worst = max(abs(a - b) for a, b in zip(answered, predicted, strict=True))
    if worst > TOLERANCE_MIN:
        raise StepError(f"{name}: an answer differs by {worst:.3g} minutes from its prediction")
    return f"{len(answered):,} answers in {seconds:.1f} s, none off by over {worst:.0e} minutes"


def address_in(log: Path, server: "subprocess.Popen[bytes]") -> str:
    """The address that the server has printed, as soon as it has.

    Raises:
        StepError: If it ends, or does not say so in time.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("serving "):
                return line.rpartition(" at ")[2].strip()
        time.sleep(0.2)
    raise failure("serve", log, "did not start")


def batch_predictions(storage: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Raw trips, as a request names them, and what batch scoring says about the same rows."""
    run = storage / "scores"
    manifest = json.loads((run / "manifest.json").read_text())
    raw = [pq.read_table(path).to_pylist() for path in sorted(run.glob("input/*"))]
    trips: list[dict[str, Any]] = []
    predicted: list[float] = []
    for file in manifest["files"]:
        for row in pq.read_table(run / manifest["attempt"] / file["path"]).to_pylist():
            trips.append(as_request(raw[row["file"]][row["row"]]))
            predicted.append(row["predicted_min"])
    step = len(trips) // NUM_REQUESTS
    return trips[::step][:NUM_REQUESTS], predicted[::step][:NUM_REQUESTS]


def as_request(row: dict[str, Any]) -> dict[str, Any]:
    """What is known of a trip before it ends, under the names of the service."""
    return {
        "pickup_at": row["tpep_pickup_datetime"].isoformat(),
        "distance_miles": row["trip_distance"],
        "pickup_zone": row["PULocationID"],
        "dropoff_zone": row["DOLocationID"],
        "passengers": row["passenger_count"],
        "vendor": row["VendorID"],
        "ratecode": None if row["RatecodeID"] is None else int(row["RatecodeID"]),
    }


def ask(address: str, trips: list[dict[str, Any]]) -> list[float]:
    """The minutes that the service answers, from its stream of events.

    Raises:
        OSError: If it does not answer, or with an error.
        ValueError: If an answer is missing.
    """
    minutes: list[float] = []
    for start in range(0, len(trips), ROWS_PER_REQUEST):
        body = json.dumps({"trips": trips[start : start + ROWS_PER_REQUEST]}).encode()
        headers = {"Content-Type": "application/json", "X-Model": "tuned"}
        request = urllib.request.Request(f"{address}/v1/trips/batch", body, headers)
        with urllib.request.urlopen(request, timeout=60) as stream:
            for line in stream.read().decode().splitlines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    minutes += [answer["minutes"] for answer in event.get("answers", [])]
    if len(minutes) != len(trips):
        raise ValueError(f"{len(minutes)} answers for {len(trips)} trips")
    return minutes


def render(story: Story) -> str:
    """The same three jobs and the service as manifests for Kubernetes, with what was chosen."""
    wanted = {
        "data-preprocessing": ["action=train", "dataset=/mnt/runs/trips", *chosen(story)],
        "asha-pbt-tune": ["objective=xgboost", "space=trips", "objective.path=/mnt/runs/trips"],
        "serve-fastapi": ["+models.bundles.tuned=/mnt/runs/model/bundle"],
    }
    count = 0
    for workload, overrides in wanted.items():
        name = f"render-{workload}"
        words = [f"workload={workload}", "profile=prod", f"output={story.directory / 'manifests'}"]
        words += [f"overrides={json.dumps(overrides)}"]
        metrics = story.run("kuberay-deploy", name, *words)["metrics"]
        count += metrics["num_documents"]
    return f"{len(wanted)} manifests, {count} documents, checked"


def chosen(story: Story) -> list[str]:
    """The hyperparameters that were found, as overrides of data-preprocessing."""
    return [f"{key}={value}" for key, value in story.hyperparameters.items()]


STEPS = [
    ("1 prepare", "data-preprocessing", prepare),
    ("2 tune", "asha-pbt-tune", tune),
    ("3 train", "data-preprocessing", train),
    ("4 score", "data-preprocessing", score),
    ("5 serve", "serve-fastapi", serve),
    ("6 render", "kuberay-deploy", render),
]


def main() -> int:
    """`handoff.py DIRECTORY PROJECT=PROGRAMS...`; the exit code."""
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True, markup=False)
    place, *named = sys.argv[1:]
    directory = Path(place or f"runs/handoff-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    programs = {name: Path(path) for name, _, path in (word.partition("=") for word in named)}
    try:
        (directory / "logs").mkdir(parents=True)
    except FileExistsError:
        errors.print(f"error: {directory}: exists already")
        return 2
    story = Story(directory, programs)
    started = time.monotonic()
    try:
        with story.live:
            for name, project, work in STEPS:
                story.step(name, project, lambda work=work: work(story))
    except StepError as error:
        errors.print(f"\nerror: {error}")
        return 1
    console.print(f"\n{time.monotonic() - started:.0f} s; everything is in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
