"""What a trip must look like, and what happens to one that does not.

The schema is that of the yellow-taxi files of New York's Taxi and Limousine Commission. A row that
breaks a rule goes to quarantine with the first rule that it breaks; nothing is repaired in silence.
What is known only when a trip is over is no input of the model: a trip to be scored may lack it.

Source: https://www.nyc.gov/assets/tlc/downloads/pdf/data_dictionary_trip_records_yellow.pdf
"""

from dataclasses import dataclass

import polars as pl

PICKUP, DROPOFF = "tpep_pickup_datetime", "tpep_dropoff_datetime"
TIMESTAMP = pl.Datetime("us")
MALFORMED = "malformed_line"
"""Column of a chunk that was read from text: the line, where it could not be taken apart."""
REASONS = (
    "malformed_row",
    "missing_column",
    "wrong_type",
    "missing_value",
    "out_of_range",
    "negative_fare",
    "dropoff_before_pickup",
    "impossible_speed",
    "unknown_zone",
)
"""In the order in which the rules are tried."""
MAX_SPEED_MPH = 100.0
MAX_DURATION_MIN = 24 * 60.0


@dataclass(frozen=True)
class Column:
    """One column of the contract."""

    dtype: pl.DataType
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    known_before: bool = True
    """Whether it is known before the trip: an input of the model may be made of it."""


COLUMNS: dict[str, Column] = {
    "VendorID": Column(pl.Int64(), minimum=0, maximum=99),
    PICKUP: Column(TIMESTAMP),
    DROPOFF: Column(TIMESTAMP, known_before=False),
    # The meters of some vendors send none.
    "passenger_count": Column(pl.Float64(), nullable=True, minimum=0, maximum=9),
    "trip_distance": Column(pl.Float64(), minimum=0, maximum=500),
    "RatecodeID": Column(pl.Int64(), nullable=True, minimum=1, maximum=99),
    "PULocationID": Column(pl.Int64()),
    "DOLocationID": Column(pl.Int64()),
    "fare_amount": Column(pl.Float64(), maximum=10_000, known_before=False),
}
"""Every column that is read; a file may have more, which are left alone."""

DURATION_MIN = (pl.col(DROPOFF) - pl.col(PICKUP)).dt.total_microseconds() / 60e6
"""Length of a trip in minutes."""


def check(trips: pl.DataFrame, zones: pl.Series, before: bool = False) -> pl.DataFrame:
    """Casts trips to the contract's types and says what is wrong with each.

    Args:
        trips: As read; types may differ (a CSV has strings), columns may be missing.
        zones: Int64, the zones that exist.
        before: Ask only for what is known before a trip, as scoring does.

    Returns:
        The contract's columns with their types, and `reason`: one of `REASONS`, or null for a row
        that keeps the contract. A value that could not be cast is null.
    """
    asked = {name: c for name, c in COLUMNS.items() if c.known_before or not before}
    absent = [name for name in COLUMNS if name not in trips.columns]
    if absent:
        empty = [pl.lit(None, COLUMNS[name].dtype).alias(name) for name in absent]
        trips = trips.with_columns(empty)
    typed = trips.select(cast(trips, name) for name in COLUMNS)
    rules: dict[str, pl.Expr] = {}
    if MALFORMED in trips.columns:
        rules["malformed_row"] = pl.lit(trips[MALFORMED].is_not_null())
    if asked.keys() & absent:
        rules["missing_column"] = pl.lit(True)
    else:
        rules["wrong_type"] = _uncast(trips, typed, asked)
        rules["missing_value"] = _any(
            pl.col(n).is_null() for n, c in asked.items() if not c.nullable
        )
        rules["out_of_range"] = _any(_outside(name, column) for name, column in asked.items())
        if not before:
            rules["out_of_range"] |= DURATION_MIN > MAX_DURATION_MIN
            rules["negative_fare"] = pl.col("fare_amount") < 0
            rules["dropoff_before_pickup"] = pl.col(DROPOFF) <= pl.col(PICKUP)
            mph = pl.col("trip_distance") / (DURATION_MIN / 60)
            rules["impossible_speed"] = mph > MAX_SPEED_MPH
        known = zones.implode()
        ends = ("PULocationID", "DOLocationID")
        rules["unknown_zone"] = _any(~pl.col(end).is_in(known) for end in ends)
    reason = pl.coalesce(pl.when(rule).then(pl.lit(name)) for name, rule in rules.items())
    return typed.with_columns(reason=reason)


def cast(trips: pl.DataFrame, name: str) -> pl.Expr:
    """The column in its type; what cannot be cast becomes null."""
    column, dtype = pl.col(name), COLUMNS[name].dtype
    found = trips.schema[name]
    if found == dtype:
        return column
    if dtype == TIMESTAMP and found == pl.String:
        # As CSV and JSON writers put it: with a blank or a `T`, a fraction, a `Z`, or without.
        text = column.str.replace("T", " ", literal=True).str.strip_suffix("Z")
        return text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    if dtype == TIMESTAMP and isinstance(found, pl.Datetime):
        return column.dt.replace_time_zone(None).cast(dtype, strict=False)
    if dtype == TIMESTAMP:
        return pl.lit(None, dtype).alias(name)  # A bare number is no time.
    if dtype == pl.Int64 and (found == pl.String or found.is_float()):
        # 132.0 is a whole number, 132.5 is none.
        number = column.cast(pl.Float64, strict=False)
        return pl.when(number == number.floor()).then(number).cast(dtype, strict=False).alias(name)
    return column.cast(dtype, strict=False)


def _uncast(trips: pl.DataFrame, typed: pl.DataFrame, asked: dict[str, Column]) -> pl.Expr:
    """Whether a value was there and is gone after the cast."""
    lost = pl.Series([False]).new_from_index(0, trips.height)
    for name, column in asked.items():
        if trips.schema[name] != column.dtype:
            given = trips[name].is_not_null()
            if trips.schema[name] == pl.String:
                given &= trips[name] != ""
            lost |= given & typed[name].is_null()
    return pl.lit(lost)


def _outside(name: str, column: Column) -> pl.Expr:
    value, outside = pl.col(name), pl.lit(False)
    if column.minimum is not None:
        outside |= value < column.minimum
    if column.maximum is not None:
        outside |= value > column.maximum
    if column.dtype == pl.Float64:
        outside |= value.is_nan() | value.is_infinite()
    return outside


def _any(rules: object) -> pl.Expr:
    # A rule about a null is null: not broken, where null is allowed.
    return pl.any_horizontal(rule.fill_null(False) for rule in rules)  # type: ignore[attr-defined]
