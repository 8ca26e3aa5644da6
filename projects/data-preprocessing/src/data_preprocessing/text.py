"""Text files of trips, read block by block: CSV with a header, and JSON lines.

Every value stays text: what it should be is the contract's business. Polars reads a block at once;
where it refuses, the lines are taken one by one, and those that cannot be taken apart are rows of
their own, with the line as it stands in the column `MALFORMED`.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa

from data_preprocessing.contract import COLUMNS, MALFORMED

BLOCK = 32 << 20
"""Bytes that are read at a time; no line may be longer."""
MAX_LINE_BREAKS = 100
"""Line breaks that a quoted value may have."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_csv(stream: Any) -> Iterator[pl.DataFrame]:
    """The rows of a CSV, every column text.

    Raises:
        pa.ArrowInvalid: If a line is too long.
        UnicodeDecodeError: If the header is not UTF-8.
    """
    header, rest = _header(stream)
    names = next(csv.reader([header.decode("utf-8-sig")]), [])
    for block in _lines(stream, rest, quoted=True):
        try:
            yield pl.read_csv(
                io.BytesIO(block), has_header=False, new_columns=names, infer_schema=False
            )
        except pl.exceptions.PolarsError:
            yield _csv_line_by_line(block, names)


def _csv_line_by_line(block: bytes, names: list[str]) -> pl.DataFrame:
    """A block in which a line has too many or too few fields: those lines are set aside."""
    found = []
    for fields in csv.reader(io.StringIO(block.decode(errors="replace"), newline="")):
        if len(fields) == len(names):
            found.append({n: v or None for n, v in zip(names, fields, strict=True)})
        else:
            found.append({MALFORMED: ",".join(fields)})
    return pl.DataFrame(found, schema=dict.fromkeys([*names, MALFORMED], pl.String))


def read_jsonl(stream: Any) -> Iterator[pl.DataFrame]:
    """The rows of JSON lines, every column text.

    Raises:
        pa.ArrowInvalid: If a line is too long.
    """
    names: list[str] | None = None
    for lines in _lines(stream, b""):
        block = lines.removeprefix(BYTE_ORDER_MARK) if names is None else lines
        if names is None:
            # A writer may leave a null out; a column that the file lacks, always.
            names = [name for name in COLUMNS if f'"{name}"'.encode() in block]
        try:
            yield pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(names, pl.String))
        except pl.exceptions.PolarsError:
            yield _jsonl_line_by_line(block, names)


def _jsonl_line_by_line(block: bytes, names: list[str]) -> pl.DataFrame:
    """A block in which a line is no JSON object: those lines are set aside."""
    found: list[dict[str, str | None]] = []
    for line in block.decode(errors="replace").splitlines():
        try:
            values = json.loads(line, parse_int=str, parse_float=str)
            found.append({n: _as_text(values.get(n)) for n in names})
        except (ValueError, AttributeError):
            if line.strip():
                found.append({MALFORMED: line})
    return pl.DataFrame(found, schema=dict.fromkeys([*names, MALFORMED], pl.String))


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _header(stream: Any) -> tuple[bytes, bytes]:
    content = b""
    while b"\n" not in content and (more := stream.read(min(1 << 16, BLOCK))):
        content += more
        if len(content) > BLOCK and b"\n" not in content:
            raise pa.ArrowInvalid(f"the first line is longer than {BLOCK:,} bytes")
    header, _, rest = content.partition(b"\n")
    return header, rest


def _lines(stream: Any, rest: bytes, quoted: bool = False) -> Iterator[bytes]:
    """Blocks of whole lines; with `quoted` a line may go on after a line break between quotes."""
    while more := stream.read(BLOCK):
        content = rest + more
        end = content.rfind(b"\n") + 1
        if quoted and content.count(b'"', 0, end) % 2:
            # Within quotes. Where no quote is stray, the line began a few line breaks before.
            for _ in range(MAX_LINE_BREAKS):
                before = content.rfind(b"\n", 0, end - 1) + 1
                if content.count(b'"', before, end) % 2:
                    end = before
                    break
                end = before or end
        rest = content[end:]
        if len(rest) > BLOCK:
            raise pa.ArrowInvalid(f"a line is longer than {BLOCK:,} bytes")
        if end:
            yield content[:end]
    if rest.strip():
        yield rest
