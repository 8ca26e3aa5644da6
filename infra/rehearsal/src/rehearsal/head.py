"""The dashboard of a head: jobs and Serve, over HTTP with the cluster's token."""

import http.client
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ray_shared.errors import JobError

from rehearsal.pods import DASHBOARD_PORT

TIMEOUT_S = 30.0
SERVE = "/api/serve/applications/"
SERVE_TYPE = {"Content-Type": "application/json"}


class LostError(JobError):
    """The head does not answer."""


@dataclass(frozen=True)
class Head:
    """One head."""

    ip: str
    token: str | None

    def request(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """Status and JSON content of an answer.

        Raises:
            LostError: If there is none.
        """
        headers = dict(SERVE_TYPE)
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        body = None if content is None else json.dumps(content)
        connection = http.client.HTTPConnection(self.ip, DASHBOARD_PORT, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise LostError(f"the head does not answer: {error}") from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text) if text else None
        except ValueError:
            return answer.status, text

    def submit(self, job_id: str, entrypoint: str, spec: dict[str, Any]) -> None:
        """Starts a job.

        Args:
            job_id: Its submission's id.
            entrypoint: The command for the head's shell.
            spec: Of the RayJob: its `metadata` and `entrypointNum...`.

        Raises:
            JobError: If the head refuses.
        """
        content: dict[str, Any] = {"entrypoint": entrypoint, "submission_id": job_id}
        content["runtime_env"] = spec.get("runtime_env") or {}
        content["metadata"] = spec.get("metadata") or {}
        for key, name in (("entrypointNumCpus", "num_cpus"), ("entrypointNumGpus", "num_gpus")):
            if key in spec:
                content[f"entrypoint_{name}"] = float(spec[key])
        if spec.get("entrypointResources"):
            content["entrypoint_resources"] = json.loads(spec["entrypointResources"])
        status, answer = self.request("POST", "/api/jobs/", content)
        if status != HTTPStatus.OK:
            raise JobError(f"the head refuses the job ({status}): {answer}")

    def job(self, job_id: str) -> dict[str, Any] | None:
        """What it knows of a job; None: no such job."""
        status, answer = self.request("GET", f"/api/jobs/{job_id}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise LostError(f"the head answers {status}: {answer}")
        return dict(answer)

    def job_log(self, job_id: str) -> str:
        """What a job has printed."""
        status, answer = self.request("GET", f"/api/jobs/{job_id}/logs")
        return str(answer["logs"]) if status == HTTPStatus.OK else ""

    def deploy(self, config: dict[str, Any]) -> None:
        """Tells Serve what to run.

        Raises:
            JobError: If it refuses.
        """
        status, answer = self.request("PUT", SERVE, config)
        if status != HTTPStatus.OK:
            raise JobError(f"Serve refuses the configuration ({status}): {answer}")

    def applications(self) -> dict[str, Any]:
        """What Serve runs, by name."""
        status, answer = self.request("GET", SERVE)
        if status != HTTPStatus.OK:
            raise LostError(f"Serve answers {status}: {answer}")
        return dict(answer["applications"])
