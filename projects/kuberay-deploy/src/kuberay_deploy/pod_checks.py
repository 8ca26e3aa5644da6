"""What the API server refuses in a pod, or the pod never starts for, but no schema says.

Source: https://github.com/kubernetes/kubernetes, pkg/apis/core/validation/validation.go, 1.37
"""

import re
from collections.abc import Collection, Iterator
from decimal import Decimal
from typing import Any

from kuberay_deploy.findings import At, Finding, nearest
from kuberay_deploy.labels import ENV_NAME

Pod = dict[str, Any]

POLICIES = ("Always", "OnFailure", "Never")
JOB_POLICIES = ("OnFailure", "Never")
CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
}
# Sources of volumes that are nothing without a name. One without any source is an empty directory.
NAMED_SOURCES = {"persistentVolumeClaim": "claimName", "hostPath": "path"}
HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
HOOKS = ("exec", "httpGet", "tcpSocket", "sleep")
# Which KubeRay adds to Ray's container.
ADDED_PORTS = ("metrics",)
TOLERATION_OPERATORS = ("Exists", "Equal", "Lt", "Gt")
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
SECCOMP = ("RuntimeDefault", "Unconfined", "Localhost")
ACCELERATORS = (
    "nvidia.com/gpu",
    "amd.com/gpu",
    "google.com/tpu",
    "habana.ai/gaudi",
    "aws.amazon.com/neuron",
    "aws.amazon.com/neuroncore",
)
NATIVE = ("cpu", "memory", "ephemeral-storage")
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
QUANTITY = re.compile(rf"({NUMBER})([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE])?")
FACTORS = {letter: f"1e{3 * power}" for power, letter in enumerate("num kMGTPE", start=-3)}


def quantity(text: object) -> Decimal | None:
    """`500m` is 0.5 and `4Gi` 4294967296; None if it is no quantity of Kubernetes."""
    match = QUANTITY.fullmatch(str(text))
    if not match:
        return None
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix.endswith("i"):
        return number * Decimal(1024) ** ("KMGTPE".index(suffix[0]) + 1)
    return number * Decimal(FACTORS.get(suffix, f"1{suffix}"))


def check(pod: Pod, at: At, policies: Collection[str] = POLICIES) -> Iterator[Finding]:
    """Checks a pod spec, which has passed its schema.

    Args:
        pod: The pod spec.
        at: Its place.
        policies: The restart policies that its owner allows.
    """
    policy = pod.get("restartPolicy")
    if policy is not None and policy not in policies:
        yield at("restartPolicy").finding(policy, f"one of {', '.join(policies)}", "restart-policy")
    grace = pod.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        yield at("terminationGracePeriodSeconds").finding(grace, ">= 0", "grace-period")
    yield from _volumes(pod, at)
    yield from _security(pod.get("securityContext", {}), at("securityContext"))
    names: list[str] = []
    for key in ("initContainers", "containers"):
        for i, container in enumerate(pod.get(key, [])):
            place = at(key, i)
            yield from _container(container, pod, place)
            if container["name"] in names:
                allowed = "a name that no other container of the pod has"
                yield place("name").finding(container["name"], allowed, "container-name")
            names.append(container["name"])
    yield from _scheduling(pod, at)


def check_mounts(mounts: list[dict[str, Any]], pod: Pod, at: At) -> Iterator[Finding]:
    """Every mount is of a volume that the pod has."""
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    for i, mount in enumerate(mounts):
        if mount["name"] not in volumes:
            near = nearest(mount["name"], volumes)
            listed = ", ".join(volumes) or "the pod has none"
            allowed = f"'{near}'" if near else f"a volume of the pod: {listed}"
            yield at(i, "name").finding(mount["name"], allowed, "mount")


def _volumes(pod: Pod, at: At) -> Iterator[Finding]:
    for i, volume in enumerate(pod.get("volumes", [])):
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            found = " and ".join(sources)
            yield at("volumes", i).finding(found, "one source", "volume-source")
        for key, name in NAMED_SOURCES.items():
            if key in volume and not volume[key].get(name):
                field = at("volumes", i, key, name)
                yield field.finding(volume[key].get(name), "a name", "volume-source")


def _container(container: Pod, pod: Pod, at: At) -> Iterator[Finding]:
    for key, choices in CHOICES.items():
        if container.get(key, choices[0]) not in choices:
            yield at(key).finding(container[key], f"one of {', '.join(choices)}", "choice")
    if not container.get("image"):
        yield at("image").finding("no image", "an image", "image")
    yield from check_mounts(container.get("volumeMounts", []), pod, at("volumeMounts"))
    yield from _ports(container, at)
    yield from _env(container, at)
    yield from check_resources(container.get("resources", {}), at("resources"))
    context = pod.get("securityContext", {}) | container.get("securityContext", {})
    yield from _security(container.get("securityContext", {}), at("securityContext"))
    if context.get("runAsNonRoot") and context.get("runAsUser") == 0:
        field = at("securityContext", "runAsUser")
        yield field.finding(0, "another user, because of runAsNonRoot", "non-root")
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if key in container:
            yield from _probe(container[key], key, at(key))
            yield from _action(container[key], container, HANDLERS, "probe", at(key))
    for key, hook in container.get("lifecycle", {}).items():
        if key in ("postStart", "preStop"):
            yield from _action(hook, container, HOOKS, "lifecycle", at("lifecycle", key))


def _ports(container: Pod, at: At) -> Iterator[Finding]:
    names: list[str] = []
    for i, port in enumerate(container.get("ports", [])):
        if not 1 <= port["containerPort"] <= 65535:
            field = at("ports", i, "containerPort")
            yield field.finding(port["containerPort"], "1 to 65535", "port")
        name = port.get("name")
        if name is not None and not re.fullmatch(
            r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", name
        ):
            allowed = "at most 15 lower-case letters, digits and '-'"
            yield at("ports", i, "name").finding(name, allowed, "port")
        if name is not None and name in names:
            yield at("ports", i, "name").finding(name, "another name", "port")
        names.append(name)


def _env(container: Pod, at: At) -> Iterator[Finding]:
    for i, variable in enumerate(container.get("env", [])):
        if not ENV_NAME.fullmatch(variable["name"]):
            allowed = "letters, digits and signs, but no '='"
            yield at("env", i, "name").finding(variable["name"], allowed, "environment")
        if variable.get("value") and "valueFrom" in variable:
            allowed = "either value or valueFrom"
            yield at("env", i).finding("both", allowed, "environment")
        sources = list(variable.get("valueFrom", {"value": 1}))
        if len(sources) != 1:
            found = " and ".join(sources) or "nothing"
            yield at("env", i, "valueFrom").finding(found, "one source", "environment")


def check_resources(resources: dict[str, Any], at: At) -> Iterator[Finding]:
    """Names of resources that nodes have, and requests within the limits."""
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for key, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            yield from _resource_name(name, at(key, name))
            value = quantity(amount)
            if value is None or value < 0:
                allowed = "a quantity >= 0, such as 2, 500m or 4Gi"
                yield at(key, name).finding(amount, allowed, "quantity")
            elif "/" in name and value != value.to_integral_value():
                yield at(key, name).finding(amount, "a whole number", "quantity")
    for name in requests:
        least, most = quantity(requests[name]), quantity(limits.get(name))
        field, extended = at("requests", name), "/" in name
        if least is None:
            continue
        if extended and name not in limits:
            yield field.finding(requests[name], "also a limit, and the same", "requests")
        elif most is not None and (least > most or (extended and least != most)):
            sign = "=" if extended else "<="
            allowed = f"{sign} the limit of {limits[name]}"
            yield field.finding(requests[name], allowed, "requests")


def _resource_name(name: str, at: At) -> Iterator[Finding]:
    near = nearest(name, ACCELERATORS, cutoff=0.88)
    if "/" not in name and name not in NATIVE and not name.startswith("hugepages-"):
        # The last part, of which NVIDIA's is meant most often.
        ends = {each.rpartition("/")[2]: each for each in (*ACCELERATORS[::-1], *NATIVE)}
        known = ends.get(nearest(name, ends) or "", "cpu, memory, or one with a domain")
        yield at.finding(name, f"'{known}'", "resource-name")
    elif near and near != name and name not in ACCELERATORS:
        yield at.finding(name, f"'{near}'", "resource-name")


def _security(context: dict[str, Any], at: At) -> Iterator[Finding]:
    profile = context.get("seccompProfile", {}).get("type", SECCOMP[0])
    if profile not in SECCOMP:
        field = at("seccompProfile", "type")
        yield field.finding(profile, f"one of {', '.join(SECCOMP)}", "choice")
    if context.get("privileged") and context.get("allowPrivilegeEscalation") is False:
        field = at("allowPrivilegeEscalation")
        yield field.finding(False, "true with privileged", "choice")


def _probe(probe: dict[str, Any], kind: str, at: At) -> Iterator[Finding]:
    for key in ("periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold"):
        if probe.get(key, 1) < 1:
            yield at(key).finding(probe[key], ">= 1", "probe")
    if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        yield at("successThreshold").finding(probe["successThreshold"], "1", "probe")


def _action(
    handler: dict[str, Any], container: Pod, known: Collection[str], rule: str, at: At
) -> Iterator[Finding]:
    """A probe or a hook does one thing, and at a port that is there."""
    actions = [key for key in known if key in handler]
    if len(actions) != 1:
        found = " and ".join(actions) or "no action"
        yield at.finding(found, f"one of {', '.join(known)}", rule)
    names = [port["name"] for port in container.get("ports", []) if port.get("name")]
    for action in set(actions) & {"httpGet", "tcpSocket"}:
        port, place = handler[action].get("port"), at(action, "port")
        if isinstance(port, int) or str(port).isdecimal():
            if not 1 <= int(port) <= 65535:
                yield place.finding(port, "1 to 65535", rule)
        elif port not in (*names, *ADDED_PORTS):
            yield place.finding(port, f"a port of the container: {', '.join(names)}", rule)


def _scheduling(pod: Pod, at: At) -> Iterator[Finding]:
    for i, toleration in enumerate(pod.get("tolerations", [])):
        place = at("tolerations", i)
        operator = toleration.get("operator", "Equal")
        if operator not in TOLERATION_OPERATORS:
            allowed = f"one of {', '.join(TOLERATION_OPERATORS)}"
            yield place("operator").finding(operator, allowed, "toleration")
        if toleration.get("effect", TAINT_EFFECTS[0]) not in ("", *TAINT_EFFECTS):
            allowed = f"one of {', '.join(TAINT_EFFECTS)}"
            yield place("effect").finding(toleration["effect"], allowed, "toleration")
        if operator == "Exists" and toleration.get("value"):
            allowed = "nothing with operator Exists"
            yield place("value").finding(toleration["value"], allowed, "toleration")
        if not toleration.get("key") and operator != "Exists":
            yield place("key").finding("no key", "a key, or operator Exists", "toleration")
    for i, spread in enumerate(pod.get("topologySpreadConstraints", [])):
        place = at("topologySpreadConstraints", i)
        if spread["whenUnsatisfiable"] not in UNSATISFIABLE:
            field, allowed = place("whenUnsatisfiable"), f"one of {', '.join(UNSATISFIABLE)}"
            yield field.finding(spread["whenUnsatisfiable"], allowed, "topology-spread")
        if spread["maxSkew"] < 1:
            yield place("maxSkew").finding(spread["maxSkew"], ">= 1", "topology-spread")
