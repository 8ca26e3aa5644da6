"""How the workers find each other.

Ray Train's own `TensorflowConfig` does the same, but whoever unpickles it imports TensorFlow: the
controller, which never uses it, and each worker, before `backend` can keep it quiet. It also sets
`TF_USE_LEGACY_KERAS=1`, which nothing here wants.
"""

import json
import os
from dataclasses import dataclass

import ray
from ray._common.network_utils import build_address
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework


@dataclass
class GroupConfig(BackendConfig):
    """Gives each worker its `TF_CONFIG`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train starts."""
        return _GroupBackend

    @property
    def framework(self) -> TrainingFramework:
        """For Ray's dashboard."""
        return TrainingFramework.TENSORFLOW


class _GroupBackend(Backend):
    def on_start(
        self,
        worker_group: BaseWorkerGroup,
        backend_config: BackendConfig,  # noqa: ARG002 - Ray's signature
    ) -> None:
        """Called by the controller when all workers have started."""
        addresses = worker_group.execute(free_address)
        ray.get(
            [
                worker_group.execute_single_async(rank, tell, addresses, rank)
                for rank in range(len(worker_group))
            ]
        )


def free_address() -> str:
    """Host and port on which this worker can listen."""
    host, port = get_address_and_port()
    return build_address(host, port)


def tell(addresses: list[str], rank: int) -> None:
    """Sets `TF_CONFIG` in the worker of this rank."""
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
