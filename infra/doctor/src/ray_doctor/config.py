"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

from dataclasses import dataclass
from pathlib import Path

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, StorageConfig

PROJECT = "doctor"


@dataclass
class DoctorConfig:
    """What is looked at, and how long an answer may take."""

    expect_nodes: int | None
    """How many nodes should be alive; null: any number is right. At least 1."""
    packages: list[str]
    """Distributions whose versions must be the same on all nodes. A difference in any other one is
    a warning."""
    reach: list[str]
    """`host:port` of services that every node must reach, beside Ray's own ports."""
    node_timeout_s: float
    """Seconds for a node to answer a question, the start of a worker process included. More than
    0."""
    port_timeout_s: float
    """Seconds for a TCP connection: a firewall that drops packets answers never. More than 0."""
    collective: bool
    """Whether to try gloo, and NCCL where every node has a GPU. Imports PyTorch on every node."""
    collective_timeout_s: float
    """Seconds for an all-reduce, the import of PyTorch included. More than 0."""
    max_clock_skew_s: float
    """Seconds by which a node's clock may differ from the driver's. More than 0."""
    checklist: bool
    """Whether to look at the projects' files too."""
    project: str | None
    """The name of a project of the repository that the command is started in, or the path of a
    copied starter; null: the project whose folder it is started in, or else all of the
    repository, or none elsewhere."""

    def __post_init__(self) -> None:
        ok = self.expect_nodes is None or self.expect_nodes >= 1
        check(ok, "doctor.expect_nodes", self.expect_nodes, "null or >= 1")
        for key in (
            "node_timeout_s",
            "port_timeout_s",
            "collective_timeout_s",
            "max_clock_skew_s",
        ):
            check(getattr(self, key) > 0, f"doctor.{key}", getattr(self, key), "> 0 seconds")
        for place in self.reach:
            host, _, port = place.rpartition(":")
            check(bool(host) and port.isdigit(), "doctor.reach", place, "a list of host:port")
        if self.project is not None:
            ok = bool(self.project.strip())
            check(ok, "doctor.project", repr(self.project), "a name or a path")
            if not self.checklist:
                raise UserError(f"doctor.project={self.project}: only with doctor.checklist=true")


@dataclass
class Config:
    """The whole configuration of `ray-doctor`."""

    cluster: ClusterConfig
    storage: StorageConfig
    doctor: DoctorConfig

    def __post_init__(self) -> None:
        if self.cluster.install:
            raise UserError("cluster.install=true: the doctor looks at what is there, as it is")

    def project_folders(self) -> list[Path]:
        """The projects whose files are looked at.

        Raises:
            UserError: If there is no such project.
        """
        here = Path.cwd()
        root = next((p for p in (here, *here.parents) if _is_repository(p)), None)
        name = self.doctor.project
        if not self.doctor.checklist:
            return []
        if name is None:
            if _is_project(here):
                return [here]
            found = [] if root is None else sorted((root / "projects").iterdir())
            return [path for path in found if _is_project(path)]
        places = [Path(name).expanduser()]
        if root is not None:
            places.insert(0, root / "projects" / name)
        for path in places:
            if _is_project(path):
                return [path.resolve()]
        known = [] if root is None else sorted(p.name for p in (root / "projects").iterdir())
        also = f", or one of {', '.join(known)}" if known else ""
        raise UserError(
            f"doctor.project={name}: must be a folder with pyproject.toml and src{also}"
        )


def _is_project(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "src").is_dir()


def _is_repository(folder: Path) -> bool:
    # Not by `projects` alone, which may be anybody's folder of anything.
    return (folder / "projects").is_dir() and (folder / "shared" / "src" / "ray_shared").is_dir()
