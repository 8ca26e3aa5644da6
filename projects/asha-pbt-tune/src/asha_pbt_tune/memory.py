"""What Ray Tune 2.60 does not survive: a trial that Ray's memory monitor kills.

Tune knows the errors of actors and of tasks. That of the memory monitor is neither, so Tune takes
it for a bug of its own and gives up the whole study.
"""

from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

_actor_task_failed = RayActorManager._actor_task_failed


def _task_failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
    if isinstance(exception, OutOfMemoryError):
        exception = RayActorError(error_msg=str(exception))
    _actor_task_failed(self, tracked_actor_task, exception)


def trials_die_alone() -> None:
    """Lets Tune see such a kill as what it is for a study: an actor that has died."""
    RayActorManager._actor_task_failed = _task_failed  # type: ignore[method-assign]
