"""Input files: found, cut into units, read chunk by chunk."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from data_preprocessing import reading, text, trips
from data_preprocessing.contract import COLUMNS, MALFORMED, check
from data_preprocessing.reading import UnreadableFileError, cut, find_files, read_chunks
from ray_shared.errors import UserError
from ray_shared.storage import open_storage

ZONES = pl.Series(range(1, trips.NUM_ZONES + 1), dtype=pl.Int64)


def write(directory: Path, kind: str, rows: int = 3000, fault: str | None = None) -> Path:
    spec = trips.FileSpec(0, rows, 0.02, kind, 7, fault)
    trips.write(spec, open_storage(str(directory)))
    return directory / spec.name


def read(path: Path) -> pl.DataFrame:
    (file,) = find_files(str(path))
    filesystem = open_storage(str(path)).filesystem
    units, unreadable = cut([file], filesystem, 10**6)
    assert unreadable == []
    chunks = [chunk for unit in units for _, chunk in read_chunks(unit, filesystem)]
    return pl.concat(check(chunk, ZONES) for chunk in chunks)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_in_blocks_is_read_like_parquet(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = trips.FileSpec(0, 3000, 0.0, kind, 7)
    trips.write(spec, open_storage(str(tmp_path)))
    monkeypatch.setattr(text, "BLOCK", 10_000)
    found = read(tmp_path / spec.name)
    # The same seed; without broken rows a file is the same in every format.
    parquet = read(write_parquet(tmp_path / "parquet"))
    assert found.equals(parquet)


def write_parquet(directory: Path) -> Path:
    spec = trips.FileSpec(0, 3000, 0.0, "parquet", 7)
    trips.write(spec, open_storage(str(directory)))
    return directory / spec.name


def test_row_numbers_go_through_all_units_of_a_file(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = trips.generate(trips.FileSpec(0, 2500, 0.0, "parquet", 0))
    pq.write_table(rows.to_arrow(), path, row_group_size=400)
    filesystem = open_storage(str(path)).filesystem
    units, _ = cut(find_files(str(path)), filesystem, 1000)
    assert [unit.row_groups for unit in units] == [(0, 1), (2, 3), (4, 5, 6)]
    found = [(first, chunk) for unit in units for first, chunk in read_chunks(unit, filesystem)]
    assert [first for first, _ in found] == [0, 800, 1600]
    assert pl.concat(c for _, c in found).equals(rows.select(list(COLUMNS)))


def test_large_row_group_is_a_unit_and_read_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "rows.parquet"
    rows = trips.generate(trips.FileSpec(0, 3000, 0.0, "parquet", 0))
    pq.write_table(rows.to_arrow(), path, row_group_size=1500)
    filesystem = open_storage(str(path)).filesystem
    units, _ = cut(find_files(str(path)), filesystem, 1000)
    assert [unit.row_groups for unit in units] == [(0,), (1,)]
    monkeypatch.setattr(reading, "CHUNK_ROWS", 600)
    found = [(first, c.height) for unit in units for first, c in read_chunks(unit, filesystem)]
    assert found == [(0, 600), (600, 600), (1200, 300), (1500, 600), (2100, 600), (2700, 300)]


def reasons(path: Path) -> list[str | None]:
    return list(read(path)["reason"])


def test_line_with_a_field_too_many_is_set_aside_alone(tmp_path: Path):
    path = write(tmp_path, "csv", rows=50)
    good = reasons(path)
    lines = path.read_text().splitlines()
    lines[8] += ",more"
    lines[20] = '1,"2024'
    path.write_text("\n".join(lines[:21]) + "\n")
    found = read(path)
    assert found["reason"].to_list() == [*good[:7], "malformed_row", *good[8:19], "malformed_row"]


def test_line_that_is_no_json_is_set_aside_alone(tmp_path: Path):
    path = write(tmp_path, "jsonl", rows=50)
    good = reasons(path)
    lines = path.read_text().splitlines()
    lines[7] = lines[7][:-10]
    lines[8] = "[1]"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert reasons(path) == [*good[:7], "malformed_row", "malformed_row", *good[9:]]
    chunk = next(iter(_chunks(path)))
    assert chunk[MALFORMED].drop_nulls().to_list() == [lines[7], "[1]"]


def _chunks(path: Path) -> Iterator[pl.DataFrame]:
    filesystem = open_storage(str(path)).filesystem
    units, _ = cut(find_files(str(path)), filesystem, 1000)
    return (chunk for unit in units for _, chunk in read_chunks(unit, filesystem))


@pytest.mark.parametrize("block", [40, 64, 100, 1000])
def test_line_break_within_quotes_does_not_end_a_row(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "notes.csv"
    rows = [f'{i},"first\nsecond ""{i}"""' for i in range(30)]
    path.write_text("VendorID,note\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr(text, "BLOCK", block)
    found = pl.concat(_chunks(path))
    assert found["VendorID"].to_list() == [str(i) for i in range(30)]
    assert found["note"].to_list() == [f'first\nsecond "{i}"' for i in range(30)]


def test_line_without_end_makes_a_file_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "binary.csv"
    path.write_bytes(b"VendorID,fare_amount\n" + b"1" * 5000)
    monkeypatch.setattr(text, "BLOCK", 1000)
    with pytest.raises(UnreadableFileError, match="a line is longer than 1,000 bytes"):
        read(path)


def test_text_in_another_encoding_is_unreadable(tmp_path: Path):
    path = tmp_path / "utf16.csv"
    path.write_text("VendorID,fare_amount\n1,2\n", encoding="utf-16")
    with pytest.raises(UnreadableFileError, match=str(path)):
        read(path)


def test_compressed_text_is_read(tmp_path: Path):
    path = write(tmp_path, "csv")
    expected = read(path)
    compressed = tmp_path / "trips.csv.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(compressed).equals(expected)


def test_file_that_is_whole_after_all_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path, "parquet")
    (unit,), _ = cut(find_files(str(path)), open_storage(str(path)).filesystem, 10**6)
    real, calls = reading.pq.ParquetFile, []

    def fails_once(stream: Any) -> Any:
        calls.append(stream)
        if len(calls) == 1:
            raise OSError("connection reset")
        return real(stream)

    monkeypatch.setattr(reading.pq, "ParquetFile", fails_once)
    with pytest.raises(OSError, match="connection reset"):
        list(read_chunks(unit, open_storage(str(path)).filesystem))


def test_truncated_parquet_is_set_aside_with_a_reason(tmp_path: Path):
    path = write(tmp_path, "parquet", fault="truncated")
    files = find_files(str(path))
    units, unreadable = cut(files, open_storage(str(path)).filesystem, 1000)
    assert units == []
    assert unreadable[0][0] == files[0]
    assert "Parquet" in unreadable[0][1]


def test_parquet_with_damaged_pages_is_unreadable(tmp_path: Path):
    path = write(tmp_path, "parquet")
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\0" * 1800
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=str(path)):
        read(path)


@pytest.mark.parametrize("name", ["*.parquet", "trips-000?.parquet", ""])
def test_directory_and_globs_find_the_same_files(name: str, tmp_path: Path):
    for index in range(3):
        spec = trips.FileSpec(index, 1000, 0.0, "parquet", 0)
        trips.write(spec, open_storage(str(tmp_path)))
    (tmp_path / "notes.txt").write_text("not a trip")
    (tmp_path / "_SUCCESS.parquet").write_text("")
    found = find_files(str(tmp_path / name))
    assert [Path(file.path).name for file in found] == [f"trips-{i:04d}.parquet" for i in range(3)]
    assert [file.index for file in found] == [0, 1, 2]


def test_glob_leaves_others_out(tmp_path: Path):
    write(tmp_path, "parquet")
    write(tmp_path, "csv")
    write(tmp_path / "below", "csv")
    here, below = str(tmp_path / "trips-0000.csv"), str(tmp_path / "below" / "trips-0000.csv")
    assert [f.path for f in find_files(f"{tmp_path}/*.csv")] == [here]
    assert [f.path for f in find_files(f"{tmp_path}/*/*.csv")] == [below]
    assert [f.path for f in find_files(f"{tmp_path}/**.csv")] == [below, here]


def test_no_match_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"data.path=.*/\*.parquet: no file matches"):
        find_files(f"{tmp_path}/*.parquet")
    with pytest.raises(UserError, match="no file matches"):
        find_files(str(tmp_path / "nowhere"))


def test_empty_file_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "parquet")
    (tmp_path / "zero.csv").touch()
    with pytest.raises(UserError, match="zero.csv: is empty"):
        find_files(str(tmp_path))
