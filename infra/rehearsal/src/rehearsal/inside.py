"""The first process inside the outer namespaces: `python -m rehearsal.inside`."""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from ray_shared.errors import JobError, UserError

from rehearsal import faults, job, namespaces, service, timeline
from rehearsal.api import Server, Store
from rehearsal.manifest import Plan, free_memory, plan
from rehearsal.operator import TICK_S, Operator
from rehearsal.options import Options
from rehearsal.stage import Stage
from rehearsal.watch import Watch

logger = logging.getLogger(__name__)
OPTIONS = "REHEARSAL_OPTIONS"
"""The variable with the options as JSON: others can read arguments, and there are secrets."""
RESULT, TIMELINE, PICTURE = "rehearsal.json", "timeline.json", "timeline.png"


def rehearse(options: Options, stage: Stage, store: Store, server: Server) -> None:
    """Plays the whole piece.

    Raises:
        JobError: If the job or service fails, or it takes too long.
    """
    errors: list[BaseException] = []

    def act() -> None:
        try:
            {"RayJob": job.run, "RayService": service.run}.get(stage.plan.kind, hold)(stage)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)

    def new_operator(each: Plan) -> Operator:
        operator = Operator(each, options, store, server, stage.timeline)
        stage.operators.append(operator)
        return operator

    stage.new_operator = new_operator
    new_operator(stage.plan)
    watch = Watch(stage)

    def on_patch(cluster: str, patch: Any) -> None:
        watch.look()  # Why the autoscaler wants it stands in its log.
        stage.timeline.patched(cluster, patch)

    store.on_patch = on_patch
    watcher = threading.Thread(target=watch.run, daemon=True)
    watcher.start()
    for fault in options.parsed_faults():
        threading.Thread(target=faults.inject, args=(stage, watch, fault), daemon=True).start()
    actor = threading.Thread(target=act, name="actor", daemon=True)
    actor.start()
    deadline = time.monotonic() + options.timeout_s
    try:
        while actor.is_alive() and not stage.stopped.is_set():
            for operator in list(stage.operators):
                operator.tick()
            if time.monotonic() > deadline:
                raise JobError(f"not done after rehearse.timeout_s={options.timeout_s:g}")
            time.sleep(TICK_S)
        if errors:
            raise errors[0]
        if stage.stopped.is_set():
            raise JobError("interrupted")
    finally:
        stage.stopped.set()
        actor.join(5)
        watcher.join(5)


def hold(stage: Stage) -> None:
    """A RayCluster alone: waits until its head and least workers are ready."""
    operator = stage.operators[0]
    stage.ready_head(operator)
    groups = stage.plan.cluster["workerGroupSpecs"]
    least = sum(group["replicas"] * group["numOfHosts"] for group in groups)
    stage.running.set()
    if not stage.wait_for(lambda: sum(w.ready for w in operator.workers()) >= least, 300):
        raise JobError(f"not all of {least} workers became ready")


def main() -> int:
    """Runs the rehearsal; its exit code is that of the command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = Options(**json.loads(os.environ.pop(OPTIONS)))
    output = Path(options.output)
    line = timeline.Timeline()
    result: dict[str, Any] = {"status": "failed", "error": None}
    stage: Stage | None = None
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        if stage is not None:
            stage.stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = 1
    try:
        namespaces.set_up()
        found = plan(options, options.manifest, free_memory())
        for change in found.changes:
            logger.info("not as in the manifest: %s", change)
        stage = Stage(found, options, line)
        stage.logs.mkdir(parents=True, exist_ok=True)
        store = Store()
        directory = namespaces.WORK / "api"
        directory.mkdir()
        server = Server(store, namespaces.GATEWAY, directory)
        store.list_pods = lambda: [p.document() for o in stage.operators for p in o.pods]
        server.serve_in_background()
        if stopping.is_set():
            raise JobError("interrupted")
        rehearse(options, stage, store, server)
        result["status"], code = "ok", 0
    except UserError as error:
        result |= {"error": str(error), "mistake": True}
        code = 2
    except JobError as error:
        result["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - the outer process tells of it
        result["error"] = f"{type(error).__name__}: {error}"
        (output / "error.log").write_text(traceback.format_exc())
    result["metrics"] = timeline.metrics(line.events) | (stage.metrics if stage else {})
    result["changes"] = stage.plan.changes if stage else []
    line.write(output / TIMELINE)
    (output / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    if line.events and stage is not None and not stopping.is_set():
        title = f"{stage.plan.kind}/{stage.plan.name}: {result['status']}"
        timeline.draw(line.events, output / PICTURE, title)
    # Whatever still runs inside ends with this process.
    return code


if __name__ == "__main__":
    sys.exit(main())
