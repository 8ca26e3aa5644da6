"""Features of a trip: what a row says by itself, and what the training rows say about its zones.

Fitting needs sums over all training rows. They are counted chunk by chunk as whole numbers, which
add up to the same in any order: a resumed run ends with the same bits as an undisturbed one.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_preprocessing.config import NUMERIC, FeaturesConfig
from data_preprocessing.contract import DURATION_MIN, PICKUP

LABEL = "duration_min"
TRACE = ("file", "row")
"""Columns of the output that say where a row comes from: input file and position in it."""
SCALE = 10**6
"""Sums are kept in millionths."""
HISTOGRAMS: dict[str, NDArray[np.float64]] = {
    "duration_min": np.linspace(0, 60, 31),
    "trip_distance": np.linspace(0, 20, 41),
    "speed_mph": np.linspace(0, 50, 26),
    "fare_amount": np.linspace(0, 100, 41),
    "hour": np.arange(25.0),
    "weekday": np.arange(8.0),
}
"""Edges of the bins in the quality report, equally wide; what lies beyond counts in the last."""
VERSION = 1
"""Of the preprocessor's state."""
STATISTICS = {"kind": pl.String, "key": pl.Int64, "n": pl.Int64, "a": pl.Int64, "b": pl.Int64}
"""Schema of the counts of a chunk: what is counted, for which key, how many, and two sums."""
OTHER = "other"
ENDS = {"pickup": "PULocationID", "dropoff": "DOLocationID"}
CATEGORIES = {
    "vendor": "VendorID",
    "ratecode": "RatecodeID",
    **{f"{end}_borough": zone for end, zone in ENDS.items()},
}
"""The column that each categorical feature is made of."""


def derive(trips: pl.DataFrame) -> pl.DataFrame:
    """Adds what needs no fit to trips that keep the contract.

    The label and the speed are null where the end of a trip is not known.

    Args:
        trips: The contract's columns.
    """
    hour, weekday = pl.col("hour"), pl.col("weekday")
    return trips.with_columns(
        DURATION_MIN.alias(LABEL),
        hour=pl.col(PICKUP).dt.hour().cast(pl.Int64),
        weekday=pl.col(PICKUP).dt.weekday().cast(pl.Int64) - 1,
        log_distance=pl.col("trip_distance").log1p(),
    ).with_columns(
        speed_mph=pl.col("trip_distance") / (pl.col(LABEL) / 60),
        # Looked up, which takes a tenth of the time.
        **{
            f"{name}_{wave.__name__}": pl.lit(_circle(wave, period)).gather(value)
            for name, value, period in (("hour", hour, 24), ("weekday", weekday, 7))
            for wave in (math.sin, math.cos)
        },
        is_weekend=(weekday >= 5).cast(pl.Float64),
    )


def _circle(wave: Callable[[float], float], period: int) -> pl.Series:
    return pl.Series([wave(2 * math.pi * i / period) for i in range(period)])


def count(train: pl.DataFrame) -> pl.DataFrame:
    """What the fit needs of derived training rows; schema `STATISTICS`."""
    minutes, miles = _fixed(pl.col(LABEL)), _fixed(pl.col("trip_distance"))
    sums = [pl.len().alias("n"), minutes.sum().alias("a"), miles.sum().alias("b")]
    pickup_hour = pl.col("PULocationID") * 24 + pl.col("hour")
    found = [
        _statistics("pickup_hour", train.group_by(key=pickup_hour).agg(sums)),
        _statistics("dropoff", train.group_by(key=pl.col("DOLocationID")).agg(sums)),
    ]
    tenths = (pl.col(LABEL) * 10).floor().cast(pl.Int64)
    found.append(_statistics("label", train.group_by(key=tenths).agg(pl.len().alias("n"))))
    for name in NUMERIC:
        if name in train.columns:  # Otherwise it is made of the counts above.
            value = train[name].drop_nulls()
            a = int(_fixed(value).sum() or 0)
            b = int(_fixed(value * value).sum() or 0)
            found.append(row(f"moments:{name}", 0, value.len(), a, b))
    for name in ("vendor", "ratecode"):  # Boroughs are counted by their zones.
        key = pl.col(CATEGORIES[name])
        counts = train.group_by(key=key).agg(pl.len().alias("n")).drop_nulls()
        found.append(_statistics(f"category:{name}", counts))
    return pl.concat(found)


def histograms(trips: pl.DataFrame) -> pl.DataFrame:
    """Counts of derived rows in the bins of `HISTOGRAMS`; schema `STATISTICS`."""
    found = []
    for name, edges in HISTOGRAMS.items():
        num_bins, width = len(edges) - 1, edges[1] - edges[0]
        bin_of = ((trips[name].to_numpy() - edges[0]) / width).clip(0, num_bins - 1)
        bins = np.bincount(bin_of.astype(np.int64), minlength=num_bins)
        counts = pl.DataFrame({"key": np.arange(len(bins)), "n": bins})
        found.append(_statistics(f"histogram:{name}", counts))
    return pl.concat(found)


def days(trips: pl.DataFrame) -> pl.DataFrame:
    """Rows by day of pick-up, in days since 1970; schema `STATISTICS`."""
    day = pl.col(PICKUP).dt.epoch("d").cast(pl.Int64)
    return _statistics("day", trips.group_by(key=day).agg(pl.len().alias("n")))


def row(kind: str, key: int, n: int, a: int = 0, b: int = 0) -> pl.DataFrame:
    """One row of statistics."""
    values = {"kind": kind, "key": key, "n": n, "a": a, "b": b}
    return pl.DataFrame([values], schema=STATISTICS, orient="row")


def add_up(statistics: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The statistics of all chunks together, sorted by kind and key."""
    together = pl.concat([pl.DataFrame(schema=STATISTICS), *statistics])
    return together.group_by("kind", "key").sum().sort("kind", "key")


def _statistics(kind: str, counts: pl.DataFrame) -> pl.DataFrame:
    empty = [pl.lit(0).alias(n) for n in ("a", "b") if n not in counts.columns]
    named = counts.with_columns(pl.lit(kind).alias("kind"), *empty)
    return named.select(pl.col(name).cast(kind) for name, kind in STATISTICS.items())


def _fixed(value: Any) -> Any:
    return (value * SCALE).round().cast(pl.Int64)


class Preprocessor:
    """What was fitted on the training rows; turns derived trips into features.

    It is all in `state`, plain JSON, with the zones and their boroughs: a server can apply it
    without this code's Ray side.
    """

    def __init__(self, state: dict[str, Any]):
        """Takes a fitted state.

        Raises:
            ValueError: If it is of another version.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"version is {state.get('version')}, this code reads {VERSION}")
        self.state = state
        zones = [[int(zone), borough] for zone, borough in state["zones"].items()]
        boroughs = pl.DataFrame(zones, {"zone": pl.Int64, "borough": pl.String}, orient="row")
        self._boroughs = [
            boroughs.rename({"zone": zone, "borough": f"{end}_borough"})
            for end, zone in ENDS.items()
        ]
        hours = [[int(key), *values] for key, values in state["pickup_hour"].items()]
        self._pickup_hour = pl.DataFrame(
            hours,
            schema={
                "pickup_hour": pl.Int64,
                "pickup_hour_minutes": pl.Float64,
                "pickup_hour_mph": pl.Float64,
                "pickup_hour_log_trips": pl.Float64,
            },
            orient="row",
        )
        self._zone_minutes = [
            pl.DataFrame(
                [[int(key), value] for key, value in state[end].items()],
                schema={zone: pl.Int64, f"{end}_minutes": pl.Float64},
                orient="row",
            )
            for end, zone in ENDS.items()
        ]

    @classmethod
    def fit(
        cls, statistics: pl.DataFrame, zones: dict[int, str], config: FeaturesConfig
    ) -> "Preprocessor":
        """Fits encodings, scales and categories.

        Args:
            statistics: Of all training rows (`add_up` of `count`).
            zones: The borough of each zone.
            config: Which features, and how much a zone's own mean counts.
        """
        kinds = {kind: group for (kind,), group in statistics.group_by("kind")}
        hours = kinds["pickup_hour"].sort("key")
        sums = pl.col("n", "a", "b").sum()
        pickup = hours.group_by(pl.col("key") // 24).agg(sums).sort("key")
        dropoff = kinds["dropoff"].sort("key")
        num_rows, all_minutes, all_miles = (int(dropoff[name].sum()) for name in ("n", "a", "b"))
        mean_minutes, mean_miles = (s / num_rows / SCALE for s in (all_minutes, all_miles))
        mean_mph = mean_miles / mean_minutes * 60
        weight = config.smoothing

        def smoothed(n: int, minutes: int) -> float:
            return float((minutes / SCALE + weight * mean_minutes) / (n + weight))

        def smoothed_mph(minutes: int, miles: int) -> float:
            hours = (max(minutes, 1) / SCALE + weight * mean_minutes) / 60
            return float((miles / SCALE + weight * mean_miles) / hours)

        pickup_hour: dict[str, list[float]] = {}
        for _, key, n, minutes, miles in hours.select(list(STATISTICS)).iter_rows():
            mph = smoothed_mph(minutes, miles)
            pickup_hour[str(key)] = [smoothed(n, minutes), mph, math.log1p(n)]
        encoded: dict[str, dict[str, float]] = {
            side: {
                str(key): smoothed(n, minutes)
                for key, n, minutes in group.select("key", "n", "a").iter_rows()
            }
            for side, group in (("pickup", pickup), ("dropoff", dropoff))
        }
        # Mean and spread of each feature over the training rows; an encoded one is weighted by
        # how many rows have it.
        weighted = {
            "pickup_minutes": (list(encoded["pickup"].values()), pickup["n"]),
            "dropoff_minutes": (list(encoded["dropoff"].values()), dropoff["n"]),
            "pickup_hour_minutes": ([v[0] for v in pickup_hour.values()], hours["n"]),
            "pickup_hour_mph": ([v[1] for v in pickup_hour.values()], hours["n"]),
            "pickup_hour_log_trips": ([v[2] for v in pickup_hour.values()], hours["n"]),
        }
        scales: dict[str, list[float]] = {}
        for name in config.numeric:
            if name in weighted:
                values, weights = np.array(weighted[name][0]), weighted[name][1].to_numpy()
                mean = float(np.average(values, weights=weights))
                variance = float(np.average((values - mean) ** 2, weights=weights))
            else:
                n, a, b = kinds[f"moments:{name}"].select("n", "a", "b").row(0)
                mean = a / SCALE / max(n, 1)
                variance = max(b / SCALE / max(n, 1) - mean**2, 0.0)
            scales[name] = [mean, math.sqrt(variance) or 1.0]
        labels = kinds["label"].sort("key")
        middle = int((labels["n"].cum_sum() * 2 >= labels["n"].sum()).arg_max() or 0)
        seen = {f"{end}_borough": {zones[int(z)] for z in encoded[end]} for end in ENDS}
        for name in ("vendor", "ratecode"):
            seen[name] = (
                set(kinds[f"category:{name}"]["key"]) if f"category:{name}" in kinds else set()
            )
        return cls(
            {
                "version": VERSION,
                "label": LABEL,
                # To a tenth of a minute: what a model has to beat.
                "label_median": labels["key"][middle] / 10 + 0.05,
                "zones": {str(zone): borough for zone, borough in zones.items()},
                "scales": scales,
                "categories": {name: sorted(seen[name]) for name in config.categorical},
                "pickup_hour": pickup_hour,
                **encoded,
                "unseen": {"minutes": mean_minutes, "mph": mean_mph, "log_trips": 0.0},
            }
        )

    @property
    def features(self) -> list[str]:
        """Names of the features, in order."""
        hot = [
            f"{name}={value}"
            for name, values in self.state["categories"].items()
            for value in [*values, OTHER]
        ]
        return [*self.state["scales"], *hot]

    def transform(self, derived: pl.DataFrame) -> pl.DataFrame:
        """Features of derived trips, float32, in the order of `features`; rows keep theirs."""
        unseen = self.state["unseen"]
        pickup_hour = pl.col("PULocationID") * 24 + pl.col("hour")
        trips = derived.with_columns(
            pickup_hour=pickup_hour, vendor=pl.col("VendorID"), ratecode=pl.col("RatecodeID")
        )
        wanted = self.state["scales"].keys() | self.state["categories"].keys()
        for table in (self._pickup_hour, *self._zone_minutes, *self._boroughs):
            key, *columns = table.columns
            if wanted & set(columns):
                trips = trips.join(table, on=key, how="left", maintain_order="left")
        fill = {name: mean for name, (mean, _) in self.state["scales"].items()}
        for name in fill:  # A zone without training rows is like all of them together.
            unit = name.rpartition("_")[2]
            if name.endswith("_log_trips"):
                fill[name] = unseen["log_trips"]
            elif name not in derived.columns:
                fill[name] = unseen[unit]
        scaled = [
            ((pl.col(name).fill_null(fill[name]) - mean) / std).cast(pl.Float32).alias(name)
            for name, (mean, std) in self.state["scales"].items()
        ]
        hot = []
        for name, values in self.state["categories"].items():
            hot += [
                (pl.col(name) == value).fill_null(False).cast(pl.Float32).alias(f"{name}={value}")
                for value in values
            ]
            # A category that the training rows lack, or none at all, has a column of its own.
            known = pl.col(name).is_in(values).fill_null(False)
            hot.append((~known).cast(pl.Float32).alias(f"{name}={OTHER}"))
        return trips.select(*scaled, *hot)

    def to_json(self) -> bytes:
        """The whole state."""
        return json.dumps(self.state, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Preprocessor":
        """The opposite of `to_json`."""
        return cls(json.loads(content))
