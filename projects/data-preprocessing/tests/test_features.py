"""Features: counted in any order, fitted on training rows only, applied alike everywhere."""

import itertools

import numpy as np
import polars as pl
import pytest
from data_preprocessing import trips
from data_preprocessing.chunks import chunk_statistics
from data_preprocessing.config import CATEGORICAL, NUMERIC, FeaturesConfig, SplitConfig
from data_preprocessing.contract import PICKUP, check
from data_preprocessing.features import LABEL, Preprocessor, add_up, count, derive
from data_preprocessing.zones import load_zones, zone_ids
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = FeaturesConfig(list(NUMERIC), list(CATEGORICAL), smoothing=20)


@pytest.fixture(scope="module")
def zones() -> dict[int, str]:
    return load_zones(None)


@pytest.fixture(scope="module")
def rows(zones: dict[int, str]) -> pl.DataFrame:
    generated = trips.generate(trips.FileSpec(0, 6000, 0.0, "parquet", 3))
    return derive(check(generated, zone_ids(zones)).drop("reason"))


def fit(rows: pl.DataFrame, zones: dict[int, str], config: FeaturesConfig = CONFIG) -> Preprocessor:
    return Preprocessor.fit(add_up([count(rows)]), zones, config)


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 6000), max_size=6), order=st.randoms())
def test_chunks_in_any_order_add_up_to_the_same_bits(
    rows: pl.DataFrame, zones: dict[int, str], cuts: list[int], order: object
):
    edges = [0, *sorted(cuts), rows.height]
    parts = [count(rows[a:b]) for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)  # type: ignore[attr-defined]
    together = add_up(parts)
    # Rounding to millionths happens row by row, so not even the last bit differs.
    assert Preprocessor.fit(together, zones, CONFIG).state == fit(rows, zones).state


def test_scaled_features_have_mean_0_and_deviation_1(rows: pl.DataFrame, zones: dict[int, str]):
    preprocessor = fit(rows, zones)
    features = preprocessor.transform(rows).select(NUMERIC)
    assert features.dtypes == [pl.Float32] * len(NUMERIC)
    means = features.mean().row(0)
    np.testing.assert_allclose(means, 0, atol=0.02)
    deviations = features.std().row(0)
    # Missing passenger counts are filled with the mean, which takes 4 % off the variance.
    np.testing.assert_allclose(deviations, 1, atol=0.03)


def test_zone_encodings_are_the_smoothed_means(rows: pl.DataFrame, zones: dict[int, str]):
    preprocessor = fit(rows, zones)
    overall = rows[LABEL].mean()
    for column, key in (("PULocationID", "pickup"), ("DOLocationID", "dropoff")):
        for (zone,), group in rows.group_by(column):
            expected = (group[LABEL].sum() + 20 * overall) / (group.height + 20)
            assert preprocessor.state[key][str(zone)] == pytest.approx(expected, rel=1e-5)
    hour = rows.filter((pl.col("PULocationID") == rows["PULocationID"][0]) & (pl.col("hour") == 18))
    key = str(rows["PULocationID"][0] * 24 + 18)
    miles = hour["trip_distance"].sum() + 20 * rows["trip_distance"].mean()
    mph = miles / (hour[LABEL].sum() + 20 * overall) * 60
    assert preprocessor.state["pickup_hour"][key][1] == pytest.approx(mph, rel=1e-5)


def test_nothing_is_learnt_from_validation_and_test_rows(rows: pl.DataFrame, zones: dict[int, str]):
    """Through the task's own split: other labels after `val_from` change no bit of the fit."""
    split = SplitConfig(val_from="2024-01-22", test_from="2024-01-27")
    late = pl.col(PICKUP) >= pl.datetime(2024, 1, 22)
    other = rows.with_columns(pl.when(late).then(999.0).otherwise(LABEL).alias(LABEL))
    other = other.with_columns(
        pl.when(late).then(1).otherwise("PULocationID").alias("PULocationID")
    )
    assert not other.equals(rows)
    nothing = rows.clear().with_columns(reason=pl.lit(""))
    states = [
        Preprocessor.fit(add_up(chunk_statistics(r, nothing, r, split)), zones, CONFIG).state
        for r in (rows, other)
    ]
    assert states[0] == states[1]
    early = rows.filter(~late)
    assert states[0] == fit(early, zones).state


def test_category_that_training_lacks_has_a_column_of_its_own(
    rows: pl.DataFrame, zones: dict[int, str]
):
    preprocessor = fit(rows.filter(pl.col("VendorID") == 1), zones)
    features = preprocessor.transform(rows)
    assert "vendor=2" not in features.columns
    other = features["vendor=other"]
    assert other.to_list() == (rows["VendorID"] != 1).cast(pl.Float32).to_list()
    assert features["ratecode=other"].sum() == rows["RatecodeID"].null_count()


def test_borough_of_a_zone_is_the_preprocessors_own(rows: pl.DataFrame, zones: dict[int, str]):
    features = Preprocessor.from_json(fit(rows, zones).to_json()).transform(rows)
    queens = [zones[zone] == "Queens" for zone in rows["PULocationID"]]
    assert features["pickup_borough=Queens"].to_list() == [float(each) for each in queens]


def test_preprocessor_of_another_version_is_refused(rows: pl.DataFrame, zones: dict[int, str]):
    state = fit(rows, zones).state | {"version": 2}
    with pytest.raises(ValueError, match="version is 2, this code reads 1"):
        Preprocessor(state)


def test_zone_that_training_lacks_is_like_all_together(rows: pl.DataFrame, zones: dict[int, str]):
    config = FeaturesConfig(["pickup_minutes"], [], smoothing=20)
    seen = rows.filter(pl.col("PULocationID") < 100)
    preprocessor = fit(seen, zones, config)
    value = preprocessor.transform(rows.filter(pl.col("PULocationID") >= 100))["pickup_minutes"]
    mean, deviation = preprocessor.state["scales"]["pickup_minutes"]
    assert value.n_unique() == 1
    assert value[0] == pytest.approx((seen[LABEL].mean() - mean) / deviation, abs=1e-4)


def test_saved_preprocessor_gives_the_same_features(rows: pl.DataFrame, zones: dict[int, str]):
    preprocessor = fit(rows, zones)
    again = Preprocessor.from_json(preprocessor.to_json())
    assert again.features == preprocessor.features == preprocessor.transform(rows).columns
    assert again.transform(rows).equals(preprocessor.transform(rows))


def test_rows_keep_their_order(rows: pl.DataFrame, zones: dict[int, str]):
    features = fit(rows, zones).transform(rows)
    one_by_one = [fit(rows, zones).transform(rows[i : i + 1]) for i in (0, 17, 5999)]
    assert pl.concat(one_by_one).equals(features[[0, 17, 5999]])


def test_median_label_is_that_of_training(rows: pl.DataFrame, zones: dict[int, str]):
    assert fit(rows, zones).state["label_median"] == pytest.approx(rows[LABEL].median(), abs=0.06)
