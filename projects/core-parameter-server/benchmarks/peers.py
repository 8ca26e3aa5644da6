"""What is compared: this server, and what else moves gradients. Imported by compare.py."""

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from core_parameter_server.compression import Packed
from core_parameter_server.config import Config
from core_parameter_server.consistency import slices
from core_parameter_server.parameter_server import ParameterServer, Shard
from ray_shared.config import compose

NUM_WORKERS = 2
# Little enough that the actors of all variants find room beside each other.
CPUS = 0.01
Run = Callable[[int], None]
"""Makes so many iterations."""
Make = Callable[[int], Run]
"""Starts what it takes for a vector of this size."""


class FixedGradient:
    """A worker without a model: it reads the weights, and has the same gradient again and again.

    What comes from the object store is read-only. A model needs weights that it can write to (so
    does `Worker._read`), and all-reduce leaves its result in such an array.
    """

    def __init__(self, size: int, num_shards: int, seed: int):
        rng = np.random.default_rng(seed)
        self.gradient = rng.standard_normal(size, dtype=np.float32)
        self.weights = np.zeros(size, np.float32)
        self.bounds = slices(size, num_shards)

    def sliced(self, *weights: Any) -> Any:
        for (start, stop), part in zip(self.bounds, weights, strict=True):
            np.copyto(self.weights[start:stop], part)
        parts = [Packed(self.gradient[a:b]) for a, b in self.bounds]
        return parts if len(parts) > 1 else parts[0]

    def whole(self, weights: Any) -> Any:
        np.copyto(self.weights, weights)
        return self.gradient


class DocsServer:
    """The server of Ray's example, for one flat parameter: stack, sum, step, return the weights."""

    def __init__(self, size: int):
        self.parameter = torch.nn.Parameter(torch.zeros(size))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.01)

    def apply_gradients(self, *gradients: Any) -> Any:
        summed = np.stack(gradients).sum(axis=0)
        self.optimizer.zero_grad()
        self.parameter.grad = torch.from_numpy(summed)
        self.optimizer.step()
        return self.parameter.detach().numpy()

    def get_weights(self) -> Any:
        return self.parameter.detach().numpy()


class AllReduce:
    """One rank of a gloo process group."""

    def __init__(self, size: int, rank: int, port: int):
        torch.set_num_threads(1)
        self.gradient = torch.randn(size)
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_WORKERS
        )

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            torch.distributed.all_reduce(self.gradient)


def remote(kind: type, *args: Any) -> Any:
    return ray.remote(num_cpus=CPUS)(kind).remote(*args)


def our_server(size: int, num_shards: int) -> Run:
    train = compose(Config, "core_parameter_server.conf", ["train.optimizer=sgd"]).train
    bounds = slices(size, num_shards)
    shards = [remote(Shard, train, i, start, stop) for i, (start, stop) in enumerate(bounds)]
    workers = [remote(FixedGradient, size, num_shards, i) for i in range(NUM_WORKERS)]
    server = ParameterServer(shards)
    server.load([ray.put(np.zeros(stop - start, np.float32)) for start, stop in bounds])

    def run(iterations: int) -> None:
        for _ in range(iterations):
            weights = server.pull()
            pushed = [
                worker.sliced.options(num_returns=num_shards).remote(*weights) for worker in workers
            ]
            parts = [p if isinstance(p, list) else [p] for p in pushed]
            server.push(parts, [1 / NUM_WORKERS] * NUM_WORKERS)
        server.wait()
        ray.wait(server.pull(), num_returns=num_shards, fetch_local=False)

    return run


def docs_server(size: int) -> Run:
    server = remote(DocsServer, size)
    workers = [remote(FixedGradient, size, 1, i) for i in range(NUM_WORKERS)]

    def run(iterations: int) -> None:
        weights = server.get_weights.remote()
        for _ in range(iterations):
            gradients = [worker.whole.remote(weights) for worker in workers]
            weights = server.apply_gradients.remote(*gradients)
        ray.wait([weights], fetch_local=False)

    return run


def all_reduce(size: int) -> Run:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = [remote(AllReduce, size, rank, port) for rank in range(NUM_WORKERS)]

    def run(iterations: int) -> None:
        ray.get([rank.run.remote(iterations) for rank in ranks])

    return run


def copying(size: int) -> Run:
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)

    def run(iterations: int) -> None:
        for _ in range(iterations):
            np.copyto(target, source)

    return run
