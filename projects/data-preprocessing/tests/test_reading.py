"""Input files: found, cut into units, read chunk by chunk."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from data_preprocessing import reading, trips
from data_preprocessing.contract import COLUMNS, check
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
    monkeypatch.setattr(reading, "TEXT_BLOCK", 10_000)
    text = read(tmp_path / spec.name)
    # The same seed; without broken rows a file is the same in every format.
    parquet = read(write_parquet(tmp_path / "parquet"))
    assert text.equals(parquet)


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
    assert [first for first, _ in found] == [0, 400, 800, 1200, 1600, 2000, 2400]
    assert pl.concat(c for _, c in found).equals(rows.select(list(COLUMNS)))


def test_row_group_larger_than_a_unit_is_a_unit(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = trips.generate(trips.FileSpec(0, 3000, 0.0, "parquet", 0))
    pq.write_table(rows.to_arrow(), path, row_group_size=1500)
    units, _ = cut(find_files(str(path)), open_storage(str(path)).filesystem, 1000)
    assert [unit.row_groups for unit in units] == [(0,), (1,)]


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
    assert [f.format for f in find_files(f"{tmp_path}/*.csv")] == ["csv"]


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
