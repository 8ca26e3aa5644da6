"""The syntax of names, labels and addresses in Kubernetes.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/ (names, labels)
"""

import ipaddress
import re

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = re.compile(rf"(?=.{{1,253}}$){LABEL_PART}(\.{LABEL_PART})*")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")

ENV_NAME = re.compile(r"[ -<>-~]+")
"""Of a container's variable, since Kubernetes 1.34: what can be printed, but no '='."""


def is_label_key(key: str) -> bool:
    """`app`, or with a domain in front: `app.kubernetes.io/name`."""
    prefix, slash, name = key.rpartition("/")
    good_prefix = SUBDOMAIN.fullmatch(prefix) if slash else True
    return bool(name and LABEL_VALUE.fullmatch(name) and good_prefix)


def is_cidr(value: str) -> bool:
    """Whether it is a range of addresses as Kubernetes takes it: `10.0.0.0/8`."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return "/" in value
