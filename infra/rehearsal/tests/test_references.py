import pytest
from ray_shared.errors import UserError
from rehearsal.references import Known, environment, files, volumes

OBJECTS = {
    ("ConfigMap", "settings"): {"data": {"a": "1", "b": "2"}, "binaryData": {"c": "dw=="}},
    ("Secret", "keys"): {"data": {"k": "dw=="}, "stringData": {"s": "plain"}},
}
KNOWN = Known(OBJECTS, {"other/key": "given"}, {"status.podIP": "10.77.1.1"})


def mounted(**source):
    spec = {"volumes": [{"name": "v", **source}]}
    return spec, {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}


def test_all_keys_become_variables_with_a_prefix():
    container = {"envFrom": [{"secretRef": {"name": "keys"}, "prefix": "P_"}]}
    container["envFrom"].append({"configMapRef": {"name": "nowhere", "optional": True}})
    assert environment(container, KNOWN) == {"P_k": "w", "P_s": "plain"}
    container["envFrom"][1]["configMapRef"]["optional"] = False
    with pytest.raises(UserError, match="ConfigMap nowhere: not in the manifest: must be given"):
        environment(container, KNOWN)


def test_resources_and_fields_become_variables():
    def entry(name, **source):
        return {"name": name, "valueFrom": source}

    container = {
        "resources": {"limits": {"cpu": "1500m", "memory": "2Gi"}},
        "env": [
            entry("CPUS", resourceFieldRef={"resource": "limits.cpu"}),
            entry("MIB", resourceFieldRef={"resource": "limits.memory", "divisor": "1Mi"}),
            entry("IP", fieldRef={"fieldPath": "status.podIP"}),
        ],
    }
    assert environment(container, KNOWN) == {"CPUS": "2", "MIB": "2048", "IP": "10.77.1.1"}
    container["env"] = [entry("X", resourceFieldRef={"resource": "requests.cpu"})]
    with pytest.raises(UserError, match="resourceFieldRef requests.cpu: the container has none"):
        environment(container, KNOWN)


def test_volume_holds_the_keys_of_its_source():
    spec, container = mounted(configMap={"name": "settings"})
    assert files(spec, container, KNOWN) == {"v": {"a": b"1", "b": b"2", "c": b"w"}}
    spec, container = mounted(secret={"secretName": "other"})
    assert files(spec, container, KNOWN) == {"v": {"key": b"given"}}
    spec, container = mounted(secret={"secretName": "keys", "items": [{"key": "k", "path": "x/y"}]})
    assert files(spec, container, KNOWN) == {"v": {"x/y": b"w"}}


def test_volume_of_what_is_not_there_is_refused():
    spec, container = mounted(secret={"secretName": "nowhere"})
    with pytest.raises(UserError, match="Secret nowhere: not in the manifest"):
        files(spec, container, KNOWN)
    spec, container = mounted(configMap={"name": "settings", "items": [{"key": "z", "path": "z"}]})
    with pytest.raises(UserError, match="ConfigMap settings/z: not in the manifest"):
        files(spec, container, KNOWN)
    with pytest.raises(UserError, match="volumeMounts: v: must be one of the pod's volumes"):
        volumes({}, container)


def test_part_of_a_volume_is_mounted_alone():
    spec, container = mounted(persistentVolumeClaim={"claimName": "runs"})
    container["volumeMounts"].append({"name": "v", "mountPath": "/w", "subPath": "a/b"})
    assert volumes(spec, container) == {
        "/tmp/ray": "ray-logs",
        "/v": "claim/runs",
        "/w": "claim/runs/a/b",
    }
