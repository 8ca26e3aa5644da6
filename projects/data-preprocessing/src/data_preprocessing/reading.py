"""Finding input files, cutting them into units of work, and reading a unit chunk by chunk.

A *unit* is what one task reads, and what a run that was killed does again: some row groups of a
Parquet file, or a whole CSV or JSON-lines file. Nobody ever holds more than a *chunk* of it.
"""

import fnmatch
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage

from data_preprocessing.contract import COLUMNS

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
TEXT_BLOCK = 32 << 20
"""Bytes of a text file that are read at a time."""


class UnreadableFileError(Exception):
    """A file that is damaged: it goes to quarantine as a whole."""


@dataclass(frozen=True)
class InputFile:
    """A file of trips."""

    index: int
    """Position among the input files: `file` in the output."""
    uri: str
    path: str
    size: int
    modified: str
    """Time of the last change, as the filesystem has it."""

    @property
    def format(self) -> str:
        """`parquet`, `csv` or `jsonl`, by the file's ending."""
        return FORMATS["." + self.path.rpartition(".")[2].lower()]


@dataclass(frozen=True)
class Unit:
    """A piece of a file."""

    index: int
    file: InputFile
    first_row: int
    """Position of its first row in the file."""
    row_groups: tuple[int, ...] | None = None
    """Parquet: which of the file's row groups; None: all of the file."""

    @property
    def name(self) -> str:
        """The unit's name in file names."""
        return f"unit-{self.index:06d}"


def find_files(path: str, key: str = "data.path") -> list[InputFile]:
    """The input files, sorted by path.

    Args:
        path: A file, a directory or a glob; local or with a scheme.
        key: The configuration key that it comes from.

    Raises:
        UserError: If nothing matches, a file is empty, or the filesystem refuses.
    """
    pattern = any(c in path for c in "*?[")
    base = path[: min(path.find(c) for c in "*?[" if c in path)] if pattern else path
    base = base.rpartition("/")[0] or "." if pattern else base
    storage = open_storage(base, retries=2)
    try:
        found = _list(storage, pattern=_absolute(path, storage) if pattern else None)
    except OSError as error:
        reason = str(error).splitlines()[0].split(". Detail:")[0]
        raise UserError(f"{key}={path}: cannot be read: {reason}") from None
    known = ", ".join(FORMATS)
    if not found:
        raise UserError(f"{key}={path}: no file matches (of the kinds {known})")
    scheme = path.partition("://")[0] + "://" if "://" in path else ""
    files: list[InputFile] = []
    for info in found:
        if info.size == 0:
            raise UserError(f"{scheme}{info.path}: is empty; remove it from {key}={path}")
        files.append(
            InputFile(len(files), scheme + info.path, info.path, info.size, str(info.mtime_ns))
        )
    return files


def _list(storage: Storage, pattern: str | None) -> list[fs.FileInfo]:
    own = storage.filesystem.get_file_info(storage.path)
    if own.type == fs.FileType.File:
        found = [own] if _readable(own.path) else []
    else:
        selector = fs.FileSelector(storage.path, recursive=True, allow_not_found=True)
        infos = storage.filesystem.get_file_info(selector)
        found = [i for i in infos if i.type == fs.FileType.File and _readable(i.path)]
    if pattern is not None:
        found = [info for info in found if fnmatch.fnmatchcase(info.path, pattern)]
    return sorted(found, key=lambda info: info.path)


def _absolute(pattern: str, base: Storage) -> str:
    """The pattern as the filesystem writes paths."""
    tail = pattern.partition("://")[2] or pattern
    if "://" in pattern:
        return tail
    wildcard = min(tail.find(c) for c in "*?[" if c in tail)
    name = tail[tail.rfind("/", 0, wildcard) + 1 :]
    return f"{base.path}/{name}"


def _readable(path: str) -> bool:
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() in FORMATS and not name.startswith((".", "_"))


def cut(
    files: list[InputFile], filesystem: fs.FileSystem, rows_per_unit: int
) -> tuple[list[Unit], list[tuple[InputFile, str]]]:
    """Cuts files into units of about `rows_per_unit` rows; of Parquet only the footers are read.

    Returns:
        The units, and the files that cannot be read, with the reason.
    """
    units: list[Unit] = []
    unreadable: list[tuple[InputFile, str]] = []
    for file in files:
        if file.format != "parquet":
            units.append(Unit(len(units), file, 0))
            continue
        try:
            with filesystem.open_input_file(file.path) as stream:
                footer = pq.read_metadata(stream)
        except (pa.ArrowException, OSError) as error:
            _raise_if_out_of_reach(error, file, filesystem)
            unreadable.append((file, str(error).splitlines()[0]))
            continue
        groups: list[int] = []
        rows = first_row = 0
        for group in range(footer.num_row_groups):
            size = footer.row_group(group).num_rows
            if groups and rows + size > rows_per_unit:
                units.append(Unit(len(units), file, first_row, tuple(groups)))
                first_row, rows, groups = first_row + rows, 0, []
            groups.append(group)
            rows += size
        if groups:
            units.append(Unit(len(units), file, first_row, tuple(groups)))
    return units, unreadable


def read_chunks(unit: Unit, filesystem: fs.FileSystem) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads a unit: position of a chunk's first row in the file, and the chunk.

    Raises:
        UnreadableFileError: If the file is damaged.
    """
    read = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}[unit.file.format]
    row = unit.first_row
    try:
        for chunk in read(unit, filesystem):
            yield row, chunk
            row += chunk.height
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        _raise_if_out_of_reach(error, unit.file, filesystem)
        raise UnreadableFileError(f"{unit.file.uri}: {str(error).splitlines()[0]}") from None


def _raise_if_out_of_reach(error: Exception, file: InputFile, filesystem: fs.FileSystem) -> None:
    """Tells a damaged file from a storage that fails: pyarrow raises `OSError` for both.

    A file whose bytes can all be read, and still not be understood, is damaged.
    """
    if isinstance(error, OSError):
        with filesystem.open_input_stream(file.path) as stream:
            while stream.read(TEXT_BLOCK):
                pass


def _read_parquet(unit: Unit, filesystem: fs.FileSystem) -> Iterator[pl.DataFrame]:
    with filesystem.open_input_file(unit.file.path) as stream:
        file = pq.ParquetFile(stream)
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        for group in unit.row_groups or range(file.num_row_groups):
            # One thread: there are as many tasks as CPUs.
            table = file.read_row_group(group, columns=names, use_threads=False)
            yield pl.DataFrame(pl.from_arrow(table))


def _read_csv(unit: Unit, filesystem: fs.FileSystem) -> Iterator[pl.DataFrame]:
    with filesystem.open_input_stream(unit.file.path) as stream:
        # Every column as text: what a value should be is the contract's business.
        header, rest = _header(stream)
        names = header.decode("utf-8-sig").strip().split(",")
        for block in _lines(stream, rest):
            yield pl.read_csv(
                io.BytesIO(block),
                has_header=False,
                new_columns=[name.strip('"') for name in names],
                infer_schema=False,
            )


def _read_jsonl(unit: Unit, filesystem: fs.FileSystem) -> Iterator[pl.DataFrame]:
    names: list[str] | None = None
    with filesystem.open_input_stream(unit.file.path) as stream:
        for block in _lines(stream, b""):
            if (
                names is None
            ):  # A writer may leave a null out; a column that the file lacks, always.
                names = [name for name in COLUMNS if f'"{name}"'.encode() in block]
            yield pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(names, pl.String))


def _header(stream: Any) -> tuple[bytes, bytes]:
    content = b""
    while b"\n" not in content and (more := stream.read(1 << 16)):
        content += more
    header, _, rest = content.partition(b"\n")
    return header, rest


def _lines(stream: Any, rest: bytes) -> Iterator[bytes]:
    """Blocks of whole lines."""
    while more := stream.read(TEXT_BLOCK):
        content = rest + more
        end = content.rfind(b"\n") + 1
        rest = content[end:]
        if end:
            yield content[:end]
    if rest.strip():
        yield rest
