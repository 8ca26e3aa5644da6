"""The options of the command `rehearse`."""

import argparse
import re
import time
from dataclasses import fields

from rehearsal.options import FAULTS, Options

PAIRS = {
    "env": ("env", "an environment variable of every pod"),
    "secret": ("secrets", "NAME/KEY=VALUE or NAME/KEY=@FILE: of a Secret that is not in the file"),
    "load-header": ("load_headers", "a header of those requests"),
}
"""Options with NAME=VALUE: the fields of `Options` that they fill, and their help."""
NUMBERS = {
    "memory-factor": "multiplies all memory; without it: what this machine has room for",
    "idle-timeout-s": "after which the autoscaler removes a worker; without it: as the manifest",
    "grace-s": "from SIGTERM to SIGKILL; without it: as the manifest",
    "notice-s": "reclaim: what the cloud gives (30)",
    "timeout-s": "for all of it (1800)",
    "hold-s": "RayService: how long it is watched before an update, or without one (20)",
}
COUNTS = {
    "min-workers": "of each group, at the start and at least; without it: as the manifest",
    "max-workers": "of each group; without it: as the manifest",
}
TEXTS = {
    "update": "RayService: a second manifest, to which it is updated under load",
    "load": "RayService: the path to request all the time, as in /-/healthz",
    "python": "the directory of the pods' python and ray; without it: of this one",
    "steps": "files below the volumes in which the job reports its steps (**/metrics.jsonl)",
}
WHEN = "worker@20s, head@20s or, of a RayJob, worker@step30"
FAULT_HELP = {
    "kill": f"SIGKILL for a pod: {WHEN}",
    "reclaim": "the same for a spot node: SIGTERM, and SIGKILL after --notice-s",
    "partition": "the same for a pod whose network link goes down",
}


def parse() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="rehearse", description="Runs a KubeRay manifest on this machine (Linux, as root)."
    )
    parser.add_argument("manifest", help="a file with a RayCluster, RayJob or RayService")
    parser.add_argument(
        "--output",
        default=time.strftime("rehearsal-%Y%m%d-%H%M%S"),
        help="a new directory for timeline, logs and volumes",
    )
    for kind, options in ((float, NUMBERS), (int, COUNTS), (str, TEXTS)):
        for name, text in options.items():
            parser.add_argument(f"--{name}", type=kind, help=text)
    sources = "from which pods import, in place of the image; may be repeated"
    parser.add_argument(
        "--source", action="append", dest="sources", metavar="DIRECTORY", help=sources
    )
    for name, (dest, text) in PAIRS.items():
        parser.add_argument(
            f"--{name}", action="append", type=pair, dest=dest, metavar="NAME=VALUE", help=text
        )
    for name in FAULTS:
        parser.add_argument(
            f"--{name}", action="append", metavar="TARGET@WHEN", default=[], help=FAULT_HELP[name]
        )
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    faults = [f"{kind}={when}" for kind in FAULTS for when in given.pop(kind)]
    given |= {name: dict(given[name]) for name, _ in PAIRS.values() if name in given}
    known = {each.name for each in fields(Options)}
    return Options(**{k: v for k, v in given.items() if k in known}, faults=faults)


def pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{name}: must be NAME=VALUE")
    return name, value


def in_own_words(sentence: str) -> str:
    """`--idle-timeout-s`, where a sentence has the key of kuberay-deploy."""
    return re.sub(r"rehearse\.([a-z_]+)", lambda f: f"--{f[1].replace('_', '-')}", sentence)
