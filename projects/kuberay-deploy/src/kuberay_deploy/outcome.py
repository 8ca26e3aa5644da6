"""What comes of a submitted job: its log, the result that is printed into it, and how it ended."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.job_submission import JobStatus
from ray_shared.errors import JobError, UserError
from ray_shared.report import RESULT_LINE

from kuberay_deploy.dashboard import reason_in

EXIT_USER = 2
"""A workload's exit code for a mistake in its overrides."""

Write = Callable[[str], None]
"""Takes text of a log as it comes."""


class JobLog:
    """What has come of a log, in whole lines, each of them once."""

    def __init__(self, write: Write):
        self.result: dict[str, Any] | None = None
        self._write, self._length, self._line = write, 0, ""

    def add(self, position: int, text: str) -> None:
        """Takes the text that starts at this position, counted in characters."""
        new = text[max(0, self._length - position) :]
        self._length += len(new)
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            result = _result_in(line)
            if result is None:
                self._write(line + "\n")
            else:
                self.result = result

    def flush(self) -> None:
        """Writes a last line without an end."""
        if self._line:
            self._write(self._line + "\n")
            self._line = ""


def _result_in(line: str) -> dict[str, Any] | None:
    """What the line with the marker holds; None if it is another's, or was torn."""
    if not line.startswith(RESULT_LINE):
        return None
    try:
        found = json.loads(line.removeprefix(RESULT_LINE))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job_id: str
    status: JobStatus
    exit_code: int | None
    """Of its command; None: it has none, because it was stopped or did not start."""
    message: str
    """Ray's own words."""
    result: dict[str, Any] | None
    """The content of its `result.json`; None: it has written none."""

    def check(self) -> None:
        """Does nothing if the job succeeded.

        Raises:
            UserError: If it refused its overrides.
            JobError: If it failed or was stopped.
        """
        if self.status == JobStatus.SUCCEEDED:
            return
        if self.status == JobStatus.STOPPED:
            raise JobError(f"job {self.job_id} was stopped")
        errors = [line for line in self.message.splitlines() if line.startswith("error: ")]
        if self.exit_code == EXIT_USER and errors:
            raise UserError(f"job {self.job_id}: {errors[-1].removeprefix('error: ')}")
        reason = (self.result or {}).get("error")
        if reason is None and self.exit_code is not None:  # Ray's words would be the log's end.
            reason = f"its command ended with {self.exit_code}, its log says why"
        raise JobError(f"job {self.job_id} failed: {reason or reason_in(self.message)}")
