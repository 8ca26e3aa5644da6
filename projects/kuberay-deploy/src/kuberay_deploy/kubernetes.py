"""Applies a manifest to a Kubernetes cluster, and follows what KubeRay's operator makes of it.

What `kubectl apply --server-side` does, by Kubernetes' own Python client: the API server tries the
whole file first (dry run), and only a file without a mistake is applied. If one document fails in
spite of that, because somebody was faster or a quota is full, those before it are taken back: what
is new is deleted, what was there gets its earlier content.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/ and
https://docs.ray.io/en/releases-2.60.0/cluster/kubernetes/getting-started/rayjob-quick-start.html
"""

import codecs
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from ray_shared.errors import JobError, UserError

from kuberay_deploy.api_server import RAY_API, Api, explained, name_of
from kuberay_deploy.manifests import Document
from kuberay_deploy.outcome import JobLog, Write
from kuberay_deploy.secret_needs import missing_key, required_secrets
from kuberay_deploy.sections import WAIT_S
from kuberay_deploy.states import State, state_of

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long the API server may be away until a wait gives up."""
POLL_S = 2.0
INSTANCE = "app.kubernetes.io/instance"
OURS = {"app.kubernetes.io/part-of": "ray-ref"}
AROUND = (("networking.k8s.io/v1", "NetworkPolicy"), ("policy/v1", "PodDisruptionBudget"))
"""Of a rendered file, beside the resource that is followed."""


def submit(api: Api, documents: Sequence[Document]) -> list[str]:
    """Applies the documents of a manifest, all or none of them.

    Args:
        api: The cluster.
        documents: The manifest's, each with `apiVersion`, `kind` and `metadata.name`.

    Returns:
        Those that KubeRay's operator takes care of, as `RayJob/name`, to be followed.

    Raises:
        UserError: If something that they need is missing, the server refuses one, or a job of this
            name is there already.
        JobError: If the server fails; then nothing of the manifest stays.
    """
    documents = sorted(documents, key=lambda document: document["kind"] != "Namespace")
    for document in documents:
        if not document["metadata"].get("name"):
            generated = f"{document['kind']}: metadata.generateName"
            raise UserError(f"{generated}: what is applied needs a name of its own: metadata.name")
    for document in documents:
        _check_new_job(api, document)
    _check_secrets(api, documents)
    applied: list[tuple[Document, Document | None]] = []  # With what was there before.
    trying: list[tuple[Document, Document | None]] = []
    try:
        # What lies in a namespace can be tried only once that is there.
        for batch in (
            [each for each in documents if each["kind"] == "Namespace"],
            [each for each in documents if each["kind"] != "Namespace"],
        ):
            for document in batch:
                api.apply(document, dry_run=True)
            for document in batch:
                before = _existing(api, document)
                trying = [(document, before)]
                api.apply(document, dry_run=False)
                logger.info("%s %s", name_of(document), "applied" if before else "created")
                applied, trying = applied + trying, []
    except BaseException as error:  # Also Ctrl-C, which may come between a request and its answer.
        # What was refused is as it was.
        applied += [] if isinstance(error, UserError) else trying
        for document, before in reversed(applied):
            _take_back(api, document, before)
        raise
    return [name_of(each) for each in documents if each["apiVersion"] == RAY_API]


def _take_back(api: Api, document: Document, before: Document | None) -> None:
    """Deletes what is new, and gives to what was there the content that it had."""
    try:
        if before is None:
            api.delete(document)
            return
        # The rest is the server's own: versions, owners of fields, the operator's status.
        kept = ("name", "namespace", "labels", "annotations")
        earlier = {key: value for key, value in before.items() if key != "status"}
        earlier |= {key: document[key] for key in ("apiVersion", "kind")}
        earlier["metadata"] = {k: v for k, v in before["metadata"].items() if k in kept}
        api.apply(earlier, dry_run=False)
    except (UserError, JobError) as error:
        logger.warning("not taken back: %s", error)


def _existing(api: Api, document: Document) -> Document | None:
    name, namespace = document["metadata"]["name"], api.namespace_of(document)
    return api.get(document["apiVersion"], document["kind"], name, namespace)


def _check_new_job(api: Api, document: Document) -> None:
    """Refuses a job that is there: to apply it again would start nothing, and look done."""
    existing = _existing(api, document) if document["kind"] == "RayJob" else None
    if existing is None or (state := state_of(existing)).phase.startswith("Suspend"):
        return
    found = "has already run" if state.ended else "is there already"
    follow = "delete it" if state.ended else f"follow it (action=wait job.id={state.name}), end it"
    raise UserError(
        f"{state.name}: {found} ({state.phase}): {follow} with action=stop "
        f"job.id={state.name}, or give this one another name"
    )


def _check_secrets(api: Api, documents: Sequence[Document]) -> None:
    """Refuses pods that would wait for a secret for ever."""
    for need in required_secrets(documents, api.namespace_of):
        try:
            found = api.get("v1", "Secret", need.name, need.namespace)
        except UserError as error:
            logger.warning("not checked whether secret %s is there: %s", need.name, error)
            continue
        if found is None or (key := missing_key(need, found)):
            what = f"lacks the key {key}" if found else "is missing"
            raise UserError(
                f"{need.user}: the secret {need.namespace}/{need.name} {what}: create it first, "
                f"kubectl create secret generic {need.name} -n {need.namespace} ..."
            )


def state(api: Api, reference: str) -> State:
    """What the operator says about a resource.

    Args:
        api: The cluster.
        reference: `RayJob/name`, or another kind of KubeRay's.

    Raises:
        UserError: If there is no such resource.
    """
    return state_of(_find(api, reference))


def _find(api: Api, reference: str) -> Document:
    kind, _, name = reference.partition("/")
    if not kind.startswith("Ray") or not name:
        raise UserError(f"job.id={reference}: must be a resource of KubeRay's, such as RayJob/name")
    document = api.get(RAY_API, kind, name, api.namespace)
    if document is None:
        raise UserError(f"job.id={reference}: not in the namespace {api.namespace}")
    return document


def wait(api: Api, reference: str, timeout_s: float | None) -> State:
    """Waits until a job has ended, or a service or cluster is ready.

    Args:
        api: The cluster.
        reference: `RayJob/name`, or another kind of KubeRay's.
        timeout_s: None: as `patience_s` of the resource.

    Raises:
        UserError: If there is no such resource.
        JobError: If that takes longer, if it is deleted, or the API server stays away.
    """
    document = _find(api, reference)
    now = state_of(document)
    timeout_s = timeout_s or patience_s(document)
    deadline, seen, phase = time.monotonic() + timeout_s, time.monotonic(), ""
    while not now.ended:
        if now.phase != phase:
            phase = now.phase
            logger.info("%s: %s", reference, phase)
        if time.monotonic() > deadline:
            why = " ".join(filter(None, [now.message, _waiting_pod(api, now)]))
            raise JobError(
                f"{reference} is still {phase} after {timeout_s:g} s{why and f' ({why})'}: it goes "
                f"on; action=wait waits longer, action=stop ends it (job.id={reference})"
            )
        time.sleep(POLL_S)
        try:
            now = state(api, reference)
            seen = time.monotonic()
        except JobError:
            if time.monotonic() - seen > PATIENCE_S:
                raise
        except UserError as error:  # It was there a moment ago.
            raise JobError(f"{reference}: deleted while it was waited for") from error
    return now


def patience_s(document: Document) -> float:
    """Seconds: of a job with a deadline what all its tries may take, of all else an hour."""
    spec = document.get("spec") or {}
    deadline_s = spec.get("activeDeadlineSeconds") if document["kind"] == "RayJob" else None
    # And time for what is around the tries: clusters that go, states that are noticed.
    return WAIT_S + (deadline_s or 0) * (1 + spec.get("backoffLimit", 0))


def _waiting_pod(api: Api, of: State) -> str:
    """Why the first pod that does not run does not run, if one says so."""
    for pod in api.find("v1", "Pod", f"ray.io/cluster={of.cluster}") if of.cluster else []:
        status = pod.get("status", {})
        for container in status.get("containerStatuses", []):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                message = waiting.get("message", "")
                return f"pod {pod['metadata']['name']}: {waiting['reason']}: {message}"
        for condition in status.get("conditions", []):
            if condition.get("reason") == "Unschedulable":
                return f"pod {pod['metadata']['name']}: {condition.get('message', '')}"
    return ""


def logs(api: Api, reference: str, write: Write) -> dict[str, Any] | None:
    """Writes what a job has printed so far, or the log of a cluster's head.

    Returns:
        The content of the job's `result.json`, which is not written; None if it is not there.

    Raises:
        UserError: If there is no such resource, or none of its pods has a log.
    """
    document = _find(api, reference)
    now = state_of(document)
    container, selector = None, f"ray.io/cluster={now.cluster},ray.io/node-type=head"
    if document["kind"] == "RayJob":
        mode = document["spec"].get("submissionMode", "K8sJobMode")
        if mode == "K8sJobMode":  # A pod of its own passes the driver's log on.
            selector = f"job-name={document['metadata']['name']}"
        elif mode == "SidecarMode":
            container = "ray-job-submitter"
    pods = [
        pod for pod in api.find("v1", "Pod", selector) if pod["status"].get("phase") != "Pending"
    ]
    if not pods:
        raise UserError(f"job.id={reference}: has no pod with a log yet, or none any more")
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    path = f"/api/v1/namespaces/{api.namespace}/pods/{newest['metadata']['name']}/log"
    # Beside Ray's, which is the first, a head has the autoscaler's: one must be named.
    query = [("container", container or newest["spec"]["containers"][0]["name"])]
    with explained(f"the log of {newest['metadata']['name']}"):
        answer = api.client.request("get", path, query_params=query, serialize=False)
        log, position = JobLog(write), 0
        # A letter may be in two chunks.
        chunks = answer.stream(decode_content=True)
        for text in codecs.iterdecode(chunks, "utf-8", errors="replace"):
            log.add(position, text)
            position += len(text)
        log.flush()
    return log.result


def result(api: Api, reference: str) -> dict[str, Any] | None:
    """The content of a job's `result.json`, which stands in its submitter's log.

    Returns:
        None if it is not there: the job has not come so far, or its pod is gone with a drained node
        or with the RayJob, or its log is not ours to read.
    """
    with contextlib.suppress(UserError, JobError):
        return logs(api, reference, lambda _: None)
    return None


def stop(api: Api, reference: str, timeout_s: float) -> None:
    """Deletes a resource, waits until it and its pods are gone, and deletes what stood around them.

    That are the NetworkPolicies and PodDisruptionBudgets with the same instance label: not before,
    since a pod that ends still talks, and one of the operator's empties Redis.

    Raises:
        UserError: If there is no such resource.
        JobError: If it is not gone in time; then what stands around it stays.
    """
    document = _find(api, reference)
    labels = document["metadata"].get("labels") or {}
    ours = OURS.items() <= labels.items() and INSTANCE in labels
    selector = f"{INSTANCE}={labels[INSTANCE]}" if ours else ""
    api.delete(document)
    deadline = time.monotonic() + timeout_s
    while _existing(api, document) is not None or (ours and _still_ending(api, selector)):
        if time.monotonic() > deadline:
            raise JobError(f"{reference}, or a pod of it, is still there after {timeout_s:g} s")
        time.sleep(POLL_S)
    for version, kind in AROUND if ours else ():
        try:
            for each in api.find(version, kind, selector):
                api.delete({"apiVersion": version, "kind": kind} | each)
        except UserError as error:
            logger.warning("not deleted: %s", error)


def _still_ending(api: Api, selector: str) -> bool:
    """Whether clusters of the resource are there, or pods that have not come to their end."""
    try:
        if api.find(RAY_API, "RayCluster", selector):
            return True
        pods = api.find("v1", "Pod", selector)
    except UserError as error:
        logger.warning("not looked whether pods are gone: %s", error)
        return False
    return any(pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") for pod in pods)
