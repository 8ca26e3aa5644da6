"""What a container refers to: ConfigMaps, Secrets, fields of its pod, and volumes."""

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_shared.errors import UserError

from rehearsal.quantities import quantity

Document = dict[str, Any]
Objects = dict[tuple[str, str], Document]
"""ConfigMaps and Secrets, by kind and name."""
SOURCES = {"configMap": "ConfigMap", "secret": "Secret"}
KINDS = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}
KINDS |= {"configMapRef": "ConfigMap", "secretRef": "Secret"}
LABEL = "metadata.labels["
HONOURED = ("metadata.name", "metadata.namespace", "status.podIP", "status.hostIP")
"""Fields that a pod is told of itself, besides its labels."""
LOGS = {"/tmp/ray": "ray-logs"}


@dataclass(frozen=True)
class Known:
    """What references can lead to."""

    objects: Objects
    given: dict[str, str]
    """`name/key` to value: in place of what the file does not hold."""
    fields: dict[str, str]
    """Of the pod: `metadata.name` and so on."""

    def keys(self, kind: str, name: str) -> dict[str, bytes] | None:
        """All keys of a ConfigMap or Secret; None: it is not there."""
        found = self.objects.get((kind, name))
        given = {
            reference.removeprefix(f"{name}/"): value.encode()
            for reference, value in self.given.items()
            if reference.startswith(f"{name}/")
        }
        if found is None:
            return given or None
        plain = (found.get("data") or {}) if kind == "ConfigMap" else {}
        plain = plain | (found.get("stringData") or {})
        coded = (found.get("data") or {}) if kind == "Secret" else {}
        coded = coded | (found.get("binaryData") or {})
        keys = {key: base64.b64decode(value) for key, value in coded.items()}
        return keys | {key: str(value).encode() for key, value in plain.items()} | given


def environment(container: Document, known: Known) -> dict[str, str]:
    """The variables that a container asks for.

    Raises:
        UserError: If it refers to what is not there.
    """
    env: dict[str, str] = {}
    for entry in container.get("envFrom") or []:
        (reference,) = (field for field in entry if field in KINDS)
        keys = _keys(known, KINDS[reference], entry[reference])
        prefix = entry.get("prefix", "")
        env |= {f"{prefix}{key}": value.decode() for key, value in keys.items()}
    for entry in container.get("env") or []:
        value = _value(entry, container, known)
        env |= {entry["name"]: value} if value is not None else {}
    return env


def _keys(known: Known, kind: str, reference: Document) -> dict[str, bytes]:
    keys = known.keys(kind, reference["name"])
    if keys is None and not reference.get("optional"):
        name = reference["name"]
        raise UserError(f"{kind} {name}: not in the manifest: must be given as a secret {name}/KEY")
    return keys or {}


def _value(entry: Document, container: Document, known: Known) -> str | None:
    source = entry.get("valueFrom") or {}
    if "fieldRef" in source:
        return known.fields.get(source["fieldRef"]["fieldPath"], "")
    if "resourceFieldRef" in source:
        return _resource(source["resourceFieldRef"], container)
    for field, kind in KINDS.items():
        if field in source:
            name, key = source[field]["name"], source[field]["key"]
            value = (known.keys(kind, name) or {}).get(key)
            if value is None and not source[field].get("optional"):
                missing = "not in the manifest: must be given as a secret"
                raise UserError(f"{kind} {name}/{key}: {missing}")
            return None if value is None else value.decode()
    return str(entry.get("value", ""))


def _resource(reference: Document, container: Document) -> str:
    where, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    amount = (resources.get(where) or {}).get(name)
    if amount is None:
        raise UserError(f"resourceFieldRef {reference['resource']}: the container has none")
    divisor = quantity(reference.get("divisor", 1)) or 1
    return str(math.ceil(quantity(amount) / divisor))


def volumes(spec: Document, container: Document) -> dict[str, str]:
    """Path in the pod to what is mounted there.

    Returns:
        `claim/NAME` for what pods share, else the name of a volume of this pod's own; then the path
        inside of it, if only that is mounted.
    """
    found = dict(LOGS)
    for mount in container.get("volumeMounts") or []:
        volume = _volume(spec, mount["name"])
        claim = volume.get("persistentVolumeClaim")
        name = f"claim/{claim['claimName']}" if claim else mount["name"]
        inside = mount.get("subPath", "")
        found[mount["mountPath"]] = f"{name}/{inside}" if inside else name
    found.pop("/dev/shm", None)
    return found


def files(spec: Document, container: Document, known: Known) -> dict[str, dict[str, bytes]]:
    """Volume to the path and content of each file in it, of ConfigMaps and Secrets.

    Raises:
        UserError: If one of them is not there.
    """
    found: dict[str, dict[str, bytes]] = {}
    for mount in container.get("volumeMounts") or []:
        volume = _volume(spec, mount["name"])
        for field, kind in SOURCES.items():
            if field not in volume:
                continue
            source = volume[field]
            name = source.get("name", source.get("secretName"))
            keys = _keys(known, kind, source | {"name": name})
            items = source.get("items") or [{"key": key, "path": key} for key in keys]
            missing = [item["key"] for item in items if item["key"] not in keys]
            if missing and not source.get("optional"):
                raise UserError(f"{kind} {name}/{missing[0]}: not in the manifest")
            found[mount["name"]] = {
                item["path"]: keys[item["key"]] for item in items if item["key"] in keys
            }
    return found


def _volume(spec: Document, name: str) -> Document:
    for volume in spec.get("volumes") or []:
        if volume["name"] == name:
            return dict(volume)
    raise UserError(f"volumeMounts: {name}: must be one of the pod's volumes")


def not_honoured(cluster: Document) -> list[str]:
    """What of the pods is not as on Kubernetes, besides what is never so; in words."""
    changes: list[str] = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        name = group.get("groupName", "head")
        changes += [f"{name}.{change}" for change in _not_honoured(group["template"]["spec"])]
    return changes


def _not_honoured(spec: Document) -> Iterator[str]:
    container = spec["containers"][0]
    for each in spec.get("initContainers") or []:
        yield f"initContainers.{each['name']}: does not run"
    for each in spec["containers"][1:]:
        yield f"containers.{each['name']}: does not run"
    if "startupProbe" in container:
        yield "startupProbe: not asked"
    for hook, action in (container.get("lifecycle") or {}).items():
        if hook != "preStop" or "exec" not in action:
            yield f"lifecycle.{hook}: not done"
    mounted = {mount["name"] for mount in container.get("volumeMounts") or []}
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name", "emptyDir", "persistentVolumeClaim", *SOURCES}
        if kinds and volume["name"] in mounted:
            yield f"volumes.{volume['name']}: an empty directory in place of {min(kinds)}"
    for entry in container.get("env") or []:
        path = ((entry.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath", "")
        if path and path not in HONOURED and not path.startswith(LABEL):
            yield f"env.{entry['name']}: empty in place of {path}"
