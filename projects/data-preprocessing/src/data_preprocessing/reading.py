"""Finding input files, cutting them into units of work, and reading a unit chunk by chunk.

A *unit* is what one task reads, and what a run that was killed does again: some row groups of a
Parquet file, or a whole CSV or JSON-lines file. Nobody ever holds more than a *chunk* of it.
"""

import csv
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage, reason_of

from data_preprocessing import text
from data_preprocessing.contract import COLUMNS

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSED = ".gz"
"""Ending of text files that are decompressed while they are read."""
CHUNK_ROWS = 250_000
"""Rows of a Parquet file that are read at a time."""
Chunks = Iterator[pl.DataFrame]


DAMAGE = (pa.ArrowException, pl.exceptions.PolarsError, UnicodeDecodeError, csv.Error, OSError)
"""What reading a damaged file raises."""


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
        return FORMATS[_ending(self.path)]


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


def find_files(path: str) -> list[InputFile]:
    """The input files, sorted by path.

    Args:
        path: `data.path`: a file, a directory or a glob; local or with a scheme.

    Raises:
        UserError: If nothing matches, a file is empty, or the filesystem refuses.
    """
    pattern = any(c in path for c in "*?[")
    base = path[: min(path.find(c) for c in "*?[" if c in path)] if pattern else path
    if pattern:
        base = base.rpartition("/")[0] or ("/" if base.startswith("/") else ".")
    storage = open_storage(base, retries=2, key="data.path")
    try:
        found = _list(storage, pattern=_absolute(path, storage) if pattern else None)
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read: {reason_of(error)}") from None
    known = ", ".join(FORMATS)
    if not found:
        raise UserError(f"data.path={path}: no file matches (of the kinds {known})")
    scheme = path.partition("://")[0] + "://" if "://" in path else ""
    files: list[InputFile] = []
    for info in found:
        if info.size == 0:
            raise UserError(f"{scheme}{info.path}: is empty; remove it from data.path={path}")
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
        found = [info for info in found if _matches(info.path, pattern)]
    return sorted(found, key=lambda info: info.path)


def _matches(path: str, pattern: str) -> bool:
    """Whether a path matches part by part: a `*` stays within its directory, `**` does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern)
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _absolute(pattern: str, base: Storage) -> str:
    """The pattern as the filesystem writes paths."""
    tail = pattern.partition("://")[2] or pattern
    if "://" in pattern:
        return tail
    wildcard = min(tail.find(c) for c in "*?[" if c in tail)
    name = tail[tail.rfind("/", 0, wildcard) + 1 :]
    return f"{base.path.rstrip('/')}/{name}"


def _readable(path: str) -> bool:
    ending = _ending(path)
    if ending == ".parquet" and path.lower().endswith(COMPRESSED):
        return False
    return ending in FORMATS and not path.rpartition("/")[2].startswith((".", "_"))


def _ending(path: str) -> str:
    name = path.rpartition("/")[2].lower().removesuffix(COMPRESSED)
    return "." + name.rpartition(".")[2]


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
            footer = _footer(file, filesystem)
        except (pa.ArrowException, OSError) as error:
            _raise_if_out_of_reach(error, file, filesystem, partial(_footer, file, filesystem))
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


def _footer(file: InputFile, filesystem: fs.FileSystem) -> pq.FileMetaData:
    with filesystem.open_input_file(file.path) as stream:
        return pq.read_metadata(stream)


def read_chunks(unit: Unit, filesystem: fs.FileSystem) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads a unit: position of a chunk's first row in the file, and the chunk.

    Raises:
        UnreadableFileError: If the file is damaged.
    """
    read = {"parquet": _read_parquet, "csv": _read_text, "jsonl": _read_text}[unit.file.format]
    row = unit.first_row
    try:
        for chunk in read(unit, filesystem):
            yield row, chunk
            row += chunk.height
    except DAMAGE as error:
        _raise_if_out_of_reach(
            error, unit.file, filesystem, lambda: all(True for _ in read(unit, filesystem))
        )
        raise UnreadableFileError(f"{unit.file.uri}: {str(error).splitlines()[0]}") from None


def _raise_if_out_of_reach(
    error: Exception, file: InputFile, filesystem: fs.FileSystem, again: Callable[[], object]
) -> None:
    """Tells a damaged file from a storage that fails: pyarrow raises `OSError` for both.

    A file that cannot be understood the second time either, and whose bytes can all be read, is
    damaged.
    """
    if not isinstance(error, OSError):
        return
    try:
        again()
    except DAMAGE:
        with filesystem.open_input_file(file.path) as stream:
            while stream.read(text.BLOCK):
                pass
    else:
        raise error  # The storage failed for a moment: nothing is wrong with the file.


def _read_parquet(unit: Unit, filesystem: fs.FileSystem) -> Chunks:
    with filesystem.open_input_file(unit.file.path) as stream:
        file = pq.ParquetFile(stream)
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        groups = list(unit.row_groups or range(file.num_row_groups))
        # One thread: there are as many tasks as CPUs.
        for batch in file.iter_batches(CHUNK_ROWS, groups, names, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def _read_text(unit: Unit, filesystem: fs.FileSystem) -> Chunks:
    read = {"csv": text.read_csv, "jsonl": text.read_jsonl}[unit.file.format]
    with filesystem.open_input_stream(unit.file.path) as stream:
        yield from read(stream)
