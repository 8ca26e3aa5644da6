"""The command: `rehearse manifest.yaml --min-workers 0 --max-workers 2 --kill worker@20s`."""

import logging
import signal
import sys

from ray_shared.errors import JobError, UserError
from ray_shared.report import show_table

from rehearsal.command import in_own_words, parse
from rehearsal.run import raise_for, rehearse

EXIT_FAILED, EXIT_USER, EXIT_SIGINT, EXIT_SIGTERM = 1, 2, 130, 143


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
    print(f"error: {in_own_words(str(error))}", file=sys.stderr)  # noqa: T201 - its last word
    return code


if __name__ == "__main__":
    main()
