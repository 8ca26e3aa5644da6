"""The part of Kubernetes' API that Ray's autoscaler talks to, over HTTPS with client certificates.

Source: ray/autoscaler/_private/kuberay/node_provider.py (Ray 2.60.0)
"""

import contextlib
import itertools
import json
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

Document = dict[str, Any]
PORT = 6443
SERVED = ("kubernetes.default", "kubernetes.default.svc")


class PatchError(ValueError):
    """A patch that does not fit its document."""


class Store:
    """The objects of the cluster. Whoever touches them holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clusters: dict[str, Document] = {}
        """RayClusters by name."""
        self.list_pods: Callable[[], list[Document]] = list
        self.on_patch: Callable[[str, Any], None] = lambda _name, _patch: None
        """Called with the cluster's name and the patch, before it is applied."""
        self._version = 0
        self._numbers = itertools.count()

    def next_number(self) -> int:
        """Of the next pod, in all clusters."""
        with self.lock:
            return next(self._numbers)

    def next_version(self) -> str:
        """A resource version larger than all before."""
        with self.lock:
            self._version += 1
            return str(self._version)


def apply_json_patch(document: Document, patch: list[Document]) -> None:
    """Applies a JSON patch (RFC 6902) in place: the operations add, replace, remove and test.

    Raises:
        PatchError: If a path does not exist, or a test fails.
    """
    for operation in patch:
        *path, last = (part.replace("~1", "/").replace("~0", "~") for part in _parts(operation))
        place: Any = document
        for part in path:
            place = _step(place, part)
        verb, value = operation["op"], operation.get("value")
        if verb == "test":
            if _step(place, last) != value:
                raise PatchError(f"test of {operation['path']} failed")
        elif verb == "add" and isinstance(place, list):
            place.insert(len(place) if last == "-" else int(last), value)
        elif verb in ("replace", "remove"):
            _step(place, last)
            key = int(last) if isinstance(place, list) else last
            if verb == "remove":
                del place[key]
            else:
                place[key] = value
        elif verb == "add":
            place[last] = value
        else:
            raise PatchError(f"no such operation: {verb}")


def _parts(operation: Document) -> list[str]:
    return str(operation["path"]).split("/")[1:]


def _step(place: Any, part: str) -> Any:
    try:
        return place[int(part)] if isinstance(place, list) else place[part]
    except (KeyError, IndexError, ValueError, TypeError):
        raise PatchError(f"doc is missing key: {part}") from None


def apply_merge_patch(document: Document, patch: Document) -> None:
    """Applies a JSON merge patch (RFC 7396) in place."""
    for key, value in patch.items():
        if value is None:
            document.pop(key, None)
        elif isinstance(value, dict) and isinstance(document.get(key), dict):
            apply_merge_patch(document[key], value)
        else:
            document[key] = value


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    store: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A RayCluster, a pod, or pods by label."""
        with self.store.lock:
            content = self._found()
        self._answer(content)

    def _found(self) -> Document | None:
        url = urlsplit(self.path)
        match url.path.strip("/").split("/"):
            case ["apis", "ray.io", "v1", "namespaces", _, "rayclusters", name]:
                return self.store.clusters.get(name)
            case ["api", "v1", "namespaces", _, "pods"]:
                selector = parse_qs(url.query).get("labelSelector", [""])[0]
                key, _, value = selector.partition("=")
                pods = self.store.list_pods()
                if key:
                    pods = [p for p in pods if p["metadata"]["labels"].get(key) == value]
                version = {"resourceVersion": self.store.next_version()}
                return {"kind": "PodList", "metadata": version, "items": pods}
            case ["api", "v1", "namespaces", _, "pods", name]:
                pods = self.store.list_pods()
                return next((p for p in pods if p["metadata"]["name"] == name), None)
        return None

    def do_PATCH(self) -> None:
        """Changes a RayCluster."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.path.strip("/").split("/"):
            case ["apis", "ray.io", "v1", "namespaces", _, "rayclusters", name]:
                try:
                    with self.store.lock:
                        content = self._patched(name, body)
                    self._answer(content)
                except PatchError as error:
                    self._answer({"message": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
            case _:
                self._answer(None)

    def _patched(self, name: str, body: Any) -> Document | None:
        cluster = self.store.clusters.get(name)
        if cluster is None:
            return None
        self.store.on_patch(name, body)
        changed: Document = json.loads(json.dumps(cluster))
        if isinstance(body, list):
            apply_json_patch(changed, body)
        else:
            apply_merge_patch(changed, body)
        changed["metadata"]["resourceVersion"] = self.store.next_version()
        self.store.clusters[name] = changed
        return changed

    def _answer(self, content: Document | None, status: HTTPStatus = HTTPStatus.OK) -> None:
        if content is None:
            content, status = {"kind": "Status", "message": "not found"}, HTTPStatus.NOT_FOUND
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: each loop of the autoscaler makes several requests."""


class Server(ThreadingHTTPServer):
    """HTTPS on one address; whoever has no certificate of its authority is turned away."""

    daemon_threads = True

    def __init__(self, store: Store, host: str, directory: Path, port: int = PORT):
        """Makes a certificate authority, and files for one client in `directory`."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host, *SERVED).configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        client = authority.issue_cert("autoscaler.rehearsal.invalid")
        self.files = {
            "RAY_KUBERAY_CA_CERT_PATH": directory / "ca.pem",
            "RAY_KUBERAY_CLIENT_CERT_PATH": directory / "client.pem",
            "RAY_KUBERAY_CLIENT_KEY_PATH": directory / "client.key",
        }
        """The variables by which Ray's autoscaler is told, to what they name."""
        self.directory = directory
        """Where these files lie."""
        authority.cert_pem.write_to_path(self.files["RAY_KUBERAY_CA_CERT_PATH"])
        chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        self.files["RAY_KUBERAY_CLIENT_CERT_PATH"].write_bytes(chain)
        key = self.files["RAY_KUBERAY_CLIENT_KEY_PATH"]
        key.touch(mode=0o600)
        client.private_key_pem.write_to_path(key)
        self._context = context
        super().__init__((host, port), type("BoundHandler", (Handler,), {"store": store}))

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the request's own thread: the handshake of one client cannot hold up the others."""
        with contextlib.suppress(OSError):  # Among them ssl.SSLError: no certificate of ours.
            request.settimeout(60)
            with self._context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)

    def serve_in_background(self) -> None:
        """Returns at once."""
        threading.Thread(target=self.serve_forever, name="api", daemon=True).start()
