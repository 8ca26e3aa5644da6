"""A small Kubernetes API server: HTTPS, a token, discovery, server-side apply, status and logs."""

import contextlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from kuberay_deploy import api_server, kubernetes
from kuberay_deploy.api_server import Api

TOKEN = "token-of-a-user"
KINDS = {
    "api/v1": {
        "Namespace": "namespaces",
        "Secret": "secrets",
        "ConfigMap": "configmaps",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
    },
    "apis/ray.io/v1": {
        "RayJob": "rayjobs",
        "RayService": "rayservices",
        "RayCluster": "rayclusters",
        "RayCronJob": "raycronjobs",
    },
    "apis/networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "apis/policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "apis/apiextensions.k8s.io/v1": {"CustomResourceDefinition": "customresourcedefinitions"},
}
OBJECT = re.compile(
    rf"/(?P<group>{'|'.join(map(re.escape, KINDS))})(/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(/(?P<name>[^/]+)(?P<log>/log)?)?"
)


class FakeApi:
    """What the server holds, and how it is told to misbehave."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {
            ("namespaces", "", "default"): {"metadata": {"name": "default"}}
        }
        """By plural, namespace and name."""
        self.logs: dict[str, str] = {}
        """By pod."""
        self.refused: dict[str, tuple[int, str]] = {}
        """Name of an object to status code and message: whatever is asked about it."""
        self.refused_for_good: dict[str, tuple[int, str]] = {}
        """The same, but only when it is not a dry run."""
        self.interrupted: set[str] = set()
        """Names of objects that are applied without an answer."""
        self.without: set[str] = set()
        """Groups that are not there."""
        self.calls: list[str] = []
        """`PATCH rayjobs/name dry`, and so on: whatever changes or would change something."""
        self.num_lost = 0
        """So many requests get no answer."""
        self.is_other = False
        """Whether it is no API server at all."""
        self.address = ""
        self.kubeconfig = Path()

    def put(self, plural: str, name: str, content: dict[str, Any]) -> None:
        """Puts an object into the namespace `default`."""
        described = {"name": name, "namespace": "default"} | content.pop("metadata", {})
        kind = {plurals[kind]: kind for plurals in KINDS.values() for kind in plurals}[plural]
        self.objects[plural, "default", name] = {"kind": kind, **content, "metadata": described}

    def status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        """Does what the operator does."""
        self.objects[plural, "default", name]["status"] = status

    def names(self) -> set[str]:
        """Everything but the namespace that was there from the start."""
        return {f"{plural}/{name}" for plural, _, name in self.objects} - {"namespaces/default"}


class Handler(BaseHTTPRequestHandler):
    fake: FakeApi

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, code: int, content: dict[str, Any] | str) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(code)
        kind = "text/plain" if isinstance(content, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code: int, message: str) -> None:
        self.answer(code, {"kind": "Status", "code": code, "message": message})

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null")
        url = urlsplit(self.path)
        path, query = url.path.rstrip("/"), {k: v[0] for k, v in parse_qs(url.query).items()}
        if self.fake.num_lost > 0:
            self.fake.num_lost -= 1
            self.close_connection = True
        elif self.fake.is_other:
            self.answer(200, "<html>Welcome</html>")
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif path == "/version":
            self.answer(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
        elif path == "/apis":
            names = [path.split("/")[1] for path in KINDS if path.startswith("apis/")]
            groups = [group(name) for name in names if name not in self.fake.without]
            self.answer(200, {"kind": "APIGroupList", "groups": groups})
        elif path[1:] in KINDS:
            resources = [resource(*each) for each in KINDS[path[1:]].items()]
            self.answer(200, {"kind": "APIResourceList", "resources": resources})
        elif match := OBJECT.fullmatch(path):
            self.handle_object(match.groupdict(), query, body)
        else:
            self.refuse(404, "the server could not find the requested resource")

    do_GET = do_PATCH = do_DELETE = handle_any  # noqa: N815 - as the base class calls them

    def handle_object(self, at: dict[str, str], query: dict[str, str], body: Any) -> None:
        plural, namespace, name = at["plural"], at["namespace"] or "", at["name"] or ""
        fake, key, dry = self.fake, (plural, namespace, name), query.get("dryRun") == "All"
        if self.command != "GET":
            fake.calls.append(f"{self.command} {plural}/{name}{' dry' if dry else ''}")
        refused = fake.refused.get(name)
        if self.command == "PATCH" and not dry:
            refused = refused or fake.refused_for_good.get(name)
        if refused:
            self.refuse(*refused)
        elif at["log"]:
            containers = [each["name"] for each in fake.objects[key]["spec"]["containers"]]
            if len(containers) > 1 and query.get("container") not in containers:
                self.refuse(400, f"a container name must be specified for pod {name}")
            else:
                self.answer(200, fake.logs[name])
        elif not name:
            wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
            found = [v for (p, ns, _), v in fake.objects.items() if (p, ns) == (plural, namespace)]
            match = [v for v in found if wanted.items() <= v["metadata"].get("labels", {}).items()]
            self.answer(200, {"apiVersion": "v1", "kind": "PodList", "items": match})
        elif self.command == "PATCH":
            self.apply(key, query, body, dry)
        elif key not in fake.objects:
            self.refuse(404, f'{plural} "{name}" not found')
        elif self.command == "DELETE":
            self.answer(200, fake.objects.pop(key))
        else:
            self.answer(200, fake.objects[key])

    def apply(self, key: tuple[str, str, str], query: dict[str, str], body: Any, dry: bool) -> None:
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        assert query["fieldManager"] == "kuberay-deploy"
        before = self.fake.objects.get(key)
        if key[1] and ("namespaces", "", key[1]) not in self.fake.objects:
            self.refuse(404, f'namespaces "{key[1]}" not found')
            return
        after = dict(before or {}) | body
        generation = (before or {"metadata": {}})["metadata"].get("generation", 0) + 1
        after["metadata"] = body["metadata"] | {"generation": generation}
        if not dry:
            self.fake.objects[key] = after
            if key[2] in self.fake.interrupted:
                raise ConnectionAbortedError
        self.answer(200 if before else 201, after)


def group(name: str) -> dict[str, Any]:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def resource(kind: str, plural: str) -> dict[str, Any]:
    verbs = ["get", "list", "patch", "delete"]
    namespaced = kind != "Namespace"
    return {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": verbs}


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[FakeApi]:
    """A running server, with a kubeconfig for it in the directory."""
    fake = FakeApi()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (directory / "ca.pem").write_bytes(authority.cert_pem.bytes())
    handler = type("OneHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    fake.address = f"https://127.0.0.1:{server.server_port}"
    fake.kubeconfig = directory / "kubeconfig"
    write_kubeconfig(fake, "test")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(fake: FakeApi, current: str, token: str = TOKEN, address: str = "") -> None:
    """One context `test`; which one is the current one may be left open."""
    where = {
        "server": address or fake.address,
        "certificate-authority": str(fake.kubeconfig.with_name("ca.pem")),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": current,
        "clusters": [{"name": "test", "cluster": where}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    fake.kubeconfig.write_text(json.dumps(content))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kubernetes, "POLL_S", 0.02)
    with serve(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


@pytest.fixture
def api(fake: FakeApi) -> Api:
    return api_server.connect()
