"""Load while something else happens, counted."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ray_shared.config import compose
from ray_shared.testing import wait_for
from serve_fastapi import load_test
from serve_fastapi.config import Config


class Load:
    """Requests from some clients at a time, in a thread, until it is stopped."""

    def __init__(self, address: str, *overrides: str):
        self.counts: dict[str, Any] = {}
        self._config = compose(Config, "serve_fastapi.conf", ["load.duration_s=600", *overrides])
        self._load = load_test.Load(self._config, address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.counts = asyncio.run(self._load.run())

    @property
    def num_answers(self) -> int:
        """Answers so far."""
        return len(self._load.latencies_s)

    def wait_for_answers(self, number: int) -> None:
        """Waits until so many more requests were answered."""
        goal = self.num_answers + number
        self.wait_until(lambda: self.num_answers >= goal)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Waits, under load."""
        wait_for(condition, "such state under load", 60)

    def stop(self) -> None:
        """Ends the load; `counts` holds what was seen."""
        self._load.stop()
        self._thread.join()


@contextlib.contextmanager
def under_load(address: str, concurrency: int, retries: int, *overrides: str) -> Iterator[Load]:
    """Load for the length of a block; its counts stand in `counts` afterwards."""
    mine = [f"load.concurrency={concurrency}", f"load.retries={retries}", *overrides]
    load = Load(address, *mine)
    try:
        yield load
    finally:
        load.stop()
