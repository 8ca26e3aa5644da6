"""On which nodes a pod may be: those of its pool, by the labels and taints of the platform.

Source: https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/
"""

from kuberay_deploy.catalog import PoolConfig
from kuberay_deploy.manifests import Document

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def placement(pool: PoolConfig, but_not: PoolConfig | None = None) -> Document:
    """What puts a pod on nodes of the pool, and on no others.

    Args:
        pool: The nodes.
        but_not: Others, which may have the pool's labels, too.

    Returns:
        Fields of a pod's spec: `affinity` and `tolerations`, where there is something to say.
    """
    expressions: list[Document] = []
    for key, value in pool.labels.items():
        if value is None:
            expressions.append({"key": key, "operator": "DoesNotExist"})
        else:
            expressions.append({"key": key, "operator": "In", "values": [value]})
    for key, value in but_not.labels.items() if but_not is not None else ():
        if value is not None and key not in pool.labels:
            expressions.append({"key": key, "operator": "NotIn", "values": [value]})
    found: Document = {}
    if expressions:
        terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
        found["affinity"] = {"nodeAffinity": {REQUIRED: terms}}
    if pool.tolerations:
        found["tolerations"] = [
            {
                "key": toleration.key,
                "operator": "Exists" if toleration.value is None else "Equal",
                **({} if toleration.value is None else {"value": toleration.value}),
                "effect": toleration.effect,
            }
            for toleration in pool.tolerations
        ]
    return found
