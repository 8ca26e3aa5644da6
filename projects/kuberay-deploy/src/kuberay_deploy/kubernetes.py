"""Applies a manifest to a Kubernetes cluster, and follows what KubeRay's operator makes of it.

What `kubectl apply --server-side` does, by Kubernetes' own Python client: the API server tries the
whole file first (dry run), and only a file without a mistake is applied. What fails in spite of
that, because somebody was faster or a quota is full, is taken back.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/ and
https://docs.ray.io/en/releases-2.60.0/cluster/kubernetes/getting-started/rayjob-quick-start.html
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from ray_shared.errors import JobError, UserError

from kuberay_deploy.api_server import RAY_API, Api, Document, explained, name_of
from kuberay_deploy.secret_needs import missing_key, required_secrets
from kuberay_deploy.states import State, state_of

logger = logging.getLogger(__name__)

Write = Callable[[str], None]

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
        JobError: If the server fails; then nothing of what is new stays.
    """
    documents = sorted(documents, key=lambda document: document["kind"] != "Namespace")
    for document in documents:
        if not document["metadata"].get("name"):
            generated = f"{document['kind']}: metadata.generateName"
            raise UserError(f"{generated}: what is applied needs a name of its own: metadata.name")
    for document in documents:
        _check_new_job(api, document)
    _check_secrets(api, documents)
    created: list[Document] = []
    trying: list[Document] = []
    try:
        # What lies in a namespace can be tried only once that is there.
        for batch in (
            [each for each in documents if each["kind"] == "Namespace"],
            [each for each in documents if each["kind"] != "Namespace"],
        ):
            for document in batch:
                api.apply(document, dry_run=True)
            for document in batch:
                trying = [document] if _existing(api, document) is None else []
                api.apply(document, dry_run=False)
                logger.info("%s %s", name_of(document), "created" if trying else "applied")
                created, trying = created + trying, []
    except BaseException as error:  # Also Ctrl-C, which may come between a request and its answer.
        # What was refused is not there, or is somebody else's.
        created += [] if isinstance(error, UserError) else trying
        for document in reversed(created):
            with contextlib.suppress(UserError, JobError):
                api.delete(document)
        raise
    return [name_of(each) for each in documents if each["apiVersion"] == RAY_API]


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


def wait(api: Api, reference: str, timeout_s: float) -> State:
    """Waits until a job has ended, or a service or cluster is ready.

    Raises:
        UserError: If there is no such resource.
        JobError: If that takes longer, or the API server stays away.
    """
    now = state(api, reference)
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
    return now


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


def logs(api: Api, reference: str, write: Write) -> None:
    """Writes what a job has printed so far, or the log of a cluster's head.

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
        for chunk in answer.stream(decode_content=True):
            write(chunk.decode(errors="replace"))


def stop(api: Api, reference: str, timeout_s: float) -> None:
    """Deletes a resource with its pods and what its file holds for them, and waits for its end.

    That are the NetworkPolicies and PodDisruptionBudgets with the same instance label.

    Raises:
        UserError: If there is no such resource.
        JobError: If it is not gone in time.
    """
    document = _find(api, reference)
    api.delete(document)
    labels = document["metadata"].get("labels") or {}
    for version, kind in AROUND if OURS.items() <= labels.items() and INSTANCE in labels else ():
        try:
            for each in api.find(version, kind, f"{INSTANCE}={labels[INSTANCE]}"):
                api.delete({"apiVersion": version, "kind": kind} | each)
        except UserError as error:
            logger.warning("not deleted: %s", error)
    deadline = time.monotonic() + timeout_s
    while _existing(api, document) is not None:
        if time.monotonic() > deadline:
            raise JobError(f"{reference} is still there after {timeout_s:g} s")
        time.sleep(POLL_S)
