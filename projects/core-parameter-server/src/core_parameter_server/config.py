"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, RunConfig, StorageConfig, TrackingConfig

PROJECT = "core-parameter-server"
RAY_DEFAULTS = {
    # Ray gives the memory of freed objects back once a second or every hundred objects: gigabytes
    # of dead gradients, and each new one in memory that the system has yet to hand out. The raylet
    # reads this when it starts: on an existing cluster it has to be set for `ray start`.
    "RAY_free_objects_batch_size": "1",
}
ACTIONS = ("train", "compare", "straggler", "tour")
MODES = ("sync", "async", "ssp")
PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
OPTIMIZERS = ("sgd", "momentum", "adam")
COMPRESSIONS = ("none", "fp16", "topk")
DIGITS_PIXELS, DIGITS_CLASSES = 64, 10


@dataclass
class ProblemConfig:
    """What to minimize."""

    name: str
    """`digits`: a network on handwritten digits; `quadratic`: a sum of squares with noise."""
    width: int
    """digits: units of the hidden layer. At least 1."""
    size: int
    """quadratic: number of parameters. At least 1."""
    noise: float
    """quadratic: standard deviation of the noise in each gradient. At least 0."""
    num_samples: int
    """quadratic: size of the make-believe data set, all workers together. At least 1."""

    def __post_init__(self) -> None:
        names = ("digits", "quadratic")
        check(self.name in names, "problem.name", self.name, " or ".join(names))
        for key in ("width", "size", "num_samples"):
            check(getattr(self, key) >= 1, f"problem.{key}", getattr(self, key), ">= 1")
        check(self.noise >= 0, "problem.noise", self.noise, ">= 0")

    @property
    def num_parameters(self) -> int:
        """Length of the flat parameter vector."""
        if self.name == "quadratic":
            return self.size
        return (DIGITS_PIXELS + 1) * self.width + (self.width + 1) * DIGITS_CLASSES


@dataclass
class ServerConfig:
    """The parameter server."""

    num_shards: int
    """Actors that share the parameter vector, a contiguous slice each. At least 1."""
    mode: str
    """`sync`: one update from the mean of all workers' gradients; `async`: one update for each
    gradient, whenever it comes; `ssp`: as async, but no worker gets too far ahead."""
    max_staleness: int
    """ssp: by how many gradients a worker may be ahead of the slowest when it starts the next. At
    least 0."""
    num_backup: int
    """sync: how many of the slowest gradients each update does without. Less than the workers. What
    comes late is dropped, and its worker takes the same batch again at newer weights: a worker that
    is always the slowest may never get its share of the data into the weights."""
    compression: str
    """Of gradients on their way to the server: `none`, `fp16`, or `topk`: the largest entries only,
    what is left out is added to the worker's next gradient. It is forgotten when the shards are
    rolled back, when the worker is lost, and at the next start of the run."""
    topk_fraction: float
    """topk: the share of the entries that are sent. In (0, 1]."""
    cpus_per_shard: float
    """CPUs that each shard reserves. More than 0."""
    placement: str
    """How the placement group lays shards and workers out over nodes: `PACK` (few) and `SPREAD`
    (many) if there is room; `STRICT_PACK` (one) and `STRICT_SPREAD` (each actor on a node of its
    own) or not at all."""

    def __post_init__(self) -> None:
        check(self.num_shards >= 1, "server.num_shards", self.num_shards, ">= 1")
        check(self.mode in MODES, "server.mode", self.mode, f"one of {', '.join(MODES)}")
        check(self.max_staleness >= 0, "server.max_staleness", self.max_staleness, ">= 0")
        check(self.num_backup >= 0, "server.num_backup", self.num_backup, ">= 0")
        ok = self.compression in COMPRESSIONS
        check(ok, "server.compression", self.compression, f"one of {', '.join(COMPRESSIONS)}")
        check(0 < self.topk_fraction <= 1, "server.topk_fraction", self.topk_fraction, "in (0, 1]")
        check(self.cpus_per_shard > 0, "server.cpus_per_shard", self.cpus_per_shard, "> 0")
        ok = self.placement in PLACEMENTS
        check(ok, "server.placement", self.placement, f"one of {', '.join(PLACEMENTS)}")


@dataclass
class ScalingConfig:
    """How many workers, and what each of them gets."""

    num_workers: int
    """Actors that compute gradients. At least 1."""
    cpus_per_worker: float
    """CPUs that each worker reserves. More than 0."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "scaling.num_workers", self.num_workers, ">= 1")
        check(self.cpus_per_worker > 0, "scaling.cpus_per_worker", self.cpus_per_worker, "> 0")


@dataclass
class TrainConfig:
    """How to train."""

    epochs: int
    """Passes of each worker over its share of the data. At least 1."""
    batch_size: int
    """Samples of one gradient of one worker, at most. At least 1."""
    optimizer: str
    """`sgd`, `momentum` or `adam`; it runs in the shards, which hold its state. Adam divides a
    gradient by the size of the gradients before it: so in async and ssp each worker's part counts
    like a whole one, and `lr` has to be smaller, by up to the number of workers."""
    lr: float
    """Learning rate. More than 0."""
    momentum: float
    """momentum: share of the last step that is kept. In [0, 1)."""
    beta1: float
    """adam: decay of the mean of the gradients. In [0, 1)."""
    beta2: float
    """adam: decay of the mean of their squares. In [0, 1)."""
    seed: int
    """Seed of the first weights and of the order of the samples. At least 0."""
    compute_s: float
    """Seconds that a gradient takes at least, as with a larger model. At least 0."""
    eval_every_epochs: float
    """Epochs, all workers' gradients together, between two looks at the validation loss. More than
    0."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        ok = self.optimizer in OPTIMIZERS
        check(ok, "train.optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        check(self.lr > 0, "train.lr", self.lr, "> 0")
        for key in ("momentum", "beta1", "beta2"):
            check(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")
        check(self.seed >= 0, "train.seed", self.seed, ">= 0")
        check(self.compute_s >= 0, "train.compute_s", self.compute_s, ">= 0")
        every = self.eval_every_epochs
        check(every > 0, "train.eval_every_epochs", every, "> 0")


@dataclass
class CheckpointConfig:
    """When to save, and what to keep."""

    every_updates: int
    """Updates between two checkpoints; 0: only the first and the last version."""
    num_to_keep: int
    """How many of the newest checkpoints stay. At least 1."""

    def __post_init__(self) -> None:
        check(self.every_updates >= 0, "checkpoint.every_updates", self.every_updates, ">= 0")
        check(self.num_to_keep >= 1, "checkpoint.num_to_keep", self.num_to_keep, ">= 1")


@dataclass
class FailureConfig:
    """What is survived, and how often."""

    max_failures: int
    """How often each shard and each worker may be lost and started again; once more, and the job
    fails. Those lost at the same time count once each. -1: no limit."""
    room_timeout_s: float
    """Seconds that the actors of a lost node wait for room on another one before the job fails.
    More than 0."""

    def __post_init__(self) -> None:
        check(self.max_failures >= -1, "failure.max_failures", self.max_failures, ">= -1")
        check(self.room_timeout_s > 0, "failure.room_timeout_s", self.room_timeout_s, "> 0")


@dataclass
class StragglerConfig:
    """What `action=compare` and `action=straggler` measure."""

    factor: float
    """straggler: how many times longer the last worker takes for a gradient. At least 1."""
    compute_s: float
    """straggler: seconds that a gradient takes at least, on every worker. At least 0."""
    target_loss: float
    """The validation loss to be reached. More than 0."""

    def __post_init__(self) -> None:
        check(self.factor >= 1, "straggler.factor", self.factor, ">= 1")
        check(self.compute_s >= 0, "straggler.compute_s", self.compute_s, ">= 0")
        check(self.target_loss > 0, "straggler.target_loss", self.target_loss, "> 0")


@dataclass
class TourConfig:
    """Sizes of the stations of `action=tour`."""

    num_operations: int
    """Tiny operations, done one by one and in batches. At least 1."""
    array_mb: int
    """MB of the array that tasks share. At least 1."""
    stream_budget_mb: int
    """MB that the stream may hold in the object store at a time; ten times as much goes through.
    At least 10."""

    def __post_init__(self) -> None:
        check(self.num_operations >= 1, "tour.num_operations", self.num_operations, ">= 1")
        check(self.array_mb >= 1, "tour.array_mb", self.array_mb, ">= 1")
        check(self.stream_budget_mb >= 10, "tour.stream_budget_mb", self.stream_budget_mb, ">= 10")


@dataclass
class Config:
    """The whole configuration of `core-parameter-server`."""

    action: str
    """`train`; `compare`: sync, async and ssp beside each other; `straggler`: the same with a slow
    worker; `tour`: Ray Core, one idea after the other."""
    cluster: ClusterConfig
    storage: StorageConfig
    run: RunConfig
    scaling: ScalingConfig
    checkpoint: CheckpointConfig
    failure: FailureConfig
    tracking: TrackingConfig
    problem: ProblemConfig
    server: ServerConfig
    train: TrainConfig
    straggler: StragglerConfig
    tour: TourConfig

    def __post_init__(self) -> None:
        check(self.action in ACTIONS, "action", self.action, f"one of {', '.join(ACTIONS)}")
        size, shards = self.problem.num_parameters, self.server.num_shards
        check(shards <= size, "server.num_shards", shards, f"<= {size}, the number of parameters")
        workers, backup = self.scaling.num_workers, self.server.num_backup
        allowed = f"< scaling.num_workers={workers}"
        check(backup < workers, "server.num_backup", backup, allowed)
        if backup and self.server.mode != "sync":
            raise UserError(f"server.num_backup={backup}: only with server.mode=sync")
        if self.server.compression == "topk" and (backup or self.action == "straggler"):
            raise UserError(
                "server.compression=topk: not with backup workers: with a dropped gradient goes "
                "what its worker had held back before"
            )
        if self.action != "train":
            # What would be ignored is refused.
            if self.run.name is not None:
                raise UserError(f"run.name={self.run.name}: only with action=train")
            if self.server.mode != "sync":
                raise UserError(f"server.mode={self.server.mode}: only with action=train")
            if backup:
                raise UserError(f"server.num_backup={backup}: only with action=train")
        if self.action == "straggler" and workers < 2:
            raise UserError("scaling.num_workers=1: action=straggler needs at least 2")

    @property
    def bundles(self) -> list[float]:
        """CPUs of each actor: the shards, then the workers."""
        server, scaling = self.server, self.scaling
        shards = [server.cpus_per_shard] * server.num_shards
        return shards + [scaling.cpus_per_worker] * scaling.num_workers

    def check_placement(self, node_cpus: Sequence[float]) -> None:
        """Refuses a strict placement that these nodes cannot meet, even if nothing else runs there.

        Raises:
            UserError: Names `server.placement`, what it needs and what there is.
        """
        strategy, bundles = self.server.placement, sorted(self.bundles, reverse=True)
        nodes = [cpus + 1e-6 for cpus in sorted(node_cpus, reverse=True)]
        if strategy == "STRICT_SPREAD":
            nodes += [0] * len(bundles)
            ok = all(cpus <= room for cpus, room in zip(bundles, nodes, strict=False))
            needs = f"a node for each of {len(bundles)} shards and workers"
        elif strategy == "STRICT_PACK":
            ok, needs = sum(bundles) <= nodes[0], f"one node with {sum(bundles):g} CPU"
        else:
            return
        if not ok:
            raise UserError(
                f"server.placement={strategy}: needs {needs}; the cluster has {len(node_cpus)} "
                f"node(s), the largest with {nodes[0]:g} CPU"
            )

    def locked(self) -> dict[str, Any]:
        """What a resumed run must not change: its weights, or its positions, would mean nothing.

        The number of shards may change: the slices are cut anew. And async may become ssp; but a
        version is one gradient there, and in sync one of every worker.
        """
        train = self.train
        return {
            "problem": asdict(self.problem),
            "scaling": {"num_workers": self.scaling.num_workers},
            "server": {"mode": "sync" if self.server.mode == "sync" else "async or ssp"},
            "train": {
                "batch_size": train.batch_size,
                "optimizer": train.optimizer,
                "seed": train.seed,
            },
        }
