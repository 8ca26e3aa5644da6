"""Seconds to render and validate every workload in every profile: `nox -s bench -- kuberay-deploy`.

What a user would do instead is to apply to a cluster and see. Here the same files are checked
without one; the time of the plain parts says where it goes.
"""

import os
import sys
import time
from pathlib import Path

from kuberay_deploy import crds, manifests, render, validate
from kuberay_deploy.config import Config
from ray_shared.config import compose
from ray_shared.report import show_table

TARGET_S = 10.0


def main() -> None:
    """Times each part once, as the command does it once."""
    path = os.environ.get("KUBERAY_CRDS")
    times: dict[str, tuple[float, float]] = {}
    start = (time.perf_counter(), time.process_time())

    def lap(name: str) -> None:
        nonlocal start
        now = (time.perf_counter(), time.process_time())
        times[name] = (now[0] - start[0], now[1] - start[1])
        start = now

    config = compose(Config, "kuberay_deploy.conf", [])
    lap("compose the configuration")
    plans = [render.make_plan(config, w, p) for w, p in config.plans()]
    texts = {plan.name: render.manifest(plan, "compare") for plan in plans}
    lap(f"render {len(plans)} manifests")
    definitions = crds.from_directory(Path(path)) if path else None
    lap("read KubeRay's definitions" if path else "no definitions: set KUBERAY_CRDS")
    findings = []
    for name, text in texts.items():
        findings += validate.check(manifests.parse(text, name), definitions)
    lap("validate")

    total = sum(wall for wall, _ in times.values())
    times["all"] = (total, sum(cpu for _, cpu in times.values()))
    rows = {name: f"{wall:.2f} s ({cpu:.2f} s of CPU)" for name, (wall, cpu) in times.items()}
    show_table("kuberay-deploy", rows | {"findings": str(len(findings))})
    word = "met   " if total <= TARGET_S else "missed"
    print(f"{word}  all: {total:.1f} s, <= {TARGET_S:g}")
    if findings:
        sys.exit(f"mistakes in what is rendered: {[str(finding) for finding in findings[:3]]}")


if __name__ == "__main__":
    main()
