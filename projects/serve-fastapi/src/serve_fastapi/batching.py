"""Requests that come while the model is busy go into the next batch together. Nothing of Ray.

Serve's own `serve.batch` closes a batch as soon as it is due, and then lets it wait for its turn:
without a delay its batches are small however long the model is busy, and a delay makes every
request wait. Here a batch is closed when its turn has come: alone, a request goes on at once.
"""

import asyncio
import contextvars
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[str, list[Any]], Awaitable[list[Any]]]
"""Takes a key and rows, returns an answer for each row."""


class BusyError(Exception):
    """There is more to do than can be done; to be asked again later."""


@dataclass(eq=False)
class Pending:
    """The rows of one request, and who waits for the answers."""

    rows: Sequence[Any]
    answers: "asyncio.Future[list[Any]]"


@dataclass
class Queue:
    """What waits for one key, and what is under way."""

    waiting: deque[Pending] = field(default_factory=deque)
    running: dict["asyncio.Task[None]", list[Pending]] = field(default_factory=dict)


class Batcher:
    """Calls `run` with the rows of many requests, and gives each its own answers."""

    def __init__(self, run: Run, max_rows: int, max_concurrent: int, max_pending: int):
        """Makes an idle one.

        Args:
            run: What answers a batch.
            max_rows: The most rows of a batch; a request with more of them is a batch of its own.
            max_concurrent: Batches under way at the same time for each key.
            max_pending: The most requests without an answer.
        """
        self.run, self.max_rows, self.max_concurrent = run, max_rows, max_concurrent
        self.max_pending, self.num_pending = max_pending, 0
        self.queues: dict[str, Queue] = defaultdict(Queue)

    async def __call__(self, key: str, rows: Sequence[Any]) -> list[Any]:
        """Answers for some rows, in their order.

        Who is cancelled while waiting leaves the queue; once nobody waits for a batch under way any
        more, it is cancelled too.

        Raises:
            BusyError: If there are too many requests already.
        """
        if self.is_busy():
            raise BusyError
        loop = asyncio.get_running_loop()
        queue, pending = self.queues[key], Pending(rows, loop.create_future())
        queue.waiting.append(pending)
        # Not at once: others may come in the same turn of the loop.
        loop.call_soon(self._start, key)
        self.num_pending += 1
        try:
            return await pending.answers
        finally:
            self.num_pending -= 1
            if pending.answers.cancelled():
                for task, batch in queue.running.items():
                    if all(other.answers.cancelled() for other in batch):
                        task.cancel()

    def is_busy(self) -> bool:
        """Whether one request more would be refused."""
        return self.num_pending >= self.max_pending

    @property
    def num_waiting(self) -> int:
        """Requests that are in no batch yet."""
        return sum(len(queue.waiting) for queue in self.queues.values())

    def _start(self, key: str) -> None:
        queue = self.queues[key]
        while queue.waiting and len(queue.running) < self.max_concurrent:
            batch: list[Pending] = []
            num_rows = 0
            while queue.waiting:
                pending = queue.waiting[0]
                if batch and num_rows + len(pending.rows) > self.max_rows:
                    break
                queue.waiting.popleft()
                if not pending.answers.cancelled():
                    batch.append(pending)
                    num_rows += len(pending.rows)
            if batch:
                # In a context of its own: Ray Serve would take the batch for a part of the request
                # in whose context it starts, and cancel it with that one.
                task = asyncio.get_running_loop().create_task(
                    self._answer(key, batch), context=contextvars.Context()
                )
                queue.running[task] = batch
                task.add_done_callback(lambda done: self._ended(key, done))

    async def _answer(self, key: str, batch: list[Pending]) -> None:
        try:
            answers = await self.run(key, [row for pending in batch for row in pending.rows])
        except BaseException as error:
            # Each of them is told, whatever it was; of a batch that was cancelled from elsewhere,
            # too, since they would wait for ever.
            cancelled = isinstance(error, asyncio.CancelledError)
            for pending in batch:
                if not pending.answers.done():
                    pending.answers.set_exception(BusyError() if cancelled else error)
            if cancelled:
                raise
            return
        start = 0
        for pending in batch:
            end = start + len(pending.rows)
            if not pending.answers.done():
                pending.answers.set_result(answers[start:end])
            start = end

    def _ended(self, key: str, task: "asyncio.Task[None]") -> None:
        del self.queues[key].running[task]
        self._start(key)
