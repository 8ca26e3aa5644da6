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

from rehearsal import job, namespaces, service, timeline
from rehearsal.api import Server, Store
from rehearsal.context import Context, StoppedError
from rehearsal.faults import Injection
from rehearsal.manifest import Plan, free_memory, plan
from rehearsal.operator import TICK_S, Operator
from rehearsal.options import Options
from rehearsal.watch import Watch

logger = logging.getLogger(__name__)
OPTIONS = "REHEARSAL_OPTIONS"
"""The variable with the options as JSON: others can read arguments, and there are secrets."""
RESULT, TIMELINE, PICTURE = "rehearsal.json", "timeline.json", "timeline.png"
TRACEBACK = "error.log"
WORKERS_TIMEOUT_S = 300.0
"""For the first workers of a RayCluster to become ready."""
JOIN_S = 5.0
"""For the threads to return at the end."""


def rehearse(options: Options, context: Context, store: Store, server: Server) -> None:
    """Runs the job, service or cluster to its end, with its faults.

    Raises:
        JobError: If it fails, takes too long, or ends before a fault.
    """
    errors: list[BaseException] = []
    # Of whatever thread: none may end unnoticed.
    threading.excepthook = lambda args: errors.append(args.exc_value or RuntimeError(args.exc_type))

    def new_operator(each: Plan) -> Operator:
        operator = Operator(each, options, store, server, context.timeline)
        context.operators.append(operator)
        return operator

    context.new_operator = new_operator
    new_operator(context.plan)
    watch = Watch(context)

    def on_patch(cluster: str, patch: Any) -> None:
        watch.look()  # Why the autoscaler wants it stands in its log.
        context.timeline.patched(cluster, patch)

    store.on_patch = on_patch
    injections = [Injection(context, watch, fault) for fault in options.parsed_faults()]
    context.faults_done = lambda: all(each.replaced() for each in injections)
    run = {"RayJob": job.run, "RayService": service.run}.get(context.plan.kind, hold)
    workload = threading.Thread(target=run, args=(context,), name="workload", daemon=True)
    others = [threading.Thread(target=watch.run, name="watch", daemon=True)]
    others += [threading.Thread(target=each.run, daemon=True) for each in injections]
    for thread in (workload, *others):
        thread.start()
    deadline = time.monotonic() + options.timeout_s
    try:
        while workload.is_alive() and not errors and not context.stopped.is_set():
            for operator in list(context.operators):
                operator.tick()
            if time.monotonic() > deadline:
                raise JobError(f"not done after rehearse.timeout_s={options.timeout_s:g}")
            time.sleep(TICK_S)
        if context.stopped.is_set():
            raise StoppedError
    finally:
        context.finished.set()
        context.stopped.set()
        for thread in (workload, *others):
            thread.join(JOIN_S)
    if errors:
        raise errors[0]
    for each in injections:
        each.check()


def hold(context: Context) -> None:
    """A RayCluster alone: until its head and least workers are ready, and its faults are over."""
    operator = context.operators[0]
    context.ready_head(operator)
    context.running.set()
    if not context.wait_for(operator.complete, WORKERS_TIMEOUT_S):
        raise JobError(f"not all workers are ready after {WORKERS_TIMEOUT_S:g} s")
    context.wait_for(context.faults_done, context.options.timeout_s)


def main() -> int:
    """Runs the rehearsal; its exit code is that of the command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = Options(**json.loads(os.environ.pop(OPTIONS)))
    output = Path(options.output)
    line = timeline.Timeline()
    result: dict[str, Any] = {"status": "failed", "error": None}
    context: Context | None = None
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        if context is not None:
            context.stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = 1
    try:
        namespaces.set_up()
        found = plan(options, options.manifest, free_memory())
        for change in found.changes:
            logger.info("not as in the manifest: %s", change)
        context = Context(found, options, line)
        context.logs.mkdir(parents=True, exist_ok=True)
        store = Store()
        directory = namespaces.WORK / "api"
        directory.mkdir()
        server = Server(store, namespaces.GATEWAY, directory)
        store.list_pods = lambda: [p.document() for o in context.operators for p in o.all_pods()]
        server.serve_in_background()
        if stopping.is_set():
            raise StoppedError
        rehearse(options, context, store, server)
        result["status"], code = "ok", 0
    except UserError as error:
        result |= {"error": str(error), "mistake": True}
        code = 2
    except JobError as error:
        result["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - the outer process tells of it
        (output / TRACEBACK).write_text(traceback.format_exc())
        result["error"] = f"{type(error).__name__}: {error}; see {output / TRACEBACK}"
    result["metrics"] = timeline.metrics(line.events) | (context.metrics if context else {})
    result["changes"] = context.plan.changes if context else []
    line.write(output / TIMELINE)
    (output / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    if line.events and context is not None and not stopping.is_set():
        title = f"{context.plan.kind}/{context.plan.name}: {result['status']}"
        timeline.draw(line.events, output / PICTURE, title)
    # Whatever still runs inside ends with this process.
    return code


if __name__ == "__main__":
    sys.exit(main())
