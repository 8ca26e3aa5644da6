"""The application on Ray Serve: the file to read.

Three stages, each a deployment with replicas of its own, behind a FastAPI ingress:

    Ingress -> Preprocessor -> Model -> Postprocessor

The ingress puts the requests of the moment into one batch before the first call to another
deployment: a call costs about a millisecond, whether it carries one row or sixty-four. Each stage
keeps the few models loaded that were asked for last (`serve.multiplexed`). What a stage does, and
what a request may look like, stands in `models.py` and `api.py`, which know nothing of Ray.

    python -m serve_fastapi serve.block=true

Source: https://docs.ray.io/en/releases-2.60.0/serve/model_composition.html,
https://docs.ray.io/en/releases-2.60.0/serve/http-guide.html and
https://docs.ray.io/en/releases-2.60.0/serve/model-multiplexing.html
"""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_fastapi import api, builtin, models
from serve_fastapi.batching import Batcher, BusyError
from serve_fastapi.config import SecurityConfig, ServeConfig
from serve_fastapi.environment import stay_on_loopback
from serve_fastapi.observe import observe
from serve_fastapi.security import Guard, check_keys, protect, read_keys, with_cors

ATTEMPTS = 3
"""Times that a batch is sent, if a replica of a stage dies."""
START_TIMEOUT_S = 60.0
"""For a new ingress replica, until the stages answer."""
Settings = dict[str, Any]
"""`Config.settings()`."""


class Stage:
    """A deployment that applies one stage of whatever model it is asked for."""

    def __init__(self, stage: str, settings: Settings, defaults: list[str]):
        """Called by Serve in each replica.

        Args:
            stage: One of `models.STAGES`.
            settings: See `Config`.
            defaults: Models to load at once: a replica that cannot do so never gets a request.
        """
        stay_on_loopback()
        settings = builtin.named(settings)
        bundles, num_threads = settings["models"]["bundles"], settings["models"]["num_threads"]
        first = {name: models.load(bundles[name], stage, num_threads) for name in defaults}

        async def load(name: str) -> Any:
            if name in first:
                return first.pop(name)
            return await asyncio.to_thread(models.load, bundles[name], stage, num_threads)

        self._load = serve.multiplexed(max_num_models_per_replica=settings["models"]["max_loaded"])(
            load
        )

    async def __call__(self, data: Any) -> Any:
        """The next stage's input, for the model that the caller has named.

        Not in the event loop, which goes on answering health checks meanwhile.
        """
        apply = await self._load(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(apply, data)


@serve.deployment(ray_actor_options={"num_cpus": 0})  # `build` states how many.
class Preprocessor(Stage):
    """Rows to arrays."""

    def __init__(self, settings: Settings, defaults: list[str]):
        super().__init__("preprocess", settings, defaults)


@serve.deployment(ray_actor_options={"num_cpus": 0})  # `build` states how many.
class Model(Stage):
    """Arrays to arrays."""

    def __init__(self, settings: Settings, defaults: list[str]):
        super().__init__("predict", settings, defaults)


@serve.deployment(ray_actor_options={"num_cpus": 0})  # `build` states how many.
class Postprocessor(Stage):
    """Arrays to answers."""

    def __init__(self, settings: Settings, defaults: list[str]):
        super().__init__("postprocess", settings, defaults)


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Ingress:
    """Takes HTTP requests, batches them, and passes them through the stages."""

    def __init__(
        self,
        settings: Settings,
        described: dict[str, models.Description],
        versions: dict[str, str],
        *stages: DeploymentHandle,
    ):
        """Called by Serve in each replica.

        Args:
            settings: See `Config`.
            described: The models.
            versions: Of the libraries.
            stages: Handles of the three; none: they run here.
        """
        stay_on_loopback()
        # Here again: this machine's environment is another one than that of the command.
        check_keys(ServeConfig(**settings["serve"]), SecurityConfig(**settings["security"]))
        settings = builtin.named(settings)
        self.settings, self.models, self.versions = settings, described, versions
        self.stages = stages
        self.here = None
        if not stages:
            self.here = models.LocalStages(settings["models"])
            for name in models.defaults(described):
                self.here.load(name)
        limits = settings["limits"]
        self.batched = Batcher(self.run, **settings["batch"], max_pending=limits["max_ongoing"])
        self.started = False
        self.probed_at = 0.0
        self.reason: str | None = "starting"
        self.requests = metrics.Counter(
            "app_requests",
            description="Answers.",
            tag_keys=("route", "method", "status"),  # type: ignore[arg-type]
        )
        self.latency = metrics.Histogram(
            "app_latency_ms",
            description="From the request's first line to the answer's last.",
            boundaries=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
            tag_keys=("route",),
        )
        self.batch_size = metrics.Histogram(
            "app_batch_rows",
            description="Rows in a batch.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128, 256],
            tag_keys=("model", "version"),  # type: ignore[arg-type]
        )
        # The sum of a histogram is no use: Ray counts each value as the middle of its bucket.
        self.rows = metrics.Counter(
            "app_rows",
            description="Rows in batches.",
            tag_keys=("model", "version"),  # type: ignore[arg-type]
        )
        self.waiting = metrics.Gauge("app_waiting", description="Requests in no batch yet.")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook: what answers HTTP."""
        limits, security = self.settings["limits"], self.settings["security"]
        made = api.make_api(
            self, api.Limits(limits["max_rows"], limits["deadline_s"]), self.versions
        )
        known = frozenset(getattr(route, "path", "") for route in made.routes)
        keys = read_keys(security["keys_env"], security["keys_file"])
        guard = Guard(keys, limits["max_body_bytes"], limits["per_minute"])
        app = protect(made, guard, echo_request_id=False, is_busy=self.batched.is_busy)
        app = with_cors(app, security["cors_origins"])
        logger = logging.getLogger("ray.serve")
        return observe(app, self.record, logger, self.settings["log"]["requests"], known)

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an answer; exported with Ray's own metrics."""
        self.requests.inc(tags={"route": route, "method": method, "status": str(status)})
        self.latency.observe(seconds * 1000, tags={"route": route})

    async def predict(self, model: str, rows: list[Any]) -> list[dict[str, Any]]:
        """See `api.Service`."""
        return await self.batched(model, rows)

    async def run(self, name: str, rows: list[Any]) -> list[dict[str, Any]]:
        """A batch through the three stages."""
        self.waiting.set(self.batched.num_waiting)
        tags = {"model": name, "version": self.models[name].version}
        self.batch_size.observe(len(rows), tags)
        self.rows.inc(len(rows), tags)
        if self.here is not None:
            return await self.run_here(self.here, name, rows)
        for attempt in range(ATTEMPTS):
            data: Any = rows
            try:
                for stage in self.stages:
                    # Not with the response of one as the argument of the next: if a replica died
                    # with it, Ray Serve 2.60 would ask for it again and again, for ever.
                    response = stage.options(multiplexed_model_id=name).remote(data)
                    try:
                        data = await response
                    except asyncio.CancelledError:  # Nobody waits for it any more.
                        response.cancel()
                        raise
                answers: list[dict[str, Any]] = data
                return answers
            except RayActorError:  # A replica has died. To predict twice does no harm.
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def run_here(
        self, here: models.LocalStages, name: str, rows: list[Any]
    ) -> list[dict[str, Any]]:
        """A batch through the three stages in a thread, which nothing can stop once it runs."""
        thread = asyncio.get_running_loop().run_in_executor(None, here.apply, name, rows)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.wait([thread])  # Until then the model is busy.
            raise

    async def not_ready(self) -> str | None:
        """See `api.Service`; asks the models at most once a second, whoever asks here."""
        now = asyncio.get_running_loop().time()
        if now - self.probed_at > 1:
            self.probed_at = now
            self.reason = await self.probe()
        return self.reason

    async def probe(self) -> str | None:
        """Why the default models do not answer, in the versions told of here; None if they do."""
        for name in models.defaults(self.models):
            model = self.models[name]
            try:
                async with asyncio.timeout(5):
                    (answer,) = await self.predict(name, [models.EXAMPLES[model.kind](model)])
            except BusyError:
                continue  # It has enough to do, but it does it.
            except TimeoutError:
                return f"model {name} does not answer"
            except Exception as error:  # noqa: BLE001 - in an update: a stage of another version
                return f"model {name} fails: {type(error).__name__}"
            if answer["version"] != model.version:
                return f"model {name} is of version {answer['version']}, not {model.version}"
        return None

    async def check_health(self) -> None:
        """Called by Serve, first before a new replica gets requests.

        In an update the stages come first: until they have the new models, and if they never do,
        the old replicas go on.
        """
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not self.started and (reason := await self.probe()):
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(reason)
            await asyncio.sleep(0.2)
        self.started = True


def build(settings: Settings) -> serve.Application:
    """The application; `serve deploy` calls this as well.

    Args:
        settings: `Config.settings()`.
    """
    from ray_shared.report import versions

    described = models.find(builtin.named(settings)["models"]["bundles"])
    scale, limits = settings["scale"], settings["limits"]
    common = {
        "graceful_shutdown_timeout_s": settings["serve"]["drain_s"],
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 2,
        "health_check_timeout_s": 5,
        # One line for a request is enough: `observe.py` writes it.
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        # An update starts a new replica before it stops the old one.
        "max_surge_percent": 100,
    }
    stages = []
    deployments: list[Any] = [] if scale["fused"] else [Preprocessor, Model, Postprocessor]
    for deployment in deployments:
        stage = deployment.options(
            ray_actor_options={"num_cpus": scale["stages"]["num_cpus"]},
            max_ongoing_requests=16,
            **(replicas(scale["stages"], scale) | common),
        )
        stages.append(stage.bind(settings, models.defaults(described)))
    ingress = Ingress.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": scale["ingress"]["num_cpus"]},
        # Those that are too many must come in to be told so: Serve itself would refuse them
        # without `Retry-After`.
        max_ongoing_requests=10 * limits["max_ongoing"],
        **(replicas(scale["ingress"], scale) | common),
    )
    return ingress.bind(settings, described, versions("serve-fastapi"), *stages)


def replicas(section: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
    """How many replicas, in Serve's words."""
    if section["min"] == section["max"]:
        return {"num_replicas": section["min"]}
    return {
        "autoscaling_config": {
            "min_replicas": section["min"],
            "max_replicas": section["max"],
            "initial_replicas": max(section["min"], 1),
            "target_ongoing_requests": section["target_ongoing_requests"],
            "upscale_delay_s": scale["upscale_delay_s"],
            "downscale_delay_s": scale["downscale_delay_s"],
        }
    }
