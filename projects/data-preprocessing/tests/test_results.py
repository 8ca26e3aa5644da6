"""The books must balance, and the input must be good enough."""

from dataclasses import replace

import polars as pl
import pytest
from data_preprocessing.config import Config
from data_preprocessing.quality import check_quality, check_splits
from data_preprocessing.results import Counts, check_balance
from ray_shared.config import compose
from ray_shared.errors import JobError, UserError

COUNTS = Counts({"negative_fare": 3}, {"train": 90, "val": 5, "test": 2}, [], rows_in=100)


def test_rows_read_are_rows_written_and_quarantined():
    check_balance(COUNTS, [{"rows": 90}, {"rows": 7}], [{"rows": 3}])


@pytest.mark.parametrize(("written", "rejected"), [(96, 3), (98, 3), (97, 2), (97, 4)])
def test_lost_or_doubled_row_fails_the_job(written: int, rejected: int):
    with pytest.raises(JobError, match=f"100 rows were read, but {written} written and {rejected}"):
        check_balance(COUNTS, [{"rows": written}], [{"rows": rejected}])


def configured(*overrides: str) -> Config:
    return compose(Config, "data_preprocessing.conf", [*overrides])


def test_rotten_input_is_refused_above_the_limit_only():
    check_quality(configured("quality.max_bad_fraction=0.03"), COUNTS)
    config = configured("quality.max_bad_fraction=0.02")
    expected = r"3.0% of the rows break the contract, more than quality.max_bad_fraction=0.02: neg"
    with pytest.raises(JobError, match=expected):
        check_quality(config, COUNTS)


def test_input_without_a_row_is_refused():
    with pytest.raises(UserError, match="data.path=None: there is no row in any of its files"):
        check_quality(configured(), replace(COUNTS, reasons={}, rows_in=0))


@pytest.mark.parametrize(
    ("split", "key"), [("train", "val_from"), ("val", "test_from"), ("test", "test_from")]
)
def test_split_without_a_row_is_refused_with_the_days_there_are(split: str, key: str):
    config = configured()
    days = pl.DataFrame({"kind": ["day", "day", "read"], "key": [19723, 19753, 0]})
    check_splits(config, COUNTS, days)
    counts = replace(COUNTS, splits=COUNTS.splits | {split: 0})
    expected = f"split.{key}=.*: leaves no row for {split}: the trips are of 2024-01-01 to 2024-01"
    with pytest.raises(UserError, match=expected):
        check_splits(config, counts, days)
