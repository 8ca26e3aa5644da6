"""The table of zones that trips are joined with."""

import csv
import io
from dataclasses import dataclass

import polars as pl
from ray_shared.errors import UserError
from ray_shared.storage import open_storage

from data_preprocessing.trips import zone_table

ID, BOROUGH = "LocationID", "Borough"


@dataclass(frozen=True)
class Zones:
    """Which zones exist, and in which borough each lies."""

    boroughs: list[str]
    """Names, sorted; elsewhere a borough is its position in this list."""
    table: pl.DataFrame
    """Int64 columns `zone` and `borough`, a row for each zone."""

    @property
    def ids(self) -> pl.Series:
        """Int64, every zone that exists."""
        return self.table["zone"]


def load_zones(path: str | None) -> Zones:
    """Reads the table of zones.

    Args:
        path: A CSV with the columns `LocationID` and `Borough`; None: the generated trips' zones.

    Raises:
        UserError: If the file is missing, lacks a column, or has a zone twice.
    """
    if path is None:
        made_up = zone_table()
        return _zones(made_up[ID].to_list(), made_up[BOROUGH].to_list())
    file = open_storage(path, retries=2)
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise UserError(f"data.zones={path}: cannot be read: {reason}") from None
    rows = list(csv.DictReader(io.StringIO(content)))
    for column in (ID, BOROUGH):
        if not rows or column not in rows[0]:
            raise UserError(f"data.zones={path}: must be a CSV with the columns {ID} and {BOROUGH}")
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        if not row[ID].isdigit():
            raise UserError(f"{path}, line {number}: {ID}={row[ID]}: must be a whole number")
        zone = int(row[ID])
        if zone in seen:
            raise UserError(
                f"data.zones={path}: {ID}={zone} is there twice, in lines {seen[zone]} and "
                f"{number}: each zone must have one line"
            )
        seen[zone] = number
    return _zones(list(seen), [row[BOROUGH] for row in rows])


def _zones(ids: list[int], names: list[str]) -> Zones:
    boroughs = sorted(set(names))
    numbers = [boroughs.index(name) for name in names]
    schema = {"zone": pl.Int64, "borough": pl.Int64}
    return Zones(boroughs, pl.DataFrame({"zone": ids, "borough": numbers}, schema=schema))
