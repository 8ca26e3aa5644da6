"""The table of zones that trips are joined with."""

import csv
import io

import polars as pl
from ray_shared.errors import UserError
from ray_shared.storage import open_storage, reason_of

from data_preprocessing.trips import zone_table

ID, BOROUGH = "LocationID", "Borough"
MAX_DIGITS = 9


def zone_ids(zones: dict[int, str]) -> pl.Series:
    """Int64, every zone that exists."""
    return pl.Series(list(zones), dtype=pl.Int64)


def load_zones(path: str | None) -> dict[int, str]:
    """Reads the table of zones.

    Args:
        path: A CSV with the columns `LocationID` and `Borough`; None: the generated trips' zones.

    Returns:
        The borough of each zone.

    Raises:
        UserError: If the file is missing, lacks a column, or has a zone twice.
    """
    if path is None:
        return dict(zone_table().select(ID, BOROUGH).iter_rows())
    file = open_storage(path, retries=2, key="data.zones")
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.zones={path}: cannot be read: {reason_of(error)}") from None
    rows = list(csv.DictReader(io.StringIO(content)))
    for column in (ID, BOROUGH):
        if not rows or column not in rows[0]:
            raise UserError(f"data.zones={path}: must be a CSV with the columns {ID} and {BOROUGH}")
    zones: dict[int, str] = {}
    lines: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        given, borough = row[ID] or "", row[BOROUGH]
        where = f"data.zones={path}, line {number}"
        if not (given.isascii() and given.isdigit() and len(given) <= MAX_DIGITS):
            raise UserError(f"{where}: {ID}={given}: must be a whole number")
        if not borough or set(borough) & set("[]<"):  # XGBoost would not have them in a name.
            raise UserError(f"{where}: {BOROUGH}={borough or ''}: must be a name without [, ] or <")
        zone = int(given)
        if zone in zones:
            raise UserError(
                f"data.zones={path}: {ID}={zone} is there twice, in lines {lines[zone]} and "
                f"{number}: each zone must have one line"
            )
        zones[zone], lines[zone] = borough, number
    return zones
