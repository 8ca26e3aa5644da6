"""The API server of a Kubernetes cluster, by Kubernetes' own Python client, errors in one sentence.

Source: https://github.com/kubernetes-client/python and
https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

import contextlib
import json
import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ray_shared.errors import JobError, UserError

from kuberay_deploy.manifests import Document

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient, Resource

MANAGER = "kuberay-deploy"
"""Owner, for the API server, of the fields that are applied."""
RAY_API = "ray.io/v1"
TIMEOUTS_S = (5.0, 30.0)
"""To connect, and for an answer."""


class LostError(JobError):
    """The API server did not answer."""


class Api:
    """The API server of one cluster. Made by `connect`."""

    def __init__(self, client: "DynamicClient", namespace: str):
        self.client, self.namespace = client, namespace

    def resource(self, api_version: str, kind: str) -> "Resource":
        """Where the objects of a kind are.

        Raises:
            UserError: If the cluster does not know the kind.
        """
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        try:
            with explained(f"{kind} of {api_version}"):
                return self.client.resources.get(api_version=api_version, kind=kind)
        except ResourceNotFoundError:
            hint = ": is KubeRay's operator installed?" if api_version == RAY_API else ""
            raise UserError(f"the cluster knows no {kind} of {api_version}{hint}") from None

    def get(self, api_version: str, kind: str, name: str, namespace: str) -> Document | None:
        """An object; None if there is none."""
        from kubernetes.dynamic.exceptions import NotFoundError

        resource = self.resource(api_version, kind)
        with explained(f"{kind}/{name}"), contextlib.suppress(NotFoundError):
            return dict(resource.get(name=name, namespace=namespace).to_dict())
        return None

    def find(self, api_version: str, kind: str, selector: str) -> list[Document]:
        """The objects of a kind in the namespace whose labels match `key=value,...`."""
        resource = self.resource(api_version, kind)
        with explained(kind):
            found = resource.get(namespace=self.namespace, label_selector=selector)
            return [dict(each) for each in found.to_dict()["items"]]

    def namespace_of(self, document: Document) -> str:
        """Where a document belongs."""
        return str(document["metadata"].get("namespace") or self.namespace)

    def apply(self, document: Document, dry_run: bool) -> None:
        """Makes the object what the document says, or only tries whether that can be done."""
        resource = self.resource(document["apiVersion"], document["kind"])
        with explained(name_of(document)):
            resource.server_side_apply(
                body=document,
                namespace=self.namespace_of(document),
                field_manager=MANAGER,
                dry_run="All" if dry_run else None,
            )

    def delete(self, document: Document) -> None:
        """Deletes the object, and in the background what it owns; no error if it is gone."""
        from kubernetes.dynamic.exceptions import NotFoundError

        resource = self.resource(document["apiVersion"], document["kind"])
        with explained(name_of(document)), contextlib.suppress(NotFoundError):
            resource.delete(
                name=document["metadata"]["name"],
                namespace=self.namespace_of(document),
                body={"propagationPolicy": "Background"},
            )


def connect(context: str | None = None, namespace: str | None = None) -> Api:
    """Makes sure that the API server answers, and takes the credentials.

    They come from the kubeconfig (`KUBECONFIG`, `~/.kube/config`), or inside a pod that is given
    neither `KUBECONFIG` nor a context from its service account.

    Args:
        context: Of the kubeconfig; None: its current one.
        namespace: For what names none; None: the context's.

    Raises:
        UserError: If there is no such context, or the server does not answer or refuses.
    """
    from kubernetes import client, config
    from kubernetes.dynamic import DynamicClient

    settings = client.Configuration()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG")
    if context is None and in_pod:
        where, found = "this pod's cluster", None
        try:
            config.load_incluster_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"{where}: no service account to use ({_first_line(error)}): set KUBECONFIG, or "
                "automountServiceAccountToken of the pod"
            ) from None
    else:
        where, found = _load_kubeconfig(context, settings)
    settings.retries = 0

    class Client(client.ApiClient):
        def call_api(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["_request_timeout"] = kwargs.get("_request_timeout") or TIMEOUTS_S
            return super().call_api(*args, **kwargs)

    try:
        with explained(where):
            # A cache on the disk would outlive the kinds that it lists: there is no such file.
            dynamic = DynamicClient(Client(settings), cache_file=f"{os.devnull}/none")
    except LostError as error:
        raise UserError(f"{error}: is {settings.host} the right one?") from None
    except (AttributeError, KeyError, TypeError) as error:  # It looks for what is not there.
        raise UserError(f"{where}: what answers at {settings.host} is not Kubernetes") from error
    return Api(dynamic, namespace or found or "default")


def _load_kubeconfig(context: str | None, settings: Any) -> tuple[str, str | None]:
    """Reads the kubeconfig into the settings; which context that was, and its namespace."""
    from kubernetes import config

    path = os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(each).expanduser() for each in path.split(os.pathsep) if each]
    try:
        parts = [yaml.safe_load(file.read_text()) or {} for file in files if file.is_file()]
        known = {each["name"]: each["context"] for part in parts for each in part["contexts"] or []}
        chosen = context or next(filter(None, (part.get("current-context") for part in parts)), "")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise UserError(f"kubernetes.context: {path} is no kubeconfig that can be read") from None
    if not known:
        raise UserError(f"kubernetes.context: no cluster is configured in {path} (KUBECONFIG)")
    if chosen not in known:
        raise UserError(
            f"kubernetes.context={chosen or 'null'}: must be one of {', '.join(known)}"
            + ("" if chosen else ", because the kubeconfig names no current one")
        )
    where = f"kubernetes.context={chosen}"
    try:
        config.load_kube_config(path, context=chosen, client_configuration=settings)
    except config.ConfigException as error:
        raise UserError(f"{where}: {_first_line(error)}") from None
    return where, known[chosen].get("namespace")


def name_of(document: Document) -> str:
    """`RayJob/name`."""
    return f"{document['kind']}/{document['metadata']['name']}"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what the client raises into one sentence; `NotFoundError` only where nobody wants it.

    Raises:
        UserError: If the server refuses the request.
        LostError: If it does not answer.
        JobError: If it fails.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if not error.status:
            raise LostError(f"{what}: no TLS connection ({_first_line(error.reason)})") from None
        kind = UserError if error.status < HTTPStatus.TOO_MANY_REQUESTS else JobError
        raise kind(f"{what}: {_words(error)}") from None
    except (HTTPError, OSError) as error:
        raise LostError(f"{what}: the API server does not answer ({_cause(error)})") from None


def _words(error: Any) -> str:
    """What the API server says, or its status code in words."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        message = str(json.loads(error.body)["message"])
        if error.status != HTTPStatus.UNAUTHORIZED:  # Which says only this word.
            return _first_line(message)
    if error.status == HTTPStatus.UNAUTHORIZED:
        return "the API server refuses these credentials: renew them, or choose another context"
    return f"the API server answers {error.status} {error.reason}"


def _first_line(text: object) -> str:
    return (str(text).strip() or "no reason given").splitlines()[0]


def _cause(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    inner = inner if isinstance(inner, BaseException) else error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _cause(inner) if inner is not None else _first_line(error)
