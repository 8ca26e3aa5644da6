"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

import ipaddress
import sys
from dataclasses import asdict, dataclass
from typing import Any

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, StorageConfig
from ray_shared.storage import local_path

PROJECT = "serve-fastapi"
ACTIONS = ("serve", "deploy", "load_test", "config")
FRONTS = ("auto", "haproxy", "python")
KINDS = ("digits", "trips", "health")
LOGS = ("none", "errors", "all")
MAX_ROWS = 10_000
"""The most rows that a request can have, whatever `limits.max_rows`: more are not even read."""


@dataclass
class ServeConfig:
    """Where and how the application listens."""

    host: str
    """IPv4 address, or a name, to listen on. Anything but the loopback interface needs API keys."""
    port: int
    """TCP port, 1 to 65535; 0: any that is free."""
    block: bool
    """Whether to serve until Ctrl-C. False: serve, call itself once, and stop."""
    front: str
    """`haproxy` (Linux only), `python`: Ray's own proxy, or `auto`: haproxy where there is one."""
    drain_s: float
    """Seconds that requests under way have when a replica or the application stops; a longer
    `limits.deadline_s`, or a longer stream, is cut off then."""

    def __post_init__(self) -> None:
        ok = bool(self.host) and ":" not in self.host
        check(ok, "serve.host", repr(self.host), "an IPv4 address, or a name")
        check(0 <= self.port <= 65535, "serve.port", self.port, "0 to 65535")
        check(self.front in FRONTS, "serve.front", self.front, _one_of(FRONTS))
        if self.front == "haproxy" and sys.platform != "linux":
            raise UserError("serve.front=haproxy: Ray has it for Linux only; choose python")
        check(self.drain_s > 0, "serve.drain_s", self.drain_s, "> 0")

    @property
    def open_to_network(self) -> bool:
        """Whether others than this machine reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


@dataclass
class ReplicasConfig:
    """How many replicas of a deployment, and what each gets."""

    min: int
    """The fewest replicas; 0: none while nobody asks."""
    max: int
    """The most replicas. At least 1."""
    target_ongoing_requests: float
    """Requests under way in each replica that autoscaling aims at. More than 0."""
    num_cpus: float
    """CPUs that each replica reserves. At least 0."""

    def check(self, key: str) -> None:
        """Refuses what is out of range; `key` is where this section stands."""
        check(self.min >= 0, f"{key}.min", self.min, ">= 0")
        check(self.max >= max(1, self.min), f"{key}.max", self.max, f">= 1 and >= {key}.min")
        target = self.target_ongoing_requests
        check(target > 0, f"{key}.target_ongoing_requests", target, "> 0")
        check(self.num_cpus >= 0, f"{key}.num_cpus", self.num_cpus, ">= 0")


@dataclass
class ScaleConfig:
    """How replicas come and go."""

    ingress: ReplicasConfig
    stages: ReplicasConfig
    """Of the preprocessor, the model and the postprocessor each; unless they are fused."""
    fused: bool
    """Whether the three stages run inside the ingress replica and not in replicas of their own."""
    upscale_delay_s: float
    """Seconds of high load before replicas are added. At least 0."""
    downscale_delay_s: float
    """Seconds of low load before replicas go. At least 0."""

    def __post_init__(self) -> None:
        self.ingress.check("scale.ingress")
        self.stages.check("scale.stages")
        check(self.upscale_delay_s >= 0, "scale.upscale_delay_s", self.upscale_delay_s, ">= 0")
        delay = self.downscale_delay_s
        check(delay >= 0, "scale.downscale_delay_s", delay, ">= 0")


@dataclass
class BatchConfig:
    """How requests are put together for the model."""

    max_rows: int
    """The most rows in a batch. At least 1; 1: no batching."""
    max_concurrent: int
    """Batches of a model under way at the same time, for each ingress replica. At least 1."""

    def __post_init__(self) -> None:
        check(self.max_rows >= 1, "batch.max_rows", self.max_rows, ">= 1")
        check(self.max_concurrent >= 1, "batch.max_concurrent", self.max_concurrent, ">= 1")


@dataclass
class LimitsConfig:
    """What one client, or all of them, may ask for."""

    max_body_bytes: int
    """The longest request body. At least 1,024."""
    max_rows: int
    """The most rows in one request to a `/batch` route. 1 to 10,000."""
    deadline_s: float
    """Seconds until a request, or the next rows of a `/batch`, are given up with 504. More than
    0."""
    max_ongoing: int
    """Requests for a prediction under way in each ingress replica, those included that wait for
    the next batch; what is more gets 503 and `Retry-After`. At least 1."""
    per_minute: int
    """Requests a minute for each API key (without keys: for all together), in each ingress
    replica; 0: no limit."""

    def __post_init__(self) -> None:
        body = self.max_body_bytes
        check(body >= 1024, "limits.max_body_bytes", body, ">= 1024")
        check(1 <= self.max_rows <= MAX_ROWS, "limits.max_rows", self.max_rows, f"1 to {MAX_ROWS}")
        check(self.deadline_s > 0, "limits.deadline_s", self.deadline_s, "> 0")
        check(self.max_ongoing >= 1, "limits.max_ongoing", self.max_ongoing, ">= 1")
        check(self.per_minute >= 0, "limits.per_minute", self.per_minute, ">= 0")


@dataclass
class SecurityConfig:
    """Who may ask."""

    keys_env: str
    """Environment variable with the API keys, separated by commas. Several, to replace one."""
    keys_file: str | None
    """A file with one API key a line; null: only `keys_env`."""
    allow_open: bool
    """Whether to listen beyond this machine without any key."""
    cors_origins: list[str]
    """Origins whose pages may call the application; empty: only its own page."""


@dataclass
class ModelsConfig:
    """What is served."""

    bundles: dict[str, str]
    """Name of a model to its bundle, a directory or a URI. The first of a kind answers where no
    `X-Model` header chooses. Empty: small models, made on first start."""
    max_loaded: int
    """Models that a replica keeps in memory. At least 1; the least recently used one goes."""
    num_threads: int
    """Threads of one inference. At least 1."""

    def __post_init__(self) -> None:
        for name in self.bundles:
            ok = bool(name) and all(c.isalnum() or c in "._-" for c in name)
            check(ok, "models.bundles", repr(name), "names of letters, digits, '.', '_' and '-'")
        check(self.max_loaded >= 1, "models.max_loaded", self.max_loaded, ">= 1")
        check(self.num_threads >= 1, "models.num_threads", self.num_threads, ">= 1")


@dataclass
class LogConfig:
    """What is written down of each request."""

    requests: str
    """`none`, `errors` (answers of 500 and more) or `all`: a line of JSON each, in the
    replica's log in Ray's session directory."""

    def __post_init__(self) -> None:
        check(self.requests in LOGS, "log.requests", self.requests, _one_of(LOGS))


@dataclass
class LoadConfig:
    """action=load_test: who asks, what, and how much."""

    address: str | None
    """Of the application, `http://host:port`; null: start one."""
    kind: str
    """`digits`, `trips`, or `health`: no model, only the way there and back."""
    model: str | None
    """Value of the `X-Model` header; null: the default model."""
    concurrency: int
    """Requests under way at the same time. At least 1."""
    duration_s: float
    """Seconds of load. More than 0."""
    retries: int
    """Times that a request is sent again when no answer came, or one of 500 and more. At least
    0."""

    def __post_init__(self) -> None:
        ok = self.address is None or self.address.startswith(("http://", "https://"))
        check(ok, "load.address", self.address, "null or http://host:port")
        check(self.kind in KINDS, "load.kind", self.kind, _one_of(KINDS))
        check(self.concurrency >= 1, "load.concurrency", self.concurrency, ">= 1")
        check(self.duration_s > 0, "load.duration_s", self.duration_s, "> 0")
        check(self.retries >= 0, "load.retries", self.retries, ">= 0")


@dataclass
class Config:
    """The whole configuration of `serve-fastapi`."""

    action: str
    """`serve`; `deploy`: put it, or a new version of it, on an existing cluster and leave it there;
    `load_test`: measure it under load; `config`: only write Serve's configuration file, for
    `serve deploy` and Kubernetes."""
    cluster: ClusterConfig
    storage: StorageConfig
    serve: ServeConfig
    scale: ScaleConfig
    batch: BatchConfig
    limits: LimitsConfig
    security: SecurityConfig
    models: ModelsConfig
    log: LogConfig
    load: LoadConfig

    def __post_init__(self) -> None:
        check(self.action in ACTIONS, "action", self.action, _one_of(ACTIONS))
        if self.serve.block and self.action != "serve":
            raise UserError("serve.block=true: only with action=serve")
        if not self.models.bundles and "://" in self.storage.path:
            raise UserError(
                f"storage.path={self.storage.path}: the small models need a directory of the "
                "machine; name others with +models.bundles.NAME=URI"
            )
        if self.action == "deploy" and self.cluster.mode != "existing":
            raise UserError(
                f"action=deploy: cluster={self.cluster.mode} ends with the command; must be "
                "cluster=existing"
            )

    @property
    def starts_application(self) -> bool:
        """Whether Ray and the application are started."""
        return self.action in ("serve", "deploy") or (
            self.action == "load_test" and self.load.address is None
        )

    def settings(self) -> dict[str, Any]:
        """What the replicas need to know: the argument of `app.build`, plain values only."""
        sections = ("storage", "serve", "scale", "batch", "limits", "security", "models", "log")
        settings = {name: asdict(getattr(self, name)) for name in sections}
        # A replica works in another directory than the command.
        settings["storage"]["path"] = _absolute("storage.path", self.storage.path)
        if self.security.keys_file is not None:
            file = _absolute("security.keys_file", self.security.keys_file)
            settings["security"]["keys_file"] = file
        settings["models"]["bundles"] = {
            name: _absolute(f"models.bundles.{name}", path)
            for name, path in self.models.bundles.items()
        }
        return settings


def _absolute(key: str, path: str) -> str:
    return path if "://" in path else local_path(key, path)


def _one_of(names: Any) -> str:
    return f"one of {', '.join(names)}"
