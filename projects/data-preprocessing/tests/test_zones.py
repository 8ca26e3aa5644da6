"""The table of zones: what is read, and what is refused."""

from pathlib import Path

import pytest
from data_preprocessing.zones import load_zones
from ray_shared.errors import UserError


def test_published_table_is_read(tmp_path: Path):
    path = tmp_path / "taxi_zone_lookup.csv"
    rows = ['"LocationID","Borough","Zone","service_zone"', '1,"EWR","Newark Airport","EWR"']
    path.write_text("\ufeff" + "\r\n".join([*rows, '264,"Unknown","N/A","N/A"', ""]))
    assert load_zones(str(path)) == {1: "EWR", 264: "Unknown"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": must be a CSV with the columns LocationID and Borough"),
        ("LocationID,Borough\n", ": must be a CSV with the columns LocationID and Borough"),
        ("id,name\n1,Queens\n", ": must be a CSV with the columns LocationID and Borough"),
        ("LocationID,Borough\n2\n", ", line 2: Borough=: must be a name without [, ] or <"),
        ("Borough,LocationID\nQueens\n", ", line 2: LocationID=: must be a whole number"),
        ("LocationID,Borough\n²,Queens\n", ", line 2: LocationID=²: must be a whole number"),
        ("LocationID,Borough\nx,Queens\n", ", line 2: LocationID=x: must be a whole number"),
        ("LocationID,Borough\n1,A[1]\n", ", line 2: Borough=A[1]: must be a name without"),
        ("LocationID,Borough\n1,A\n1,B\n", ": LocationID=1 is there twice, in lines 2 and 3"),
    ],
)
def test_wrong_table_is_refused_by_line(content: str, expected: str, tmp_path: Path):
    path = tmp_path / "zones.csv"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_zones(str(path))
    assert str(caught.value).startswith(f"data.zones={path}{expected}")


def test_missing_table_is_refused(tmp_path: Path):
    path = tmp_path / "zones.csv"
    with pytest.raises(UserError, match=f"^data.zones={path}: cannot be read: Failed to open"):
        load_zones(str(path))


def test_unknown_scheme_is_refused_by_the_right_key():
    with pytest.raises(UserError, match=r"^data.zones=ftp://x: must be a local path or start"):
        load_zones("ftp://x")
