"""One rule for paths: local and NFS directories, `s3://`, `gs://` and `abfs://`.

Source: https://arrow.apache.org/docs/python/filesystems.html and
https://docs.ray.io/en/releases-2.60.0/train/user-guides/persistent-storage.html
"""

import contextlib
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ray_shared.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CLOUD_SCHEMES = ("s3", "gs", "abfs", "abfss")
# The waits of AWS's default strategy double from 25 ms: ten tries bridge about 25 seconds.
S3_RETRIES = 10
GCS_RETRY_S = 3.0


@dataclass(frozen=True)
class Storage:
    """A directory on some filesystem; `path` is without the scheme, as pyarrow wants it."""

    filesystem: "FileSystem"
    path: str
    uri: str
    """As the user would type it."""

    def child(self, name: str) -> "Storage":
        """A directory or file below this one."""
        return Storage(self.filesystem, f"{self.path}/{name}", f"{self.uri}/{name}")

    def exists(self) -> bool:
        """Whether there is a file or directory."""
        from pyarrow.fs import FileType

        return bool(self.filesystem.get_file_info(self.path).type != FileType.NotFound)

    def read_bytes(self) -> bytes:
        """The content of the file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def write_bytes(self, content: bytes) -> None:
        """Writes the file, with its directories. Not atomic on a local filesystem."""
        self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def write_atomically(self, content: bytes) -> None:
        """Writes the file, with its directories: a reader sees all of it or what was there."""
        # A name of its own: another writer of the same file does not move a half of this one.
        ending = f".{uuid.uuid4().hex[:8]}.part"
        part = Storage(self.filesystem, self.path + ending, self.uri + ending)
        part.write_bytes(content)
        self.filesystem.move(part.path, self.path)

    def names(self) -> list[str]:
        """Names of the files and directories in this directory, sorted; none if it is missing."""
        from pyarrow.fs import FileSelector

        entries = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(entry.base_name for entry in entries)

    def delete(self) -> None:
        """Removes the file, or the directory with all that it holds."""
        from pyarrow.fs import FileType

        if self.filesystem.get_file_info(self.path).type == FileType.Directory:
            self.filesystem.delete_dir(self.path)
        else:
            self.filesystem.delete_file(self.path)

    def upload(self, directory: Path) -> None:
        """Copies a local directory here."""
        from pyarrow.fs import copy_files

        self.filesystem.create_dir(self.path, recursive=True)
        copy_files(str(directory), self.path, destination_filesystem=self.filesystem)

    def download(self, directory: Path) -> None:
        """Copies everything below here into a local directory."""
        from pyarrow.fs import copy_files

        copy_files(self.path, str(directory), source_filesystem=self.filesystem)


def local_path(key: str, path: str) -> str:
    """The absolute form of a path on this machine; `~` is the home directory.

    Raises:
        UserError: If there is no user of the name after `~`. It names `key`.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise UserError(f"{key}={path}: no such user") from None


def open_storage(path: str, retries: int = S3_RETRIES, key: str = "storage.path") -> Storage:
    """Opens a directory or file without touching it.

    Endpoint, region and credentials come from the environment: `AWS_ENDPOINT_URL`, `AWS_REGION`,
    `AWS_ACCESS_KEY_ID`, ...; `GOOGLE_APPLICATION_CREDENTIALS`; `AZURE_STORAGE_ACCOUNT_NAME`, ...

    Args:
        path: A directory or a URI.
        retries: How often a request to S3 is tried; Google's is tried for 3 s times as many.
        key: The configuration key that the path comes from.

    Raises:
        UserError: If the scheme is unknown, its package is missing or its endpoint is malformed.
    """
    from pyarrow import fs

    scheme, separator, rest = path.partition("://")
    if not separator:
        local = local_path(key, path)
        return Storage(fs.LocalFileSystem(), local, local)
    if scheme == "file":
        return open_storage(rest, retries, key)
    if scheme not in CLOUD_SCHEMES:
        allowed = ", ".join(f"{s}://" for s in CLOUD_SCHEMES)
        raise UserError(f"{key}={path}: must be a local path or start with {allowed}")
    rest = rest.strip("/")
    try:
        if scheme == "s3":
            from ray_shared import s3

            return Storage(s3.from_environment(retries), rest, path.rstrip("/"))
        if scheme == "gs":
            # Without a limit it tries for a quarter of an hour.
            limit = timedelta(seconds=GCS_RETRY_S * retries)
            filesystem: FileSystem = fs.GcsFileSystem(retry_time_limit=limit)
            return Storage(filesystem, rest, path.rstrip("/"))
        import fsspec

        # adlfs takes account and key from AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{key}={path}: cannot be opened: {error}") from None
    return Storage(filesystem, rest, path.rstrip("/"))


def probe(path: str) -> None:
    """Proves that `storage.path` can be written and read back, and leaves nothing there.

    In an object store pyarrow leaves the empty marker of a directory that was not there yet.

    Raises:
        UserError: If it cannot, with the reason.
    """
    storage = open_storage(path, retries=2)
    made = _missing_directories(Path(storage.path).resolve()) if "://" not in storage.uri else []
    marker = storage.child(f".probe-{uuid.uuid4().hex}")
    content = uuid.uuid4().bytes
    try:
        marker.write_bytes(content)
        try:
            if marker.read_bytes() != content:
                raise UserError(f"storage.path={path}: what was written is not what is read back")
        finally:
            marker.filesystem.delete_file(marker.path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - each cloud's client has errors of its own
        raise UserError(f"storage.path={path}: not writable: {reason_of(error)}") from None
    finally:
        for directory in made:
            with contextlib.suppress(OSError):  # Gone, or another job has put something there.
                directory.rmdir()


def _missing_directories(path: Path) -> list[Path]:
    """Those of `path` and its parents that do not exist, deepest first."""
    return [p for p in (path, *path.parents) if not p.exists()]


def reason_of(error: Exception) -> str:
    """What a storage's error says, in a line."""
    reason = getattr(error, "strerror", None) or str(error)
    return str(reason).splitlines()[0].split(". Detail:")[0]
