"""The endpoint, asked by the client that Ray's autoscaler uses."""

import json
import ssl
import urllib.request

import pytest
from ray.autoscaler._private.kuberay import node_provider
from rehearsal.api import PatchError, Server, Store, apply_json_patch, apply_merge_patch

from .manifests import cluster


@pytest.fixture
def store():
    store = Store()
    store.clusters["mine"] = {
        "metadata": {"name": "mine", "namespace": "ray", "resourceVersion": "1"},
        "spec": cluster(),
    }
    store.clusters["mine"]["spec"]["workerGroupSpecs"][0]["scaleStrategy"] = {}
    labels = {"ray.io/cluster": "mine", "ray.io/node-type": "head", "ray.io/group": "headgroup"}
    pods = [{"metadata": {"name": "head", "labels": labels, "resourceVersion": "7"}, "status": {}}]
    pods.append({"metadata": {"name": "other", "labels": {"ray.io/cluster": "theirs"}}})
    store.list_pods = lambda: pods
    return store


@pytest.fixture
def server(store, tmp_path):
    server = Server(store, "127.0.0.1", tmp_path, port=0)
    server.serve_in_background()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(server, monkeypatch):
    values = {name: str(path) for name, path in server.files.items()}
    for name, value in values.items():
        monkeypatch.setattr(node_provider, name.removeprefix("RAY_"), value)
    host = f"https://127.0.0.1:{server.server_port}"
    real = node_provider.url_from_resource
    monkeypatch.setattr(
        node_provider, "url_from_resource", lambda **given: real(**given, kubernetes_host=host)
    )
    return node_provider.KubernetesHttpApiClient("ray")


def test_rays_own_client_reads_and_scales_the_cluster(client, store):
    patches = []
    store.on_patch = lambda name, patch: patches.append((name, len(patch)))
    assert client.get("rayclusters/mine")["spec"]["rayVersion"] == "2.60.0"
    assert client.get("pods/head")["metadata"]["resourceVersion"] == "7"
    found = client.get("pods?labelSelector=ray.io%2Fcluster%3Dmine&resourceVersion=7")
    assert [pod["metadata"]["name"] for pod in found["items"]] == ["head"]
    patch = [node_provider.worker_replica_patch(0, 3), node_provider.worker_delete_patch(0, ["w"])]
    client.patch("rayclusters/mine", patch)
    (group,) = store.clusters["mine"]["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["scaleStrategy"]) == (3, {"workersToDelete": ["w"]})
    assert patches == [("mine", 2)]
    assert int(store.clusters["mine"]["metadata"]["resourceVersion"]) >= 1


def test_what_is_not_there_is_404_and_a_patch_that_does_not_fit_422(client):
    with pytest.raises(node_provider.requests.HTTPError, match="404"):
        client.get("rayclusters/theirs")
    with pytest.raises(node_provider.requests.HTTPError, match="422"):
        client.patch("rayclusters/mine", [{"op": "replace", "path": "/spec/no", "value": 1}])


def test_client_without_certificate_is_turned_away(server):
    context = ssl.create_default_context(cafile=server.files["RAY_KUBERAY_CA_CERT_PATH"])
    url = f"https://127.0.0.1:{server.server_port}/api/v1/namespaces/ray/pods"
    with pytest.raises(OSError, match="certificate required|reset|EOF"):
        urllib.request.urlopen(url, context=context, timeout=10)
    context.load_cert_chain(
        server.files["RAY_KUBERAY_CLIENT_CERT_PATH"], server.files["RAY_KUBERAY_CLIENT_KEY_PATH"]
    )
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert len(json.load(answer)["items"]) == 2


def test_json_patch_adds_removes_tests():
    document = {"a": [1], "b~/": {}}
    operations = [
        {"op": "test", "path": "/a/0", "value": 1},
        {"op": "add", "path": "/a/-", "value": 2},
        {"op": "add", "path": "/b~0~1/c", "value": 3},
        {"op": "remove", "path": "/a/0"},
    ]
    apply_json_patch(document, operations)
    assert document == {"a": [2], "b~/": {"c": 3}}
    for wrong in ({"op": "test", "path": "/a/0", "value": 9}, {"op": "remove", "path": "/x"}):
        with pytest.raises(PatchError):
            apply_json_patch(document, [wrong])


def test_merge_patch_merges_and_deletes():
    document = {"spec": {"a": 1, "b": 2}}
    apply_merge_patch(document, {"spec": {"a": None, "c": {"d": 1}}})
    assert document == {"spec": {"b": 2, "c": {"d": 1}}}
