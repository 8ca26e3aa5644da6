"""The books must balance."""

import pytest
from data_preprocessing.results import Counts, check_balance
from ray_shared.errors import JobError

COUNTS = Counts({"negative_fare": 3}, {"train": 90, "val": 5, "test": 2}, [], rows_in=100)


def test_rows_read_are_rows_written_and_quarantined():
    check_balance(COUNTS, [{"rows": 90}, {"rows": 7}], [{"rows": 3}])


@pytest.mark.parametrize(("written", "rejected"), [(96, 3), (98, 3), (97, 2), (97, 4)])
def test_lost_or_doubled_row_fails_the_job(written: int, rejected: int):
    with pytest.raises(JobError, match=f"100 rows were read, but {written} written and {rejected}"):
        check_balance(COUNTS, [{"rows": written}], [{"rows": rejected}])
