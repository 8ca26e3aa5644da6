"""The command: `rehearse manifest.yaml --min-workers 0 --max-workers 2 --kill worker@20s`."""

import argparse
import logging
import signal
import sys
import time
from dataclasses import fields

from ray_shared.errors import JobError, UserError
from ray_shared.report import show_table

from rehearsal.options import FAULTS, Options
from rehearsal.run import raise_for, rehearse

PAIRS = {"env": "env", "secret": "secrets", "load-header": "load_headers"}
"""Options with NAME=VALUE, and the fields of `Options` that they fill."""
EXIT_FAILED, EXIT_USER, EXIT_SIGINT, EXIT_SIGTERM = 1, 2, 130, 143


def pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=VALUE")
    return name, value


def parse() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="rehearse", description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--output", default=time.strftime("rehearsal-%Y%m%d-%H%M%S"))
    for name in ("memory-factor", "idle-timeout-s", "grace-s", "notice-s", "timeout-s", "hold-s"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("min-workers", "max-workers"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("update", "load", "python", "steps"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--source", action="append", dest="sources", metavar="DIRECTORY")
    for name, dest in PAIRS.items():
        parser.add_argument(
            f"--{name}", action="append", type=pair, dest=dest, metavar="NAME=VALUE"
        )
    for name in FAULTS:
        parser.add_argument(f"--{name}", action="append", metavar="TARGET@WHEN", default=[])
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    faults = [f"{kind}={when}" for kind in FAULTS for when in given.pop(kind)]
    given |= {name: dict(given[name]) for name in PAIRS.values() if name in given}
    known = {each.name for each in fields(Options)}
    return Options(**{k: v for k, v in given.items() if k in known}, faults=faults)


def main() -> None:
    """Rehearses; exit codes 0 done, 1 failed, 2 the user's mistake, 130 and 143 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_SIGTERM))
    try:
        result = rehearse(parse())
        show_table("rehearsal", result["metrics"] | result["artifacts"])
        raise_for(result)
    except UserError as error:
        sys.exit(_say(error, EXIT_USER))
    except JobError as error:
        sys.exit(_say(error, EXIT_FAILED))
    except KeyboardInterrupt:
        sys.exit(EXIT_SIGINT)


def _say(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's last word
    return code


if __name__ == "__main__":
    main()
