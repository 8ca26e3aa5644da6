"""What comes together is answered together, and nobody's answer goes to another."""

import asyncio
import contextvars
from typing import Any

import pytest
from serve_fastapi.batching import Batcher, BusyError


class Model:
    """Doubles numbers, one batch after the other; holds them back until told to go on."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Any]]] = []
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, key: str, rows: list[Any]) -> list[Any]:
        self.batches.append((key, rows))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in rows:
            raise ValueError("bad")
        return [2 * row for row in rows]


def test_first_goes_at_once_and_the_rest_together():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=8, max_concurrent=1, max_pending=9)
        first = asyncio.create_task(batcher("a", [1]))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher("a", [i, i + 100])) for i in range(2, 7)]
        await asyncio.sleep(0.01)
        assert model.batches == [("a", [1])]
        assert batcher.num_waiting == 5
        model.go.set()
        assert await first == [2]
        assert await asyncio.gather(*rest) == [[2 * i, 2 * i + 200] for i in range(2, 7)]
        assert [len(rows) for _, rows in model.batches] == [1, 8, 2]

    asyncio.run(scenario())


def test_keys_do_not_mix_and_do_not_wait_for_each_other():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=8, max_concurrent=1, max_pending=9)
        tasks = [asyncio.create_task(batcher(key, [1])) for key in "abab"]
        await asyncio.sleep(0.01)
        assert sorted(model.batches) == [("a", [1, 1]), ("b", [1, 1])]
        model.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_request_that_is_longer_than_a_batch_is_one_of_its_own():
    async def scenario() -> None:
        model = Model()
        model.go.set()
        batcher = Batcher(model, max_rows=3, max_concurrent=1, max_pending=9)
        long, short = await asyncio.gather(batcher("a", range(5)), batcher("a", [9]))
        assert (long, short) == ([0, 2, 4, 6, 8], [18])
        assert [len(rows) for _, rows in model.batches] == [5, 1]

    asyncio.run(scenario())


def test_cancelled_request_leaves_the_queue_and_the_last_one_takes_the_batch_along():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=8, max_concurrent=1, max_pending=9)
        running = [asyncio.create_task(batcher("a", [i])) for i in (1, 2)]
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(batcher("a", [i])) for i in (3, 4)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        running[0].cancel()
        await asyncio.sleep(0.01)
        assert model.cancelled == 0  # Another one still waits for this batch.
        running[1].cancel()
        await asyncio.sleep(0.01)
        assert model.cancelled == 1
        model.go.set()
        assert await waiting[1] == [8]
        assert model.batches == [("a", [1, 2]), ("a", [4])]

    asyncio.run(scenario())


def test_error_is_told_to_all_of_its_batch_and_to_nobody_else():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=2, max_concurrent=2, max_pending=9)
        tasks = [asyncio.create_task(batcher("a", [row])) for row in ("bad", 1, 2)]
        await asyncio.sleep(0.01)
        model.go.set()
        for task in tasks[:2]:
            with pytest.raises(ValueError, match="bad"):
                await task
        assert await tasks[2] == [4]

    asyncio.run(scenario())


def test_queue_is_bounded():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=1, max_concurrent=1, max_pending=3)
        waiting = [asyncio.create_task(batcher("m", [i])) for i in range(3)]
        await asyncio.sleep(0)
        assert batcher.is_busy()
        with pytest.raises(BusyError):
            await batcher("m", [3])
        model.go.set()
        assert await asyncio.gather(*waiting) == [[0], [2], [4]]
        assert await batcher("m", [3]) == [6]
        assert not batcher.is_busy()

    asyncio.run(scenario())


def test_batch_is_not_a_part_of_the_request_that_started_it():
    request = contextvars.ContextVar("request", default="none")
    seen = []

    async def run(key: str, rows: list[Any]) -> list[Any]:
        seen.append(request.get())
        return rows

    async def one(batcher: Batcher, number: int) -> None:
        request.set(f"request {number}")
        assert await batcher("m", [number]) == [number]

    async def scenario() -> None:
        batcher = Batcher(run, max_rows=1, max_concurrent=1, max_pending=9)
        await asyncio.gather(*(one(batcher, number) for number in range(3)))

    asyncio.run(scenario())
    assert seen == ["none"] * 3


def test_batch_that_is_cancelled_from_elsewhere_leaves_nobody_waiting():
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_rows=8, max_concurrent=1, max_pending=9)
        waiting = [asyncio.create_task(batcher("m", [i])) for i in range(3)]
        while not model.batches:
            await asyncio.sleep(0)
        (task,) = batcher.queues["m"].running
        task.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BusyError] * 3

    asyncio.run(scenario())
