"""From raw trips to an answered request: four projects that meet in files, and their manifests.

    nox -s handoff                  # everything lies in runs/handoff-TIME afterwards
    nox -s handoff -- my/directory  # or there

Each step is a command that a person could type; its log is kept. The last but one asks the served
model over HTTP and compares each answer with the batch prediction for the same raw trip. The last
writes what ran as manifests; those of a project have one name, so each is applied when the one
before it is gone.
"""

import http.client
import json
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from handoff_manifests import render
from handoff_story import STOPPED, StepError, Story, interrupted_once
from rich.console import Console

NUM_ROWS = 200_000
NUM_TRIALS = 8
NUM_REQUESTS = 2_000
ROWS_PER_REQUEST = 500
# An answer has four decimals; the batch prediction is a 32-bit float.
TOLERANCE_MIN = 1e-4
START_S = 120.0


def prepare(story: Story) -> str:
    """Raw trips to features: checked rows in Parquet, and the fitted preprocessor."""
    size = [f"data.num_rows={NUM_ROWS}", "run.name=trips"]
    metrics = story.job("data-preprocessing", "prepare", size)
    rejected = f"{metrics['rows_quarantined']:,} in quarantine"
    return f"{metrics['rows_out']:,} rows of features, {rejected}"


def tune(story: Story) -> str:
    """Features to hyperparameters: those that the other project's training knows, too."""
    objective = ["objective=xgboost", f"objective.path={story.storage / 'trips'}", "space=trips"]
    size = [f"tune.num_trials={NUM_TRIALS}", "train.epochs=36", "run.name=study"]
    metrics = story.job("asha-pbt-tune", "tune", [*objective, *size])
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
    what = ["action=train", f"dataset={story.storage / 'trips'}", "run.name=model", *chosen(story)]
    metrics = story.job("data-preprocessing", "train", what)
    return f"a bundle; test RMSE {metrics['rmse']:.2f} minutes"


def chosen(story: Story) -> list[str]:
    """The hyperparameters that were found, as overrides of data-preprocessing."""
    return [f"{key}={value}" for key, value in story.hyperparameters.items()]


def score(story: Story) -> str:
    """Other raw trips and the bundle to predictions, in batches."""
    what = ["action=score", "run.name=scores", f"score.bundle={story.storage / 'model/bundle'}"]
    trips = ["data.seed=1", "data.num_rows=20000", "data.num_files=2", "data.broken_fraction=0"]
    metrics = story.job("data-preprocessing", "score", [*what, *trips])
    return f"{metrics['rows_out']:,} predictions, RMSE {metrics['rmse']:.2f}"


def serve(story: Story) -> str:
    """The bundle to answers over HTTP; they must be the batch predictions.

    Raises:
        StepError: If the application does not start or stop, or an answer differs.
    """
    name, project = "serve", "serve-fastapi"
    bundle = [f"+models.bundles.tuned={story.storage / 'model/bundle'}"]
    story.jobs[name] = (project, bundle)
    here = ["serve.block=true", "serve.port=0", "experiment=smoke"]
    here += [f"storage.path={story.storage}"]
    with story.running(project, name, [*here, *bundle]) as server:
        address = address_in(story, server)
        trips, predicted = batch_predictions(story.storage)
        started = time.perf_counter()
        try:
            answered = ask(address, trips)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise story.failure(name, f"did not answer ({error})") from None
        seconds = time.perf_counter() - started
    if server.returncode != STOPPED:
        raise story.failure(name, f"ended with {server.returncode}, not with {STOPPED}")
    worst = max(abs(a - b) for a, b in zip(answered, predicted, strict=True))
    if worst > TOLERANCE_MIN:
        raise StepError(f"{name}: an answer differs by {worst:.3g} minutes from its prediction")
    return f"{len(answered):,} answers in {seconds:.1f} s, none off by over {worst:.0e} minutes"


def address_in(story: Story, server: "subprocess.Popen[bytes]") -> str:
    """The address that the server has printed, as soon as it has.

    Raises:
        StepError: If it ends, or does not say so in time.
    """
    log, deadline = story.log("serve"), time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("serving "):
                return line.rpartition(" at ")[2].strip()
        time.sleep(0.2)
    raise story.failure("serve", "did not start")


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
    # This machine's own address: no proxy has to do with it, whatever `http_proxy` says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    minutes: list[float] = []
    for start in range(0, len(trips), ROWS_PER_REQUEST):
        body = json.dumps({"trips": trips[start : start + ROWS_PER_REQUEST]}).encode()
        headers = {"Content-Type": "application/json", "X-Model": "tuned"}
        request = urllib.request.Request(f"{address}/v1/trips/batch", body, headers)
        with opener.open(request, timeout=60) as stream:
            for line in stream.read().decode().splitlines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    minutes += [answer["minutes"] for answer in event.get("answers", [])]
    if len(minutes) != len(trips):
        raise ValueError(f"{len(minutes)} answers for {len(trips)} trips")
    return minutes


STEPS = [
    ("1 prepare", "data-preprocessing", prepare),
    ("2 tune", "asha-pbt-tune", tune),
    ("3 train", "data-preprocessing", train),
    ("4 score", "data-preprocessing", score),
    ("5 serve", "serve-fastapi", serve),
    ("6 render", "kuberay-deploy", render),
]


def main(words: list[str]) -> int:
    """Does all steps.

    Args:
        words: `PROJECT=PROGRAMS` for each project, and at most one directory.

    Returns:
        The exit code.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True, markup=False)
    named = {name: path for name, _, path in (word.partition("=") for word in words)}
    programs = {project: Path(named[project]) for _, project, _ in STEPS}
    places = [word for word in words if word.partition("=")[0] not in programs]
    try:
        story = Story(new_directory(places), programs)
    except ValueError as error:
        errors.print(f"error: {error}")
        return 2
    started = time.monotonic()
    try:
        with interrupted_once(), story.live:
            for name, project, work in STEPS:
                story.step(name, project, lambda work=work: work(story))
    except StepError as error:
        errors.print(f"\nerror: {error}")
        return 1
    except KeyboardInterrupt:
        errors.print(f"\ninterrupted by Ctrl-C; what was done is in {story.directory}")
        return 130
    console.print(f"\n{time.monotonic() - started:.0f} s; everything is in {story.directory}")
    return 0


def new_directory(places: list[str]) -> Path:
    """Makes the directory of the hand-off.

    Raises:
        ValueError: If more than one is named, or it cannot be made.
    """
    if len(places) > 1 or any(place.startswith("-") for place in places):
        found = " ".join(places)
        raise ValueError(f"found {found}: must be one new directory, or nothing: no options")
    place = places[0] if places else f"runs/handoff-{datetime.now():%Y%m%d-%H%M%S}"
    directory = Path(place).absolute()
    try:
        directory.mkdir(parents=True)
        (directory / "logs").mkdir()
    except OSError as error:
        raise ValueError(f"{directory}: {error.strerror}: must be a new directory") from None
    return directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
