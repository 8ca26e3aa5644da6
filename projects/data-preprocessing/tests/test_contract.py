"""Each rule of the contract, and what it lets pass."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from data_preprocessing import trips
from data_preprocessing.contract import COLUMNS, DROPOFF, MALFORMED, PICKUP, REASONS, check
from hypothesis import given, settings
from hypothesis import strategies as st

ZONES = pl.Series([1, 2, 3], dtype=pl.Int64)
NOON = datetime(2024, 1, 5, 12)
GOOD: dict[str, Any] = {
    "VendorID": 1,
    PICKUP: NOON,
    DROPOFF: NOON + timedelta(minutes=10),
    "passenger_count": 1.0,
    "trip_distance": 2.0,
    "RatecodeID": 1.0,
    "PULocationID": 1,
    "DOLocationID": 2,
    "fare_amount": 12.5,
}


def reason(**changes: Any) -> str | None:
    schema = {name: column.dtype for name, column in COLUMNS.items()}
    row = GOOD | changes
    schema |= {name: pl.String for name, value in row.items() if isinstance(value, str)}
    found: str | None = check(pl.DataFrame([row], schema=schema), ZONES)["reason"][0]
    return found


def test_good_trip_keeps_the_contract():
    assert reason() is None


@pytest.mark.parametrize("name", ["passenger_count", "RatecodeID"])
def test_what_some_meters_do_not_send_may_be_missing(name: str):
    assert reason(**{name: None}) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *(({name: None}, "missing_value") for name, c in COLUMNS.items() if not c.nullable),
        ({"VendorID": 100}, "out_of_range"),
        ({"passenger_count": -1.0}, "out_of_range"),
        ({"trip_distance": 500.5}, "out_of_range"),
        ({"trip_distance": float("nan")}, "out_of_range"),
        ({DROPOFF: NOON + timedelta(hours=25)}, "out_of_range"),
        ({"fare_amount": -0.01}, "negative_fare"),
        ({DROPOFF: NOON}, "dropoff_before_pickup"),
        ({DROPOFF: NOON - timedelta(seconds=1)}, "dropoff_before_pickup"),
        ({"trip_distance": 17.0}, "impossible_speed"),
        ({"PULocationID": 4}, "unknown_zone"),
        ({"DOLocationID": 0}, "unknown_zone"),
        ({"trip_distance": "n/a"}, "wrong_type"),
        ({"VendorID": "1.5"}, "wrong_type"),
        ({PICKUP: "yesterday"}, "wrong_type"),
        ({MALFORMED: "1,2"}, "malformed_row"),
    ],
)
def test_broken_rule_is_named(changes: dict[str, Any], expected: str):
    assert reason(**changes) == expected


def test_numbers_and_times_as_text_are_cast():
    text = {name: str(value) for name, value in GOOD.items()}
    assert reason(**text) is None
    assert reason(**{PICKUP: "2024-01-05T12:00:00.500"}) is None
    assert reason(**{PICKUP: "2024-01-05T12:00:00Z"}) is None
    assert reason(VendorID="1.0") is None
    assert reason(passenger_count="") is None
    assert reason(trip_distance="") == "missing_value"


def test_first_broken_rule_counts():
    assert reason(fare_amount=-1.0, PULocationID=99) == "negative_fare"
    assert reason(fare_amount=None, PULocationID=99) == "missing_value"


@pytest.mark.parametrize(("value", "expected"), [(1.0, None), (1.5, "wrong_type")])
@pytest.mark.parametrize("name", ["VendorID", "RatecodeID", "PULocationID"])
def test_number_of_another_type_must_be_whole(name: str, value: float, expected: str | None):
    rows = pl.DataFrame([GOOD]).with_columns(pl.lit(value).alias(name))
    assert check(rows, ZONES)["reason"].to_list() == [expected]


def test_trip_that_is_not_over_can_be_scored():
    rows = pl.DataFrame([GOOD]).drop(DROPOFF, "fare_amount")
    assert check(rows, ZONES, before=True)["reason"].to_list() == [None]
    assert check(rows, ZONES)["reason"].to_list() == ["missing_column"]
    unknown = rows.with_columns(PULocationID=9)
    assert check(unknown, ZONES, before=True)["reason"].to_list() == ["unknown_zone"]


def test_missing_column_breaks_every_row():
    rows = pl.DataFrame([GOOD, GOOD]).drop("fare_amount")
    checked = check(rows, ZONES)
    assert checked["reason"].to_list() == ["missing_column", "missing_column"]
    assert checked.columns == [*COLUMNS, "reason"]


def test_column_that_is_not_in_the_contract_is_left_alone():
    rows = pl.DataFrame([GOOD]).with_columns(cbd_congestion_fee=0.75)
    assert check(rows, ZONES)["reason"].to_list() == [None]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["parquet", "csv", "jsonl"]),
    broken=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_generated_rows_are_broken_where_they_should_be(seed: int, kind: str, broken: float):
    spec = trips.FileSpec(0, 500, broken, kind, seed)
    rows = trips.generate(spec)
    found = check(rows, pl.Series(range(1, trips.NUM_ZONES + 1), dtype=pl.Int64))["reason"]
    expected = trips.broken_rows(spec)
    assert {i: why for i, why in enumerate(found) if why is not None} == expected
    assert set(expected.values()) <= set(REASONS)
