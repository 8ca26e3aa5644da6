"""Features of taxi trips, as data-preprocessing makes them, for one batch of requests.

The fitted preprocessor is plain JSON in the bundle. Here it is applied with NumPy to a handful of
trips, where data-preprocessing has Polars and millions.
"""

import math
from datetime import datetime
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Of the state that this code reads."""
OTHER = "other"


class Trip(TypedDict):
    """One trip, as it is known before it begins."""

    pickup_at: datetime
    """Local time, without a zone."""
    distance_miles: float
    pickup_zone: int
    dropoff_zone: int
    passengers: float | None
    vendor: int
    ratecode: int | None


class TripFeatures:
    """Applies what data-preprocessing has fitted."""

    def __init__(self, state: dict[str, Any], names: list[str]):
        """Takes a fitted state.

        Args:
            state: The bundle's `preprocessor`.
            names: The bundle's features, in order.

        Raises:
            ValueError: If it is of another version, or has features that this code cannot make.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"preprocessor.version is {state.get('version')}, must be {VERSION}")
        self.scales: dict[str, list[float]] = state["scales"]
        self.zones: dict[str, str] = state["zones"]
        self.state = state
        self.columns = {
            f"{category}={value}": (category, value)
            for category, values in state["categories"].items()
            for value in [*values, OTHER]
        }
        made = [*self.scales, *self.columns]
        if made != names:
            raise ValueError("features: not those that the preprocessor makes")
        self.known = {name: set(values) for name, values in state["categories"].items()}

    def transform(self, trips: list[Trip]) -> NDArray[np.float32]:
        """Features, float32 [N, features], in the bundle's order."""
        rows = [self._row(trip) for trip in trips]
        return np.array(rows, np.float32).reshape(len(trips), len(self.scales) + len(self.columns))

    def _row(self, trip: Trip) -> list[float]:
        state, unseen = self.state, self.state["unseen"]
        at, pickup, dropoff = trip["pickup_at"], str(trip["pickup_zone"]), str(trip["dropoff_zone"])
        hour, weekday = at.hour, at.weekday()
        minutes, mph, log_trips = state["pickup_hour"].get(
            str(trip["pickup_zone"] * 24 + hour),
            (unseen["minutes"], unseen["mph"], unseen["log_trips"]),
        )
        values: dict[str, float | None] = {
            "trip_distance": trip["distance_miles"],
            "log_distance": math.log1p(trip["distance_miles"]),
            "passenger_count": trip["passengers"],
            "hour_sin": math.sin(2 * math.pi * hour / 24),
            "hour_cos": math.cos(2 * math.pi * hour / 24),
            "weekday_sin": math.sin(2 * math.pi * weekday / 7),
            "weekday_cos": math.cos(2 * math.pi * weekday / 7),
            "is_weekend": float(weekday >= 5),
            "pickup_minutes": state["pickup"].get(pickup, unseen["minutes"]),
            "dropoff_minutes": state["dropoff"].get(dropoff, unseen["minutes"]),
            "pickup_hour_minutes": minutes,
            "pickup_hour_mph": mph,
            "pickup_hour_log_trips": log_trips,
        }
        categories = {
            "vendor": trip["vendor"],
            "ratecode": trip["ratecode"],
            "pickup_borough": self.zones.get(pickup),
            "dropoff_borough": self.zones.get(dropoff),
        }
        scaled = []
        for name, (mean, spread) in self.scales.items():
            value = values[name]
            scaled.append(0.0 if value is None else (value - mean) / spread)
        hot = []
        for category, value in self.columns.values():
            found = categories[category]
            if value == OTHER:
                hot.append(float(found not in self.known[category]))
            else:
                hot.append(float(found == value))
        return scaled + hot
