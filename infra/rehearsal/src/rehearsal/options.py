"""What a rehearsal is told besides its manifest."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ray_shared.errors import UserError, check

FAULTS = ("kill", "reclaim", "partition")
FAULT = re.compile(r"(?P<target>head|worker)@(?:(?P<seconds>\d+(?:\.\d+)?)s|step(?P<step>\d+))")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, once."""

    kind: str
    """`kill`: SIGKILL, as when a node dies; `reclaim`: a spot node is taken back: SIGTERM, and
    SIGKILL after the cloud's notice; `partition`: the pod's link goes down, for good."""
    target: str
    """`head` or `worker`."""
    seconds: float | None = None
    """After the job or service runs and such a pod is ready."""
    step: int | None = None
    """Once the job has reported this step."""

    def __str__(self) -> str:
        when = f"{self.seconds:g}s" if self.step is None else f"step{self.step}"
        return f"{self.kind}={self.target}@{when}"


def parse_fault(kind: str, text: str) -> Fault:
    """`worker@20s` or `worker@step30`.

    Raises:
        UserError: For anything else.
    """
    found = FAULT.fullmatch(text)
    allowed = "head or worker, then @ and when, as in worker@20s or worker@step30"
    check(found is not None, f"rehearse.{kind}", text, allowed)
    assert found is not None  # For the type checker.
    step = int(found["step"]) if found["step"] else None
    return Fault(kind, found["target"], float(found["seconds"]) if found["seconds"] else None, step)


@dataclass
class Options:
    """One rehearsal. Paths are absolute or relative to the working directory."""

    manifest: str
    """A YAML file with a RayCluster, RayJob or RayService, and whatever else."""
    output: str
    """Directory for the timeline, the logs and the pods' volumes, new or empty. It stays."""
    memory_factor: float | None = None
    """By which every memory quantity is multiplied; None: what this machine has room for. CPUs and
    GPUs are Ray's logical ones and stay, or placement would change."""
    min_workers: int | None = None
    """Of each worker group, which also starts with so many; None: as the manifest says."""
    max_workers: int | None = None
    """Of each worker group, at most; None: as the manifest says."""
    idle_timeout_s: float | None = None
    """After which the autoscaler removes a worker; None: as the manifest says."""
    grace_s: float | None = None
    """Between SIGTERM and SIGKILL; None: as the manifest says."""
    notice_s: float = 30.0
    """reclaim: what a cloud gives a spot node."""
    timeout_s: float = 1800.0
    """For the whole rehearsal."""
    faults: list[str] = field(default_factory=list)
    """`kind=target@when`."""
    update: str | None = None
    """RayService: a second manifest, to which it is updated under load."""
    load: str | None = None
    """RayService: path to request all the time, as in `/-/healthz`."""
    load_headers: dict[str, str] = field(default_factory=dict)
    """RayService: of those requests."""
    hold_s: float = 20.0
    """RayService: how long it is watched before an update, or without one."""
    python: str | None = None
    """Directory with `python` and `ray`, in place of the image's; None: this interpreter's."""
    sources: list[str] = field(default_factory=list)
    """Directories that pods import from, in place of what the image would hold."""
    env: dict[str, str] = field(default_factory=dict)
    """More environment variables of every pod."""
    secrets: dict[str, str] = field(default_factory=dict)
    """`name/key` to the value of a secret or ConfigMap that the manifest refers to, or to `@` and
    the path of a file with it."""
    steps: str = "**/metrics.jsonl"
    """Where the job reports: files below the volumes (`*` matches `/`, too) with lines of JSON that
    hold `event` and `step`."""

    def __post_init__(self) -> None:
        factor = self.memory_factor
        check(factor is None or 0 < factor <= 1, "rehearse.memory_factor", factor, "in (0, 1]")
        for name, least in (("min_workers", 0), ("max_workers", 1)):
            value = getattr(self, name)
            check(value is None or value >= least, f"rehearse.{name}", value, f">= {least}")
        if self.min_workers is not None and self.max_workers is not None:
            ok = self.min_workers <= self.max_workers
            allowed = f"<= rehearse.max_workers={self.max_workers}"
            check(ok, "rehearse.min_workers", self.min_workers, allowed)
        for name in ("idle_timeout_s", "grace_s", "hold_s"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"rehearse.{name}", value, ">= 0 seconds")
        check(self.timeout_s > 0, "rehearse.timeout_s", self.timeout_s, "> 0")
        check(self.notice_s >= 0, "rehearse.notice_s", self.notice_s, ">= 0 seconds")
        ok = self.load is None or self.load.startswith("/")
        check(ok, "rehearse.load", self.load, "a path that begins with /")
        ok = not self.steps.startswith("/")
        check(ok, "rehearse.steps", self.steps, "a pattern below the volumes, not an absolute path")
        self.parsed_faults()

    def parsed_faults(self) -> list[Fault]:
        """The faults, in the order given.

        Raises:
            UserError: If one is written wrongly.
        """
        found = []
        for text in self.faults:
            kind, _, rest = text.partition("=")
            if kind not in FAULTS:
                kinds = ", ".join(FAULTS)
                raise UserError(f"fault {text}: must be one of {kinds}, then =target@when")
            found.append(parse_fault(kind, rest))
        return found

    def check_for(self, kind: str) -> None:
        """Refuses what does not fit the kind of the manifest.

        Raises:
            UserError: Names the option.
        """
        for name in ("load", "update"):
            ok = getattr(self, name) is None or kind == "RayService"
            check(ok, f"rehearse.{name}", getattr(self, name), "left out: only a RayService has it")
        ok = self.update is None or self.load is not None
        check(ok, "rehearse.load", self.load, "a path to request during rehearse.update")
        for fault in self.parsed_faults():
            if fault.step is not None and kind != "RayJob":
                allowed = "must be in seconds, as in worker@20s"
                raise UserError(f"rehearse.{fault}: a {kind} reports no steps: {allowed}")

    def secret_values(self) -> dict[str, str]:
        """`secrets`, with the content of files in place of their paths.

        Raises:
            UserError: If one cannot be read.
        """
        found = {}
        for name, value in self.secrets.items():
            path = value.removeprefix("@")
            try:
                found[name] = value if path == value else Path(path).read_text().removesuffix("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"secret {name}=@{path}: {error}: must be a text file") from None
        return found

    def to_json(self) -> str:
        """For the process inside the namespaces."""
        return json.dumps(asdict(self))
